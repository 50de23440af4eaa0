"""What happens while one looks: a job goes on, or another tab or device deletes it, ends it or begins one."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.storage.rows import Query
from tests.playground.server import Server
from tests.playground.test_drawing import draw


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
