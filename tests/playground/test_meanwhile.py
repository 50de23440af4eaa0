"""What happens while one looks: a job goes on, or another tab or device deletes it, ends it or begins one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from playwright.sync_api import Locator, Page, Route, expect

from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.storage.rows import Query
from tests.playground.conftest import Witness
from tests.playground.server import Server
from tests.playground.test_connection import expected
from tests.playground.test_drawing import draw
from tests.playground.test_gallery import fill
from tests.playground.test_look import violations


@pytest.fixture
def gallery(server: Server, make_page: Callable[..., Page]) -> Page:
    fill(server, ("a red apple", "three rockets", "a cat"))
    page = make_page(server)
    expect(page.locator("article.card")).to_have_count(3)
    return page


def first_of_many(page: Page, server: Server) -> None:
    """Opens the first pictures of a job whose other ones are still drawn."""
    card = draw(page, "many", 8)  # four at once
    expect(card.locator("img.final").first).to_be_visible()
    server.runner.step_s = 0.5
    card.get_by_role("button", name="Open picture").first.click()


def test_nothing_can_be_deleted_of_a_job_that_still_runs(page: Page, server: Server) -> None:
    first_of_many(page, server)
    delete = page.locator("#viewer-delete")
    expect(page.locator("#viewer-download")).to_be_visible()
    expect(delete).to_be_hidden()
    server.runner.step_s = 0
    expect(delete).to_be_visible()  # it has ended
    delete.click()
    page.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(page.locator("article.card")).to_have_count(0)
    assert server.app.extensions[JOBS].store.rows.find("", Query()) == []


def test_a_job_that_a_delete_only_cancelled_stays(page: Page, server: Server) -> None:
    """As it seems over on the page, it may have been taken up again: the server's word counts."""
    first_of_many(page, server)
    page.locator("#viewer-delete").evaluate("button => button.click()")
    page.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(page.locator("#announcer")).to_contain_text("ancelled")
    card = page.locator("article.card")
    expect(card).to_have_attribute("data-status", "cancelled")
    expect(card.locator("img.final").first).to_be_visible()
    assert len(server.app.extensions[JOBS].store.rows.find("", Query())[0].pictures) == 4


def delete(page: Page, prompt: str) -> None:
    card = page.locator("article.card", has_text=prompt)
    card.hover()
    card.get_by_role("button", name="Delete").click()
    page.locator("#confirm").get_by_role("button", name="Delete").click()


def forget(server: Server, prompt: str) -> None:
    """As another tab does."""
    listed = requests.get(f"{server.url}/v1/jobs", params={"limit": 50}, timeout=20).json()["data"]
    (job,) = (job["id"] for job in listed if job["prompt"] == prompt)
    requests.delete(f"{server.url}/v1/jobs/{job}", timeout=20).raise_for_status()


def test_what_another_tab_deleted_can_be_deleted(gallery: Page, server: Server, witness: Witness) -> None:
    forget(server, "a red apple")
    delete(gallery, "a red apple")
    expect(gallery.locator("article.card")).to_have_count(2)
    expect(gallery.locator("#announcer")).to_have_text("Deleted")
    expected(witness, "404")


def test_a_delete_that_failed_is_seen_and_not_called_done(gallery: Page, witness: Witness) -> None:
    refusal = {"error": {"message": "too many requests of this key", "code": "rate_limited"}}
    gallery.route("**/v1/jobs/job-*", lambda route: route.fulfill(status=429, json=refusal))
    delete(gallery, "a red apple")
    expect(gallery.locator("#notice")).to_be_visible()
    expect(gallery.locator("#notice")).to_have_text("too many requests of this key")
    expect(gallery.locator("article.card")).to_have_count(3)
    assert violations(gallery) == []
    expect(gallery.locator("#announcer")).to_be_empty()
    gallery.locator("#notice").click()
    expect(gallery.locator("#notice")).to_be_hidden()
    expected(witness, "429")


def test_older_pictures_come_when_the_oldest_shown_went_elsewhere(
    server: Server, make_page: Callable[..., Page], witness: Witness
) -> None:
    fill(server, tuple(f"number {number}" for number in range(26)))
    page = make_page(server)
    expect(page.locator("article.card").last).to_contain_text("number 2")
    forget(server, "number 2")
    page.get_by_role("button", name="Show older pictures").click()
    expect(page.locator("article.card").last).to_contain_text("number 1")
    expect(page.locator("article.card")).to_have_count(24)
    page.get_by_role("button", name="Show older pictures").click()
    expect(page.locator("article.card")).to_have_count(25)
    expected(witness, "404")


def submit(server: Server, prompt: str) -> str:
    """As another tab does; the id."""
    accepted = requests.post(f"{server.url}/v1/jobs", json={"prompt": prompt}, timeout=20)
    return str(accepted.json()["id"])


def wait_for_events(card: Locator) -> None:
    """Until all that has been told by now has come: a later token of a job that runs has."""
    for _ in range(2):  # the first may have been on its way before
        done = card.locator(".progress").get_attribute("aria-valuenow")
        expect(card.locator(".progress")).not_to_have_attribute("aria-valuenow", done or "")


def test_an_end_that_overtakes_the_first_answer_counts(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    own = draw(page, "keeps the stream open")

    own_id = own.get_attribute("data-job") or ""
    asked: list[str] = []

    def answer_late(route: Route) -> None:
        if own_id in route.request.url or asked:
            route.continue_()
            return
        asked.append(route.request.url)
        answer = route.fetch()
        assert answer.json()["status"] in ("queued", "running")
        requests.post(f"{route.request.url}/cancel", timeout=20).raise_for_status()
        wait_for_events(own)
        route.fulfill(response=answer)

    page.route("**/v1/jobs/job-*", answer_late)
    submit(slow_server, "of another tab")
    card = page.locator("article.card", has_text="of another tab")
    expect(card).to_have_attribute("data-status", "cancelled")


AGES = {"an hour old": -3600.0, "of tomorrow": 86_400.0}


def grow_old(route: Route) -> None:
    answer = route.fetch()
    job = answer.json()
    route.fulfill(response=answer, json={**job, "created_at": job["created_at"] + AGES.get(job["prompt"], 0)})


def test_jobs_of_other_tabs_stand_where_they_belong(slow_server: Server, make_page: Callable[..., Page]) -> None:
    """An old one may be told of late: it waited, or a restart took it up again."""
    page = make_page(slow_server)
    draw(page, "first")
    page.route("**/v1/jobs/job-*", grow_old)
    for prompt in AGES:
        submit(slow_server, prompt)
        page.locator("article.card", has_text=prompt).wait_for()
    assert page.locator(".card-prompt").all_inner_texts() == ["of tomorrow", "first", "an hour old"]


def test_an_old_job_waits_for_the_older_ones(slow_server: Server, make_page: Callable[..., Page]) -> None:
    fill(slow_server, tuple(f"number {number}" for number in range(25)))
    slow_server.runner.step_s = 0.5
    page = make_page(slow_server)
    own = draw(page, "first")
    page.route("**/v1/jobs/job-*", grow_old)
    with page.expect_response(f"**/{submit(slow_server, 'an hour old')}"):
        pass
    wait_for_events(own)
    expect(page.locator("article.card")).to_have_count(25)


def test_jobs_of_other_tabs_are_no_finds(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    own = draw(page, "a cat")
    page.fill("#search", "cat")
    expect(page.locator("#announcer")).to_have_text("1 request found")
    with page.expect_response(f"**/{submit(slow_server, 'a dog')}"):
        pass
    wait_for_events(own)
    assert page.locator(".card-prompt").all_inner_texts() == ["a cat"]
    draw(page, "one more dog")  # asked for here: that it was taken must be seen
    page.fill("#search", "")
    expect(page.locator(".card-prompt")).to_have_text(["one more dog", "a dog", "a cat"])


def hold_lists(page: Page) -> list[Route]:
    held: list[Route] = []
    page.route("**/v1/jobs?*", lambda route: held.append(route))
    return held


def test_what_is_drawn_stays_where_a_search_answers_later(server: Server, make_page: Callable[..., Page]) -> None:
    fill(server, ("a cat", "a bird"))
    page = make_page(server)
    older = requests.get(f"{server.url}/v1/jobs", params={"q": "cat"}, timeout=20).json()
    held = hold_lists(page)
    with page.expect_request("**/v1/jobs?*"):
        page.fill("#search", "cat")
    draw(page, "a dog")
    held.pop().fulfill(json=older)
    expect(page.locator(".card-prompt")).to_have_text(["a dog", "a cat"])


@pytest.mark.parametrize("is_older", [True, False], ids=["older", "newer"])
def test_what_is_drawn_before_the_first_list_comes_stands_there_once(
    server: Server, make_page: Callable[..., Page], is_older: bool
) -> None:
    fill(server, ("a cat",))
    page = make_page(server)
    older = requests.get(f"{server.url}/v1/jobs", timeout=20).json()
    held = hold_lists(page)
    page.reload()
    page.locator("#submit:enabled").wait_for()
    draw(page, "a dog")
    if is_older:
        held.pop().fulfill(json=older)
    else:
        held.pop().continue_()
    expect(page.locator(".card-prompt")).to_have_text(["a dog", "a cat"])
