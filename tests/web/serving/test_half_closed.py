"""Clients that close their sending half, or leave: `nc -N`, and browsers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from dalle_server.web.serving.http_server import HttpServer
from tests.web.scripted_engine import ScriptedEngine
from tests.web.server_process import post_bytes
from tests.web.serving.raw import MANY, connect, is_closed, reply_of
from tests.web.waits import until


def test_a_closed_sending_half_is_not_leaving(start: Callable[..., HttpServer], engine: ScriptedEngine) -> None:
    """`nc -N`: it has said everything, and waits."""
    engine.gate.clear()
    post = b'POST /dalle HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"text":"x"}'
    with connect(start(), post) as waiting:
        waiting.shutdown(socket.SHUT_WR)
        until(lambda: len(engine.requests) == 1)
        time.sleep(0.3)
        assert engine.generations[0].cancel_reason is None
        engine.gate.set()
        status, body, _ = reply_of(waiting)
        assert status == 200 and len(body["generatedImages"]) == 1
        assert is_closed(waiting)


def test_a_client_that_leaves_after_closing_its_half_is_noticed(
    start: Callable[..., HttpServer], engine: ScriptedEngine
) -> None:
    engine.gate.clear()
    post = b'POST /dalle HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"text":"x"}'
    with connect(start(), post) as leaving:
        until(lambda: len(engine.requests) == 1)
        leaving.shutdown(socket.SHUT_WR)
    until(lambda: engine.generations[0].cancel_reason == "the client left")


STREAM = post_bytes("/v1/images/generations", {"prompt": "x", "stream": True})


def test_a_sending_half_closed_while_the_answer_is_told_gets_the_whole_of_it(
    start: Callable[..., HttpServer], engine: ScriptedEngine
) -> None:
    engine.gate.clear()
    with connect(start(), STREAM) as reader:
        began = reader.recv(1 << 16)
        reader.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        assert b"200 OK" in began and engine.generations[0].cancel_reason is None
        engine.gate.set()
        told = began
        while data := reader.recv(1 << 16):
            told += data
    assert b"event: image_generation.completed" in told and told.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")


def test_more_than_the_network_takes_is_told_to_the_end(start: Callable[..., HttpServer]) -> None:
    with connect(start(), b"GET /flood HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as slow:
        got = len(slow.recv(1 << 20))
        time.sleep(0.2)
        slow.shutdown(socket.SHUT_WR)
        while data := slow.recv(1 << 20):
            got += len(data)
    assert got > MANY


@pytest.mark.parametrize("closes_half_first", [False, True])
def test_a_client_that_leaves_a_silent_stream_is_noticed(
    start: Callable[..., HttpServer], engine: ScriptedEngine, closes_half_first: bool
) -> None:
    engine.gate.clear()
    with connect(start(), STREAM) as leaving:
        assert b"200 OK" in leaving.recv(1 << 16)
        until(lambda: len(engine.requests) == 1)
        if closes_half_first:
            leaving.shutdown(socket.SHUT_WR)
    until(lambda: engine.generations[0].cancel_reason == "the client left")
