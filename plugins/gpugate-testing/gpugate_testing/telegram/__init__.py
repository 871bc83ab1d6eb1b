"""A strict Bot API server on this machine, for tests of bots: what Telegram refuses, it refuses.

Needs aiogram (`pip install 'gpugate[telegram]'`), whose types check every object that it hands out.
"""

from gpugate_testing.telegram.error_replies import Refusal
from gpugate_testing.telegram.sent_messages import Key, Sent
from gpugate_testing.telegram.server import TOKEN, SimulatedTelegram
from gpugate_testing.telegram.update_queue import UpdateQueue

__all__ = ["TOKEN", "Key", "Refusal", "Sent", "SimulatedTelegram", "UpdateQueue"]
