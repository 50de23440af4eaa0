"""The database of 0.1.0, a real one (commit 981765d, nano, two keys), read by this program."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from dalle_server.errors import ConfigError
from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import SamplingParams
from dalle_server.web.jobs.resume import remaining_request
from dalle_server.web.jobs.storage.schema import VERSION
from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.store_help import ids

OF_0_1_0 = Path(__file__).parents[3] / "data" / "jobs-0.1.0"
ME, YOU = "key:fe552edfa5bc7ba5", "key:fddf0d5dd6e40fa1"
DONE, GERMAN, CANCELLED, HALF, WAITING = (
    "job-02451a211022fe97f837f065", "job-118a4e25d763c4bc1e474c1a", "job-6102abedb77d84b5c3314fbc",
    "job-55596116a24b4405c1dff3f2", "job-c5ada3a04afd617ce55bcfcd",
)  # fmt: skip


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OF_0_1_0, tmp_path / "data"))


def test_jobs_and_pictures_are_all_there(data_dir: Path) -> None:
    store = Store(data_dir)
    assert ids(store, ME) == [HALF, CANCELLED, DONE]
    assert ids(store, YOU, words=("größe", "apf")) == [GERMAN]
    assert ids(store, ME, words=("apple",)) == [DONE]
    german = store.rows.get(GERMAN)
    assert german is not None
    assert (german.status, german.seed, german.format, german.preview, german.model) == (
        "done", 2**60 + 3, "webp", False, "nano",
    )  # fmt: skip
    assert german.request.sampling == SamplingParams(temperature=0.8, top_k=20, top_p=1.0, condition_scale=5.0)
    assert german.request.negative_prompt == "leaves"
    done = store.rows.get(DONE)
    assert done is not None and done.total_s is not None and done.finished_at is not None
    for index, picture in enumerate(done.pictures):
        data = store.read(picture)
        assert data is not None and read_metadata(data).image_index == index


def test_what_was_unfinished_goes_on(data_dir: Path) -> None:
    half, waiting = Store(data_dir).rows.take_up()
    assert (half.id, waiting.id) == (HALF, WAITING)
    remaining = remaining_request(half, half.digest)
    assert remaining is not None
    assert [(key.seed, key.index) for key in remaining.images] == [(11, 2)]
    assert remaining.client == ME
    again = remaining_request(waiting, waiting.digest)
    assert again is not None and [key.index for key in again.images] == [0, 1]


def test_a_row_that_cannot_be_migrated_is_kept_and_costs_no_other(data_dir: Path) -> None:
    connection = sqlite3.connect(data_dir / "jobs.sqlite3")
    connection.execute("UPDATE jobs SET request = '{\"prompt\": 1}' WHERE id = ?", (CANCELLED,))
    connection.execute("UPDATE jobs SET request = 'x' WHERE id = ?", (DONE,))
    connection.commit()
    connection.close()
    store = Store(data_dir)
    assert ids(store, ME) == [HALF, CANCELLED, DONE]
    done = store.rows.get(DONE)  # its pictures tell it
    assert done is not None and (done.request.prompt, done.status, done.owner) == ("a red apple", "done", ME)


def test_it_is_migrated_once_and_0_1_0_would_refuse_it(data_dir: Path) -> None:
    Store(data_dir).close()
    connection = sqlite3.connect(data_dir / "jobs.sqlite3")
    assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    connection.close()
    store = Store(data_dir)
    assert ids(store, ME) == [HALF, CANCELLED, DONE]


def opened_as(version: int, without: tuple[str, ...], data_dir: Path) -> Store:
    """The store of a database of that version, which knew no such table.column yet."""
    Store(data_dir).close()
    connection = sqlite3.connect(data_dir / "jobs.sqlite3")
    for column in without:
        table, name = column.split(".")
        connection.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()
    return Store(data_dir)


def test_version_2_knew_no_given_pictures(data_dir: Path) -> None:
    store = opened_as(2, ("jobs.over", "jobs.given_bytes"), data_dir)
    assert ids(store, ME) == [HALF, CANCELLED, DONE]
    done = store.rows.get(DONE)
    assert done is not None and done.over is None and done.status == "done"
    assert {each.id for each in store.rows.finished()} == {CANCELLED, DONE, GERMAN}


def test_version_5_knew_no_choice_of_the_likeliest(data_dir: Path) -> None:
    store = opened_as(5, ("jobs.best_of", "pictures.noise", "pictures.score"), data_dir)
    assert ids(store, ME) == [HALF, CANCELLED, DONE]
    done = store.rows.get(DONE)
    assert done is not None and done.best_of is None and done.pictures
    assert [(each.index, each.image_index, each.score) for each in done.pictures] == [
        (place, place, None) for place in range(len(done.pictures))
    ]
    store.add_picture(done, 5, b"x", (8, 8), noise=3, score=-1.5)
    again = store.rows.get(DONE)
    assert again is not None and (again.pictures[-1].image_index, again.pictures[-1].score) == (3, -1.5)


def test_a_newer_schema_is_refused_and_left_alone(data_dir: Path) -> None:
    connection = sqlite3.connect(data_dir / "jobs.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match=r"schema 99.*newer program"):
        Store(data_dir)
    connection = sqlite3.connect(data_dir / "jobs.sqlite3")
    assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (5,)
