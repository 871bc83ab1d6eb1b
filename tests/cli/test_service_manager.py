"""What a service manager is told, and when nothing is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpugate.cli.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        yield receiver


async def test_ready_and_stopping(manager: socket.socket) -> None:
    """One datagram each; the variables are gone, so that no child process reports."""
    env = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "60000000", "HOME": "/"}
    told = ServiceManager(env)
    told.ready()
    assert b"READY=1" == manager.recv(99)
    told.stopping()
    assert b"STOPPING=1" == manager.recv(99)
    told.close()
    assert {"HOME": "/"} == env


async def test_an_abstract_socket() -> None:
    """systemd may use one: its name begins with an at sign."""
    name = f"gpugate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(5)
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert b"READY=1" == receiver.recv(99)


async def test_a_watchdog_of_another_process(manager: socket.socket) -> None:
    """WATCHDOG_PID says for which process the variables are."""
    env = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    told = ServiceManager(env)
    told.ready()
    told.stopping()
    assert [b"READY=1", b"STOPPING=1"] == [manager.recv(99), manager.recv(99)]


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "soon"}])
async def test_without_a_manager(env: dict[str, str]) -> None:
    """Nothing is sent, and nothing fails."""
    told = ServiceManager(env)
    told.ready()
    told.stopping()
    told.close()
    assert {} == env
