"""Where the gateway listens: `server.host` and `server.port` as sockets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence

BACKLOG = 4096

_ALL_IPV4, _ALL_IPV6 = "0.0.0.0", "::"
_NO_SUCH_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

Address = tuple[socket.AddressFamily, str]


class CannotListen(Exception):
    """An address cannot be listened on; one line that says why and what to do."""


def listening_sockets(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Return a socket that listens for each address of `hosts`; port 0 becomes the same free port for all.

    "::" serves both families. A name may stand for addresses of both; it is enough if one is of this machine.

    Raises:
        CannotListen: an address is taken, not allowed, or not of this machine.
    """
    sockets: list[socket.socket] = []
    try:
        for host in _without_covered(hosts):
            found = len(sockets)
            problem: OSError | None = None
            for family, address in _resolved(host):
                try:
                    sockets.append(_listening(family, address, port))
                except OSError as error:
                    problem = error
                    if error.errno not in _NO_SUCH_FAMILY:
                        break
                else:
                    port = sockets[-1].getsockname()[1]
            if problem is not None and (len(sockets) == found or problem.errno not in _NO_SUCH_FAMILY):
                raise CannotListen(_words(problem, host, port)) from problem
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return sockets


def _without_covered(hosts: Sequence[str]) -> Iterator[str]:
    """Leave out what another address of the list serves already; the kernel would call it taken."""
    for host in dict.fromkeys(hosts):
        is_ipv4 = host.count(".") == 3 and ":" not in host
        if host != _ALL_IPV6 and _ALL_IPV6 in hosts and (is_ipv4 or ":" in host):
            continue
        if host != _ALL_IPV4 and _ALL_IPV4 in hosts and is_ipv4:
            continue
        yield host


def _resolved(host: str) -> Iterator[Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise CannotListen(f"server.host: there is no address for {host!r}") from error
    addresses = [(family, str(address[0])) for family, _, _, _, address in found]
    yield from dict.fromkeys(addresses)


def _listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != _ALL_IPV6)
        listening.bind((address, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _words(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is already in use: stop what listens there or use another (--port)"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return f"server.host: {host} is no address of this machine"
        case errno.EACCES:
            return f"port {port} on {host} may not be used: ports below 1024 are for root"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"
