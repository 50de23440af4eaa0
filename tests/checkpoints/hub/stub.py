"""A Hugging Face hub on 127.0.0.1: what the client asks of the real one, and its ways to fail."""

import hashlib
import shutil
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dalle_server.checkpoints.hub import pull as hub
from dalle_server.variants import ModelSize

WEIGHTS = "flax_model.msgpack"
COMMIT = "c0ffee" + "0" * 34
VQGAN_COMMIT = "e93a26e7707683d349bf5d5c41c5b0ef69b677a9"
SIGNATURE = "X-Amz-Expires=3600&X-Amz-Signature=5166"
LARGE = (".msgpack", ".pt", ".safetensors", ".bin")  # what the hub keeps as large files, under their sha256


@dataclass
class Hub:
    """`repositories`: name → folder. The other fields make it misbehave."""

    repositories: dict[str, Path]
    cut_after: dict[str, int] = field(default_factory=dict)  # file name → bytes sent before the line goes dead, once
    corrupt: set[str] = field(default_factory=set)  # file names of which one byte is changed
    hidden: set[str] = field(default_factory=set)  # file names that are not there
    etags: dict[str, str] = field(default_factory=dict)  # file name → what is told in place of its digest
    failures: list[int] = field(default_factory=list)  # statuses of the next answers
    login_page: bool = False  # every answer is one, as behind a captive portal
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers

    def commit(self, repository: str) -> str:
        return VQGAN_COMMIT if "vqgan" in repository else COMMIT

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


def xet_hash(path: Path) -> str:
    """Of its own kind: as long as a sha256, and another."""
    return hashlib.blake2s(path.read_bytes()).hexdigest()


def cache_as_the_hubs_client_does(
    hub_cache: Path, repository: str, folder: Path, *, commit: str, ref: bool = True, shared_store: bool = True
) -> Path:
    """Files of `folder` in the layout of huggingface_hub 2.x: snapshots → blobs → the store that all share.

    Returns the snapshot.
    """
    home = hub_cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (home / "blobs").mkdir(exist_ok=True)
    if ref:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        blob = home / "blobs" / etag(path)
        if shared_store and path.suffix in LARGE:
            stored = hub_cache / "blobs" / xet_hash(path)[:2] / xet_hash(path)
            stored.parent.mkdir(parents=True, exist_ok=True)
            (hub_cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
            shutil.copy(path, stored)
            blob.symlink_to(Path("..", "..", "blobs", stored.parent.name, stored.name))
            stored.with_name(f"{stored.name}.refs").write_text(f"{home.name}/blobs/{blob.name}\n")
        else:
            shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


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
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if self.hub.failures:
            return self.send(self.hub.failures.pop(), {}, b"<h1>Bad Gateway</h1>", with_body)
        if self.hub.login_page:
            return self.send(200, {"Content-Type": "text/html", "ETag": 'W/"1-2"'}, b"<h1>Wi-Fi</h1>", with_body)
        for repository, folder in self.hub.repositories.items():
            if path.startswith(f"/cdn/{repository}/"):
                return self.send_from_cdn(folder / path.rsplit("/", 1)[-1], with_body)
            if path.startswith(f"/{repository}/resolve/"):
                revision, name = path.removeprefix(f"/{repository}/resolve/").split("/", 1)
                if revision not in ("main", self.hub.commit(repository)):
                    return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"", with_body)
                return self.send_file(repository, folder / name, with_body)
        return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"", with_body)

    def send_file(self, repository: str, path: Path, with_body: bool) -> None:
        headers = {"X-Repo-Commit": self.hub.commit(repository)}
        if not path.is_file() or path.name in self.hub.hidden:
            return self.send(404, headers | {"X-Error-Code": "EntryNotFound"}, b"", with_body)
        headers |= {"ETag": f'"{self.hub.etags.get(path.name) or etag(path)}"', "Accept-Ranges": "bytes"}
        if path.suffix not in LARGE:
            return self.send_bytes(path, headers, with_body)
        headers |= {
            "X-Linked-Etag": headers["ETag"],
            "X-Linked-Size": str(path.stat().st_size),
            "X-Xet-Hash": xet_hash(path),
            "Link": f'</api/models/{repository}/xet-read-token/x>; rel="xet-auth"',
            # Another host, which asks for the signature and not for the token.
            "Location": f"http://localhost:{self.server_port}/cdn/{repository}/{path.name}?{SIGNATURE}",
        }
        return self.send(302, headers, b"", with_body)

    def send_from_cdn(self, path: Path, with_body: bool) -> None:
        if urlsplit(self.path).query != SIGNATURE or "Authorization" in self.headers:
            return self.send(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>", with_body)
        return self.send_bytes(
            path, {"ETag": '"d41d8cd98f00b204e9800998ecf8427e-2"', "Accept-Ranges": "bytes"}, with_body
        )

    def send_bytes(self, path: Path, headers: dict[str, str], with_body: bool) -> None:
        content = bytearray(path.read_bytes())
        if path.name in self.hub.corrupt:
            content[len(content) // 2] ^= 1
        wanted = self.headers.get("Range")
        if with_body and wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(206, headers, bytes(content[start:]), with_body, path.name)
        return self.send(200, headers, bytes(content), with_body, path.name)

    @property
    def server_port(self) -> int:
        return int(self.server.server_address[1])

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


def pull(tmp_path: Path, size: ModelSize = ModelSize.MINI, **options) -> Path:
    return hub.pull(size, cache_dir=tmp_path / "cache", **options)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
