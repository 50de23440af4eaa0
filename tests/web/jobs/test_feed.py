"""The feed by itself: what is new is found, however many jobs there are, and only where there is news."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_server.web.jobs import feed as module
from dalle_server.web.jobs.feed import Entry, Feed

EVENTS = ("open", "queued", "progress", "preview", "image", "done")


def everything(feed: Feed, after: int) -> list[Entry]:
    entries = [entry for job in feed._jobs.values() for entry in job.entries.values() if entry.number > after]
    return sorted(entries, key=lambda entry: entry.number)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(EVENTS)), max_size=30), st.integers(0, 30))
def test_a_view_of_all_jobs_finds_whatever_is_new(told: list[tuple[str, str]], after: int) -> None:
    feed = Feed(max_viewers=1)
    for job_id, event in told:
        if event == "open":
            feed.open(job_id, "me")
        else:
            feed.publish(job_id, event, {"index": 0} if event in ("preview", "image") else {})
    found, over = feed.wait("me", "", after, patience_s=0.0)
    assert found == everything(feed, after) and not over


def test_a_view_of_all_jobs_is_of_ones_own() -> None:
    feed = Feed(max_viewers=2)
    for owner in ("me", "you"):
        feed.open(f"job-{owner}", owner)
        feed.publish(f"job-{owner}", "queued", {})
    found, _ = feed.wait("me", "", 0, patience_s=0.0)
    assert [entry.job_id for entry in found] == ["job-me"]


def test_a_picture_takes_the_place_of_its_own_preview() -> None:
    feed = Feed(max_viewers=1)
    feed.open("job-1", "me")
    for event, index in (("preview", 0), ("preview", 1), ("image", 0)):
        feed.publish("job-1", event, {"index": index})
    found, _ = feed.wait("me", "job-1", 0, patience_s=0.0)
    assert [(entry.event, entry.data["index"]) for entry in found] == [("preview", 1), ("image", 0)]


def test_jobs_without_news_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer of a thousand waiting jobs pays for the one that is drawn."""
    looked_at: list[str] = []

    class Watched(module._JobEntries):
        def __getattribute__(self, name: str) -> object:
            if name == "entries":
                looked_at.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(module, "_JobEntries", Watched)
    feed = Feed(max_viewers=1)
    for number in range(1000):
        feed.open(str(number), "me")
        feed.publish(str(number), "queued", {})
    seen = feed.wait("me", "", 0, patience_s=0.0)[0][-1].number
    feed.publish("500", "progress", {})
    looked_at.clear()
    (entry,), _ = feed.wait("me", "", seen, patience_s=0.0)
    assert entry.job_id == "500" and len(looked_at) == 1
    looked_at.clear()
    assert feed.wait("me", "", entry.number, patience_s=0.0) == ([], False)
    assert not looked_at


def test_jobs_that_ended_a_while_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dalle_server.web.jobs.feed.time.monotonic", lambda: now[0])
    feed = Feed(max_viewers=1)
    for job_id in ("long", "first", "second", "last"):
        feed.open(job_id, "me")
    for job_id, at in (("first", 1.0), ("second", 30.0), ("last", module.KEEP_ENDED_S + 2.0)):
        now[0] = at
        feed.publish(job_id, "done", {})
    assert set(feed._jobs) == {"long", "second", "last"}


def test_words_of_another_server_that_come_after_the_end_are_too_late() -> None:
    feed = Feed(max_viewers=1)
    for event in ("progress", "done", "progress", "image", "cancelled"):
        feed.hear("job-1", "me", event, {})
    assert [entry.event for entry in everything(feed, 0)] == ["done"]
    assert feed.wait("me", "job-1", 0, patience_s=0.0)[1] and not feed.unended()


def test_a_job_that_is_forgotten_is_over_for_those_who_wait() -> None:
    feed = Feed(max_viewers=1)
    feed.expect("job-1", "me")
    view = feed.join("me", "job-1")
    told: list[list[Entry]] = []
    viewer = threading.Thread(target=lambda: told.extend(view.entries(patience_s=60.0)))
    viewer.start()
    feed.forget("job-1")
    viewer.join(30.0)
    assert not viewer.is_alive() and told == [[]]
