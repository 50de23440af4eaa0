"""The threads that compute together: all there from the start, and none left behind in the function."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import numpy as np
import pytest

from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.errors import ConfigError


def run(team: Team, function: Any) -> None:
    phases = np.ones(8, np.uint8)
    team.run(function, ctypes.c_int(0), phases.ctypes.data, phases.nbytes)  # type: ignore[arg-type]
    assert not phases.any()


def only(monkeypatch: pytest.MonkeyPatch, num_threads: int) -> None:
    """From now on the system starts so many threads."""
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == num_threads:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_every_thread_calls_the_function_once(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(3)
    only(monkeypatch, 0)  # all are there
    called: list[object] = []
    for turn in range(1, 4):
        run(team, called.append)
        assert len(called) == 3 * turn
    team.close()


@pytest.mark.parametrize("num_threads", [0, 1])
def test_a_thread_that_cannot_be_started_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    before = set(threading.enumerate())  # other tests' runners may still be there
    only(monkeypatch, num_threads)
    with pytest.raises(ConfigError, match=r"num_threads 3: .*can't start new thread.*lower num_threads") as told:
        Team(3)
    assert told.value.param == "num_threads"
    time.sleep(0.1)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("compiled")]


def test_an_interrupt_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They read what the caller would free."""
    team, left = Team(3), []
    caller = threading.current_thread()

    def function(_: object) -> None:
        if threading.current_thread() is caller:
            raise KeyboardInterrupt
        time.sleep(0.2)
        left.append(1)

    with pytest.raises(KeyboardInterrupt):
        run(team, function)
    assert len(left) == 2
    team.close()
