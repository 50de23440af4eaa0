"""Servers that share their jobs, in processes of their own, and what their clients do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.web.server_process import ServerProcess

LEASE_S = 2.0


class Fronts:
    """Servers on one database and one directory of pictures, each with a data_dir of its own."""

    def __init__(self, directory: Path, database: str, step_s: float, pictures: str = ""):
        self.directory, self.step_s = directory, step_s
        self.flags = ["--database", database, "--picture_store", pictures or f"file://{directory}/pictures"]
        self.flags += ["--job_lease_s", str(LEASE_S), "--num_slots", "2"]
        self._number = 0

    def start(self, *, step_s: float | None = None) -> ServerProcess:
        self._number += 1
        own = self.directory / f"server-{self._number}"
        own.mkdir()
        return ServerProcess(own, *self.flags, step_s=self.step_s if step_s is None else step_s)


def submit(server: ServerProcess, number: int, num_images: int = 3) -> dict[str, Any]:
    body = {"prompt": f"an apple, number {number}", "num_images": num_images, "seed": number}
    status, _, reply = server.request("POST", "/v1/jobs", body)
    assert status == 202, reply
    made: dict[str, Any] = json.loads(reply)
    return made


def show(server: ServerProcess, made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = server.get(f"/v1/jobs/{made['id']}")[1]
    return found


def wait_until_over(server: ServerProcess, jobs: list[dict[str, Any]]) -> None:
    server.wait_for(lambda: all(show(server, made)["status"] in ("done", "failed", "cancelled") for made in jobs))
