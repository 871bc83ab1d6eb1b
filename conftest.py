"""What holds for all tests, those of the plugins and examples included."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack

import pytest
import structlog

for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    # A shell's background job and `nohup` start with ignored signals, which a test's processes would inherit.
    # A signal with a handler has no effect here either, and is back at its default in those processes.
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect what a failed test has left open, so that its warnings do not fail another test."""
    failed = item.session.testsfailed
    outcome = yield
    if item.session.testsfailed > failed:
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):  # they hold the test's frames
            vars(sys).pop(name, None)
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings(action="ignore"):
                gc.collect()
        finally:
            sys.unraisablehook = hook
    return outcome


@pytest.fixture(autouse=True)
def no_state_dir_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway sets this variable for its providers: it is taken back at the end of a test."""
    monkeypatch.delenv("GPUGATE_STATE_DIR", raising=False)


@pytest.fixture(autouse=True)
def log_configuration_is_restored() -> Iterator[None]:
    """A gateway configures the log of the process: its level and handlers must not outlast the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def unused_tcp_port_factory() -> Iterator[Callable[[], int]]:
    """Makes ports that nothing listens on, and that nobody else is given while the test runs.

    Each is kept by a bound socket that does not listen: connections are refused, and a server that asks for
    this very port gets it, as servers set SO_REUSEADDR.
    """
    with ExitStack() as stack:

        def reserve() -> int:
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            return int(holder.getsockname()[1])

        yield reserve


@pytest.fixture
def unused_tcp_port(unused_tcp_port_factory: Callable[[], int]) -> int:
    """One such port."""
    return unused_tcp_port_factory()
