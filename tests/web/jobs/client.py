"""What a client of /v1/jobs does, and how the tests wait for it."""

from __future__ import annotations

import json
import time
from typing import Any

from flask.testing import FlaskClient

Json = dict[str, Any]


def submit(client: FlaskClient, **fields: Any) -> Json:
    with client.post("/v1/jobs", json={"prompt": "a red apple", "seed": 7, **fields}) as response:
        assert response.status_code == 202, response.json
        assert response.headers["Location"] == f"/v1/jobs/{response.json['id']}"
        return dict(response.json)  # type: ignore[arg-type]


def wait_for(client: FlaskClient, job_id: str, status: str, timeout_s: float = 30) -> Json:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with client.get(f"/v1/jobs/{job_id}") as response:  # closed: an open answer counts as a request in flight
            found = dict(response.json)  # type: ignore[arg-type]
        if found["status"] == status:
            return found
        time.sleep(0.01)
    raise AssertionError(f"still {found['status']}, not {status}")


def events(text: str) -> list[tuple[int, str, Json]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


class Viewer:
    """Reads an event stream step by step."""

    def __init__(self, client: FlaskClient, path: str, after: int = 0):
        self.response = client.get(path, headers={"Last-Event-ID": str(after)})
        self._chunks = iter(self.response.response)
        self.seen: list[tuple[int, str, Json]] = []

    def read_until(self, *names: str) -> list[str]:
        for chunk in self._chunks:
            self.seen += events(chunk.decode() if isinstance(chunk, bytes) else chunk)  # type: ignore[arg-type]
            if self.seen and self.seen[-1][1] in names:
                break
        return [name for _, name, _ in self.seen]
