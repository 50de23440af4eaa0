"""What the tests of a cluster do again and again."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from dalle_server.cluster.app import Spec
from dalle_server.cluster.connection import find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.engine.engine import Engine
from dalle_server.generation import Done, GeneratedImage, Generation
from dalle_server.request import GenerationRequest
from tests.cluster.engines import loading
from tests.engine.conftest import run
from tests.fake_runner import FakeRunner, FakeTokenizer

PATIENCE_S = 120.0
LOST = "lost at attempt"


def deployed(name: str, spec: Spec, **load: Any) -> str:
    app = f"{name}-{os.getpid()}"
    find_or_deploy(app, spec, may_deploy=True, load=loading(**load))
    return app


def expected(request: GenerationRequest) -> tuple[GeneratedImage, ...]:
    """What an engine of this process draws."""
    engine = Engine(FakeRunner(), FakeTokenizer())
    generation = engine.submit(request)
    run(engine)
    engine.stop()
    return generation.result()


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if LOST in record.getMessage()]


def end_of(generation: Generation) -> Any:
    for _ in generation.events():
        pass
    assert generation.terminal is not None
    return generation.terminal


def pixels_of(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


class Visitors:
    """Who keeps asking, until `leave`; `ends` are what each got."""

    def __init__(self, engine: ClusterEngine):
        self.ends: list[Any] = []
        self._engine, self._is_over = engine, threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            generation = self._engine.submit(GenerationRequest.of("a cat", 3, seed=len(self.ends)))
            self.ends.append(end_of(generation))

    def leave(self) -> list[Any]:
        self._is_over.set()
        self._thread.join(PATIENCE_S)
        return self.ends


def weights_of(ends: Sequence[Any]) -> list[set[str]]:
    assert {type(end) for end in ends} == {Done}, ends
    return [{image.weights for image in end.images} for end in ends]
