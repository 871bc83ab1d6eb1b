"""`server.host` as sockets: both families, lists, and what is said of an address that cannot be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from gpugate.proxy import addresses
from gpugate.proxy.addresses import CannotListen, listening_sockets

Listen = Callable[..., list[socket.socket]]


@pytest.fixture
def listen() -> Iterator[Listen]:
    opened: list[socket.socket] = []

    def listen(*hosts: str, port: int = 0) -> list[socket.socket]:
        opened.extend(found := listening_sockets(hosts, port))
        return found

    yield listen
    for one in opened:
        one.close()


def can_connect(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("hosts", "served"),
    [
        (("127.0.0.1",), (True, False, False)),
        (("::1",), (False, False, True)),
        (("0.0.0.0",), (True, True, False)),
        (("::",), (True, True, True)),
        (("127.0.0.1", "::1"), (True, False, True)),
        (("127.0.0.1", "::", "::1", "0.0.0.0"), (True, True, True)),
        (("127.0.0.2", "0.0.0.0", "0.0.0.0"), (True, True, False)),
    ],
)
def test_which_addresses_are_served(listen, hosts, served):
    """All of a list, on one port; "::" stands for both families, and what is covered does no harm."""
    here = listen(*hosts)
    (port,) = {one.getsockname()[1] for one in here}
    assert served == tuple(can_connect(address, port) for address in ("127.0.0.1", "127.0.0.2", "::1"))


def test_taken_port(listen):
    """Is told, and not shared; the sockets of the others are closed."""
    port = listen("127.0.0.2")[0].getsockname()[1]
    with pytest.raises(CannotListen, match=f"port {port} on 127.0.0.2 is already in use"):
        listen("127.0.0.1", "127.0.0.2", port=port)
    listen("127.0.0.1", port=port)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "server.host: 192.0.2.1 is no address of this machine"),
        ("no such name", "server.host: there is no address for 'no such name'"),
        ("a" * 64 + ".example", "there is no address for"),
    ],
)
def test_no_such_address(listen, host, said):
    """Is told, with the key."""
    with pytest.raises(CannotListen, match=said):
        listen(host)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "ports below 1024 are for root"),
        (errno.EMFILE, "cannot listen on 127.0.0.1 port 80: x"),
    ],
)
def test_other_reasons(listen, monkeypatch, number, said):
    """Each is one line."""

    def refuse(*_: object) -> socket.socket:
        raise OSError(number, "x")

    monkeypatch.setattr(addresses.socket, "socket", refuse)
    with pytest.raises(CannotListen, match=said):
        listen("127.0.0.1", port=80)


def test_a_machine_without_ipv6(listen, monkeypatch):
    """A name for both families is served in the one that is there."""
    real = socket.socket

    def only_ipv4(family: socket.AddressFamily, kind: int) -> socket.socket:
        if family is socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "x")
        return real(family, kind)

    monkeypatch.setattr(addresses.socket, "socket", only_ipv4)
    assert ["127.0.0.1"] == [one.getsockname()[0] for one in listen("localhost")]
    with pytest.raises(CannotListen, match=r"server\.host: :: is no address of this machine"):
        listen("::")
