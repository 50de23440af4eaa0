"""Outputs that are closed, full, or read by nobody; and what never goes there."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dalle_server.web.logging import configure
from dalle_server.web.serving.terminal import MOST_LINES, Terminal
from tests.ports import free_port
from tests.web.server_process import PATIENCE_S, ROOT, ServerProcess
from tests.web.waits import until

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither /dev/full nor such signals")


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Terminal]]:
    """(reading end of standard error, a terminal that writes there), not started."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield reading, Terminal()
    os.close(reading)


def test_lines_wait_for_nobody(pipes: tuple[int, Terminal]) -> None:
    """A pipe that nobody reads holds up its writer, and no one else; then lines are dropped and counted."""
    reading, terminal = pipes
    terminal.start()
    for _ in range(MOST_LINES + 20_000):
        terminal.complain("a line for a pipe of 64 KiB")
    terminal.close()  # returns, though nothing was read
    got = b""
    while b"were dropped here" not in got:
        got += os.read(reading, 1 << 16)
    os.set_blocking(reading, False)


def test_debug_does_not_write_what_clients_sent(pipes: tuple[int, Terminal]) -> None:
    """Libraries log parameters of queries, headers, bodies at their debug level; ours does not, so it may be on."""
    root, ours = logging.getLogger(), logging.getLogger("dalle_server")
    before = root.handlers, root.level, ours.level
    try:
        configure("debug", pipes[1])
        for library in ("sqlalchemy.engine.Engine", "peewee", "urllib3", "waitress", "asyncio"):
            assert not logging.getLogger(library).isEnabledFor(logging.INFO), library
        assert logging.getLogger("dalle_server.web").isEnabledFor(logging.DEBUG)
        configure("error", pipes[1])
        assert not root.isEnabledFor(logging.WARNING)
    finally:
        root.handlers, root.level, ours.level = before
        logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]


def start(directory: Path, **streams: Any) -> tuple[subprocess.Popen[bytes], int]:
    """A server whose output goes where `streams` says, and its port."""
    port = free_port()
    flags = ["--host", "127.0.0.1", "--port", str(port), "--log_level", "debug"]
    paths = ["--data_dir", str(directory / "data"), "--output_dir", str(directory / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.web.fake_server", "0", "0", *flags, *paths], cwd=ROOT, env=environment, **streams
    )
    return process, port


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@posix
def test_a_full_disk_for_its_output_stops_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process, port = start(tmp_path, stdout=full, stderr=full)
    try:
        until(lambda: is_ready(port), timeout_s=PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()


@posix
def test_closed_outputs_stop_nothing(tmp_path: Path) -> None:
    process, port = start(tmp_path, preexec_fn=lambda: (os.close(1), os.close(2)))
    try:
        until(lambda: is_ready(port), timeout_s=PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()


@posix
def test_a_pipe_that_nobody_reads_does_not_hold_the_end(tmp_path: Path) -> None:
    process, port = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: is_ready(port), timeout_s=PATIENCE_S)

        for _ in range(60):  # 120 KiB of log lines
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{'x' * 2000}", timeout=20)
            except OSError:
                continue
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()


def started(handler: signal.Handlers, tmp_path: Path, *flags: str, step_s: float = 0.0) -> ServerProcess:
    """With what SIGHUP does at its start: nohup leaves SIG_IGN to its child, and perhaps to these tests."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        return ServerProcess(tmp_path, *flags, step_s=step_s)
    finally:
        signal.signal(signal.SIGHUP, before)


@posix
def test_the_end_of_its_terminal_is_a_signal_to_drain(tmp_path: Path) -> None:
    with started(signal.SIG_DFL, tmp_path, "--num_slots", "1", step_s=0.05) as server:
        server.ready()
        pending = server.in_background("/dalle", {"text": "x"})
        server.wait_for(lambda: server.metric("dalle_running_images") == 1)
        server.process.send_signal(signal.SIGHUP)
        assert pending.reply()[0] == 200
        assert server.exit_code() == 0


@posix
def test_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with started(signal.SIG_IGN, tmp_path) as server:
        server.ready()
        server.process.send_signal(signal.SIGHUP)
        assert server.request("POST", "/dalle", {"text": "x"})[0] == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0


@posix
def test_the_end_comes_whatever_hangs(tmp_path: Path) -> None:
    """A request, a disk or a library that never returns: the drain's limit holds."""
    code = """
import sys, time
from dalle_server.web.serving import server
from dalle_server.web.jobs.pump import Jobs
server.ENDING_S = 1.0
Jobs.close = lambda self: time.sleep(1000)
sys.argv = ["x", "0", "0", *sys.argv[1:]]
from tests.web.fake_server import main
sys.exit(main())
"""
    flags = ["--host", "127.0.0.1", "--port", str(port := free_port()), "--drain_timeout_s", "0.1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags, "--data_dir", str(tmp_path / "data")],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: is_ready(port), timeout_s=PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0 and "could not end in order" in errors
    finally:
        process.kill()


def test_threads_of_the_terminal_end(pipes: tuple[int, Terminal]) -> None:
    terminal = pipes[1]
    terminal.start()
    terminal.complain("last words")
    terminal.close()
    assert os.read(pipes[0], 100) == b"last words\n"
    assert not any(thread.name == "terminal" and thread.is_alive() for thread in threading.enumerate())
