"""A cold start is one of the server: the command, its port and an answer over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import nano, start_up
from benchmarks.measuring import machine
from dalle_server.checkpoints import find_checkpoint
from dalle_server.variants import ModelSize


def test_the_command_itself_is_started_and_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    class Noting(subprocess.Popen[Any]):
        def __init__(self, command: list[str], **options: Any):
            commands.append((command, self))
            super().__init__(command, **options)

    monkeypatch.setattr(subprocess, "Popen", Noting)
    monkeypatch.setenv("DALLE_API_KEYS", "somebody's own key, to be left out")
    found = start_up.started(find_checkpoint(ModelSize.NANO), "auto")
    assert list(found) == ["server, first", "server, next", "engine, first", "engine, next"]
    served = [(command, process) for command, process in commands if "serve" in command]
    assert len(served) == 2 and all(command[1:4] == ["-m", "dalle_server", "serve"] for command, _ in served)
    assert all(process.returncode is not None for _, process in commands)
    for figures in found.values():
        assert 0 < figures["ready_s"] <= figures["first_picture_s"]
        assert figures["peak_gb"] > 0 or sys.platform != "linux"


def test_nano_tells_both_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cold = {how: {"first_picture_s": s} for how, s in (("server, first", 1.5), ("engine, first", 0.5))}
    monkeypatch.setattr(nano, "started", lambda directory, dtype: cold)
    monkeypatch.setattr(nano, "warm", lambda directory, data_dir, pictures: ([0.1], [0.2], "fp32"))
    monkeypatch.setattr(machine, "describe", dict)
    monkeypatch.setattr(sys, "argv", ["nano"])
    nano.main()
    spoken, line = capsys.readouterr().out.splitlines()
    assert "first picture 1.5 s, of the engine alone 0.5 s" in spoken
    assert json.loads(line)["cold"] == cold
