"""The life of a serving process: listen, load in the background, drain on a signal, exit with a code that says how.

exit 0      SIGTERM or Ctrl+C: what was accepted is finished, or drain_timeout_s has passed
exit 1      the model could not be loaded, or the engine failed twice: a supervisor should restart it
128+signal  a second signal while draining: at once
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from flask import Flask

from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.engine.stats import Observer
from dalle_server.errors import DalleServerError
from dalle_server.generation import GenerationRequest
from dalle_server.pictures.saving import sweep_leftovers
from dalle_server.web import admission
from dalle_server.web.app import create_app
from dalle_server.web.http_server import HttpServer
from dalle_server.web.jobs import routes as jobs
from dalle_server.web.jobs.pump import Jobs
from dalle_server.web.logging import configure
from dalle_server.web.service import Service

WARM_UP_PROMPT = "warm-up"
LAST_WORDS_S = 2.0  # for errors to reach those who wait, when the engine is gone

LoadEngine = Callable[[Settings, Observer, Callable[[], None]], Engine]  # settings, observer, on_fatal → not started

logger = logging.getLogger(__name__)


def serve(settings: Settings, load_engine: LoadEngine) -> int:
    """Serve until a signal or a fatal fault; returns the exit code. Main thread only.

    Raises ConfigError for keys, addresses or directories that cannot be used.
    """
    print("--> Starting DALL-E Server. This might take up to two minutes.", flush=True)
    log_listener = configure(settings.log_level)
    try:
        return Process(settings, load_engine).run()
    finally:
        log_listener.stop()


class Process:
    """One server process. `stop` may be called from any thread, and from a signal handler."""

    def __init__(self, settings: Settings, load_engine: LoadEngine):
        self._settings = settings
        self._load_engine = load_engine
        self._exit_code: int | None = None  # known when the end has begun
        self._over = False
        self._lock = threading.Lock()
        self._service = Service(settings, self._load)
        self._app: Flask = create_app(settings, self._service)
        self._admission: admission.Admission = self._app.extensions[admission.EXTENSION]
        self._jobs: Jobs = self._app.extensions[jobs.EXTENSION]
        self._http = HttpServer(self._app, settings)

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGBREAK", signal.SIGINT)):
            signal.signal(number, self._on_signal)
        _warn_if_open(self._settings)
        print(f"--> Listening on http://{_shown_host(self._settings.host)}:{self._http.port}", flush=True)
        threading.Thread(target=self._load_and_tell, name="load-and-tell", daemon=True).start()
        self._http.run()
        return self._exit_code or 0

    # -- loading

    def _load(self) -> Engine:
        engine = self._load_engine(self._settings, self._service.bookkeeping, self._on_fatal)
        engine.start()
        engine.submit(GenerationRequest.of(WARM_UP_PROMPT, seed=0)).result()
        return engine

    def _load_and_tell(self) -> None:
        self._service.start_loading().join()
        if self._service.failure is not None:
            print(f"error: {self._service.failure.message}", file=sys.stderr, flush=True)
            self.stop(1)
            return
        try:
            self._jobs.start()
        except DalleServerError as error:
            print(f"error: {error.message}", file=sys.stderr, flush=True)
            self.stop(1)
            return
        model = self._service.engine.config.name if self._settings.model_dir else self._settings.model_version
        print("--> DALL-E Server is up and running!", flush=True)
        print(f"--> Model selected - DALL-E {model[:1].upper()}{model[1:]}", flush=True)
        if self._settings.save_to_disk:
            _sweep(self._settings.output_dir)

    # -- ending

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            # HttpServer.end woke the main thread, perhaps before HttpServer.run: so the code is told here too.
            raise SystemExit(self._exit_code)
        if self._exit_code is not None:
            os._exit(128 + number)
        logger.info(
            "signal %d: draining for up to %g s; a second one ends at once", number, self._settings.drain_timeout_s
        )
        self.stop(0)

    def _on_fatal(self) -> None:
        """Called by the engine: every generation has ended with its error already."""
        self.stop(1)

    def stop(self, exit_code: int) -> None:
        """Begin the end; the first caller's code counts."""
        with self._lock:
            if self._exit_code is not None:
                return
            self._exit_code = exit_code
        drain_s = self._settings.drain_timeout_s if exit_code == 0 else 0.0
        threading.Thread(target=self._end, args=(drain_s,), name="drain", daemon=True).start()

    def _end(self, drain_s: float) -> None:
        try:
            self._service.drain()
            self._jobs.feed.close()  # watchers come back after the restart, and jobs go on there
            if not self._admission.wait_until_idle(drain_s):
                logger.warning("%d requests were still open and are cancelled", self._admission.in_flight)
            self._jobs.close()
            self._service.stop()
            self._admission.wait_until_idle(LAST_WORDS_S)
            self._http.wait_until_flushed(LAST_WORDS_S)
        except Exception:
            logger.exception("could not end in order")
        self._over = True
        self._http.end()


def _sweep(output_dir: Path) -> None:
    try:
        swept = sweep_leftovers(output_dir)
    except OSError as error:
        logger.debug("output_dir was not swept: %s", error.strerror)  # not there yet, or changing meanwhile
    else:
        if swept:
            logger.info("output_dir: %d unfinished files of a killed server deleted", swept)


def _warn_if_open(settings: Settings) -> None:
    if settings.api_keys or _is_loopback(settings.host):
        return
    logger.warning(
        "no API key guards %s: whoever reaches this port may use the server; set --api_keys, or --host 127.0.0.1",
        settings.host,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown_host(host: str) -> str:
    return "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
