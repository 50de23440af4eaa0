"""Many requests in one instant, from a process that does nothing else: `python -m tests.web.serving.burst PORT NUMBER`.

Clients in threads, or beside the measuring program, would wait for one another and be measured with the server. Begins
at a line on standard input; prints [status, begun, told] of each as JSON, in seconds of the machine's monotonic clock,
`told` being when its first bytes were there.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time

from tests.web.server_process import ROOT, post_bytes

Told = tuple[int, float, float]


class Burst:
    """The process, ready to start."""

    def __init__(self, port: int, number: int):
        command = [sys.executable, "-m", "tests.web.serving.burst", str(port), str(number)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def start(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def told(self) -> list[Told]:
        """When every request has its answer."""
        return [(status, begun, told) for status, begun, told in json.loads(self._process.communicate()[0])]


def ask_at_once(port: int, requests: list[bytes]) -> list[Told]:
    waiting = selectors.DefaultSelector()
    for request in requests:
        sock = socket.socket()
        sock.setblocking(False)
        begun = time.monotonic()
        sock.connect_ex(("127.0.0.1", port))
        waiting.register(sock, selectors.EVENT_WRITE, (request, begun))
    told: list[Told] = []
    while len(told) < len(requests):
        for key, events in waiting.select():
            sock, (request, begun) = key.fileobj, key.data  # type: ignore[assignment]
            if events & selectors.EVENT_WRITE:
                sock.send(request)
                waiting.modify(sock, selectors.EVENT_READ, (request, begun))
                continue
            words = sock.recv(4096).split(None, 2)
            told.append((int(words[1]) if len(words) > 1 else 0, begun, time.monotonic()))
            waiting.unregister(sock)
            sock.close()
    return told


def main() -> None:
    port, number = int(sys.argv[1]), int(sys.argv[2])
    requests = [post_bytes("/dalle", {"text": f"request {i}", "num_images": 1}) for i in range(number)]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(ask_at_once(port, requests)))


if __name__ == "__main__":
    main()
