"""`python -m benchmarks` takes names, or one name and what it is to be asked."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as benchmarks


@pytest.mark.parametrize(
    ("given", "ran"),
    [
        ([], [(name, []) for name in benchmarks.BENCHMARKS]),
        (["nano", "janus"], [("nano", []), ("janus", [])]),
        (["decode_step", "--size", "mega"], [("decode_step", ["--size", "mega"])]),
        (["conversion", "mini", "DIR"], [("conversion", ["mini", "DIR"])]),
        (["pictures_in", "--work", "DIR"], [("pictures_in", ["--work", "DIR"])]),
    ],
)
def test_what_is_run(given: list[str], ran: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, list[str]]] = []

    def run(name: str, arguments: list[str]) -> bool:
        found.append((name, arguments))
        return True

    monkeypatch.setattr(benchmarks, "run", run)
    assert benchmarks.main(given) == 0
    assert found == ran


@pytest.mark.parametrize("given", [["lod"], ["--size", "mega"], ["nano", "load", "--rounds", "1"]])
def test_arguments_of_no_single_benchmark_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(given) == 2
    assert "there are: decode_step" in capsys.readouterr().err


def test_arguments_reach_the_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    assert not benchmarks.run("decode_step", ["--size", "huge"])
    assert "invalid choice: 'huge'" in capfd.readouterr().err
