"""The application on a real socket, on the real engine with a runner without weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask

from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.web.app import create_app
from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.service import Service
from dalle_server.web.serving.http_server import HttpServer
from tests.fake_runner import FakeRunner, FakeTokenizer


@dataclass
class Live:
    url: str
    engine: Engine
    runner: FakeRunner


@contextmanager
def live(data_dir: Path, runner: FakeRunner | None = None, **settings_kw: Any) -> Iterator[Live]:
    """A server on a free port of this machine alone, until the block ends."""
    settings = Settings(data_dir=data_dir, output_dir=data_dir / "out", **settings_kw)
    runner = runner or FakeRunner()
    engine = Engine(
        runner, FakeTokenizer(), digest="d" * 64, max_waiting_images=settings.max_waiting_images, progress_every_s=0.01
    )
    engine.start()
    service = Service(settings, load=lambda: engine)
    service.start_loading()
    assert service.wait_until_loaded(30)
    app = create_app(settings, service)
    try:
        with listening(app, settings) as url:
            yield Live(url, engine, runner)
    finally:
        engine.stop()


@contextmanager
def listening(app: Flask, settings: Settings | None = None) -> Iterator[str]:
    """The application's address on this machine. Its jobs are closed at the end; its engine is the caller's."""
    with serving(app, settings or Settings()) as server:
        yield f"http://127.0.0.1:{server.port}"


@contextmanager
def serving(app: Flask, settings: Settings) -> Iterator[HttpServer]:
    """The server's own HTTP server, in a thread, on a free port of this machine alone."""
    server = HttpServer(app, settings.model_copy(update={"host": "127.0.0.1", "port": 0}))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        app.extensions[JOBS].close()
        (listener,) = server.listeners
        listener.task_dispatcher.shutdown()

        def close() -> None:  # in the loop's own thread, which ends when nothing is open any more
            listener.close()
            for channel in list(listener.active_channels.values()):
                channel.handle_close()

        listener.trigger.pull_trigger(close)
        thread.join(30)
        assert not thread.is_alive()
