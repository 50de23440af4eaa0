"""What an open network does to a server: half requests, deaf readers, bodies nobody asked for, half-closed ends."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable

import pytest

from dalle_server.engine.stats import EngineStats
from dalle_server.web.serving import connections
from dalle_server.web.serving.connections import Book
from dalle_server.web.serving.http_server import HttpServer
from tests.web.scripted_engine import ScriptedEngine
from tests.web.serving.raw import MANY, ask, connect, is_closed, reply_of
from tests.web.waits import until

KEYS = {"api_keys": ("alice:sesame-open",)}


@pytest.mark.parametrize(
    ("request_line", "header", "status"),
    [
        ("POST /dalle", "Content-Length: 9000000", 413),
        ("POST /dalle", "Content-Length: 999999999999", 413),
        ("POST /dalle", f"Content-Length: {'9' * 5000}", 400),
        ("POST /dalle", "Content-Length: 12\r\nHost: y", 400),
        ("POST /dalle", "Content-Length: 12\r\nTransfer-Encoding: chunked", 400),
        ("POST /nowhere", "Content-Length: 9000000", 404),
        ("GET /v1/nowhere", "Content-Length: 9000000", 404),
        ("DELETE /dalle", "Content-Length: 9000000", 405),
        ("POST /sdapi/v1/txt2img", "Content-Length: 9000000", 401),
        ("POST /sdapi/v1/txt2img", "x-api-key: wrong-wrong\r\nTransfer-Encoding: chunked", 401),
        ("POST /dalle", "x-api-key: sesame-open\r\nContent-Encoding: gzip\r\nContent-Length: 100", 415),
        ("POST /v1/jobs", "Origin: https://a\r\nx-api-key: sesame-open\r\nContent-Length: 100", 403),
    ],
)
def test_headers_decide_before_a_body_is_taken(
    start: Callable[..., HttpServer], request_line: str, header: str, status: int
) -> None:
    """The answer comes while the client has sent none of it; and with `Expect`, it need never send it."""
    server = start(**KEYS)
    if status == 413:
        header += "\r\nx-api-key: sesame-open"
    for expect in ("", "Expect: 100-continue\r\n"):
        head = f"{request_line} HTTP/1.1\r\nHost: x\r\n{expect}{header}\r\n\r\n".encode()
        with connect(server, head) as connection:
            found, _, headers = reply_of(connection)
            assert (found, headers["Connection"]) == (status, "close")
            assert is_closed(connection)


@pytest.mark.parametrize(("path", "size"), [("/dalle", 30_000_000), ("/sdapi/v1/txt2img", 20_000_000)])
def test_a_client_that_sends_first_and_reads_later_gets_the_answer(
    start: Callable[..., HttpServer], path: str, size: int
) -> None:
    """http.client, requests, and most others: a connection that is closed meanwhile is a reset to them."""
    connection = http.client.HTTPConnection("127.0.0.1", start().port, timeout=20)
    connection.request("POST", path, body=b" " * size)
    reply = connection.getresponse()
    assert reply.status == 413 and b"bytes" in reply.read()
    connection.close()


def test_a_chunked_body_ends_at_the_routes_limit(start: Callable[..., HttpServer]) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connect(start(), b"POST /dalle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n") as connection:
        connection.sendall(chunk * 9)
        status, body, _ = reply_of(connection)
    assert status == 413 and "524288" in body["error"]


def test_a_refused_body_is_never_taken_for_a_request(start: Callable[..., HttpServer], engine: ScriptedEngine) -> None:
    """What a proxy passes on as one request must stay one."""
    server = start()
    inner = b'POST /dalle HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"text":"x"}'
    outer = f"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {len(inner)}\r\n\r\n".encode()
    for pieces in ([outer + inner], [outer, inner]):
        with connect(server) as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.05)
            assert reply_of(connection)[0] == 404
            assert is_closed(connection)
    assert engine.requests == []


@pytest.mark.parametrize(
    "head",
    [
        b"POST /dalle HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /dalle HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a, b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x99" * 200,
    ],
    ids=["both lengths", "chunked in 1.0", "no host", "two hosts", "two hosts in one", "a TLS hello"],
)
def test_what_could_be_read_in_two_ways_is_refused(start: Callable[..., HttpServer], head: bytes) -> None:
    with connect(start(), head) as connection:
        status, body, headers = reply_of(connection)
        assert status == 400 and "not valid HTTP" in str(body) and headers["Connection"] == "close"
        assert is_closed(connection)


def test_half_open_connections_of_one_address_shut_nobody_out(
    start: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dalle_server.web.serving.http_server.connection_limit", lambda: 100)
    server = start()
    half = [connect(server, b"POST /dalle HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(150)]
    try:
        assert ask(server) == 200  # the same address: the oldest half request makes room
        assert ask(server, source="127.0.0.2") == 200
        ended = 0
        for connection in half:
            connection.settimeout(0.05)
            try:
                ended += is_closed(connection)
            except TimeoutError:
                continue
        assert ended >= 100
    finally:
        for connection in half:
            connection.close()


def test_headers_that_never_end_are_let_go(start: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.5)
    with connect(start(), b"GET /health HTTP/1.1\r\n") as dripping:
        dripping.settimeout(0.2)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                dripping.sendall(b"x")
                if dripping.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    pytest.fail("it was never let go")


def test_a_reader_that_takes_nothing_is_let_go(start: Callable[..., HttpServer]) -> None:
    """It would hold a place, and a thread, for as long as it likes."""
    server = start()
    server.listeners[0].stall_s = 0.5
    admission = server.listeners[0].gate.app.extensions["dalle_server.admission"]
    with connect(server) as deaf:
        deaf.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: admission.in_flight == 1)
        until(lambda: admission.in_flight == 0, timeout_s=20)


def test_a_slow_reader_gets_everything(start: Callable[..., HttpServer]) -> None:
    """Slow is not deaf: whoever takes a little now and then is waited for."""
    server = start()
    server.listeners[0].stall_s = 1.5
    with connect(server, b"GET /flood HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as slow:
        got, pauses = 0, 0
        while data := slow.recv(1 << 20):
            got += len(data)
            if pauses < 6:
                pauses += 1
                time.sleep(0.5)
    assert got > MANY


def test_one_address_cannot_hold_every_place(start: Callable[..., HttpServer], engine: ScriptedEngine) -> None:
    engine.gate.clear()
    server = start(num_slots=2, max_waiting_images=1, max_event_streams=1)  # four places, three for each address
    post = b'POST /dalle HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"text":"x"}'
    held = [connect(server, post) for _ in range(3)]
    try:
        until(lambda: len(engine.requests) == 3)
        with connect(server, post) as refused:
            status, body, headers = reply_of(refused)
        assert status == 503 and "one address" in body["error"] and headers["Retry-After"]
        with connect(server, post, source="127.0.0.2") as other:
            until(lambda: len(engine.requests) == 4)
            assert ask(server) == 200
            assert ask(server, "/v1/models", source="127.0.0.3") == 503
            engine.gate.set()
            assert reply_of(other)[0] == 200
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("path", ["/dalle", "/v1/images/generations", "/sdapi/v1/txt2img", "/v1/jobs"])
@pytest.mark.parametrize("origin", ["", "Origin: http://localhost\r\n"])
def test_a_full_queue_is_told_before_the_body_is_taken(
    start: Callable[..., HttpServer], engine: ScriptedEngine, path: str, origin: str
) -> None:
    """In the words of the API, with its counters; a page's answer carries the headers that let it read it."""
    engine.stats = lambda: EngineStats(num_slots=4, running=4, waiting=1, step_s=0.5)
    server = start(max_waiting_images=1)
    with connect(
        server, f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{origin}Content-Length: 20\r\n\r\n".encode()
    ) as full:
        status, body, headers = reply_of(full)
    assert status == 503 and "queue is full" in str(body) and int(headers["Retry-After"]) >= 1
    assert headers["X-Request-Id"]
    assert not origin or path == "/v1/jobs" or headers["Access-Control-Allow-Origin"] == "http://localhost"
    with connect(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as connection:
        metrics = connection.makefile("rb").read().decode()
    assert f'method="POST",route="{path}",status="503"' in metrics
    assert engine.requests == []


# -- room


class Open:
    """A connection, as the book of them sees it."""

    def __init__(self, book: Book, address: str, *, is_idle: bool = True, at: float = 0.0):
        self.addr, self.is_idle, self.num_served, self.creation_time = (address, 1), is_idle, 0, at
        self.is_open, self._book = True, book
        book.add(self)  # type: ignore[arg-type]

    def handle_close(self) -> None:
        self.is_open = False
        self._book.remove(self)  # type: ignore[arg-type]


def test_the_address_with_most_connections_makes_room_for_others() -> None:
    book = Book(most=3, most_per_address=2)
    many = [Open(book, "10.0.0.1", at=at) for at in (1.0, 2.0)]
    other = Open(book, "10.0.0.2", at=0.0)
    assert book.make_room("10.0.0.3", is_proxy=False)
    assert [each.is_open for each in (*many, other)] == [False, True, True]


def test_no_connection_in_use_ends_for_another() -> None:
    book = Book(most=3, most_per_address=2)
    busy = [Open(book, address, is_idle=False) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2")]
    assert not book.make_room("10.0.0.1", is_proxy=False) and not book.make_room("10.0.0.3", is_proxy=False)
    assert all(each.is_open for each in busy)


def test_a_refused_body_without_an_end_is_not_read_for_ever(
    start: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 0.2)
    with connect(start(), b"POST /dalle HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n") as endless:
        assert reply_of(endless)[0] == 413

        def is_let_go() -> bool:
            try:
                endless.sendall(b"x")
            except OSError:
                return True
            return False

        until(is_let_go)


def test_made_up_methods_that_the_gate_refuses_make_no_new_metrics(start: Callable[..., HttpServer]) -> None:
    server = start()
    for name in ("LOOK", "TOUCH"):
        with connect(server, f"{name} /dalle HTTP/1.1\r\n\r\n".encode()) as refused:  # without Host
            assert reply_of(refused)[0] == 400
    with connect(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as connection:
        metrics = connection.makefile("rb").read().decode()
    assert "LOOK" not in metrics and 'method="other",route="none",status="400"} 2.0' in metrics
