"""A strict Bot API server on this machine, for tests of bots: what Telegram refuses, it refuses.

Needs aiogram (gpugate's extra `telegram`), whose types check every object that it hands out.
"""

from gpugate_testing.telegram.server import TOKEN, SimulatedTelegram
from gpugate_testing.telegram.update_queue import UpdateQueue
from gpugate_testing.telegram.values import Key, Refusal, Sent

__all__ = ["TOKEN", "Key", "Refusal", "Sent", "SimulatedTelegram", "UpdateQueue"]
