"""waitress, set up so that health checks answer under any load, and so that it can be ended without cutting answers."""

from __future__ import annotations

import _thread
import errno
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer

from dalle_server.config import Settings
from dalle_server.errors import ConfigError, DalleServerError
from dalle_server.web.admission import SPARE_THREADS, max_in_flight
from dalle_server.web.error_task import JsonErrorChannel

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CONNECTION_LIMIT = 1000
_POLL_S = 0.02


class HttpServer:
    """Listens once made; `run` serves in the calling (main) thread until `end` is called from another.

    Raises DalleServerError when the address cannot be used, ConfigError when it is none.
    """

    def __init__(self, app: WSGIApplication, settings: Settings):
        _raise_open_file_limit(CONNECTION_LIMIT + 256)
        self._map: dict[int, Any] = {}
        self._ended = threading.Event()
        self._use_poll = hasattr(select, "poll")  # select() ends at 1024 descriptors; Windows has only that
        try:
            server = create_server(
                app,
                map=self._map,
                host=settings.host,
                port=settings.port,
                threads=max_in_flight(settings) + SPARE_THREADS,
                channel_request_lookahead=5,  # keeps a waiting channel readable: that is how a client's leaving is seen
                connection_limit=CONNECTION_LIMIT,
                channel_timeout=30,
                cleanup_interval=10,
                asyncore_use_poll=self._use_poll,
                max_request_body_size=max(settings.max_upload_bytes, settings.max_json_bytes),
                max_request_header_size=32 * 1024,
                ident="dalle-server",
            )
        except OSError as error:
            raise DalleServerError(_why_not(error, settings)) from None
        except ValueError:  # waitress's word for a name that cannot be looked up
            raise ConfigError(
                f"host {settings.host!r} is no address of this machine; 0.0.0.0 is every one, 127.0.0.1 this machine "
                "only (--host)",
                param="host",
            ) from None
        for item in self._map.values():
            if isinstance(item, BaseWSGIServer):
                item.channel_class = JsonErrorChannel
        listening = server if isinstance(server, BaseWSGIServer) else None
        self.port = int(listening.effective_port if listening else server.effective_listen[0][1])

    def run(self) -> None:
        try:
            wasyncore.loop(timeout=1.0, map=self._map, use_poll=self._use_poll)
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

    def end(self) -> None:
        """Make `run` return. Any thread; the process must have `on_interrupt` as its handler of SIGTERM."""
        while not self._ended.is_set():
            _thread.interrupt_main(signal.SIGTERM)
            for item in list(self._map.values()):
                if isinstance(item, BaseWSGIServer):
                    item.pull_trigger()
            self._ended.wait(0.2)

    def _channels(self) -> list[HTTPChannel]:
        return [item for item in list(self._map.values()) if isinstance(item, HTTPChannel)]


def _why_not(error: OSError, settings: Settings) -> str:
    where = f"port {settings.port} on {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use; stop what listens there, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where} may not be used by this user; choose a port above 1023 with --port"
    return f"cannot listen on {where}: {error.strerror or error}"


def _raise_open_file_limit(wanted: int) -> None:
    """A connection is a descriptor, and the usual soft limit of 1024 leaves none for files. POSIX only."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
