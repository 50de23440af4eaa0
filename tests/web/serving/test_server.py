"""The serving process: start, overload, leaving clients, slow clients, signals, faults."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.errors import GenerationFailed
from dalle_server.request import ImageKey
from dalle_server.web.serving.server import _warn_if_open, warm_up
from tests.fake_runner import FakeRunner, FakeTokenizer
from tests.web.server_process import ROOT, ServerProcess, post_bytes

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
ONE = {"text": "a red apple", "num_images": 1}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One slot, one waiting picture, 1.6 s a picture (16 tokens): time to look on, on a slow machine too."""
    flags = ("--num_slots", "1", "--max_waiting_images", "1")
    with ServerProcess(tmp_path_factory.mktemp("busy"), *flags, step_s=0.1) as server:
        yield server.ready()


def idle(server: ServerProcess) -> bool:
    return server.metric("dalle_running_images") == 0 == server.metric("dalle_waiting_images")


def test_answers_while_it_loads_and_says_its_lines(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, load_s=1.0) as server:
        assert server.get("/health") == (200, {"status": "ok", "model": "loading", "models": [], "version": "0.1.0"})
        assert server.get("/ready")[0] == 503
        status, headers, _ = server.request("POST", "/v1/images/generations", {"prompt": "x"})
        assert status == 503 and "Retry-After" in headers
        assert server.in_background("/dalle", ONE).reply()[0] == 200  # the original's clients wait
        server.wait_for(lambda: len(server.lines) >= 4)
        assert [line.split(".")[0].split(" http")[0] for line in server.lines] == [
            "--> Starting DALL-E Server",
            "--> Listening on",
            "--> DALL-E Server is up and running!",
            "--> Model selected - DALL-E Mini",
        ]


def test_missing_weights_end_it_with_one_line(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, load_s="missing") as server:
        assert server.exit_code() == 1
        assert [line for line in server.errors if line.startswith("error:")] == [
            "error: there are no weights here; pull them elsewhere"
        ]
        assert not any("Traceback" in line for line in server.errors)


def test_a_full_queue_is_refused_and_health_answers(busy: ServerProcess) -> None:
    pending = [busy.in_background("/dalle", ONE)]
    busy.wait_for(lambda: busy.metric("dalle_running_images") == 1)
    pending.append(busy.in_background("/dalle", ONE))
    busy.wait_for(lambda: busy.metric("dalle_waiting_images") == 1)
    refused = [busy.in_background("/dalle", ONE) for _ in range(8)]
    for one in refused:
        status, headers, body = one.reply()
        assert status == 503 and int(headers["Retry-After"]) >= 1
        assert "error" in json.loads(body)
    assert busy.get("/health")[0] == 200
    assert [one.reply()[0] for one in pending] == [200, 200]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/dalle", {"text": "x", "num_images": 2}),
        ("/v1/images/generations", {"prompt": "x", "n": 2, "stream": True, "partial_images": 3}),
    ],
)
def test_a_client_that_leaves_frees_its_slot(busy: ServerProcess, path: str, body: object) -> None:
    busy.wait_for(lambda: idle(busy))
    cancelled = busy.metric('dalle_requests_total{outcome="cancelled"}')
    images = busy.metric("dalle_images_total")
    connection = busy.raw(post_bytes(path, body))
    busy.wait_for(lambda: busy.metric("dalle_running_images") == 1)
    connection.close()
    busy.wait_for(lambda: idle(busy))
    busy.wait_for(lambda: busy.metric('dalle_requests_total{outcome="cancelled"}') == cancelled + 1)
    assert busy.metric("dalle_images_total") < images + 2
    assert busy.request("POST", "/dalle", ONE)[0] == 200


def test_slow_clients_do_not_block_others(busy: ServerProcess) -> None:
    busy.wait_for(lambda: idle(busy))
    dripping = [busy.raw(b"POST /dalle HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(150)]
    deaf = [busy.raw(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 5) for _ in range(70)]
    try:
        for connection in dripping:
            connection.sendall(b"a")
        assert busy.get("/health")[0] == 200
        # While 350 answers are written for the deaf it may be told to come again; then it is served.
        busy.wait_for(lambda: busy.request("POST", "/dalle", ONE)[0] == 200)
    finally:
        for connection in dripping + deaf:
            connection.close()


def test_a_large_body_is_refused_by_its_route(busy: ServerProcess) -> None:
    assert busy.request("POST", "/dalle", {"text": "x" * (1 << 20)})[0] == 413


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/images/edits", lambda body: body["error"]["message"]),
        ("/sdapi/v1/img2img", lambda body: body["detail"]),
        ("/dalle", lambda body: body["error"]),
    ],
)
@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"Content-Length: 999999999\r\nX-Request-Id: mine-1\r\n\r\n", 413),
        (b"X-Long: " + b"a" * 100_000, 431),
        (b"Content-Length: many\r\n\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
def test_what_waitress_refuses_is_said_as_the_api_says_it(
    busy: ServerProcess, path: str, message: Callable[[Any], str], start: bytes, status: int
) -> None:
    with busy.raw(f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + start) as connection:
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        body = json.loads(reply.read())
    assert (reply.status, reply.getheader("Content-Type")) == (status, "application/json")
    assert message(body) and "waitress" not in str(body)
    request_id = reply.getheader("X-Request-Id")
    assert request_id == "mine-1" if status == 413 else request_id and request_id.startswith("req-")
    busy.wait_for(
        lambda: any(f"request={request_id} method=POST route={path} status={status}" in line for line in busy.errors)
    )


def test_bytes_that_are_not_http_are_refused_in_json(busy: ServerProcess) -> None:
    with busy.raw(b"\x16\x03\x01\x00 TLS?\r\n\r\n") as connection:
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        assert reply.status == 400 and "not valid HTTP" in json.loads(reply.read())["error"]["message"]


@posix
def test_sigterm_finishes_what_was_accepted(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--num_slots", "2", step_s=0.1) as server:
        server.ready()
        pending = [server.in_background("/dalle", ONE) for _ in range(4)]
        stream = server.in_background("/v1/images/generations", {"prompt": "x", "stream": True})
        wide = server.in_background("/v1/images/generations", {"prompt": "x", "size": "1536x1024"})
        server.wait_for(lambda: server.metric("dalle_running_images") + server.metric("dalle_waiting_images") == 6)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/ready")[1]["state"] == "draining")
        assert server.request("POST", "/dalle", ONE)[0] == 503
        for one in pending:
            status, _, body = one.reply()
            assert status == 200 and len(json.loads(body)["generatedImages"]) == 1
        assert stream.reply()[2].rstrip().endswith(b"data: [DONE]")
        assert wide.reply()[0] == 200  # its second window is asked for while the server drains
        assert server.exit_code() == 0


@posix
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, step_s=0.05) as server:
        server.ready()
        pending = server.in_background("/dalle", {"text": "x", "num_images": 16})
        server.wait_for(lambda: server.metric("dalle_running_images") == 4)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/ready")[1]["state"] == "draining")
        server.process.send_signal(signal.SIGINT)
        assert server.exit_code() == 128 + signal.SIGINT
        with pytest.raises((OSError, http.client.HTTPException)):
            pending.reply()


@posix
def test_work_that_outlasts_the_drain_is_cancelled_with_an_answer(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--drain_timeout_s", "0.2", step_s=0.2) as server:
        server.ready()
        pending = server.in_background("/dalle", ONE)
        server.wait_for(lambda: server.metric("dalle_running_images") == 1)
        server.process.send_signal(signal.SIGINT)
        status, _, body = pending.reply()
        assert status == 499 and "shutting down" in json.loads(body)["error"]
        assert server.exit_code() == 0


def test_a_fault_is_answered_and_survived_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, step_s=0.01) as server:
        server.ready()
        status, _, body = server.request("POST", "/dalle", {"text": "FAULT", "num_images": 1})
        assert status == 500 and "Traceback" not in body.decode()
        server.ready()
        assert server.request("POST", "/dalle", ONE)[0] == 200
        assert server.metric("dalle_engine_faults_total") == 1
        assert server.request("POST", "/dalle", {"text": "FAULT", "num_images": 1})[0] == 500
        assert server.exit_code() == 1


def test_of_several_models_only_the_one_that_fails_twice_is_given_up(tmp_path: Path) -> None:
    def draw(server: ServerProcess, model: str, prompt: str) -> tuple[int, str]:
        status, _, body = server.request("POST", "/v1/images/generations", {"model": model, "prompt": prompt})
        return status, body.decode()

    with ServerProcess(tmp_path, "--models", "nano,mini") as server:
        server.ready()
        for _ in range(2):
            server.wait_for(lambda: draw(server, "mini", "a red apple")[0] == 200)  # after a fault it restarts
            assert draw(server, "mini", "FAULT")[0] == 500
        server.wait_for(lambda: {"name": "mini", "state": "failed"} in server.get("/health")[1]["models"])
        status, said = draw(server, "mini", "a red apple")
        assert status == 503 and "failed twice within an hour" in said
        assert draw(server, "nano", "a red apple")[0] == 200
        assert server.get("/ready")[0] == 200 and server.process.poll() is None


def test_a_client_that_never_reads_does_not_hold_the_end(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        server.ready()
        deaf = socket.create_connection(("127.0.0.1", server.port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        time.sleep(0.1)
        server.process.terminate()
        assert server.exit_code() in (0, 1) if sys.platform == "win32" else server.exit_code() == 0
        deaf.close()


def test_addresses_come_from_a_trusted_proxy_only(tmp_path: Path) -> None:
    def post(server: ServerProcess, address: str) -> int:
        return server.request("POST", "/dalle", ONE, headers={"X-Forwarded-For": address})[0]

    with ServerProcess(tmp_path, "--rate_limit", "1", "--trusted_proxy", "127.0.0.1") as server:
        server.ready()
        assert [post(server, address) for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1")] == [200, 200, 429]
    with ServerProcess(tmp_path, "--rate_limit", "1") as server:
        server.ready()
        assert [post(server, address) for address in ("10.0.0.1", "10.0.0.2")] == [200, 429]


def test_the_command_serves_a_model(tmp_path: Path) -> None:
    tiny = ROOT / "tests" / "data" / "parity" / "tiny-mega"
    leftover = tmp_path / "out" / "2026-01-01_00-00-00_x" / ".0.jpeg.0123abcd.tmp"  # of a server that was killed
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    os.utime(leftover, (0, 0))
    flags = ("--model-dir", str(tiny), "--cache-dir", str(tmp_path / "cache"), "--num-threads", "1")
    with ServerProcess(tmp_path, *flags, "--save-to-disk", "true", real=True) as server:
        server.ready()
        status, _, body = server.request("POST", "/dalle", {"text": "a red apple", "num_images": 3})
        files = [base64.b64decode(text) for text in json.loads(body)["generatedImages"]]
        assert status == 200 and [Image.open(io.BytesIO(file)).format for file in files] == ["JPEG"] * 3
        (saved,) = (path for path in (tmp_path / "out").iterdir() if path != leftover.parent)
        assert saved.name.endswith("_a red apple")
        assert [(saved / f"{index}.jpeg").read_bytes() for index in range(3)] == files
        server.wait_for(lambda: "--> Model selected - DALL-E Tiny-mega" in server.lines)
        assert any("100 %" in line for line in server.errors)  # its conversion
        assert not leftover.exists()
        server.process.terminate()
        assert server.exit_code() == 0 or sys.platform == "win32"


def test_a_warm_up_that_fails_leaves_no_engine_behind() -> None:
    """The model is loaded again and again, for whoever asks for it: each try would keep its weights and threads."""
    runner = FakeRunner()
    runner.nan_at[ImageKey(0, 0)] = 0
    engine = Engine(runner, FakeTokenizer())
    with pytest.raises(GenerationFailed):
        warm_up(engine)
    assert engine.state == "stopped" and runner.closed


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "api_keys": ("a:sesame-open",)}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
    ],
)
def test_a_server_that_anyone_may_use_says_so(
    settings: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_if_open(Settings(**settings))
    assert bool(caplog.messages) == warns
