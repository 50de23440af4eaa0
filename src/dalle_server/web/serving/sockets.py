"""Listening sockets, and how many connections this system can hold."""

from __future__ import annotations

import errno
import select
import socket
import sys

from dalle_server.errors import ConfigError, DalleServerError

MOST_CONNECTIONS = 1000
WITHOUT_POLL = 400  # select() of Windows ends at 512 descriptors
OWN_FILES = 128  # descriptors for files, sockets of our own, and what libraries open
_ANY_IPV6 = "::"


def listen(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`; `::` is every interface, IPv4 too. Port 0 takes a free one, once.

    Raises DalleServerError when the address cannot be used, ConfigError when it is none.
    """
    name = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(
            f"host {host!r} is no address of this machine; 0.0.0.0 is every one, 127.0.0.1 this machine only (--host)",
            param="host",
        ) from None
    sockets: list[socket.socket] = []
    refusal: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(family, address[0], port or (sockets[0].getsockname()[1] if sockets else 0)))
        except OSError as error:  # a name may have an IPv6 address on a machine that does not speak it
            refusal = error
    if not sockets or (refusal is not None and refusal.errno in (errno.EADDRINUSE, errno.EACCES)):
        for sock in sockets:
            sock.close()
        raise DalleServerError(_why_not(refusal or OSError(), host, port)) from None
    return sockets


def shown(host: str) -> str:
    """The host as it stands in a URL that works on this machine."""
    name = host.removeprefix("[").removesuffix("]")
    return "localhost" if name in ("0.0.0.0", _ANY_IPV6) else f"[{name}]" if ":" in name else name


def connection_limit() -> int:
    """Connections that may be open at once: what the system's poll and its limit of open files allow."""
    most = MOST_CONNECTIONS if hasattr(select, "poll") else WITHOUT_POLL
    allowed = _raise_open_file_limit(most + OWN_FILES)
    return most if allowed is None else max(16, min(most, allowed - OWN_FILES))


def _bound(family: int, name: str | int, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, name != _ANY_IPV6)
        sock.bind((name, port))
    except OSError:
        sock.close()
        raise
    return sock


def _why_not(error: OSError, host: str, port: int) -> str:
    where = f"port {port} on {host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use; stop what listens there, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where} may not be used by this user; choose a port above 1023 with --port"
    return f"cannot listen on {where}: {error.strerror or error}"


def _raise_open_file_limit(wanted: int) -> int | None:
    """A connection is a descriptor, and the usual soft limit of 1024 leaves none for files. None: there is no limit."""
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
