"""A strict Bot API server on this machine, for tests of bots: what Telegram refuses, it refuses.

Needs aiogram (`pip install 'gpugate[telegram]'`), whose types check every object that it hands out.
"""

from gpugate.testing.telegram.post import Post
from gpugate.testing.telegram.refusal import Refusal
from gpugate.testing.telegram.sent import Key, Sent
from gpugate.testing.telegram.server import TOKEN, SimulatedTelegram

__all__ = ["TOKEN", "Key", "Post", "Refusal", "Sent", "SimulatedTelegram"]
