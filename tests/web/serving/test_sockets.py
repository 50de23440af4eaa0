"""Addresses, and the limits of the system under them."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from pathlib import Path

import pytest

from dalle_server.config import Settings
from dalle_server.errors import ConfigError, DalleServerError
from dalle_server.web.serving import directories, sockets
from dalle_server.web.serving.admission import MAX_IN_FLIGHT, max_in_flight
from dalle_server.web.serving.sockets import connection_limit, listen, shown
from dalle_server.web.serving.workers import FIRST_THREADS, Workers
from tests.web.waits import until


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


@pytest.mark.parametrize(
    ("host", "in_a_url"),
    [
        ("0.0.0.0", "localhost"),
        ("::", "localhost"),
        ("[::]", "localhost"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("127.0.0.1", "127.0.0.1"),
        ("my-server", "my-server"),
    ],
)
def test_hosts_are_shown_as_urls_have_them(host: str, in_a_url: str) -> None:
    assert shown(host) == in_a_url


@ipv6
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_every_interface_is_both_families(host: str) -> None:
    (listener,) = listen(host, 0)
    with listener:
        listener.listen()
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, listener.getsockname()[1]), timeout=5).close()


@ipv6
def test_a_name_of_two_addresses_listens_on_both_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 0)), (socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    found = listen("localhost", 0)
    assert len({sock.getsockname()[1] for sock in found}) == 1 and len(found) == 2
    for sock in found:
        sock.close()


def test_an_address_that_cannot_be_used_is_told() -> None:
    with pytest.raises(ConfigError, match="is no address of this machine"):
        listen("no such host", 8000)
    (taken,) = listen("127.0.0.1", 0)
    with taken:
        taken.listen()
        with pytest.raises(DalleServerError, match="is in use; stop what listens there"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_where_select_counts_descriptors_there_are_fewer_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows: select() of more than 512 descriptors would end the process."""
    monkeypatch.setattr(sockets, "_raise_open_file_limit", lambda wanted: None)
    monkeypatch.delattr(select, "poll", raising=False)
    assert connection_limit() <= 512 - sockets.OWN_FILES + 16


def test_few_open_files_mean_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_raise_open_file_limit", lambda wanted: 256)
    assert connection_limit() == 256 - sockets.OWN_FILES


class Work:
    def __init__(self) -> None:
        self.is_done = False

    def service(self) -> None:
        self.is_done = True


def test_threads_start_when_they_are_needed() -> None:
    workers = Workers(100)
    assert len(workers.threads) == FIRST_THREADS
    works = [Work() for _ in range(50)]
    for work in works:
        workers.add_task(work)
    until(lambda: all(work.is_done for work in works))
    assert FIRST_THREADS <= len(workers.threads) <= 100
    workers.shutdown()


def test_a_system_without_threads_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Workers, target: object, number: int) -> None:
        raise RuntimeError("can't start new thread")

    workers = Workers(100)
    monkeypatch.setattr(Workers, "start_new_thread", refuse)
    with pytest.raises(DalleServerError, match="no more threads: raise its limit"):
        Workers(100)
    works = [Work() for _ in range(50)]  # those that are there go on
    for work in works:
        workers.add_task(work)
    until(lambda: all(work.is_done for work in works))
    workers.shutdown()


def test_settings_cannot_ask_for_any_number_of_threads() -> None:
    assert max_in_flight(Settings(num_slots=100_000, max_waiting_images=4096)) == MAX_IN_FLIGHT


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_data_is_this_users_own(tmp_path: Path) -> None:
    directories.prepare(Settings(data_dir=tmp_path / "a" / "data", output_dir=tmp_path / "out", save_to_disk=True))
    assert (tmp_path / "a" / "data").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "a" / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["data_dir", "output_dir"])
def test_a_directory_that_can_never_work_stops_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    paths = {"data_dir": tmp_path / "data", "output_dir": tmp_path / "out", name: tmp_path / "file" / "here"}
    with pytest.raises(ConfigError, match=f"{name} .* cannot be used: .*; name another directory|a file stands"):
        directories.prepare(Settings(**paths, save_to_disk=True))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_the_remedy_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ConfigError, match=r"can.* be written to|may write to"):
        directories.prepare(Settings(data_dir=tmp_path / "data"))


def test_a_full_disk_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """/dalle needs none."""

    def refuse(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    directories.prepare(Settings(data_dir=tmp_path / "data"))
    assert "No space left on device; make room there" in caplog.text
