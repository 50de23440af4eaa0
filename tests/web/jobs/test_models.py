"""Jobs on a server of two models of which memory holds one. The engines do as they are told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.config import Settings
from dalle_server.engine.stats import Observer
from dalle_server.engine.tracker import Place
from dalle_server.errors import CheckpointError, NotReady, Overloaded, StorageError
from dalle_server.generation import Generation
from dalle_server.models.card import ModelCard
from dalle_server.request import GenerationRequest
from dalle_server.web.app import create_app
from dalle_server.web.jobs.current import EXTENSION
from dalle_server.web.jobs.pump import Jobs
from dalle_server.web.jobs.running import Running
from dalle_server.web.pool import pool as pool_module
from dalle_server.web.pool.model import Model, Source
from dalle_server.web.pool.pool import Hold
from dalle_server.web.service import Service
from tests.web.jobs.client import submit, wait_for
from tests.web.scripted_engine import ScriptedEngine
from tests.web.waits import until

WIDE = "48x16"  # five windows of the scripted model


@dataclass
class Narrow(ScriptedEngine):
    """Has no room for the later windows of a wide picture before `has_room` is set: between two windows, it is idle."""

    has_room: threading.Event = field(default_factory=threading.Event)
    num_refused: int = 0

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation:
        if request.forced_tokens and not self.has_room.is_set():
            self.num_refused += 1
            raise Overloaded("the queue is full")
        return super().submit(request, held)


class World:
    """Models a and b on one server, a being the first. Clear `gate` to hold every picture of b; set `refusal` before b
    is loaded, and it takes none.
    """

    def __init__(self, data_dir: Path):
        self.engines: dict[str, list[Narrow]] = {"a": [], "b": []}
        self.faults: dict[str, Exception] = {}
        self.refusal: Overloaded | None = None
        self.gate = threading.Event()
        self.gate.set()
        settings = Settings(data_dir=data_dir, output_dir=data_dir / "out", memory_budget=100 * 10**6)
        self.service = Service(settings, sources=[self._source(name) for name in self.engines])
        self.pool = self.service.pool
        self.thread = self.service.start_loading()
        assert self.service.wait_until_loaded(30)
        self.app: Flask = create_app(settings, self.service)
        self.jobs: Jobs = self.app.extensions[EXTENSION]
        self.client: FlaskClient = self.app.test_client()

    def _source(self, name: str) -> Source:
        def load(observer: Observer) -> Narrow:
            if name in self.faults:
                raise self.faults[name]
            engine = Narrow(digest=name * 64, observer=observer)
            if name == "b":
                engine.gate, engine.submit_error = self.gate, self.refusal
            self.engines[name].append(engine)
            return engine

        card = ModelCard(name=name, title=name, place="on_disk", size_bytes=1, memory_bytes=60 * 10**6)
        return Source(load, name, lambda: card)

    def model(self, name: str) -> Model:
        found = self.pool.find(name)
        assert found is not None
        return found

    def claim(self, name: str) -> Hold:
        """As a request for the model does."""
        return self.pool.hold(self.model(name))

    def is_wanted_away(self, name: str) -> bool:
        """Another wants its room, or has it already."""
        model = self.model(name)
        return model.leaves or model.engine_now is None

    def close(self) -> None:
        self.gate.set()
        self.jobs.close()
        self.service.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[], World]]:
    made: list[World] = []

    def make() -> World:
        made.append(World(tmp_path / "data"))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    return make_world()


@pytest.fixture
def left(make_world: Callable[[], World]) -> tuple[World, str]:
    """A server that starts where another has left a job for b, which is not loaded."""
    first = make_world()
    first.gate.clear()
    job = submit(first.client, model="b")
    first.close()
    return make_world(), job["id"]


def between_windows(world: World) -> dict[str, Any]:
    """A job of a that nothing draws for now."""
    job = submit(world.client, model="a", size=WIDE)
    until(lambda: world.engines["a"][-1].num_refused > 0)
    return job


def test_a_model_stays_while_a_wide_picture_is_between_two_windows(world: World) -> None:
    job = between_windows(world)
    wants_b = world.claim("b")
    until(lambda: world.is_wanted_away("a"))
    assert not wants_b.wait(0.1), "a has a running job"
    world.engines["a"][0].has_room.set()
    done = wait_for(world.client, job["id"], "done")
    assert len(done["images"]) == 1
    assert wants_b.wait(10), "the job lets go of it"
    assert world.pool.loads == {"a": 1, "b": 1}


@pytest.mark.parametrize("end", ["cancelled", "taken by another server"])
def test_a_job_that_ends_between_two_windows_lets_go_of_its_model(world: World, end: str) -> None:
    job = between_windows(world)
    wants_b = world.claim("b")
    if end == "cancelled":
        world.client.delete(f"/v1/jobs/{job['id']}")
        wait_for(world.client, job["id"], "cancelled")
    else:
        world.jobs.drop(job["id"])
    assert wants_b.wait(10)


def test_an_engine_given_up_between_two_windows_is_a_fault_like_any_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job goes on once, when the model can be loaded again."""
    monkeypatch.setattr(pool_module, "RETRY_S", 0.0)
    job = between_windows(world)
    assert world.pool.give_up(world.engines["a"][0])
    until(lambda: len(world.engines["a"]) == 2)
    world.engines["a"][1].has_room.set()
    done = wait_for(world.client, job["id"], "done")
    assert len(done["images"]) == 1
    until(lambda: world.model("a").uses == 0)


@pytest.mark.parametrize("refusal", ["the queue", "the disk"])
def test_a_refused_job_keeps_no_model(world: World, monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    def full(*args: Any) -> None:
        raise StorageError("the disk is full")

    if refusal == "the queue":
        world.engines["a"][0].submit_error = Overloaded("full")
    else:
        monkeypatch.setattr(world.jobs.store, "add", full)
    with world.client.post("/v1/jobs", json={"prompt": "x", "model": "a"}) as response:
        assert response.status_code in (503, 507)
    assert world.model("a").uses == 0


def test_a_job_that_waits_for_its_model_gets_its_turn(left: tuple[World, str]) -> None:
    """Though requests for the model that made room are waiting: it is not unloaded before the job was submitted."""
    world, job_id = left
    world.gate.clear()
    early = world.claim("a")
    world.jobs.start()
    until(lambda: world.is_wanted_away("a"))
    late = world.claim("a")
    early.close()
    wait_for(world.client, job_id, "running")
    assert not late.wait(0.1), "b has a running job"
    world.gate.set()
    wait_for(world.client, job_id, "done")
    assert late.wait(10)
    assert world.pool.loads == {"a": 2, "b": 1}


def test_jobs_that_find_no_room_shut_out_no_other_model(left: tuple[World, str]) -> None:
    """Nothing of b runs, only its backlog goes on waiting: then it is a's turn again."""
    world, job_id = left
    world.refusal = Overloaded("the queue is full")
    world.jobs.start()
    until(lambda: world.model("b").engine_now is not None)
    held = world.claim("a")
    assert held.wait(10)
    assert world.client.get(f"/v1/jobs/{job_id}").json["status"] == "queued"
    world.refusal = None
    held.close()
    wait_for(world.client, job_id, "done")


def test_a_job_that_is_cancelled_while_it_waits_lets_go_of_its_model(left: tuple[World, str]) -> None:
    world, job_id = left
    early = world.claim("a")
    world.jobs.start()
    until(lambda: world.is_wanted_away("a"))
    late = world.claim("a")
    world.client.delete(f"/v1/jobs/{job_id}")
    wait_for(world.client, job_id, "cancelled")
    early.close()
    assert late.wait(10)
    until(lambda: world.model("b").uses == 0)


def test_a_model_that_cannot_be_loaded_keeps_its_jobs_and_shuts_out_nobody(
    left: tuple[World, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, job_id = left
    world.faults["b"] = CheckpointError("its file is damaged")
    world.jobs.start()
    until(lambda: world.model("b").state == "failed")
    held = world.claim("a")
    assert held.wait(10)
    assert world.client.get(f"/v1/jobs/{job_id}").json["status"] == "queued"
    held.close()
    del world.faults["b"]
    monkeypatch.setattr(pool_module, "RETRY_S", 0.0)
    wait_for(world.client, job_id, "done")
    until(lambda: world.model("b").uses == 0)


def test_a_database_that_is_away_shuts_out_no_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is there and can only not be written down: for that, nobody needs the model."""
    store, is_away = world.jobs.store, threading.Event()
    add_picture = store.add_picture
    is_away.set()

    def add_when_it_is_back(*args: Any, **kw: Any) -> Any:
        if is_away.is_set():
            raise NotReady("the jobs database does not answer")
        return add_picture(*args, **kw)

    monkeypatch.setattr(store, "add_picture", add_when_it_is_back)
    job = submit(world.client, model="a")
    held = world.claim("b")
    assert held.wait(10)
    assert world.client.get(f"/v1/jobs/{job['id']}").json["status"] == "running"
    is_away.clear()
    wait_for(world.client, job["id"], "done")


def test_a_turn_that_comes_while_jobs_cannot_be_looked_at_is_given_up(
    left: tuple[World, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, job_id = left
    early = world.claim("a")
    world.jobs.start()
    until(lambda: world.is_wanted_away("a"))
    late = world.claim("a")

    def away(*_: Any) -> None:
        raise NotReady("the jobs database does not answer")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Running, "read_all", away)
        early.close()
        assert late.wait(10)
    late.close()
    wait_for(world.client, job_id, "done")


def test_closing_lets_go_of_models(left: tuple[World, str]) -> None:
    """Of one that a job runs on, and of one that a job waits for."""
    world, _ = left
    running = between_windows(world)
    until(lambda: world.is_wanted_away("a"))
    wait_for(world.client, running["id"], "running")
    world.jobs.close()
    assert world.model("a").uses == 0
    late = world.claim("a")
    assert late.wait(10)
