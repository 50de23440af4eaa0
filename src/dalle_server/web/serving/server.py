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
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from flask import Flask

from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.engine.stats import Observer
from dalle_server.errors import ConfigError, DalleServerError
from dalle_server.pictures.saving import sweep_leftovers
from dalle_server.request import GenerationRequest
from dalle_server.web.app import create_app
from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.pump import Jobs
from dalle_server.web.logging import configure
from dalle_server.web.pool.model import ServingEngine
from dalle_server.web.pool.sources import Describe, sources
from dalle_server.web.service import Service
from dalle_server.web.serving import admission
from dalle_server.web.serving.directories import prepare
from dalle_server.web.serving.http_server import HttpServer
from dalle_server.web.serving.sockets import shown
from dalle_server.web.serving.terminal import Terminal, hold_standard_streams
from dalle_server.web.serving.workers import translated

WARM_UP_PROMPT = "warm-up"
ENDING_S = 5.0  # to close everything, after the drain
SWITCH_S = 0.001  # of the interpreter between threads: 0.005 is long for the one that serves all connections
LAST_WORDS_S = 2.0  # for errors to reach those who wait, when the engine is gone

# Settings, observer, on_fatal → an engine that is not started.
LoadEngine = Callable[[Settings, Observer, Callable[[], None]], ServingEngine]

logger = logging.getLogger(__name__)


def serve(settings: Settings, load_engine: LoadEngine, describe: Describe | None = None) -> int:
    """Serve until a signal or a fatal fault; returns the exit code. Main thread only.

    `describe` tells of a model before it is loaded.
    Raises ConfigError for keys, addresses, models or directories that cannot be used, DalleServerError where the
    system gives no port or threads.
    """
    hold_standard_streams()
    sys.setswitchinterval(SWITCH_S)
    terminal = Terminal()
    try:
        terminal.start()
        terminal.say("--> Starting DALL-E Server. This might take up to two minutes.")
        configure(settings.log_level, terminal)
        return Process(settings, load_engine, describe, terminal).run()
    except RuntimeError as error:
        raise translated(error) from None
    finally:
        terminal.close()


class Process:
    """One server process. `stop` may be called from any thread, and from a signal handler."""

    def __init__(self, settings: Settings, load_engine: LoadEngine, describe: Describe | None, terminal: Terminal):
        self._settings = settings
        self._terminal = terminal
        self._load_engine = load_engine
        self._exit_code: int | None = None  # known when the end has begun
        self._over = False
        self._lock = threading.Lock()
        prepare(settings)
        self._service = Service(settings, sources=sources(settings, self._load, describe))
        self._app: Flask = create_app(settings, self._service)
        self._admission: admission.Admission = self._app.extensions[admission.EXTENSION]
        self._jobs: Jobs = self._app.extensions[JOBS]
        self._http = HttpServer(self._app, settings)

    def run(self) -> int:
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK"):  # the last two: not on every system
            number = getattr(signal, name, None)
            if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):  # nohup
                signal.signal(number, self._on_signal)
        _warn_if_open(self._settings)
        self._jobs.start()  # a data_dir that can never work is told before anything is loaded
        self._terminal.say(f"--> Listening on http://{shown(self._settings.host)}:{self._http.port}")
        threading.Thread(target=self._load_and_tell, name="load-and-tell", daemon=True).start()
        self._http.run()
        return self._exit_code or 0

    # -- loading

    def _load(self, settings: Settings, observer: Observer) -> ServingEngine:
        engine = self._load_engine(settings, observer, lambda: self._on_fatal(engine))
        warm_up(engine)
        return engine

    def _load_and_tell(self) -> None:
        try:
            self._service.start_loading()
            self._service.wait_until_loaded()
            if self._service.failure is not None:
                raise self._service.failure
        except (DalleServerError, RuntimeError) as error:
            known = translated(error)
            self._terminal.complain(f"error: {known.message}")
            self.stop(2 if isinstance(known, ConfigError) else 1)
            return
        model, *others = (each.name for each in self._service.pool.models)
        if not self._settings.models and self._settings.model_dir is None:
            model = self._settings.model_version
        self._terminal.say("--> DALL-E Server is up and running!")
        self._terminal.say(f"--> Model selected - DALL-E {model[:1].upper()}{model[1:]}")
        if others:
            self._terminal.say(f"--> Loaded when asked for: {', '.join(others)}")
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

    def _on_fatal(self, engine: ServingEngine) -> None:
        """Called by the engine: every generation has ended with its error already. The process goes on with its other
        models, where nothing of this one is left behind: no call that never returned, no state of a device.
        """
        is_alone = isinstance(engine, Engine) and not engine.is_stuck and engine.info.device == "cpu"
        if not (is_alone and self._service.pool.give_up(engine)):
            self.stop(1)

    def stop(self, exit_code: int) -> None:
        """Begin the end; the first caller's code counts."""
        with self._lock:
            if self._exit_code is not None:
                return
            self._exit_code = exit_code
        drain_s = self._settings.drain_timeout_s if exit_code == 0 else 0.0
        try:
            threading.Thread(target=self._end_at_last, args=(drain_s + ENDING_S,), name="last", daemon=True).start()
            threading.Thread(target=self._end, args=(drain_s,), name="drain", daemon=True).start()
        except RuntimeError:
            os._exit(exit_code or 1)  # no threads left, and so no order either

    def _end_at_last(self, seconds: float) -> None:
        """Whatever a request, a disk or a library does meanwhile."""
        time.sleep(seconds)
        logger.error("could not end in order within %g s", seconds)
        self._terminal.close()
        os._exit(self._exit_code or 0)

    def _end(self, drain_s: float) -> None:
        try:
            self._service.drain()
            self._http.hurry()
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


def warm_up(engine: ServingEngine) -> None:
    """Start it and draw a first picture. Raises what that fails with; the engine is stopped then."""
    try:
        engine.start()
        engine.submit(GenerationRequest.of(WARM_UP_PROMPT, seed=0)).result()
    except BaseException:
        engine.stop()  # it would keep its weights and threads, beside those of the next try
        raise


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
