"""One request as its bytes come in: framed strictly, judged when its headers are complete, its body kept or not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import BadRequest, RequestEntityTooLarge, RequestHeaderFieldsTooLarge

from dalle_server.web.serving.gate import Verdict

if TYPE_CHECKING:
    from dalle_server.web.serving.connections import Channel

HEAD_BYTES = 2048
_TLS_HELLO = b"\x16\x03"


class Request(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """One request as it comes in."""

    chunked: bool
    content_length: int
    body_rcv: Any

    def __init__(self, adj: Adjustments, channel: Channel):
        super().__init__(adj)
        self.begun = time.time()
        self.head = b""  # its first bytes, for a refusal of headers that were not read
        self.verdict = Verdict()
        self.is_cut = False  # the verdict leaves its body unread: the connection ends with the answer
        self.has_come = False  # that body has arrived already, and nothing of it is on its way
        self._channel = channel

    @property
    def ends_connection(self) -> bool:
        return self.is_cut or self.error is not None

    @property
    def is_told_at_once(self) -> bool:
        """Needs nothing of the application; a web page's answer needs its CORS headers."""
        return self.error is not None or (self.verdict.refusal is not None and "ORIGIN" not in self.headers)

    def received(self, data: bytes) -> int:
        if not self.header_plus and not self.headers_finished and data.startswith(_TLS_HELLO):
            self.error = BadRequest("this port speaks http, not https; a proxy in front of it can speak https")
            self.completed = True
            return len(data)
        if not self.headers_finished:
            self.head = (self.head + data)[:HEAD_BYTES]
        consumed: int = super().received(data)
        if isinstance(self.error, RequestHeaderFieldsTooLarge):
            self.verdict = Verdict()  # it was about a request that waitress made up
        if self.body_bytes_received > self.verdict.body_limit and self.error is None:  # chunked: no length to judge
            self.error = RequestEntityTooLarge(f"exceeds {self.verdict.body_limit}")
            self.completed = True
        if self.error is not None:
            self.expect_continue = False  # or waitress asks for the body, and waits for it instead of answering
        if self.is_cut and "CONTENT_LENGTH" in self.headers:
            self.has_come = len(data) - consumed >= int(self.headers["CONTENT_LENGTH"])
        # What follows a refused request may be its body: it must never be taken for a request.
        return len(data) if self.ends_connection else consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # Python makes no number of more than 4,300 digits
            raise ParsingError("Content-Length is too large") from None
        self._check_framing()
        has_body = self.chunked or self.content_length > 0
        server = self._channel.server
        self.verdict = server.gate.judge(self._environ(), has_body=has_body, workers=server.task_dispatcher)
        if has_body and not self.verdict.reads_body:
            self.is_cut, self.expect_continue = True, False
            self.chunked, self.content_length, self.body_rcv = False, 0, None

    def _check_framing(self) -> None:
        """Raises ParsingError for what two programs could read in two ways (RFC 9112, sections 3.2 and 6.3)."""
        host = self.headers.get("HOST")
        if host is None and self.version == "1.1":
            raise ParsingError("a Host header is needed")
        if host is not None and "," in host:
            raise ParsingError("there must be one Host header")
        if "TRANSFER_ENCODING" in self.headers:  # waitress takes it out where it means something
            raise ParsingError("Transfer-Encoding needs HTTP/1.1")
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Content-Length and Transfer-Encoding exclude each other")

    def _environ(self) -> dict[str, Any]:
        """As much of the WSGI environment as headers give."""
        environ = {f"HTTP_{name}": value for name, value in self.headers.items()}
        environ |= {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": "/" + self.path.lstrip("/"),
            "REMOTE_ADDR": self._channel.addr[0],
            "CONTENT_LENGTH": self.headers.get("CONTENT_LENGTH", ""),
        }
        return environ
