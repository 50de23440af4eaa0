"""Connections to clients: waitress's, with what an open network asks of them besides.

- A body is kept only when the gate lets its headers pass; what is refused is answered, and read to its end unkept, so
  that a client which sends first and reads later gets the answer and no reset.
- A reader that takes nothing is let go, and so is a sender whose headers never end.
- One address cannot hold every connection: its idle ones make room for new ones.
- A client that has closed its sending half (`nc -N`) still waits for its answer; one that left is noticed.
"""

from __future__ import annotations

import functools
import logging
import select
import socket
import threading
import time
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import WSGITask
from waitress.utilities import BadRequest

from dalle_server.web.access.security import REFUSAL
from dalle_server.web.serving.admission import ENTERS
from dalle_server.web.serving.error_task import RefusalTask
from dalle_server.web.serving.gate import Gate
from dalle_server.web.serving.incoming import Request
from dalle_server.web.serving.workers import Workers
from dalle_server.web.waiting import HALF_CLOSED

HEADERS_S = 30.0  # for a request's headers to be complete
STALL_S = 10.0  # for a reader to take the next bytes
LINGER_S = 10.0  # for a refused body to end
LINGER_BYTES = 64 * 1024**2
MOST_AT_ONCE = 512  # connections let in in one turn
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"  # the one interim answer that every client knows to pass over

logger = logging.getLogger(__name__)


class Task(WSGITask):  # type: ignore[misc]
    """A request that goes to the application, perhaps with a refusal that only wants the application's words."""

    def execute(self) -> None:
        if self.request.is_cut or self.channel.is_half_closed:
            self.set_close_on_finish()
        super().execute()

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        if self.request.verdict.refusal is not None:
            environ[REFUSAL] = self.request.verdict.refusal
        elif self.request.verdict.enters:
            environ[ENTERS] = True
        environ[HALF_CLOSED] = lambda: self.channel.is_half_closed
        return environ


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. Its methods run in the thread that serves all of them, but for `service` and `write_soon`."""

    task_class = Task
    error_task_class = RefusalTask
    close_when_flushed: bool

    def __init__(self, server: Server, sock: socket.socket, addr: Any, adj: Adjustments, map: dict[int, Any]):
        self.num_served = 0
        self._taken_at = time.time()  # when the client last took bytes, or had none to take
        self._is_answering = False  # bytes of the current answer are on their way
        self.is_half_closed = False
        self._lingers = False
        self._ends = False  # with the answer to what was refused, whose body may still be coming
        self._answers_at_once = False
        self._lingers_until: float | None = None
        self._lingered_bytes = 0
        super().__init__(server, sock, addr, adj, map=map)
        self.parser_class = functools.partial(Request, channel=self)

    @property
    def is_idle(self) -> bool:
        """Nothing is being done for its client."""
        return not self.requests

    def readable(self) -> bool:
        if self._lingers_until is not None:
            return True
        return not self.is_half_closed and bool(super().readable())

    def handle_read(self) -> None:
        try:
            data = self.socket.recv(self.adj.recv_bytes)
        except BlockingIOError:
            return
        except OSError:
            self.handle_close()
            return
        if not data:
            self._at_end()
        elif self._lingers_until is not None:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > LINGER_BYTES:
                self.handle_close()
        else:
            self.last_activity = time.time()
            self.received(data)
            while self._answers_at_once:
                self._answers_at_once = False
                self.service()
                self.handle_write()  # and not a turn of all connections later

    def received(self, data: bytes) -> bool:
        if not self._ends:
            super().received(data)
            self._ends = any(request.ends_connection for request in self.requests)
            self._lingers = any(request.ends_connection and not request.has_come for request in self.requests)
        return True

    def answer_at_once(self) -> None:
        """A refusal costs less than handing it to another thread: `handle_read` says it when its locks are free."""
        self._answers_at_once = True

    def service(self) -> None:
        self._is_answering = False
        request = self.requests[0]
        if request.is_told_at_once and request.error is None:
            request.error = BadRequest("")  # this makes it a RefusalTask, which has the refusal's own words
        super().service()
        self.num_served += 1

    def write_soon(self, data: Any) -> int:
        self._is_answering = True
        written: int = super().write_soon(data)
        return written

    def send(self, data: bytes, do_close: bool = True) -> int:
        sent: int = super().send(data, do_close)
        if sent:
            self._taken_at = time.time()
        return sent

    # -- ends

    def handle_write(self) -> None:
        lingers = self.close_when_flushed and self._lingers and not self.will_close
        if lingers:
            self.close_when_flushed = False
        super().handle_write()
        if lingers and self.connected:
            if self.total_outbufs_len:
                self.close_when_flushed = True
            else:
                self._linger()

    def _linger(self) -> None:
        """Everything is said. Closing now would reset a client that still sends, and it would not hear the answer."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()
        else:
            self._lingers_until = time.time() + LINGER_S

    def _at_end(self) -> None:
        """The client will send no more. If it left, the network says so as soon as it is told something."""
        is_told = bool(self.requests and self._is_answering) or self.total_outbufs_len > 0
        waits = is_told or (self.requests and self.requests[0].version == "1.1")
        if not waits or not hasattr(select, "poll"):
            self.handle_close()
            return
        self.is_half_closed = True
        if is_told:
            return
        with self.outbuf_lock:
            if not self._is_answering:
                try:
                    self.socket.send(_PROBE)
                except OSError:
                    self.handle_close()

    def check_client_disconnected(self) -> bool:
        return not self.connected or (self.is_half_closed and self._is_gone())

    def _is_gone(self) -> bool:
        poll = select.poll()
        try:
            poll.register(self.socket, 0)  # errors and hang-ups are told unasked
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def is_over(self, now: float, stall_s: float) -> bool:
        """Asked every second: whether its client has had its time."""
        if self._lingers_until is not None:
            return now > self._lingers_until
        if not self.total_outbufs_len:
            self._taken_at = now
        elif now - self._taken_at > stall_s:
            logger.info("%s takes nothing of its answer and is let go", self.addr[0])
            return True
        if self.requests:
            return False
        if self.is_half_closed and not self.total_outbufs_len:
            return True
        if self.request is not None and not self.request.headers_finished and now - self.request.begun > HEADERS_S:
            return True
        return bool(now - self.last_activity > self.adj.channel_timeout)

    def del_channel(self, map: dict[int, Any] | None = None) -> None:
        super().del_channel(map)
        self.server.book.remove(self)


class Book:
    """Open connections by address. Used by one thread."""

    def __init__(self, most: int, most_per_address: int):
        self._most, self._most_per_address = most, most_per_address
        self._by_address: dict[str, dict[Channel, None]] = {}
        self._num = 0

    def make_room(self, address: str, *, is_proxy: bool) -> bool:
        """Whether there is room for one more of this address; idle connections end for it, unused ones first."""
        own = self._by_address.get(address, {})
        if len(own) >= self._most_per_address and not is_proxy:
            return self._end_one_of(own)
        if self._num >= self._most:
            return self._end_one_of(max(self._by_address.values(), key=len)) or self._end_one_of(own)
        return True

    def _end_one_of(self, channels: dict[Channel, None]) -> bool:
        idle = [channel for channel in channels if channel.is_idle]
        if not idle:
            return False
        min(idle, key=lambda channel: (channel.num_served > 0, channel.creation_time)).handle_close()
        return True

    def add(self, channel: Channel) -> None:
        self._by_address.setdefault(channel.addr[0], {})[channel] = None
        self._num += 1

    def remove(self, channel: Channel) -> None:
        own = self._by_address.get(channel.addr[0], {})
        if channel in own:
            del own[channel]
            self._num -= 1
            if not own:
                del self._by_address[channel.addr[0]]


class Server(TcpWSGIServer):  # type: ignore[misc]
    """A listening socket."""

    def __init__(
        self, gate: Gate, book: Book, sock: socket.socket, workers: Workers, adj: Adjustments, map: dict[int, Any]
    ):
        self.gate, self.book = gate, book
        self.stall_s = STALL_S
        self._thread = 0  # that serves all connections
        sockinfo = (sock.family, sock.type, sock.proto, sock.getsockname())
        super().__init__(gate.app, map, True, sock, dispatcher=workers, adj=adj, sockinfo=sockinfo, bind_socket=False)

    def fix_addr(self, addr: Any) -> Any:
        """An IPv4 client of a socket for both families is known by its own address."""
        return (addr[0].removeprefix("::ffff:").partition("%")[0], *addr[1:])

    def handle_accept(self) -> None:
        """Everybody who waits is let in, and what came along is read: a turn each would make the last of many wait."""
        self._thread = threading.get_ident()
        for _ in range(MOST_AT_ONCE):
            try:
                accepted = self.accept()
            except OSError as error:  # no descriptors left, or the client is gone already
                logger.warning("a connection could not be taken: %s", error.strerror)
                return
            if accepted is None:
                return
            sock, addr = accepted
            self.set_socket_options(sock)
            self._let_in(sock, self.fix_addr(addr))

    def _let_in(self, sock: socket.socket, addr: Any) -> None:
        if not self.book.make_room(addr[0], is_proxy=self.gate.is_proxy(addr[0])):
            logger.warning("%s has too many connections in use; one more is refused", addr[0])
            sock.close()
            return
        channel = Channel(self, sock, addr, self.adj, self._map)
        self.book.add(channel)
        wasyncore.read(channel)

    def add_task(self, channel: Channel) -> None:
        """Called when a request is complete: by its channel, in this thread, or by the task before it, in another.

        This thread holds what it finds until it has read everybody: a worker would take the interpreter from it at
        every system call, and those who need only a word would wait for those who need much.
        """
        verdict = channel.requests[0].verdict
        if threading.get_ident() != self._thread or verdict.is_vital:
            self.task_dispatcher.add_task(channel)
        elif channel.requests[0].is_told_at_once:
            channel.answer_at_once()
        else:
            self.task_dispatcher.hold(channel)

    def pull_trigger(self) -> None:
        """Wakes the thread that serves all connections, unless it is this one."""
        if threading.get_ident() != self._thread:
            super().pull_trigger()

    def maintenance(self, now: float) -> None:
        """Every second. Closes at once: waitress would wait until a deaf client's socket can be written."""
        for channel in list(self.active_channels.values()):
            if channel.is_over(now, self.stall_s):
                channel.handle_close()
