"""When the server asks for a key, loads, goes away and comes back, or is another one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page, Request, Route, expect

from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.storage.rows import Query
from tests.playground.conftest import Witness
from tests.playground.server import Server
from tests.playground.test_drawing import draw
from tests.web.waits import until

KEY = "a-key-of-this-test"


def expected(witness: Witness, *texts: str) -> None:
    """Browsers log every refused request; these are the ones that a test provokes."""
    witness.console[:] = [line for line in witness.console if not any(text in line for text in texts)]


def test_a_wrong_key_is_told_and_a_right_one_is_kept(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    page = make_page(start_server(api_keys=(f"me:{KEY}",)), wait=False)
    dialog = page.locator("#connection-dialog")
    expect(dialog).to_contain_text("asks for an API key")
    expect(page.locator("#api_key-receiver")).to_have_text(page.url.split("/")[2])
    expect(page.locator("#submit")).to_be_disabled()
    page.fill("#api_key", "not-the-right-one")
    page.press("#api_key", "Enter")
    expect(dialog.locator("#connection-error")).to_contain_text("not known")
    page.fill("#api_key", KEY)
    page.get_by_role("button", name="Connect").click()
    expect(dialog).to_be_hidden()
    card = draw(page, "with a key", 2)
    expect(card).to_have_attribute("data-status", "done")
    picture = card.locator("img.final").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == 64
    page.reload()
    expect(page.locator("article.card")).to_have_count(1)
    page.get_by_role("button", name="Open picture 1").click()
    expect(page.locator("#snippet-text")).to_contain_text("Authorization: Bearer $API_KEY")
    assert KEY not in page.locator("#snippet-text").inner_text()
    expected(witness, "401")


def test_a_key_of_any_script_is_sent(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    page = make_page(start_server(api_keys=("me:ключ-12345",)), wait=False)
    page.fill("#api_key", "ключ-12345")
    page.press("#api_key", "Enter")
    expect(page.locator("#submit")).to_be_enabled()
    page.locator("#connection").click()
    page.fill("#api_key", "ключ-12345\u200b")  # as some pages have it copied
    page.press("#api_key", "Enter")
    expect(page.locator("#connection-error")).to_contain_text("not known")
    expect(page.locator("#banner")).to_be_hidden()
    expected(witness, "401")


def test_a_prompt_sent_while_the_page_connects_waits_for_the_server(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    page = make_page(start_server(api_keys=(f"me:{KEY}",)), wait=False)
    expect(page.locator("#connection-dialog")).to_be_visible()
    held: list[Route] = []
    page.route("**/v1/info", lambda route: held.append(route))
    page.fill("#api_key", KEY)
    page.press("#api_key", "Enter")
    page.fill("#prompt", "at once")
    page.press("#prompt", "Enter")
    expect(page.locator("#composer")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#form-error")).to_be_empty()
    for route in held:
        route.continue_()
    page.unroute("**/v1/info")
    expect(page.locator("article.card", has_text="at once")).to_have_attribute("data-status", "done")
    expected(witness, "401")


def test_a_loading_model_is_waited_for(start_server: Callable[..., Server], make_page: Callable[..., Page]) -> None:
    server = start_server(loading=True)
    page = make_page(server, wait=False)
    expect(page.locator("#banner")).to_contain_text("model is loading")
    expect(page.locator("#submit")).to_be_disabled()
    server.ready.set()
    expect(page.locator("#submit")).to_be_enabled()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#model-line")).to_contain_text("fake")


def test_down_and_up_again_the_job_goes_on(
    slow_server: Server, make_page: Callable[..., Page], witness: Witness
) -> None:
    page = make_page(slow_server)
    draw(page, "interrupted", 2)
    expect(page.locator("article.card")).to_have_attribute("data-status", "running")
    slow_server.stop()
    expect(page.locator("#banner")).to_contain_text("No answer from")
    page.fill("#prompt", "typed meanwhile")
    slow_server.step_s = 0.01
    slow_server.start()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("article.card")).to_have_attribute("data-status", "done", timeout=15_000)
    expect(page.locator("img.final").first).to_be_visible()
    expect(page.locator("#prompt")).to_have_value("typed meanwhile")
    expected(witness, "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET",
             "ERR_EMPTY_RESPONSE", "503")  # fmt: skip


def test_a_prompt_sent_to_no_server_is_kept(server: Server, make_page: Callable[..., Page], witness: Witness) -> None:
    page = make_page(server)
    server.stop()
    page.fill("#prompt", "precious")
    page.press("#prompt", "Enter")
    expect(page.locator("#form-error")).to_contain_text("does not answer")
    expect(page.locator("#prompt")).to_have_value("precious")
    server.start()
    expect(page.locator("#submit")).to_be_enabled()
    # A 503 too: the gallery's first request may meet a server that is closing.
    expected(witness, "ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "503")


def test_a_page_drives_another_server(start_server: Callable[..., Server], make_page: Callable[..., Page]) -> None:
    home = start_server(name="home")
    other = start_server(name="other", cors_origins=(home.url,))
    page = make_page(home, query=f"?backendUrl={other.url}")
    expect(draw(page, "far away")).to_have_attribute("data-status", "done")
    expect(page.locator("img.final")).to_be_visible()
    assert other.engine.stats().images == 1
    assert home.engine.stats().images == 0


def test_a_key_is_sent_only_to_the_server_it_was_given_for(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    home = start_server(name="home", api_keys=(f"me:{KEY}",))
    other = start_server(name="other", cors_origins=(home.url,))
    page = make_page(home, wait=False)
    page.evaluate("([name, key]) => localStorage.setItem(name, key)", [f"dalle-server.key {home.url}/", KEY])
    sent: list[dict[str, str]] = []

    def note(request: Request) -> None:
        if request.url.startswith(other.url):
            sent.append(request.headers)

    page.on("request", note)
    page.goto(f"{home.url}/playground?backendUrl={other.url}")
    page.locator("#submit:enabled").wait_for()
    assert sent
    assert not any("authorization" in headers for headers in sent)
    expected(witness, "401")


def test_the_dialog_names_the_host_that_gets_the_key(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    """An address that somebody sent may name another server: who types a key must see whose it is."""
    home = start_server(name="home")
    other = start_server(name="other", api_keys=(f"me:{KEY}",), cors_origins=(home.url,))
    page = make_page(home, query=f"?backendUrl={other.url}", wait=False)
    host = other.url.removeprefix("http://")
    expect(page.locator("#connection-error")).to_have_text(f"{host} asks for an API key.")
    for place in ("#api_key-host", "#api_key-receiver"):
        expect(page.locator(place)).to_have_text(host)
    expected(witness, "401")


def test_a_refused_stream_leaves_the_cards_as_they_are(
    slow_server: Server, make_page: Callable[..., Page], witness: Witness
) -> None:
    """One viewer more than `max_event_streams`: the page asks again and again instead of listening."""
    page = make_page(slow_server)
    page.route("**/v1/jobs/events", lambda route: route.fulfill(status=503, json={"error": {"message": "too many"}}))
    card = draw(page, "polled")
    card.evaluate("card => (card.mark = true)")
    card.get_by_role("button", name="Cancel").focus()
    for _ in range(3):
        with page.expect_response("**/v1/models"):  # asked whether all is well
            pass
    expect(card.locator(".status")).to_contain_text("tokens")
    assert card.evaluate("card => card.mark")
    expect(card.get_by_role("button", name="Cancel")).to_be_focused()
    slow_server.runner.step_s = 0
    expect(card).to_have_attribute("data-status", "done")
    expected(witness, "503")


def test_without_a_stream_each_picture_is_shown_when_it_is_finished(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    server = start_server(step_s=0.05)
    page = make_page(server)
    page.route("**/v1/jobs/events", lambda route: route.fulfill(status=503, json={"error": {"message": "too many"}}))
    card = draw(page, "many", 8)  # four at once
    rows = server.app.extensions[JOBS].store.rows
    until(lambda: len(rows.find("", Query())[0].pictures) == 4)
    server.runner.step_s = 1.0
    expect(card.locator("img.final:visible")).to_have_count(4)
    expect(card).to_have_attribute("data-status", "running")
    server.runner.step_s = 0
    expected(witness, "503")


def refuse(page: Page, path: str, message: str, code: str = "overloaded") -> list[float]:
    """From now on, by 503; the times at which it was asked for."""
    asked: list[float] = []
    refusal: dict[str, Any] = {"error": {"message": message, "code": code}}

    def answer(route: Route) -> None:
        asked.append(time.monotonic())
        route.fulfill(status=503, headers={"Retry-After": "1"}, json=refusal)

    page.route(path, answer)
    return asked


@pytest.mark.parametrize("first", [True, False], ids=["the first list", "a search"])
def test_a_list_that_is_refused_is_told_and_asked_for_again(
    server: Server, make_page: Callable[..., Page], witness: Witness, first: bool
) -> None:
    page = make_page(server)
    expect(draw(page, "a cat")).to_have_attribute("data-status", "done")
    asked = refuse(page, "**/v1/jobs?*", "too many searches")
    if first:
        page.reload()
    else:
        page.locator("article.card").evaluate("card => (card.mark = true)")
        page.fill("#search", "cat")
    expect(page.locator("#notice")).to_have_text("too many searches. This page tries again in 1 s.")
    for _ in range(2):
        with page.expect_response("**/v1/jobs?*"):
            pass
    assert all(later - earlier > 0.9 for earlier, later in pairwise(asked))
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#submit")).to_be_enabled()
    if not first:
        assert page.locator("article.card").evaluate("card => card.mark")
    page.unroute("**/v1/jobs?*")
    with page.expect_response(lambda reply: "/v1/jobs?" in reply.url and reply.ok):
        pass
    expect(page.locator("article.card")).to_have_count(1)
    expected(witness, "503")


@pytest.mark.parametrize(
    ("code", "told"), [("overloaded", "too busy. This page tries again in 1 s."), ("not_ready", "The model is loading")]
)
def test_only_a_model_that_loads_is_called_so(
    server: Server, make_page: Callable[..., Page], witness: Witness, code: str, told: str
) -> None:
    page = make_page(server)
    refuse(page, "**/v1/info", "too busy", code)
    page.reload()
    expect(page.locator("#banner")).to_contain_text(told)
    page.unroute("**/v1/info")
    expect(page.locator("#submit")).to_be_enabled()
    expect(page.locator("#banner")).to_be_hidden()
    expected(witness, "503")


def two_with_a_key(server: Server, make_page: Callable[..., Page]) -> Page:
    """A page whose pictures are fetched with a key; the first of two is shown large."""
    page = make_page(server, wait=False)
    page.fill("#api_key", KEY)
    page.press("#api_key", "Enter")
    card = draw(page, "two", 2)
    expect(card).to_have_attribute("data-status", "done")
    page.reload()
    page.get_by_role("button", name="Open picture 1").wait_for()
    return page


def test_with_a_key_no_picture_stands_for_another(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    page = two_with_a_key(start_server(api_keys=(f"me:{KEY}",)), make_page)
    held: list[Route] = []
    page.route("**/pictures/1", lambda route: held.append(route))
    page.reload()
    page.get_by_role("button", name="Open picture 1").click()
    download, image = page.locator("#viewer-download"), page.locator("#viewer-image")
    expect(download).to_have_attribute("download", re.compile("-0.png"))
    download.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-facts")).to_contain_text("2 of 2")
    assert image.get_attribute("src") is None and download.get_attribute("href") is None
    assert held
    for route in held:
        route.continue_()
    expect(download).to_have_attribute("download", re.compile("-1.png"))
    expect(download).to_be_focused()
    assert image.get_attribute("src") == download.get_attribute("href") is not None
    expected(witness, "401")


def test_with_a_key_a_picture_that_cannot_be_had_is_told(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    page = two_with_a_key(start_server(api_keys=(f"me:{KEY}",)), make_page)
    page.route("**/pictures/1", lambda route: route.fulfill(status=404, json={"error": {"message": "it is gone"}}))
    page.reload()
    page.get_by_role("button", name="Open picture 1").click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-error")).to_have_text("The picture cannot be had: it is gone")
    assert page.locator("#viewer-image").get_attribute("src") is None
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-error")).to_be_hidden()
    expect(page.locator("#viewer-image")).to_have_js_property("naturalWidth", 64)
    expected(witness, "401", "404")
