"""A server in a process of its own, on a free port (`real`: the command itself), and clients that are rude to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # the machine may be busy; nothing here measures time


class ServerProcess:
    """`with ServerProcess(tmp_path, step_s=0.01) as server:` → listening; leaves no process behind."""

    def __init__(self, directory: Path, *flags: str, step_s: float = 0.0, load_s: object = 0, real: bool = False):
        paths = ["--data_dir", str(directory / "data"), "--output_dir", str(directory / "out")]
        fake = ["-m", "tests.web.fake_server", str(step_s), str(load_s)]
        command = [sys.executable, *(["-m", "dalle_server", "serve"] if real else fake)]
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", "0", *paths, *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()
        self.port = 0

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))

    def __enter__(self) -> ServerProcess:
        self.wait_for(lambda: any("Listening" in line for line in self.lines) or self.process.poll() is not None)
        found = re.search(r"Listening on http://127\.0\.0\.1:(\d+)", "\n".join(self.lines))
        self.port = int(found[1]) if found else 0
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()

    def ready(self) -> ServerProcess:
        self.wait_for(lambda: self.get("/ready")[0] == 200)
        return self

    def wait_for(self, check: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not check():
            assert time.monotonic() < end, "\n".join(["it never happened", *self.lines, *self.errors])
            time.sleep(0.01)

    def exit_code(self) -> int:
        code = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join()
        return code

    def request(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers or {})
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        status, headers, body = self.request("GET", path)
        return status, json.loads(body) if headers.get("Content-Type") == "application/json" else body.decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.M)
        return float(found[1]) if found else 0.0

    def in_background(self, path: str, body: object) -> Pending:
        return Pending(self, path, body)

    def raw(self, data: bytes) -> socket.socket:
        """A connection that has sent `data`; close it to leave."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        connection.sendall(data)
        return connection


class Pending:
    """A POST under way in a thread; `reply()` waits for it."""

    def __init__(self, server: ServerProcess, path: str, body: object):
        self._result: tuple[int, dict[str, str], bytes] | Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(server, path, body), daemon=True)
        self._thread.start()

    def _run(self, server: ServerProcess, path: str, body: object) -> None:
        try:
            self._result = server.request("POST", path, body)
        except Exception as error:
            self._result = error

    def reply(self) -> tuple[int, dict[str, str], bytes]:
        self._thread.join(PATIENCE_S)
        assert self._result is not None, "no answer"
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def post_bytes(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
