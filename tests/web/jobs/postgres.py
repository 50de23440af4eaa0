"""A PostgreSQL of the test's own: on a free port of this machine, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.ports import free_port

PLACES = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/bin"), Path("/opt/homebrew/bin")]


def find_postgres() -> Path:
    """The directory of its programs. Skips the test where there are none, but not in CI."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).parent] if on_path else []
    for place in [*PLACES, *places]:
        if (place / "initdb").exists() and (place / "pg_ctl").exists() and (place / "postgres").exists():
            return place
    message = "no PostgreSQL here; Debian's package `postgresql` brings one"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


class Postgres:
    def __init__(self, directory: Path):
        self._programs = find_postgres()
        self._directory = directory / "postgres"
        self._directory.mkdir()
        self.port = free_port()
        # It refuses to be run by root: then it is nobody's.
        self._user = "nobody" if hasattr(os, "geteuid") and os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._directory, self._user)
        self._run("initdb", "-D", str(self._directory), "-U", "dalle", "--auth=trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://dalle@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self._directory} -c fsync=off"
        log = str(self._directory / "log")
        self._run("pg_ctl", "-D", str(self._directory), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._directory), "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, user=self._user, cwd=self._directory, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def postgres() -> Iterator[Postgres]:
    """In a folder beside pytest's own, which every session that starts closes to other users."""
    with TemporaryDirectory(prefix="dalle-postgres-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        server = Postgres(Path(directory))
        try:
            yield server
        finally:
            server.stop()
