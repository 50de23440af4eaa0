"""HTTP on sockets of one's own: what no client library would send."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from dalle_server.web.serving.http_server import HttpServer

MANY = 40 * 1024 * 1024  # more bytes than any socket buffer takes


def connect(server: HttpServer, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20, source_address=(source, 0))
    connection.sendall(data)
    return connection


def reply_of(connection: socket.socket) -> tuple[int, dict[str, Any], dict[str, str]]:
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    return reply.status, json.loads(reply.read() or b"null"), dict(reply.getheaders())


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def ask(server: HttpServer, path: str = "/health", source: str = "127.0.0.1") -> int:
    with connect(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), source) as connection:
        return reply_of(connection)[0]
