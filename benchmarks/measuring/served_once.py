"""One start of the command itself, for start_up.py and nano.py: `dalle-server serve`, asked over HTTP for a picture."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 300.0
POLL_S = 0.02


def served_once(directory: Path, dtype: str, cache: Path) -> dict[str, Any]:
    """Seconds from the command until /ready says 200, and until POST /dalle has answered; the process's most memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "dalle_server", "serve", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--model_dir", str(directory), "--dtype", dtype, "--device", "cpu", "--cache_dir", str(cache)]
        command += ["--data_dir", data, "--output_dir", data]
        own = {name: value for name, value in os.environ.items() if not name.startswith("DALLE_")}
        asked_at = time.perf_counter()
        server = subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL)
        try:
            _until_ready(server, port)
            ready_s = time.perf_counter() - asked_at
            reply = json.loads(_asked(port, "POST", "/dalle", {"text": "a red apple", "num_images": 1})[1])
            picture_s = time.perf_counter() - asked_at
            peak_gb = _peak_gb(server.pid)
        finally:
            server.terminate()
            server.wait()
    if len(reply.get("generatedImages", ())) != 1:
        raise SystemExit(f"no picture came back: {reply}")
    return {"ready_s": round(ready_s, 2), "first_picture_s": round(picture_s, 2), "peak_gb": round(peak_gb, 2)}


def _until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while server.poll() is None and time.monotonic() < end:
        try:
            if _asked(port, "GET", "/ready")[0] == 200:
                return
        except ConnectionRefusedError:
            pass
        time.sleep(POLL_S)
    raise SystemExit("the server has not become ready")


def _asked(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _peak_gb(pid: int) -> float:
    """The largest resident set so far, mapped files included (Linux; 0 elsewhere)."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 / 1e9 if found else 0.0
