"""Every documented operation, called as its schema allows and as it forbids: no 500, and answers as documented.

Some 2,000 calls, the same ones in every run. FUZZ_CASES=10000 makes that many, new ones each time.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from dalle_server.config import Settings
from dalle_server.web.app import create_app
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine

DEFAULT_CASES = 2000
CASES = int(os.environ.get("FUZZ_CASES", DEFAULT_CASES))
# Forbidden bodies take ten times as long to think of, and are refused in one place.
SHARES = {GenerationMode.POSITIVE: 0.85, GenerationMode.NEGATIVE: 0.15}

CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {
            # 501 is the documented answer of what this model cannot do.
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "501"]},
            "negative_data_rejection": {"expected-statuses": ["4xx", "501"]},
            # A schema cannot say that base64 must be a picture, or that a prompt is more than spaces.
            "positive_data_acceptance": {"enabled": False},
        }
    }
)


def _closed(app: Flask) -> Flask:
    """Schemathesis leaves the bodies of WSGI answers open: read and close each, as a server would."""
    inner = app.wsgi_app

    def call(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body: Any = inner(environ, start_response)
        endless = environ["PATH_INFO"] == "/v1/jobs/events"
        parts: Iterable[bytes] = islice(body, 1) if endless else body
        try:
            return [b"".join(parts)]
        finally:
            if hasattr(body, "close"):
                body.close()

    app.wsgi_app = call
    return app


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("fuzz")
    engine = ScriptedEngine()
    service = Service(
        Settings(data_dir=directory, output_dir=directory / "out", save_to_disk=True, max_images=2), load=lambda: engine
    )
    engine.observer = service.bookkeeping
    service.start_loading()
    assert service.wait_until_loaded(5)
    app = _closed(create_app(service.settings, service))
    yield schemathesis.openapi.from_wsgi("/openapi.json", app, config=CONFIG)
    engine.stop()


@pytest.mark.timeout(0 if CASES > DEFAULT_CASES else 900)
@pytest.mark.parametrize("mode", list(SHARES))
def test_no_call_breaks_the_server(schema: Any, mode: GenerationMode) -> None:
    operations = [result.ok() for result in schema.get_all_operations()]
    open_ended = [operation for operation in operations if _has_input(operation, mode)]
    fixed = [operation for operation in operations if not _has_input(operation, GenerationMode.POSITIVE)]
    calls: Counter[str] = Counter()
    for operation in open_ended:
        # A tenth more: an operation that takes one yes or no has no more than a few calls in it.
        _fuzz(operation, mode, math.ceil(1.1 * CASES * SHARES[mode] / len(open_ended)), calls)
    if mode is GenerationMode.POSITIVE:
        for operation in fixed:
            _fuzz(operation, mode, 1, calls)
        assert set(calls) == {operation.label for operation in operations}
    assert calls.total() >= CASES * SHARES[mode], calls


def _has_input(operation: Any, mode: GenerationMode) -> bool:
    """Something that varies. A path's name is never wrong in form: for it, nothing is forbidden."""
    return bool(operation.body or operation.query) or bool(
        operation.path_parameters and mode is GenerationMode.POSITIVE
    )


def _fuzz(operation: Any, mode: GenerationMode, num_cases: int, calls: Counter[str]) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=CASES == DEFAULT_CASES,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        calls[operation.label] += 1
        case.call_and_validate()

    run()
