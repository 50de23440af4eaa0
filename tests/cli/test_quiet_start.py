"""What the program does unasked: it calls nobody, forks nothing, and writes nowhere but where it was told.

Python's audit events tell what is done in the process, dependencies included. CI must not be in the environment:
it switches off what some dependencies do by themselves.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WATCHED = """
import os, sys
log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def watch(event, arguments):
    if event in ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen",
                 "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        if event == "socket.getaddrinfo" and arguments[0] == "127.0.0.1":
            return  # where the server is told to listen
        os.write(log, f"{event} {arguments!r}"[:300].replace("\\n", " ").encode() + b"\\n")
sys.addaudithook(watch)
"""
COMMAND = WATCHED + "from dalle_server.cli import main\nsys.exit(main(sys.argv[1:]))"
CLASS = WATCHED + (
    "from dalle_server import DalleModel, ModelSize\n"
    "with DalleModel(ModelSize.NANO, cache_dir=sys.argv[1]) as model:\n"
    "    model.generate_images('a red apple', 1)\n"
)


class Started:
    """A command in an empty home, and what it was seen doing."""

    def __init__(self, folder: Path, code: str, *words: object):
        self.home, self.log = folder / "home", folder / "audit.log"
        self.home.mkdir()
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")}
        directories = {name: str(folder / name.lower()) for name in ("DALLE_CACHE_DIR", "DALLE_DATA_DIR", "HF_HOME")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=folder,
            env={
                **kept,
                **directories,
                "HOME": str(self.home),
                "PYTHONPATH": str(ROOT / "src"),
                "AUDIT_LOG": str(self.log),
                "DALLE_MODEL_VERSION": "nano",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def said_until(self, words: str) -> str:
        """What it says up to a line with these words; all that it said where it ends, or is ended, without them."""
        assert self.process.stdout is not None
        patience = threading.Timer(180, self.process.kill)
        patience.start()
        said = ""
        for line in self.process.stdout:
            said += line
            if words in line:
                break
        patience.cancel()
        return said

    def ended(self, code: int = 0) -> str:
        said, _ = self.process.communicate(timeout=180)
        assert self.process.returncode == code, said
        return said

    def seen(self) -> list[str]:
        return self.log.read_text("utf-8", "replace").splitlines()

    def check_quiet(self) -> None:
        assert self.seen() == []
        assert list(self.home.rglob("*")) == []


Start = Callable[..., Started]


@pytest.fixture
def start() -> Iterator[Start]:
    """Started, and ended whatever the test does."""
    all_started: list[Started] = []

    def start(folder: Path, code: str, *words: object) -> Started:
        all_started.append(Started(folder, code, *words))
        return all_started[-1]

    yield start
    for started in all_started:
        with started.process:
            started.process.kill()


def test_the_watch_sees_what_it_is_meant_to_see(tmp_path: Path, start: Start) -> None:
    talker = "import socket, subprocess\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
    started = start(tmp_path, WATCHED + talker + "subprocess.run([sys.executable, '-c', ''])")
    started.ended()
    assert {line.split()[0] for line in started.seen()} >= {"socket.connect", "subprocess.Popen"}


def test_generate_and_replay(tmp_path: Path, start: Start) -> None:
    (tmp_path / "generate").mkdir()
    (tmp_path / "replay").mkdir()
    generate = start(tmp_path / "generate", COMMAND, "generate", "a red apple", "--seed", 1, "-o", tmp_path)
    picture = generate.ended().strip().splitlines()[-1]
    generate.check_quiet()
    replay = start(tmp_path / "replay", COMMAND, "replay", picture)
    assert "the same picture, bit for bit" in replay.ended()
    replay.check_quiet()


def test_the_class(tmp_path: Path, start: Start) -> None:
    started = start(tmp_path, CLASS, tmp_path / "cache")
    started.ended()
    started.check_quiet()


@pytest.mark.parametrize("words", [("pull", "mini"), ("pull", "mega"), ("models",)], ids=" ".join)
def test_offline_nobody_is_asked(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    offline = "import os\nos.environ['HF_HUB_OFFLINE'] = '1'\n"
    started = start(tmp_path, offline + COMMAND, *words)
    said = started.ended(0 if words == ("models",) else 1)
    assert words == ("models",) or "HF_HUB_OFFLINE is set" in said
    started.check_quiet()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM is no signal there")
def test_serve_also_after_its_port_is_open(tmp_path: Path, start: Start) -> None:
    started = start(tmp_path, COMMAND, "serve", "--host", "127.0.0.1", "--port", 0, "--img_format", "png")
    said = started.said_until("up and running")
    assert "up and running" in said
    time.sleep(1)  # what forks or calls does so beside the server
    children = [stat for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == started.process.pid]
    started.process.send_signal(signal.SIGTERM)
    started.ended()
    assert children == [], said
    started.check_quiet()


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
