"""What a lost or damaged database, a lost file or a strange one costs: itself, and nothing else."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dalle_server.drawing.repaint import Holes
from dalle_server.pictures.metadata import DrawnOver
from dalle_server.web.jobs.storage.given import Given, Over
from dalle_server.web.jobs.storage.records import DAMAGED
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.store_help import finished, ids, job, picture_bytes


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Three finished jobs of two keys, one that is half done, and the store closed."""
    store = Store(tmp_path)
    finished(store, 1, owner="key:me", num_pictures=2, seed=2**60 + 1)
    finished(store, 2, owner="key:you", prompt="ein grüner ÄPFEL")
    finished(store, 3, owner="key:me", num_pictures=0, status="cancelled")
    half = job(4, owner="key:me", num_images=3)
    store.add(half)
    store.add_picture(half, 1, picture_bytes(half, 1), (8, 8))
    store.close()
    return tmp_path


def change(data_dir: Path, statement: str) -> None:
    connection = sqlite3.connect(data_dir / "jobs.sqlite3")
    connection.execute(statement)
    connection.commit()
    connection.close()


def files(data_dir: Path) -> dict[str, bytes]:
    root = data_dir / "jobs"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["gone", "empty", "damaged", "another's"])
def test_a_lost_database_costs_no_picture_and_is_made_again(
    data_dir: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = files(data_dir)
    path = data_dir / "jobs.sqlite3"
    match how:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "damaged":
            path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 20_000)
        case _:
            path.write_bytes(b"this is no database " * 500)
    store = Store(data_dir)
    assert files(data_dir) == before
    assert ids(store, "key:me") == ["job-4", "job-1"]
    assert ids(store, "key:you", words=("äpfel",)) == ["job-2"]
    first, half = store.rows.get("job-1"), store.rows.get("job-4")
    assert first is not None and half is not None
    assert (first.status, first.seed, first.created_at, len(first.pictures)) == ("done", 2**60 + 1, 1001.0, 2)
    assert first.request == job(1, owner="key:me", seed=2**60 + 1).request.__class__.from_dict(first.request.to_dict())
    assert (half.status, [picture.index for picture in half.pictures]) == ("failed", [1])
    assert half.error is not None and "lost while it ran" in half.error["message"]
    assert len(list(data_dir.glob("jobs.sqlite3.damaged-*"))) == (how in ("damaged", "another's"))
    assert "rebuilt" in caplog.text


def test_jobs_come_back_in_the_order_of_their_submission(tmp_path: Path) -> None:
    """Folders are listed by name, and names are drawn by lot."""
    store = Store(tmp_path)
    for number in (9, 10, 11):  # job-10, job-11, job-9 by name
        finished(store, number)
    store.close()
    (tmp_path / "jobs.sqlite3").unlink()
    store = Store(tmp_path)
    assert ids(store) == ["job-11", "job-10", "job-9"]
    assert [each.id for each in store.rows.finished()] == ["job-9", "job-10", "job-11"]  # the oldest goes first
    store.close()


def test_pictures_tell_their_job_where_nothing_else_does(data_dir: Path) -> None:
    """As those of 0.1.0, which kept no job.json beside them."""
    (data_dir / "jobs.sqlite3").unlink()
    (data_dir / "jobs" / "job-1" / "job.json").unlink()
    found = Store(data_dir).rows.get("job-1")
    assert found is not None
    assert (found.owner, found.request.prompt, found.seed, found.model) == ("", "a red apple", 2**60 + 1, "scripted")
    assert [picture.index for picture in found.pictures] == [0, 1]
    assert found.status == "done"


@pytest.mark.parametrize(
    "request_json",
    ["no json", "[1]", '"text"', "null", '{"version": 1}', '{"version": 99, "prompt": "x", "images": [[1, 0]]}',
     '{"version": 1, "prompt": "x", "images": [[-1, 0]]}', "[" * 50_000],
)  # fmt: skip
@pytest.mark.parametrize("job_id", ["job-1", "job-4"])
def test_a_row_that_cannot_be_read_is_read_from_its_files(data_dir: Path, request_json: str, job_id: str) -> None:
    change(data_dir, f"UPDATE jobs SET request = '{request_json}' WHERE id = '{job_id}'")
    store = Store(data_dir)
    assert ids(store, "key:me") == ["job-4", "job-3", "job-1"]
    found = store.rows.get(job_id)
    assert found is not None and found.request.prompt == "a red apple"
    assert found.status == ("done" if job_id == "job-1" else "failed")
    assert not found.is_damaged


def test_a_row_that_nothing_explains_is_a_failed_job_and_stays(data_dir: Path) -> None:
    change(data_dir, "UPDATE jobs SET request = '{', status = 'queued' WHERE id = 'job-3'")
    store = Store(data_dir)
    assert store.rows.take_up() != []
    found = store.rows.get("job-3")
    assert found is not None
    assert (found.status, found.request.prompt, found.is_damaged) == ("failed", DAMAGED, True)
    assert ids(store, "key:me") == ["job-4", "job-3", "job-1"]
    store.close()
    kept = sqlite3.connect(data_dir / "jobs.sqlite3").execute("SELECT request FROM jobs WHERE id = 'job-3'")
    assert kept.fetchone() == ("{",)


def test_an_error_that_cannot_be_read_costs_its_job_alone(data_dir: Path) -> None:
    change(data_dir, "UPDATE jobs SET error = 'oh' WHERE id = 'job-3'")
    assert ids(Store(data_dir), "key:me") == ["job-4", "job-3", "job-1"]


def test_a_row_without_its_file_forgets_it_and_finds_it_again(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "jobs" / "job-1" / "0.png"
    path.rename(tmp_path / "elsewhere.png")
    store = Store(data_dir)
    found = store.rows.get("job-1")
    assert found is not None and [picture.index for picture in found.pictures] == [1]
    store.close()
    (tmp_path / "elsewhere.png").rename(path)
    found = Store(data_dir).rows.get("job-1")
    assert found is not None and [picture.index for picture in found.pictures] == [0, 1]


def test_a_volume_that_was_not_mounted_costs_no_picture(data_dir: Path) -> None:
    (data_dir / "jobs").rename(data_dir / "elsewhere")
    Store(data_dir).close()
    shutil.rmtree(data_dir / "jobs")
    (data_dir / "elsewhere").rename(data_dir / "jobs")
    found = Store(data_dir).rows.get("job-1")
    assert found is not None and len(found.pictures) == 2


def test_strange_files_are_moved_aside_and_told(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = data_dir / "jobs"
    whole = (root / "job-1" / "0.png").read_bytes()
    (root / "job-7").mkdir()
    (root / "job-7" / "0.png").write_bytes(b"no picture")
    (root / "job-1" / "5.png").write_bytes(whole)  # says that it is picture 0
    (root / "job-4" / "0.png").write_bytes(whole[: len(whole) // 2])
    (root / "job-4" / ".2.png.0123abcd.tmp").write_bytes(b"half")  # ours, cut by a kill: nobody was told of it
    store = Store(data_dir)
    aside = {str(path.relative_to(data_dir / "set-aside"))[16:] for path in (data_dir / "set-aside").rglob("*.png")}
    assert aside == {"job-7/0.png", "job-1/5.png", "job-4/0.png"}
    assert str(data_dir / "set-aside") in caplog.text
    assert store.rows.get("job-7") is None
    assert not (root / "job-4" / ".2.png.0123abcd.tmp").exists()


def test_a_picture_that_was_cut_is_none(data_dir: Path) -> None:
    store = Store(data_dir)
    store.rows.drop_pictures("job-1", [0])
    store.close()
    file = data_dir / "jobs" / "job-1" / "0.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"IDAT") + 6])  # what tells how it was made is there
    found = Store(data_dir).rows.get("job-1")
    assert found is not None and [picture.index for picture in found.pictures] == [1]
    assert not file.exists()
    assert [path.name for path in (data_dir / "set-aside").rglob("*.png")] == ["0.png"]


def test_a_picture_whose_row_a_kill_prevented_is_found_again(data_dir: Path) -> None:
    half = job(4, owner="key:me", num_images=3)
    (data_dir / "jobs" / "job-4" / "2.png").write_bytes(picture_bytes(half, 2))
    found = Store(data_dir).rows.get("job-4")
    assert found is not None and [picture.index for picture in found.pictures] == [1, 2]


def over_of(data: bytes) -> Over:
    holes = Holes(np.arange(4, dtype=np.int32), np.array([False, True, True, False]), 0.5, 3)
    told = DrawnOver.of((8, 8), (0, 0, 8), mask=False, strength=0.5, candidates=3)
    return Over(holes, told, False, len(data))


def test_a_job_over_a_picture_is_read_again_from_its_record(data_dir: Path) -> None:
    store = Store(data_dir)
    made = replace(job(5), over=over_of(b"picture"))
    store.add_given(made, Given(b"picture"))
    store.add(made)
    store.add_picture(made, 0, picture_bytes(made, 0), (8, 8))
    store.close()
    (data_dir / "jobs.sqlite3").unlink()
    store = Store(data_dir)
    again = store.rows.get(made.id)
    assert again is not None and again.over is not None and made.over is not None
    assert again.over.to_json() == made.over.to_json()
    assert store.given(again) == Given(b"picture")


def test_a_given_picture_of_no_job_is_moved_aside(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """kill -9 between the file and the row: nobody was told of the job."""
    store = Store(data_dir)
    store.add_given(replace(job(5), over=over_of(b"picture")), Given(b"picture"))
    store.close()
    Store(data_dir)
    assert "given pictures of unknown jobs" in caplog.text
    (kept,) = (data_dir / "set-aside").rglob("image.given")
    assert kept.read_bytes() == b"picture"
    assert not (data_dir / "jobs" / "job-5" / "image.given").exists()


@pytest.mark.parametrize("over", ["x", "{}", '{"holes": 1}', "[]", "null"])
def test_an_over_that_cannot_be_read_costs_its_own_job_only(data_dir: Path, over: str) -> None:
    change(data_dir, f"UPDATE jobs SET over = '{over}' WHERE id = 'job-3'")
    store = Store(data_dir)
    assert len(ids(store, "key:me")) == 3
    damaged = store.rows.get("job-3")
    assert damaged is not None and damaged.is_damaged


def test_given_bytes_count_for_retention(data_dir: Path) -> None:
    store = Store(data_dir)
    before = store.rows.totals()[1]
    made = replace(job(6), over=over_of(bytes(1000)))
    store.add_given(made, Given(bytes(1000)))
    store.add(made)
    store.rows.update(made.id, status="done", finished_at=2000.0)
    assert store.rows.totals()[1] == before + 1000
    assert {each.id: each.size_bytes for each in store.rows.finished()}[made.id] == 1000
