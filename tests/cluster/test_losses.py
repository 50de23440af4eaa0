"""What is killed, changed or refused below a front, on a real Ray cluster of this machine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from dalle_server.cluster import watch
from dalle_server.cluster.app import application
from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.cluster.streams import Streams
from dalle_server.errors import NotReady
from dalle_server.generation import Done
from dalle_server.request import GenerationRequest
from tests.cluster.engines import DIGEST, SLOW, SPEC, loading, unloadable
from tests.cluster.helping import PATIENCE_S, Visitors, deployed, end_of, expected, lost, weights_of
from tests.cluster.ray_here import ROOT, processes_of
from tests.engine.conftest import same
from tests.web.waits import until

pytestmark = pytest.mark.cluster


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


def test_a_crashed_engine_costs_no_picture(
    front: Callable[..., ClusterEngine], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The only one: what it had, and what comes while it restarts, waits for it."""
    one, crashing = replace(SPEC, replicas="1"), tmp_path / "crashing"
    app = deployed("crashing", one, crash_file=str(crashing))
    engine = front(app, one)
    with caplog.at_level(logging.WARNING):
        requests = [GenerationRequest.of("a cat", 4, seed=seed) for seed in range(2)]
        crashing.touch()
        generations = [engine.submit(requests[0])]
        until(lambda: engine.replicas[0].state == "restarting" and bool(lost(caplog)), PATIENCE_S)
        generations.append(engine.submit(requests[1]))
        crashing.unlink()
        ends = [end_of(generation) for generation in generations]
    assert {type(end) for end in ends} == {Done}, ends
    assert all(same(end.images, expected(request)) for request, end in zip(requests, ends, strict=True))
    assert not any("attempt 2" in message for message in lost(caplog))
    serve.delete(app)


def test_a_killed_board_costs_no_picture(quick: str, front: Callable[..., ClusterEngine]) -> None:
    """Where replicas and fronts tell of themselves: nobody is taken for dead when it is gone."""
    engine = front(quick)
    processes_of(quick, "board")[0].kill()
    generations = [engine.submit(GenerationRequest.of("a cat", 8, seed=i)) for i in range(5)]
    assert {type(end_of(generation)) for generation in generations} == {Done}
    until(lambda: bool(processes_of(quick, "board")), PATIENCE_S)
    heard_at = engine._watch.heard_at
    until(lambda: engine._watch.heard_at > heard_at and len(engine.replicas) == 2, PATIENCE_S)


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
    # The board may have been replaced with the rest, and then knows nobody for a second.
    until(lambda: [each.device_name for each in engine.replicas] == ["one kind of GPU"], PATIENCE_S)
    serve.delete(app)


def test_a_front_is_not_ready_when_no_replica_comes_up(
    front: Callable[..., ClusterEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENT_S", 2.0)
    device = tmp_path / "device"
    device.write_text("one kind of GPU")
    one = replace(SPEC, replicas="1")
    app = deployed("gone", one, device_file=str(device))
    engine = front(app, one)
    device.write_text("another")  # so that whatever replaces it is refused
    processes_of(app)[0].kill()
    until(lambda: engine.state == "restarting", PATIENCE_S)
    with pytest.raises(NotReady):
        engine.submit(GenerationRequest.of("a cat"))
    device.write_text("one kind of GPU")
    until(lambda: engine.state == "ready", PATIENCE_S)
    assert len(engine.submit(GenerationRequest.of("a cat")).result(PATIENCE_S)) == 1
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


def test_weights_that_cannot_be_loaded_are_named(connection: Connection) -> None:
    one = replace(SPEC, replicas="1")
    app = f"broken-{os.getpid()}"
    with pytest.raises(NotReady, match=r"WeightsNotFound.*there are none here"):
        find_or_deploy(app, one, may_deploy=True, load=unloadable)
    find_or_deploy(app, one, may_deploy=True, load=loading())  # the same settings, once they can be loaded
    serve.delete(app)
