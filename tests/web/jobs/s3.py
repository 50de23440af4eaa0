"""An S3 server of the test's own, moto's, on a free port of this machine."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.ports import free_port
from tests.web.waits import until


@dataclass(frozen=True)
class S3:
    port: int

    @property
    def environ(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> str:
        """Its address, with a prefix."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{name}/some/prefix"


@contextmanager
def s3() -> Iterator[S3]:
    server = S3(free_port())
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(server.port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/moto-api/").close()
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    try:
        until(answers, 60)
        yield server
    finally:
        process.kill()
        process.wait()
