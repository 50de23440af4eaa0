"""Loading, unloading and making room, on engines without weights: no test waits for a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dalle_server.errors import CheckpointError, ConfigError, EngineDown, InvalidRequest, NotReady
from dalle_server.web.pool import pool as pool_module
from tests.web.pool.worlds import Busy, World, world_of
from tests.web.waits import until


def test_the_first_is_loaded_at_start_the_others_when_they_are_asked_for(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    assert world.states() == {"a": "loaded", "b": "on_disk"}
    with pytest.raises(NotReady, match="not loaded") as caught:
        _ = world.model("b").engine
    assert not isinstance(caught.value, EngineDown), "it will be there for who waits"
    held = world.use("b")
    assert world.states() == {"a": "loaded", "b": "loaded"}
    assert held.model.engine is world.engines["b"][0]


def test_a_model_whose_engine_failed_is_given_up_alone_and_loaded_anew(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    held = world.use("b")
    assert world.pool.give_up(held.model.engine)
    assert world.engines["b"][0].stopped
    assert world.states() == {"a": "loaded", "b": "failed"}
    assert world.pool.unloads == {("b", "failed"): 1}
    with pytest.raises(NotReady, match="failed twice within an hour"):
        world.use("b")
    with pytest.raises(EngineDown, match="'b' is not available: its engine failed twice within an hour"):
        _ = held.model.engine  # a picture that is between two windows
    assert world.use("a").model.engine is world.engines["a"][0]
    monkeypatch.setattr(pool_module, "RETRY_S", 0.0)
    assert world.use("b").model.engine is world.engines["b"][1]


def test_the_only_model_is_not_given_up(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1})
    assert not world.pool.give_up(world.engines["a"][0])
    assert world.states() == {"a": "loaded"}


def test_many_who_wait_are_served_by_one_load(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    world.gate.clear()
    held = [world.pool.hold(world.model("b")) for _ in range(5)]
    until(lambda: world.states()["b"] == "loading")
    assert not any(each.wait(0) for each in held)
    world.gate.set()
    assert all(each.wait(10) for each in held)
    assert world.loading == ["a", "b"]
    assert world.model("b").uses == 5


def test_the_longest_unused_makes_room(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 40, "b": 40, "c": 40}, budget_bytes=100 * 10**6)
    for name in ("b", "a", "c"):
        world.use(name).close()
    assert world.states() == {"a": "loaded", "b": "on_disk", "c": "loaded"}
    assert world.engines["b"][0].stopped
    assert world.pool.unloads == {("b", "evicted"): 1}


def test_a_small_one_costs_no_more_than_it_needs(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 60, "b": 30, "c": 20}, budget_bytes=100 * 10**6)
    world.use("b").close()
    world.use("a").close()
    world.use("c").close()
    assert world.states() == {"a": "loaded", "b": "on_disk", "c": "loaded"}


@pytest.mark.parametrize("busy", ["held", "drawing"])
def test_one_in_use_is_never_unloaded_and_the_other_waits_for_it(worlds: list[World], busy: str) -> None:
    world = world_of(worlds, {"a": 60, "b": 60}, budget_bytes=100 * 10**6)
    held_a = world.use("a")
    world.engines["a"][0].live = 1
    if busy == "drawing":
        held_a.close()
    else:
        world.engines["a"][0].live = 0
    held_b = world.pool.hold(world.model("b"))
    assert not held_b.wait(0.2)
    assert world.states() == {"a": "loaded", "b": "loading"}
    world.engines["a"][0].live = 0
    held_a.close()
    assert held_b.wait(10)
    assert world.engines["a"][0].stopped
    assert world.states() == {"a": "on_disk", "b": "loaded"}


def test_one_in_constant_use_does_not_shut_out_the_other(worlds: list[World]) -> None:
    """New requests for it wait behind the other's turn; nobody is forgotten."""
    world = world_of(worlds, {"a": 60, "b": 60}, budget_bytes=100 * 10**6)
    early = world.use("a")
    wants_b = world.pool.hold(world.model("b"))
    until(lambda: world.model("a").leaves)
    late = world.pool.hold(world.model("a"))
    assert not late.wait(0.2), "it would keep a in use for ever"
    early.close()
    assert wants_b.wait(10)
    assert not late.wait(0.2), "b is in use now"
    wants_b.close()
    assert late.wait(10)
    assert len(world.engines["a"]) == 2


def test_who_waited_in_vain_gets_the_old_one_back(worlds: list[World]) -> None:
    """Room was found elsewhere: the model that was to go takes requests again."""
    world = world_of(worlds, {"a": 50, "b": 50, "c": 50}, budget_bytes=100 * 10**6)
    held_a, held_b = world.use("a"), world.use("b")
    wants_c = world.pool.hold(world.model("c"))
    until(lambda: world.model("a").leaves)
    late_a = world.pool.hold(world.model("a"))
    held_b.close()  # b is idle now, which is better than a
    assert wants_c.wait(10)
    assert late_a.wait(10)
    assert late_a.model.engine is world.engines["a"][0] and held_a.is_in
    assert world.states() == {"a": "loaded", "b": "on_disk", "c": "loaded"}


def test_one_that_never_fits_says_what_would(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 40, "b": 40, "huge": 9000}, budget_bytes=100 * 10**6)
    with pytest.raises(
        InvalidRequest, match=r"'huge' takes about 9.0 GB .* is 100 MB; a \(40 MB\) or b \(40 MB\)"
    ) as e:
        world.pool.hold(world.model("huge"))
    assert (e.value.code, e.value.param) == ("model_does_not_fit", "model")
    assert world.loading == ["a"]


def test_a_first_one_that_never_fits_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="raise --memory_budget"):
        World({"a": 200}, budget_bytes=100 * 10**6)


def test_one_that_cannot_be_loaded_costs_the_others_nothing(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    world.faults["b"] = CheckpointError("its file is damaged")
    held = world.pool.hold(world.model("b"))
    with pytest.raises(NotReady, match="'b' is not available: its file is damaged"):
        held.wait(10)
    held.close()
    assert world.states() == {"a": "loaded", "b": "failed"}
    with pytest.raises(NotReady, match="its file is damaged"):  # at once, without another try
        world.pool.hold(world.model("b"))
    assert world.loading == ["a", "b"]
    world.use("a").close()
    del world.faults["b"]
    monkeypatch.setattr(pool_module, "RETRY_S", 0.0)
    world.use("b").close()
    assert world.states()["b"] == "loaded"


def test_silence_unloads_and_the_next_request_loads_again(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1, "b": 1}, idle_unload_s=0.2)
    held = world.use("b")
    until(lambda: world.states()["a"] == "on_disk")
    assert world.states()["b"] == "loaded", "it is held"
    world.engines["b"][0].live = 1
    held.close()
    assert not world.engines["b"][0].stopped
    world.engines["b"][0].live = 0
    until(lambda: world.engines["b"][0].stopped)
    world.use("a").close()
    assert world.pool.unloads["a", "idle"] == 1
    assert world.pool.loads == {"a": 2, "b": 1}


@pytest.mark.parametrize("fault", [None, CheckpointError("its file is damaged")])
def test_who_does_other_things_meanwhile_is_told_when_the_wait_is_over(
    worlds: list[World], fault: Exception | None
) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    if fault is not None:
        world.faults["b"] = fault
    is_over = threading.Event()
    held = world.pool.hold(world.model("b"), is_over.set)
    assert is_over.wait(10)
    assert (held.is_in, held.failure is None) == (fault is None, fault is None)


def test_who_holds_a_model_may_hold_it_once_more_though_another_waits(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 60, "b": 60}, budget_bytes=100 * 10**6)
    early = world.use("a")
    wants_b = world.pool.hold(world.model("b"))
    until(lambda: world.model("a").leaves)
    kept = world.pool.keep(world.model("a"))
    assert kept.is_in
    early.close()
    assert not wants_b.wait(0.2)
    kept.close()
    assert wants_b.wait(10)


def test_a_hold_is_let_go_once(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1})
    held = world.use("a")
    held.close()
    held.close()
    assert world.model("a").uses == 0


@pytest.mark.parametrize("name", ["b", " B ", "b" * 16, ("b" * 16)[:10]])
def test_a_model_is_found_by_name_and_by_its_weights(worlds: list[World], name: str) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    world.use("b").close()
    assert world.pool.find(name) is world.model("b")
    assert world.pool.find("c") is None


def test_counts_go_on_over_engines_that_were_unloaded(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 60, "b": 60}, budget_bytes=100 * 10**6)
    held = world.use("a")
    engine = world.engines["a"][0]
    engine.generations = list[Any]([type("Ended", (), {"terminal": object()})()] * 3)  # three finished pictures
    held.close()
    world.use("b").close()
    assert world.model("a").past.images == 3


def test_an_engine_that_is_no_models_yet_or_any_more_ends_no_server(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    failed = world.use("b").model.engine
    assert world.pool.give_up(failed) and world.pool.give_up(failed), "the second time it is no model's"
    assert world.pool.give_up(Busy()), "one that is being loaded"
    assert world.states() == {"a": "loaded", "b": "failed"}


def test_a_model_that_finds_no_room_by_a_fault_is_wanted_again(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(worlds, {"a": 1, "b": 1}, budget_bytes=1_500_000)

    def refuse(drain_s: float = 0.0) -> None:
        raise TimeoutError("it does not answer")

    monkeypatch.setattr(world.engines["a"][0], "stop", refuse)
    with pytest.raises(NotReady, match="making room for it failed"):
        world.use("b")
    assert world.states()["b"] == "failed"
    monkeypatch.setattr(pool_module, "RETRY_S", 0.0)
    assert world.use("b").model.engine is world.engines["b"][0]


def test_what_nobody_waits_for_any_more_is_not_loaded(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1, "b": 1, "c": 1})
    world.gate.clear()
    first = world.pool.hold(world.model("b"))
    until(lambda: world.loading == ["a", "b"])
    given_up = world.pool.hold(world.model("c"))  # its turn comes after b's
    given_up.close()
    world.gate.set()
    assert first.wait(10)
    world.use("a").close()
    assert world.loading == ["a", "b"] and world.states()["c"] == "on_disk"


def test_an_engine_that_was_loaded_too_late_is_stopped(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1, "b": 1})
    world.gate.clear()
    world.pool.hold(world.model("b"))
    until(lambda: world.states()["b"] == "loading")
    world.pool.stop()
    world.gate.set()
    until(lambda: bool(world.engines["b"]) and world.engines["b"][0].stopped)


def test_no_room_is_made_for_what_nobody_waits_for_any_more(worlds: list[World]) -> None:
    world = world_of(worlds, {"a": 1, "b": 1}, budget_bytes=1_500_000)
    kept = world.use("a")
    waiting = world.pool.hold(world.model("b"))
    until(lambda: world.model("a").leaves)
    waiting.close()
    until(lambda: not world.model("a").leaves and world.states()["b"] == "on_disk")
    kept.close()
    assert world.use("a").model.engine is world.engines["a"][0] and world.loading == ["a"]
