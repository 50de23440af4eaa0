"""Fronts and replicas on a real Ray cluster of this machine: what is drawn, watched, cancelled and refused."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.dalle_model import DalleModel
from dalle_server.errors import ConfigError, InvalidRequest, Overloaded
from dalle_server.generation import Cancelled, Failed, Preview
from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import GenerationRequest
from tests.cluster.engines import DIGEST, SLOW, SPEC
from tests.cluster.helping import PATIENCE_S, end_of, expected, pixels_of
from tests.engine.conftest import check_order, same
from tests.web.server_process import ServerProcess
from tests.web.waits import until

pytestmark = pytest.mark.cluster


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
        digest, runner = local.engine.digest, local.engine.info.runner
    assert [pixels_of(file) for file in files] == [image.tobytes() for image in drawn]
    assert read_metadata(tmp_path / "first.png").weights_digest == digest == info["model"]["weights_digest"]
    replicas = info["models"][0]["replicas"]
    assert len({each["replica"] for each in replicas}) == 2
    assert {(each["weights"], each["runner"], each["state"]) for each in replicas} == {(digest, runner, "ready")}


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


def test_pictures_and_tokens_are_read_by_a_replica(quick: str, front: Callable[..., ClusterEngine]) -> None:
    engine = front(quick)
    image = engine.submit(GenerationRequest.of("a cat", seed=1)).result(PATIENCE_S)[0]
    assert (engine.tokenize(image.pixels[None])[0] == image.tokens).all()
    assert (engine.detokenize(image.tokens) == image.pixels).all()


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


def test_nothing_to_join_is_said_in_a_line(connection: Connection, quick: str) -> None:
    with pytest.raises(ConfigError, match="no application 'nowhere' runs"):
        find_or_deploy("nowhere", SPEC, may_deploy=False)
