"""A Hugging Face hub on 127.0.0.1: what the client asks of the real one, and its ways to fail."""

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = (".msgpack", ".pt")  # what the hub keeps as large files, under their sha256


@dataclass
class Hub:
    """`repositories`: name → folder. The other fields make it misbehave."""

    repositories: dict[str, Path]
    cut_after: dict[str, int] = field(default_factory=dict)  # file name → bytes sent before the line goes dead, once
    corrupt: set[str] = field(default_factory=set)  # file names of which one byte is changed
    hidden: set[str] = field(default_factory=set)  # file names that are not there
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers

    def start(self) -> str:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def downloads(self, name: str) -> list[dict[str, str]]:
        """Headers of the requests that got the file's bytes."""
        wanted = ("/cdn/", f"/{name}") if Path(name).suffix in LARGE else ("/", f"/{name}")
        return [
            headers
            for method, path, headers in self.requests
            if method == "GET" and path.startswith(wanted[0]) and path.endswith(wanted[1])
        ]


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest() if path.suffix in LARGE else git_blob_id(content)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        for repository, folder in self.hub.repositories.items():
            if path.startswith((f"/{repository}/resolve/", f"/cdn/{repository}/")):
                return self.send_file(repository, folder / path.rsplit("/", 1)[-1], with_body)
        return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"", with_body)

    def send_file(self, repository: str, path: Path, with_body: bool) -> None:
        if not path.is_file() or path.name in self.hub.hidden:
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"", with_body)
        content = bytearray(path.read_bytes())
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(path)}"', "Accept-Ranges": "bytes"}
        if path.suffix in LARGE:
            headers |= {"X-Linked-Etag": f'"{etag(path)}"', "X-Linked-Size": str(len(content))}
            if not self.path.startswith("/cdn/"):  # another host, as the real hub does
                headers["Location"] = f"http://localhost:{self.server.server_address[1]}/cdn/{repository}/{path.name}"
                return self.send(302, headers, b"", with_body)
        if path.name in self.hub.corrupt:
            content[len(content) // 2] ^= 1
        wanted = self.headers.get("Range")
        if with_body and wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(206, headers, bytes(content[start:]), with_body, path.name)
        return self.send(200, headers, bytes(content), with_body, path.name)

    def send(self, status: int, headers: dict[str, str], body: bytes, with_body: bool, name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            cut = self.hub.cut_after.pop(name, None)
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True
