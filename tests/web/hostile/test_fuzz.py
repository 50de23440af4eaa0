"""Every documented operation, called as its schema allows and as it forbids: no 500, and answers as documented.

Some 2,000 calls, the same ones in every run. FUZZ_CASES=10000 makes that many, new ones each time.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.text import TextTokenizer
from dalle_server.variants import ModelSize
from dalle_server.web.app import create_app
from dalle_server.web.service import Service
from tests.fake_runner import FakeRunner, fake_config
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


@contextmanager
def _served(engine: Any, directory: Path) -> Iterator[Any]:
    """The schema of an application on this engine."""
    service = Service(
        Settings(data_dir=directory, output_dir=directory / "out", save_to_disk=True, max_images=2), load=lambda: engine
    )
    engine.observer = service.bookkeeping
    service.start_loading()
    assert service.wait_until_loaded(30)
    app = _closed(create_app(service.settings, service))
    yield schemathesis.openapi.from_wsgi("/openapi.json", app, config=CONFIG)
    engine.stop()


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with _served(ScriptedEngine(), tmp_path_factory.mktemp("fuzz")) as schema:
        yield schema


@pytest.fixture(scope="module")
def real_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """nano's own tokenizer and the real engine, over a runner without weights: texts are read as they are in life."""
    tokenizer = TextTokenizer.from_checkpoint(open_checkpoint(find_checkpoint(ModelSize.NANO)))
    engine = Engine(FakeRunner(fake_config(grid_side=4)), tokenizer)
    engine.start()
    with _served(engine, tmp_path_factory.mktemp("real")) as schema:
        yield schema


# What reads texts. Jobs read them with the same code, and end in a thread of their own.
READERS = ("/dalle", "/generate", "/v1/images/generations", "/v1/responses", "/sdapi/v1/txt2img")
# Beside what the schema leads to: what normalising, unescaping and splitting have stumbled over.
TEXTS = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="&#x;amplt0123456789", min_size=1, max_size=6000),
    st.text(alphabet="#abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=20_000).map(
        lambda text: f"#{text}"
    ),
    st.text(alphabet="🍎🍐👩\u200d🚀\ufe0f\u0301é\u202e", min_size=1, max_size=2000),
    st.sampled_from(["&#" + "1" * 5000 + ";", "&#x" + "f" * 5000 + ";", "\u200b" * 50, "https://" + "a" * 3000, "\0"]),
)


@pytest.mark.timeout(0 if CASES > DEFAULT_CASES else 900)
def test_no_text_breaks_a_server_that_reads_it(real_schema: Any) -> None:
    """A tenth of CASES in CI, all of them as a soak."""
    num_cases = CASES if CASES > DEFAULT_CASES else CASES // 10

    @given(path=st.sampled_from(READERS), text=TEXTS, negative=TEXTS)
    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=CASES == DEFAULT_CASES,
        suppress_health_check=list(HealthCheck),
    )
    def ask(path: str, text: str, negative: str) -> None:
        body: dict[str, Any] = {"text": text, "prompt": text, "negative_prompt": negative, "input": text}
        body |= {"tools": [{"type": "image_generation", "negative_prompt": negative}]}
        reply = client.post(path, json=body)
        assert reply.status_code in (200, 400), (path, text[:200], reply.text)

    client = real_schema.app.test_client()
    ask()


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
