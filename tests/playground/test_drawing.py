"""From a prompt to pictures: live previews, progress, cancel, several requests, reload."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.storage.rows import Query
from tests.playground.conftest import Witness
from tests.playground.server import Server
from tests.web.waits import until


def draw(page: Page, prompt: str, num_images: int = 1) -> Locator:
    """Submits with the keyboard; the new card."""
    page.fill("#num_images", str(num_images))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    card = page.locator("article.card", has_text=prompt).first
    card.wait_for()
    return card


def test_a_prompt_becomes_pictures_row_by_row(page: Page, server: Server, witness: Witness) -> None:
    page.evaluate(
        """() => {
        window.seen = new Set();
        new MutationObserver(() => document.querySelectorAll("img.preview").forEach((image) => {
          if (image.src) window.seen.add(image.src);
        })).observe(document.body, { subtree: true, attributes: true, attributeFilter: ["src"] });
      }"""
    )
    card = draw(page, "two moons", 2)
    expect(card).to_have_attribute("data-status", "done")
    pictures = card.locator("img.final")
    expect(pictures).to_have_count(2)
    expect(pictures.nth(1)).to_be_visible()
    assert pictures.nth(0).evaluate("image => image.naturalWidth") == 64
    assert page.evaluate("window.seen.size") >= 4  # previews changed while it was written
    expect(page.locator("#announcer")).to_contain_text("2 pictures finished")
    assert {url.split("/")[2] for url in witness.requests if not url.startswith("data:")} == {server.url[7:]}


def test_shift_enter_breaks_the_line_and_enter_submits(page: Page) -> None:
    page.fill("#prompt", "a red")
    page.press("#prompt", "Shift+Enter")
    page.locator("#prompt").press_sequentially("apple")
    expect(page.locator("#prompt")).to_have_value("a red\napple")
    page.press("#prompt", "Enter")
    expect(page.locator("article.card")).to_have_count(1)


def test_progress_counts_tokens_and_the_time_left(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    card = draw(page, "slow")
    expect(card.locator(".status")).to_contain_text("/ 64 tokens")
    expect(card.locator(".eta")).to_contain_text("s left")
    slow_server.runner.step_s = 0
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator(".progress")).to_be_hidden()


def test_a_waiting_request_says_how_many_are_ahead(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    draw(page, "first", 4)
    next_in_line = draw(page, "second", 4)
    waiting = draw(page, "third", 2)
    expect(next_in_line.locator(".status")).to_have_text("Next in line")
    expect(waiting.locator(".status")).to_have_text(re.compile(r"Waiting · \d+ pictures? ahead"))


def test_cancel_stops_within_a_token(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    card = draw(page, "a mistake", 4)
    expect(card).to_have_attribute("data-status", "running")
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_attribute("data-status", "cancelled", timeout=2_000)
    assert slow_server.engine.stats().running == 0
    expect(card.get_by_role("button", name="Try again")).to_be_visible()


def test_a_cancel_that_comes_too_late_keeps_the_pictures(
    slow_server: Server, make_page: Callable[..., Page], witness: Witness
) -> None:
    """The job ends between the press of the button and its arrival: that must delete nothing."""
    page = make_page(slow_server)
    card = draw(page, "just in time")
    expect(card).to_have_attribute("data-status", "running")

    def arrive_late(route: Route) -> None:
        slow_server.runner.step_s = 0
        rows = slow_server.app.extensions[JOBS].store.rows
        until(lambda: rows.find("", Query())[0].status == "done")
        route.continue_()

    page.route("**/v1/jobs/job-*", arrive_late)
    page.route("**/v1/jobs/job-*/cancel", arrive_late)
    with page.expect_response(lambda reply: reply.request.method in ("POST", "DELETE")) as answered:
        card.get_by_role("button", name="Cancel").click()
    assert answered.value.json()["status"] == "done"
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator("img.final")).to_be_visible()
    assert len(slow_server.app.extensions[JOBS].store.rows.find("", Query())[0].pictures) == 1


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1])
def test_a_seed_beyond_what_javascript_counts_is_exact(page: Page, seed: int) -> None:
    page.fill("#seed", str(seed))
    with page.expect_request("**/v1/jobs") as sent:
        card = draw(page, "a large seed")
    assert sent.value.post_data is not None and f'"seed":{seed}' in sent.value.post_data
    expect(card).to_have_attribute("data-status", "done")
    page.fill("#seed", "")
    card.get_by_role("button", name=f"Use seed {seed}").click()
    expect(page.locator("#seed")).to_have_value(str(seed))
    card.get_by_role("button", name="Open picture 1").click()
    expect(page.locator("#viewer .facts")).to_contain_text(str(seed))
    for language in ("curl", "Python", "openai"):
        page.get_by_role("tab", name=language).click()
        expect(page.locator("#snippet-text")).to_contain_text(f'"seed": {seed}')
    page.reload()
    expect(page.get_by_role("button", name=f"Use seed {seed}")).to_be_visible()


@pytest.mark.parametrize(
    ("typed", "told"),
    [(str(2**63), f"at most {2**63 - 1}"), ("1" * 40, "at most"), ("12a", "digits only"), ("-1", "digits only")],
)
def test_a_seed_that_is_none_is_told_and_not_cut(page: Page, typed: str, told: str) -> None:
    page.fill("#prompt", "a red apple")
    page.locator("#seed").press_sequentially(typed)
    expect(page.locator("#seed")).to_have_value(typed)
    page.press("#prompt", "Enter")
    expect(page.locator("#form-error")).to_contain_text(told)
    expect(page.locator("#seed")).to_be_focused()
    expect(page.locator("article.card")).to_have_count(0)


def test_zeros_before_a_seed_say_nothing(page: Page) -> None:
    page.fill("#seed", "007")
    with page.expect_request("**/v1/jobs") as sent:
        draw(page, "licensed")
    assert sent.value.post_data_json["seed"] == 7


def test_an_answer_that_events_overtook_changes_nothing(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    draw(page, "keeps the stream open")

    def answer_late(route: Route) -> None:
        answer = route.fetch()  # the job runs from here on, and its events go out
        page.locator("article.card", has_text="overtaken").get_by_text("tokens").wait_for()
        route.fulfill(response=answer, json={**answer.json(), "status": "queued", "tokens_done": None})

    page.route(f"{slow_server.url}/v1/jobs", answer_late)
    card = draw(page, "overtaken")
    expect(page.locator("#composer")).to_have_attribute("aria-busy", "false")
    expect(card).to_have_attribute("data-status", "running")
    expect(page.locator("article.card")).to_have_count(2)


def test_several_requests_run_at_once(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    for prompt in ("one sun", "one moon", "one star"):
        draw(page, prompt)
    expect(page.locator('article[data-status="running"]')).to_have_count(3)
    slow_server.runner.step_s = 0
    expect(page.locator('article[data-status="done"]')).to_have_count(3)
    assert page.locator(".card-prompt").all_inner_texts() == ["one star", "one moon", "one sun"]


def test_a_reload_finds_the_running_job_again(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    draw(page, "long work", 2)
    page.reload()
    slow_server.runner.step_s = 0.03
    card = page.locator("article.card", has_text="long work")
    expect(card).to_have_attribute("data-status", "running")
    expect(card.locator("img.preview").first).to_be_visible()
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator("img.final").first).to_be_visible()


def test_another_tab_sees_the_same_job(slow_server: Server, make_page: Callable[..., Page]) -> None:
    draw(make_page(slow_server), "shared")
    other = make_page(slow_server)
    slow_server.runner.step_s = 0
    expect(other.locator("article.card", has_text="shared")).to_have_attribute("data-status", "done")


def test_no_previews_when_they_are_not_wanted(page: Page, server: Server) -> None:
    page.locator("#more summary").click()
    page.locator("#preview").uncheck()
    expect(draw(page, "no previews")).to_have_attribute("data-status", "done")
    assert server.engine.stats().previews == 0


def test_the_form_sends_what_it_shows(page: Page, server: Server) -> None:
    page.locator("#more summary").click()
    for name, value in {
        "condition_scale": "3.5",
        "temperature": "0.8",
        "top_k": "7",
        "top_p": "0.9",
        "seed": "42",
    }.items():
        page.fill(f"#{name}", value)
    page.fill("#negative_prompt", "green")
    page.select_option("#format", "webp")
    with page.expect_request("**/v1/jobs") as sent:
        draw(page, "a red apple")
    assert sent.value.post_data_json == {
        "prompt": "a red apple", "num_images": 1, "format": "webp", "preview": True, "condition_scale": 3.5,
        "temperature": 0.8, "top_k": 7, "top_p": 0.9, "seed": 42, "negative_prompt": "green",
    }  # fmt: skip


def test_a_seamless_picture_is_asked_for_and_asked_again(page: Page) -> None:
    page.locator("#more summary").click()
    page.locator("#seamless").check()
    with page.expect_response("**/v1/jobs") as answered:
        card = draw(page, "a tile")
    assert answered.value.json()["seamless"] is True
    expect(card).to_have_attribute("data-status", "done")
    page.locator("#reset").click()
    expect(page.locator("#seamless")).not_to_be_checked()
    card.hover()
    card.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#seamless")).to_be_checked()
    card.get_by_role("button", name="Open picture 1").click()
    expect(page.locator("#viewer .facts")).to_contain_text("opposite edges meet")
    page.get_by_role("tab", name="Python").click()
    expect(page.locator("#snippet-text")).to_contain_text('"seamless": True,')


def test_a_size_and_the_best_of_many_are_asked_for_and_asked_again(page: Page) -> None:
    page.locator("#more summary").click()
    page.fill("#best_of", "4")
    page.fill("#size", "96x64")
    page.select_option("#fit", "crop")
    with page.expect_response("**/v1/jobs") as answered:
        card = draw(page, "a wide one")
    told = answered.value.json()
    assert (told["best_of"], told["size"], told["fit"], told["num_images"]) == (4, "96x64", "crop", 1)
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator("img.final")).to_have_count(1)
    assert card.locator("img.final").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [96, 64]
    page.locator("#reset").click()
    for name in ("best_of", "size", "fit"):
        expect(page.locator(f"#{name}")).to_have_value("")
    page.locator("#more summary").click()
    card.hover()
    card.get_by_role("button", name="Use these settings").click()
    for name, value in {"best_of": "4", "size": "96x64", "fit": "crop"}.items():
        expect(page.locator(f"#{name}")).to_be_visible()
        expect(page.locator(f"#{name}")).to_have_value(value)


def test_a_picture_painted_in_windows_is_never_more_than_written(
    server: Server, make_page: Callable[..., Page]
) -> None:
    page = make_page(server)
    page.evaluate(
        """() => {
        window.written = [];
        new MutationObserver((all) => all.forEach(({ target }) => {
          const share = parseFloat(target.style.getPropertyValue("--written"));
          if (share) window.written.push(share);
        })).observe(document.getElementById("feed"), { subtree: true, attributes: true, attributeFilter: ["style"] });
      }"""
    )
    page.locator("#more summary").click()
    page.fill("#size", "96x64")
    expect(draw(page, "a wide one")).to_have_attribute("data-status", "done")
    assert max(page.evaluate("window.written")) == 100


@pytest.mark.parametrize(
    ("name", "value", "said"), [("size", "96 by 64", "Size: "), ("best_of", "1", "best_of must lie")]
)
def test_what_is_wrong_with_a_choice_is_told_at_its_field(
    page: Page, witness: Witness, name: str, value: str, said: str
) -> None:
    page.locator("#more summary").click()
    page.fill(f"#{name}", value)
    page.fill("#num_images", "2")
    page.fill("#prompt", "x")
    page.press("#prompt", "Enter")
    expect(page.locator("#form-error")).to_contain_text(said)
    expect(page.locator(f"#{name}")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("article.card")).to_have_count(0)
    witness.console[:] = [line for line in witness.console if "400" not in line]


def test_fields_show_the_checkpoints_own_defaults(page: Page) -> None:
    expect(page.locator("#top_k")).to_have_attribute("placeholder", "50")
    expect(page.locator("#condition_scale")).to_have_attribute("placeholder", "10")


def test_a_wrong_field_is_named_and_focused(page: Page) -> None:
    page.fill("#prompt", "a red apple")
    page.fill("#num_images", "99")
    page.press("#prompt", "Enter")
    expect(page.locator("#form-error")).to_contain_text("Pictures")
    expect(page.locator("#num_images")).to_be_focused()
    expect(page.locator("article.card")).to_have_count(0)


def test_a_full_queue_says_when_to_try_again(
    slow_server: Server, make_page: Callable[..., Page], witness: Witness
) -> None:
    page = make_page(slow_server)
    for number in range(3):
        draw(page, f"many {number}", 4)
    page.fill("#prompt", "one too many")
    page.press("#prompt", "Enter")
    expect(page.locator("#form-error")).to_contain_text("queue is full")
    expect(page.locator("#prompt")).to_have_value("one too many")
    assert "503" in witness.console.pop()


def test_an_idea_fills_the_prompt(page: Page) -> None:
    idea = page.locator(".idea").first
    text = idea.inner_text()
    idea.click()
    expect(page.locator("#prompt")).to_have_value(text)
    expect(page.locator("#prompt")).to_be_focused()
