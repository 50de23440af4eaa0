"""waitress, set up so that health checks answer under any load, and so that it can be ended without cutting answers."""

from __future__ import annotations

import _thread
import select
import signal
import threading
import time
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel

from dalle_server.config import Settings
from dalle_server.web.serving.admission import SPARE_THREADS, max_in_flight
from dalle_server.web.serving.connections import Book, Server
from dalle_server.web.serving.gate import Gate
from dalle_server.web.serving.sockets import connection_limit, listen
from dalle_server.web.serving.workers import Workers

_POLL_S = 0.02
HURRY_S = 2.0  # for a reader to take the next bytes, while the server wants to end


class HttpServer:
    """Listens once made; `run` serves in the calling (main) thread until `end` is called from another.

    Raises DalleServerError when the address cannot be used, ConfigError when it is none.
    """

    def __init__(self, app: Flask, settings: Settings):
        most = connection_limit()
        self._map: dict[int, Any] = {}
        self._ended = threading.Event()
        self._use_poll = hasattr(select, "poll")
        adj = Adjustments(
            listen="",  # the sockets are ours: waitress need not look up an address of its own
            threads=1,  # `Workers` has its own number
            channel_request_lookahead=5,  # keeps a waiting channel readable: that is how a client's leaving is seen
            connection_limit=2 * most,  # `Book` keeps to the limit, and never stops to accept
            channel_timeout=30,
            cleanup_interval=1,
            recv_bytes=64 * 1024,
            asyncore_use_poll=self._use_poll,
            max_request_body_size=max(settings.max_upload_bytes, settings.max_json_bytes) + 1,
            max_request_header_size=32 * 1024,
            clear_untrusted_proxy_headers=False,  # `Forwarded` sees to them
            ident="dalle-server",
        )
        gate, book = Gate(app), Book(most, most // 2)
        sockets = listen(settings.host, settings.port)
        self._gate, self._workers = gate, Workers(max_in_flight(settings) + SPARE_THREADS)
        self.listeners = [Server(gate, book, sock, self._workers, adj, self._map) for sock in sockets]
        self.port = int(self.listeners[0].effective_port)

    def run(self) -> None:
        poll = wasyncore.poll2 if self._use_poll else wasyncore.poll
        try:
            while self._map:
                num_judged = self._gate.num_judged
                poll(0.0 if self._workers.is_holding else 1.0, self._map)
                self._gate.log()
                self._workers.release(is_quiet=self._gate.num_judged == num_judged)
        except SystemExit:
            pass  # from `on_interrupt`; the daemon threads of waitress end with the process
        finally:
            self._ended.set()

    def wait_until_flushed(self, timeout_s: float) -> bool:
        """True when no connection has a request being answered, or bytes not yet handed to the network."""
        end = time.monotonic() + timeout_s
        while any(channel.requests or channel.total_outbufs_len for channel in self._channels()):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        return True

    def hurry(self) -> None:
        """The end is near: who does not read its answer is not waited for long."""
        for server in self.listeners:
            server.stall_s = HURRY_S

    def end(self) -> None:
        """Make `run` return. Any thread; the process must have `on_interrupt` as its handler of SIGTERM."""
        while not self._ended.is_set():
            _thread.interrupt_main(signal.SIGTERM)
            for server in self.listeners:
                server.pull_trigger()
            self._ended.wait(0.2)

    def _channels(self) -> list[HTTPChannel]:
        return [item for item in list(self._map.values()) if isinstance(item, HTTPChannel)]
