"""A crowd on a full queue: in one turn of the thread that serves all connections, everybody is let in and told."""

from __future__ import annotations

import http.client
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from waitress import wasyncore

from dalle_server.config import Settings
from dalle_server.engine.stats import EngineStats
from dalle_server.web.serving.http_server import HttpServer
from dalle_server.web.serving.workers import Workers
from tests.web.scripted_engine import ScriptedEngine
from tests.web.server_process import post_bytes

CROWD = 40
POST = post_bytes("/dalle", {"text": "x", "num_images": 1})
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Held(Workers):
    """Remembers what it was given, and does nothing."""

    def __init__(self, most: int):
        super().__init__(most)
        self.added: list[Any] = []

    def add_task(self, task: object) -> None:
        self.added.append(task)


@pytest.fixture
def server(make_app: Callable[..., Flask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    """One that takes its turns when the test says so."""
    monkeypatch.setattr("dalle_server.web.serving.http_server.Workers", Held)
    monkeypatch.setattr("dalle_server.web.serving.workers.HOLD_S", 60.0)  # however long a busy machine takes
    app = make_app()
    server = HttpServer(app, Settings(host="127.0.0.1", port=0, data_dir=tmp_path / "data"))
    yield server
    (listener,) = server.listeners
    for channel in list(listener.active_channels.values()):
        channel.handle_close()
    listener.close()
    listener.task_dispatcher.shutdown()


def turn(server: HttpServer) -> None:
    wasyncore.poll2(1.0, server.listeners[0]._map)


def ask(server: HttpServer, request: bytes, number: int = 1) -> list[socket.socket]:
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(number)]
    for client in clients:
        client.sendall(request)
    return clients


def status_of(client: socket.socket) -> int:
    with client:
        reply = http.client.HTTPResponse(client)
        reply.begin()
        assert reply.read()
        return reply.status


def test_a_crowd_is_told_in_one_turn(server: HttpServer, engine: ScriptedEngine) -> None:
    """A turn each (of all connections) made the last of 320 wait for half a second."""
    engine.stats = lambda: EngineStats(num_slots=4, running=4, waiting=64, step_s=0.5)
    crowd = ask(server, POST, CROWD)
    turn(server)
    assert [status_of(client) for client in crowd] == [503] * CROWD
    assert not server.listeners[0].active_channels, "told, and gone"


def test_pictures_that_wait_for_pixels_count(server: HttpServer, engine: ScriptedEngine) -> None:
    engine.stats = lambda: EngineStats(num_slots=4, running=4, waiting=60, detokenizing=4, step_s=0.5)
    (client,) = ask(server, POST)
    turn(server)
    assert status_of(client) == 503


def test_a_queue_that_has_room_again_refuses_nobody(server: HttpServer, engine: ScriptedEngine) -> None:
    engine.stats = lambda: EngineStats(num_slots=4, running=4, waiting=64, step_s=0.5)
    (told,) = ask(server, POST)
    turn(server)
    assert status_of(told) == 503
    engine.stats = lambda: EngineStats(num_slots=4, step_s=0.5)
    server.listeners[0].gate._full_at -= 1.0  # a second later
    (client,) = ask(server, POST)
    turn(server)
    assert server.listeners[0].task_dispatcher.num_waiting == 1
    client.close()


def test_what_needs_work_waits_for_those_who_need_a_word(server: HttpServer) -> None:
    workers = server.listeners[0].task_dispatcher
    crowd = ask(server, POST, CROWD) + ask(server, HEALTH)
    turn(server)
    (life_sign,) = workers.added  # answers whatever the load is
    assert life_sign.requests[0].path == "/health"
    assert workers.num_waiting == CROWD, "the queue counts them"
    workers.release(is_quiet=False)
    assert len(workers.added) == 1
    workers.release(is_quiet=True)
    assert len(workers.added) == 1 + CROWD and not workers.is_holding
    for client in crowd:
        client.close()


def test_who_wants_no_place_takes_none(server: HttpServer, engine: ScriptedEngine) -> None:
    """A look at /v1/models in the same turn was counted as a picture, and the last free place refused."""
    engine.stats = lambda: EngineStats(num_slots=4, running=4, waiting=63, step_s=0.5)
    workers = server.listeners[0].task_dispatcher
    clients = ask(server, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 3)
    turn(server)
    clients += ask(server, POST)
    turn(server)
    assert (workers.num_waiting, workers.num_entering) == (4, 1), "the drawing waits with them, and is not refused"
    clients += ask(server, POST)
    turn(server)
    assert status_of(clients.pop()) == 503
    for client in clients:
        client.close()


def test_nobody_waits_for_a_stream_of_others(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dalle_server.web.serving.workers.HOLD_S", 0.0)
    workers = server.listeners[0].task_dispatcher
    (client,) = ask(server, POST)
    turn(server)
    workers.release(is_quiet=False)
    assert len(workers.added) == 1
    client.close()


def test_the_log_of_those_who_were_told_is_written_after_them(
    server: HttpServer, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.stats = lambda: EngineStats(num_slots=4, running=4, waiting=64, step_s=0.5)
    caplog.set_level(logging.INFO, "dalle_server.access")
    crowd = ask(server, POST, 3)
    turn(server)
    assert [status_of(client) for client in crowd] == [503] * 3 and not caplog.messages
    server.listeners[0].gate.log()
    assert len(caplog.messages) == 3 and all("status=503" in line for line in caplog.messages)
