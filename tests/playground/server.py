"""A real server for the browser: waitress, the whole application, an engine on a runner that takes its time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import waitress
from waitress import wasyncore

from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.engine.stats import Observer
from dalle_server.models.card import ModelCard
from dalle_server.web.app import create_app
from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.pool.model import Source
from dalle_server.web.service import Service
from tests.fake_runner import FakeRunner, FakeTokenizer, fake_config
from tests.ports import free_port

GRID_SIDE = 8


def _listed(card: ModelCard) -> Source:
    def load(observer: Observer) -> Engine:
        raise AssertionError(f"{card.name} is only listed")

    return Source(load, card.name, lambda: card)


class Server:
    """Down and up again on the same port and the same data_dir, as a restart is."""

    def __init__(
        self,
        data_dir: Path,
        load: Callable[[Settings], Engine] | None = None,
        others: Mapping[str, int] | None = None,
        listed: Sequence[ModelCard] = (),
        **settings: Any,
    ):
        """`load` brings a real model; without it the pictures are squares of colour, `step_s` a token.

        `others`: models beside it, each with the side of its grid; they are loaded when they are asked for. `listed`:
        models that nobody asks for.
        """
        self._others, self._listed = others or {}, listed
        self._engines: list[Engine] = []
        self._load_engine = load or self._fake_engine
        self.port = free_port()
        self.settings = Settings(port=self.port, host="127.0.0.1", data_dir=data_dir, **settings)
        self.step_s = 0.01
        self.described: tuple[Any, ...] = ()  # the first model's name and card, where more than it is to be told
        self.features: tuple[str, ...] | None = None  # the fake runner's; None: all that it has
        self.ready = threading.Event()  # cleared: a model that is still loading
        self.ready.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        first = Source(lambda observer: self._load(), *self.described)
        self.service = Service(
            self.settings, sources=[first, *map(self._source, self._others), *map(_listed, self._listed)]
        )
        self.app = create_app(self.settings, self.service)
        self._stopping = threading.Event()
        self._sockets: dict[int, Any] = {}
        self._http = waitress.create_server(
            self.app, map=self._sockets, host="127.0.0.1", port=self.port, threads=16, channel_request_lookahead=5
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.service.start_loading()
        if self.ready.is_set():
            assert self.service.wait_until_loaded(120)
            self.app.extensions[JOBS].start()

    def _load(self) -> Engine:
        self.ready.wait()
        self.engine = self._started(self._load_engine(self.settings))
        return self.engine

    def _source(self, name: str) -> Source:
        side = self._others[name]
        runner = FakeRunner(replace(fake_config(side), name=name), step_s=self.step_s, num_slots=4)
        card = ModelCard(name=name, title=f"The {name} one", place="on_disk", size_bytes=3 * 10**9, memory_bytes=10**6)

        def load(observer: Observer) -> Engine:
            return self._started(Engine(runner, FakeTokenizer(), digest="1" * 64, max_waiting_images=8))

        return Source(load, name, lambda: card)

    def _started(self, engine: Engine) -> Engine:
        engine.start()
        self._engines.append(engine)
        return engine

    def _fake_engine(self, settings: Settings) -> Engine:
        self.runner = FakeRunner(fake_config(GRID_SIDE), step_s=self.step_s, num_slots=4)
        if self.features is not None:
            self.runner.info = replace(self.runner.info, features=self.features)
        return Engine(self.runner, FakeTokenizer(), digest="0" * 64, max_waiting_images=8)

    def stop(self) -> None:
        """As a kill would: connections cut, jobs left as they are."""
        self.ready.set()
        self.service.wait_until_loaded(30)
        self.app.extensions[JOBS].close()
        self._stopping.set()
        self._thread.join()
        for engine in self._engines:
            engine.stop()
        self._engines.clear()

    def _serve(self) -> None:
        """waitress's own loop, but one that can end: sockets are closed by the thread that waits for them."""
        while not self._stopping.is_set():
            wasyncore.loop(timeout=0.05, count=1, map=self._sockets)
        self._http.task_dispatcher.shutdown()
        for each in list(self._sockets.values()):
            each.handle_close()
        self._http.close()
