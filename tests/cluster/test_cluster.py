"""Fronts and replicas on a real Ray cluster of this machine; engines without weights where something is to break."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ray import serve

from dalle_server.cluster.app import Spec, application
from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.cluster.streams import Streams
from dalle_server.dalle_model import DalleModel
from dalle_server.engine.engine import Engine
from dalle_server.errors import ConfigError, InvalidRequest, Overloaded
from dalle_server.generation import Cancelled, Done, Failed, GeneratedImage, Generation, Preview
from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import GenerationRequest
from tests.cluster.engines import DIGEST, SLOW, SPEC, loading
from tests.cluster.ray_here import ROOT, processes_of, ray_cluster
from tests.engine.conftest import check_order, run, same
from tests.fake_runner import FakeRunner, FakeTokenizer
from tests.web.server_process import ServerProcess
from tests.web.waits import until

pytestmark = pytest.mark.cluster
PATIENCE_S = 120.0
LOST = "lost at attempt"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


@pytest.fixture(scope="module")
def connection(address: str) -> Iterator[Connection]:
    connection = Connection(address)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def quick(connection: Connection) -> str:
    """An application of two replicas, 0.3 s a picture."""
    return deployed("quick", SPEC)


@pytest.fixture(scope="module")
def slow(connection: Connection) -> str:
    """Of one, 16 s a picture: each is cancelled before it is done."""
    return deployed("slow", SLOW, step_s=1.0)


def deployed(name: str, spec: Spec, **load: Any) -> str:
    app = f"{name}-{os.getpid()}"
    find_or_deploy(app, spec, may_deploy=True, load=loading(**load))
    return app


@pytest.fixture
def front(connection: Connection) -> Iterator[Callable[..., ClusterEngine]]:
    """front(app) → an engine that draws on the application's replicas."""
    engines: list[ClusterEngine] = []

    def make(app: str, spec: Spec = SPEC, max_waiting_images: int = 64) -> ClusterEngine:
        handle = find_or_deploy(app, spec, may_deploy=False)
        engine = ClusterEngine(connection, handle, most_slots=8, max_waiting_images=max_waiting_images)
        engines.append(engine)
        until(lambda: len(engine.replicas) == int(spec.replicas), PATIENCE_S)
        return engine

    yield make
    for engine in engines:
        engine.stop()


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


def test_the_command_draws_on_replicas_what_an_engine_of_its_own_draws(address: str, tmp_path: Path) -> None:
    nano = ("--model_version", "nano", "--replicas", "2", "--replica_resources", "CPU=1")
    with ServerProcess(tmp_path, "--cluster", address, *nano, real=True) as server:
        server.ready()
        body = {"prompt": "a red apple", "n": 3, "seed": 5, "response_format": "b64_json", "output_format": "png"}
        status, _, reply = server.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        assert status == 200, reply
        files = [base64.b64decode(each["b64_json"]) for each in json.loads(reply)["data"]]
        info: dict[str, Any] = server.get("/v1/info")[1]
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0, server.errors
    (tmp_path / "first.png").write_bytes(files[0])
    with DalleModel("nano", num_threads=1) as local:
        drawn = local.generate_images("a red apple", 3, seed=5)
        digest = local.engine.digest
    assert [pixels_of(file) for file in files] == [image.tobytes() for image in drawn]
    assert read_metadata(tmp_path / "first.png").weights_digest == digest == info["model"]["weights_digest"]
    replicas = info["models"][0]["replicas"]
    assert len({each["replica"] for each in replicas}) == 2
    assert {(each["weights"], each["runner"], each["state"]) for each in replicas} == {(digest, "compiled", "ready")}


def test_events_and_bytes_are_those_of_an_engine(quick: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(quick)
    request = GenerationRequest.of("a cat", 5, seed=3, preview_every=4, logprobs=True)
    generation = engine.submit(request)
    assert generation.text_token_count == len("a cat") + 2
    images = generation.result(PATIENCE_S)
    assert same(images, expected(request))
    assert all(image.weights == DIGEST and image.logprobs is not None for image in images)
    again = engine.submit(request)
    events = list(again.events())
    check_order([event for event in events if event is not None])
    assert {event.index for event in events if isinstance(event, Preview)} == set(range(5))
    assert (engine.config.name, engine.info.runner, engine.digest) == ("fake", "fake", DIGEST)
    stats = engine.stats()
    assert (stats.num_slots, stats.images, stats.requests["done"]) == (8, 10, 2)


def test_what_an_engine_refuses_is_refused_at_once(quick: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(quick, max_waiting_images=2)
    with pytest.raises(InvalidRequest, match="forced_tokens needs 16 ids"):
        engine.submit(GenerationRequest.of("a cat", forced_tokens=(1, 2)))
    with pytest.raises(InvalidRequest, match="num_images must be at most 10"):
        engine.submit(GenerationRequest.of("a cat", 11))
    place = engine.hold()
    with pytest.raises(Overloaded, match="room for 9 more pictures, not 10") as caught:
        engine.submit(GenerationRequest.of("a cat", 10))
    assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 1
    assert len(engine.submit(GenerationRequest.of("a cat", 10), place).result(PATIENCE_S)) == 10


def test_pictures_are_read_by_a_replica(quick: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(quick)
    image = engine.submit(GenerationRequest.of("a cat", seed=1)).result(PATIENCE_S)[0]
    assert (engine.tokenize(image.pixels[None])[0] == image.tokens).all()


def test_previews_begin_when_somebody_watches(slow: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(slow, SLOW)
    generation = engine.submit(GenerationRequest.of("a cat"))
    until(lambda: engine.replicas[0].running == 1, PATIENCE_S)
    generation.want_previews(1)
    assert next(event for event in generation.events() if isinstance(event, Preview)).index == 0
    generation.cancel()


def test_previews_that_were_wanted_while_the_part_waited_come(slow: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(slow, SLOW)
    before = []
    for count in (4, 8):
        before.append(engine.submit(GenerationRequest.of("a cat", 4)))
        until(lambda count=count: engine.replicas[0].running + engine.replicas[0].waiting == count, PATIENCE_S)  # type: ignore[misc]
    generation = engine.submit(GenerationRequest.of("a dog"))
    until(lambda: engine.stats().waiting >= 5, PATIENCE_S)
    generation.want_previews(1)
    until(lambda: not engine._watch._previews, PATIENCE_S)  # told to those who do not have the part yet
    for each in before:
        each.cancel()
    assert any(isinstance(event, Preview) for event in generation.events())


def test_a_cancel_reaches_the_replica(slow: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(slow, SLOW)
    generation = engine.submit(GenerationRequest.of("a cat", 5))  # one of them waits
    until(lambda: (engine.replicas[0].running, engine.replicas[0].waiting) == (4, 1), PATIENCE_S)
    generation.cancel("changed my mind")
    end = end_of(generation)
    assert end == Cancelled("changed my mind")
    until(lambda: (engine.replicas[0].running, engine.replicas[0].waiting) == (0, 0), 10.0)  # a picture takes 16 s
    assert engine.stats().live_requests == 0


def test_when_serve_takes_no_more_it_is_overloaded(slow: str, front: Callable[..., ClusterEngine]) -> None:
    """Serve's own bound: 8 at the replica, 5 that wait at the front."""
    engine = front(slow, SLOW)
    generations = [engine.submit(GenerationRequest.of("a cat")) for _ in range(30)]
    until(lambda: any(generation.terminal for generation in generations), PATIENCE_S)
    ended = next(generation.terminal for generation in generations if generation.terminal)
    assert isinstance(ended, Failed) and isinstance(ended.error, Overloaded) and ended.error.retry_after_s
    for generation in generations:
        generation.cancel()
    assert {type(end_of(generation)) for generation in generations} == {Failed, Cancelled}


def test_a_front_that_dies_leaves_no_work_behind(slow: str, address: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(slow, SLOW)
    until(lambda: engine.replicas[0].running == 0, PATIENCE_S)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    other = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.one_front", address, slow, "4"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
    )
    try:
        until(lambda: engine.replicas[0].running == 4, PATIENCE_S)
    finally:
        other.kill()
        other.wait()
    # A picture takes sixteen seconds; the lease is four.
    until(lambda: engine.replicas[0].running + engine.replicas[0].waiting == 0, 12.0)


def test_a_killed_replica_costs_no_picture(
    quick: str,
    front: Callable[..., ClusterEngine],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes equal, each picture told once, asked for again only where it was missing."""
    engine = front(quick)
    asked: list[str] = []
    stream = Streams._stream

    async def counted(self: Streams, assembly: Any, index: int, request: Any) -> None:
        assert assembly.parts[index].image is None
        asked.append(assembly.part_id(index))
        await stream(self, assembly, index, request)

    monkeypatch.setattr(Streams, "_stream", counted)
    requests = [GenerationRequest.of(f"cat {i}", 4, seed=i, preview_every=8) for i in range(12)]
    with caplog.at_level(logging.WARNING):
        generations = [engine.submit(request) for request in requests]
        until(lambda: engine.stats().images >= 4, PATIENCE_S)
        processes_of(quick)[0].kill()
        ends = [end_of(generation) for generation in generations]
    assert {type(end) for end in ends} == {Done}, ends
    for request, end in zip(requests, ends, strict=True):
        assert same(end.images, expected(request))
    again = [message.split(":")[0] for message in lost(caplog)]
    assert again and sorted(set(asked)) == sorted(f"{each.id}/{index}" for each in requests for index in range(4))
    assert sorted(asked) == sorted([*set(asked), *again])
    until(lambda: len(engine.replicas) == 2, PATIENCE_S)  # Serve starts another


def test_a_killed_board_costs_no_picture(quick: str, front: Callable[..., ClusterEngine]) -> None:
    """Where replicas and fronts tell of themselves: nobody is taken for dead when it is gone."""
    engine = front(quick)
    processes_of(quick, "board")[0].kill()
    generations = [engine.submit(GenerationRequest.of("a cat", 8, seed=i)) for i in range(5)]
    assert {type(end_of(generation)) for generation in generations} == {Done}
    until(lambda: bool(processes_of(quick, "board")), PATIENCE_S)
    heard_at = engine._watch.heard_at
    until(lambda: engine._watch.heard_at > heard_at and len(engine.replicas) == 2, PATIENCE_S)


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


def test_weights_are_changed_and_replicas_leave_without_a_failed_request(
    front: Callable[..., ClusterEngine], caplog: pytest.LogCaptureFixture
) -> None:
    app = deployed("rolling", SPEC)
    engine = front(app)
    changed = replace(SPEC, revision="2")
    with caplog.at_level(logging.WARNING):
        visitors = Visitors(engine)
        until(lambda: len(visitors.ends) > 1, PATIENCE_S)
        find_or_deploy(app, changed, may_deploy=True, load=loading("b" * 64))
        until(lambda: {each.weights for each in engine.replicas} == {"b" * 64}, PATIENCE_S)
        count = len(visitors.ends)
        find_or_deploy(app, replace(changed, replicas="1"), may_deploy=True, load=loading("b" * 64))
        until(lambda: len(engine.replicas) == 1 and len(visitors.ends) > count + 2, PATIENCE_S)
        weights = weights_of(visitors.leave())
    assert weights[0] == {DIGEST} and weights[-1] == {"b" * 64} and engine.digest == "b" * 64
    assert not lost(caplog), "the replicas that left had finished what they had"
    serve.delete(app)


def test_a_replica_that_would_draw_other_bytes_is_refused(front: Callable[..., ClusterEngine], tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_text("one kind of GPU")
    one = replace(SPEC, replicas="1")
    app = deployed("mixed", one, device_file=str(device))
    engine = front(app, one)
    device.write_text("another")
    two = application(replace(one, replicas="2"), loading(device_file=str(device)))
    threading.Thread(target=lambda: _run_and_forget(two, app), daemon=True).start()

    def refused() -> bool:
        messages = [each.message for each in serve.status().applications[app].deployments.values()]
        return any("would draw other bytes" in message for message in messages)

    until(refused, PATIENCE_S)
    assert len(engine.submit(GenerationRequest.of("a cat", 3)).result(PATIENCE_S)) == 3
    assert [each.device_name for each in engine.replicas] == ["one kind of GPU"]
    serve.delete(app)


def _run_and_forget(target: serve.Application, app: str) -> None:
    try:
        serve.run(target, name=app, route_prefix=None)
    except Exception:
        logging.getLogger(__name__).info("it was not to succeed")


def test_a_front_that_has_left_can_join_again(address: str, quick: str) -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    again = subprocess.run(
        [sys.executable, "-m", "tests.cluster.one_front", address, quick, "1", "1"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        timeout=PATIENCE_S,
    )
    assert again.returncode == 0


def test_nothing_to_join_is_said_in_a_line(connection: Connection, quick: str) -> None:
    with pytest.raises(ConfigError, match="no application 'nowhere' runs"):
        find_or_deploy("nowhere", SPEC, may_deploy=False)
