"""The size and the way to it that a job was asked with, as rows and records keep them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dalle_server.drawing.form import Form
from dalle_server.pictures.codec import ImageFormat
from dalle_server.web.jobs.storage.records import from_values, to_values
from dalle_server.web.jobs.storage.repair import record_of
from tests.web.jobs.store_help import job

FORMS = [
    Form(),
    Form(format=ImageFormat.WEBP, size_px=(300, 100)),
    Form(size_px=(96, 64), fit="crop"),
    Form(format=ImageFormat.JPEG, fit="stretch"),
]


def row(form: Form) -> dict[str, object]:
    absent = ("started_at", "finished_at", "queue_s", "total_s")
    return {**to_values(replace(job(1), form=form)), **dict.fromkeys(absent), "faults": 0, "last_event": 0}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_and_a_record_tell_it(form: Form) -> None:
    assert from_values(row(form)).form == form
    assert json.loads(record_of(replace(job(1), form=form)))["form"] == row(form)["form"]


def test_rows_that_are_older_say_nothing_of_it() -> None:
    old = row(FORMS[0])
    del old["form"]
    assert from_values(old).form == Form() and row(FORMS[0])["form"] is None


@pytest.mark.parametrize(
    "wire", ["{", "[]", '{"size_px": [5]}', '{"size_px": [1, 99999]}', '{"fit": "zoom"}', '{"x": 1}']
)
def test_one_that_cannot_be_read_costs_that_job_alone(wire: str) -> None:
    damaged = from_values({**row(FORMS[1]), "form": wire})
    assert damaged.is_damaged and damaged.status == "failed" and damaged.format == "webp"
