"""One replica without a cluster: what it does while its engine is down."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.context import ReplicaContext
from ray.serve.schema import ReplicaRank

from dalle_server.cluster import replica as module
from dalle_server.cluster.agreement import Agreed
from dalle_server.cluster.app import Spec, application
from dalle_server.cluster.replica import EngineReplica, may_be_none
from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.request import GenerationRequest
from tests.cluster.engines import loading
from tests.fake_runner import FakeRunner, FakeTokenizer
from tests.web.waits import until

pytestmark = pytest.mark.cluster


class Board:
    """Knows nobody."""

    @property
    def report(self) -> Any:
        return self

    def remote(self, told: Any, heard: float) -> Any:
        return self

    def result(self, timeout_s: float) -> dict[str, Any]:
        time.sleep(0.01)
        return {"now": 1.0, "up_s": 0.0, "fronts": {}, "previews": {}}


class Patient:
    """A replica whose engine crashes at `crash` and is back when `reload` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        context = SimpleNamespace(replica_tag="r1", app_name="app", _deployment_config=DeploymentConfig())
        monkeypatch.setattr(serve, "get_replica_context", lambda: context)
        monkeypatch.setattr(module, "agree", lambda *said: Agreed("as all do", 0.0))
        self.reload = threading.Event()
        self.runner = FakeRunner()
        self.replica = EngineReplica({}, "", 60.0, self._load, Board())
        self.engine = self.replica._engine

    def _load(self, settings: Settings) -> Engine:
        return Engine(self.runner, FakeTokenizer(), make_runner=self._again)

    def _again(self) -> FakeRunner:
        assert self.reload.wait(60.0)
        return FakeRunner()

    def crash(self) -> None:
        def fail(rows: Any) -> None:
            raise RuntimeError("asked for by a test")

        self.runner.on_step = fail
        assert "EngineFault" in str(asyncio.run(self.ask()))
        until(lambda: self.engine.state == "restarting")

    async def ask(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The last event of a picture."""
        request = GenerationRequest.of("a cat", seed=1, timeout_s=timeout_s)
        messages = [message async for message in self.replica.submit(request.to_dict(), "front")]
        event: dict[str, Any] = messages[-1]["events"][-1]
        return event


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Patient]:
    patient = Patient(monkeypatch)
    yield patient
    patient.reload.set()
    patient.replica.__del__()


def test_what_comes_during_a_restart_waits_and_is_drawn(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_S", 60.0)
    patient.crash()

    async def asking() -> dict[str, Any]:
        asked = asyncio.ensure_future(patient.ask(timeout_s=60.0))
        await asyncio.sleep(0.1)
        assert not asked.done()
        patient.reload.set()
        return await asked

    assert asyncio.run(asking())["event"] == "done"


def test_an_engine_that_stays_down_answers_after_a_while(patient: Patient) -> None:
    patient.crash()
    for timeout_s in (None, 0.01):
        refused = asyncio.run(patient.ask(timeout_s))
        assert (refused["event"], refused["error"]["kind"]) == ("failed", "NotReady")
    patient.engine._give_up("asked for by a test")
    assert "the engine is failed" in str(asyncio.run(patient.ask()))
    with pytest.raises(RuntimeError, match="the engine is failed"):
        patient.replica.check_health()


@pytest.mark.parametrize(("replicas", "may"), [("0:8", True), ("1:8", False), ("2", False)])
def test_whether_there_may_be_none_is_known_from_serve(replicas: str, may: bool) -> None:
    config = application(Spec(replicas=replicas), loading())._bound_deployment._deployment_config
    context = ReplicaContext(
        ReplicaID("r1", DeploymentID("engine")), object, config, ReplicaRank(rank=0, node_rank=0, local_rank=0), 1
    )
    assert may_be_none(context) is may
