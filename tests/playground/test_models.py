"""Several models: which there are, which one draws, and what that changes on the page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.playground.conftest import Witness
from tests.playground.server import Server
from tests.playground.test_drawing import draw
from tests.playground.test_given import open_card
from tests.playground.test_look import PHONE, violations


@pytest.fixture
def several(start_server: Callable[..., Server], make_page: Callable[..., Page]) -> Page:
    """A model that is loaded, and one with a grid of 4×4 that is not."""
    page = make_page(start_server(others={"small": 4}))
    expect(page.locator("#model-line")).to_contain_text("fake · CPU")
    return page


def choose_model(page: Page, name: str) -> None:
    page.locator("#model summary").click()
    page.get_by_role("radio", name=name).check()
    page.locator("#model summary").click()


def test_one_model_is_no_choice(page: Page) -> None:
    page.locator("#model summary").click()
    expect(page.locator("#model-more")).to_contain_text("Runs on")
    expect(page.locator("#model-more").get_by_role("radio")).to_have_count(0)
    with page.expect_request("**/v1/jobs") as sent:
        draw(page, "as ever")
    assert set(sent.value.post_data_json or ()) == {"prompt", "num_images", "format", "preview"}


def test_the_menu_tells_what_each_model_is(several: Page) -> None:
    several.locator("#model summary").click()
    menu = several.locator("#model-more")
    expect(menu.get_by_role("radio")).to_have_count(2)
    expect(menu.get_by_role("radio", name="fake")).to_be_checked()
    expect(menu.locator(".model-choice").first).to_contain_text("in memory")
    expect(menu.locator(".model-choice").last).to_have_text("The small oneon disksmall · 3.0 GB")
    assert violations(several) == []


def test_a_chosen_model_is_loaded_draws_and_is_remembered(several: Page) -> None:
    choose_model(several, "The small one")
    expect(several.locator("#model-line")).to_have_text("small · on disk")
    card = draw(several, "by the small one")
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator("img.final")).to_have_js_property("naturalWidth", 32)
    expect(several.locator("#model-line")).to_contain_text("small · CPU")
    several.reload()
    expect(several.locator("#model-line")).to_contain_text("small · CPU")
    several.locator("#model summary").click()
    expect(several.get_by_role("radio", name="The small one")).to_be_checked()
    expect(several.locator(".model-choice").last).to_contain_text("in memory")
    expect(several.locator("#model-more")).to_contain_text("16 tokens")


def test_a_picture_is_looked_at_with_the_model_that_drew_it(several: Page) -> None:
    choose_model(several, "The small one")
    expect(draw(several, "by the small one")).to_have_attribute("data-status", "done")
    choose_model(several, "fake")
    open_card(several.locator("article.card"))
    several.get_by_role("button", name="Redraw").click()
    expect(several.locator("#branch-rows-text")).to_have_text("2 of 4")
    with several.expect_response("**/v1/images/score") as answered:
        several.get_by_role("button", name="Likelihood").click()
    assert (answered.value.json()["model"], len(answered.value.json()["logprobs"])) == ("small", 16)
    several.get_by_role("button", name="Redraw").click()
    several.get_by_role("button", name="Draw the other 2 rows").click()
    expect(several.locator('article[data-status="done"] img.final')).to_have_count(2)
    expect(several.locator("img.final").first).to_have_js_property("naturalWidth", 32)


def test_used_settings_bring_their_model(several: Page) -> None:
    choose_model(several, "The small one")
    card = draw(several, "by the small one")
    expect(card).to_have_attribute("data-status", "done")
    choose_model(several, "fake")
    expect(several.locator("#model-line")).to_contain_text("fake")
    card.hover()
    card.get_by_role("button", name="Use these settings").click()
    expect(several.locator("#model-line")).to_contain_text("small")
    several.press("#prompt", "Enter")
    expect(several.locator('article[data-status="done"] img.final')).to_have_count(2)
    expect(several.locator("img.final").first).to_have_js_property("naturalWidth", 32)


def test_the_keyboard_chooses_a_model(several: Page) -> None:
    several.locator("#model summary").press("Enter")
    several.get_by_role("radio", name="fake").focus()
    several.keyboard.press("ArrowDown")
    expect(several.get_by_role("radio", name="The small one")).to_be_checked()
    expect(several.get_by_role("radio", name="The small one")).to_be_focused()
    expect(several.locator("#announcer")).to_have_text("The small one draws")


def test_a_finger_chooses_a_model_and_seamless(
    start_server: Callable[..., Server], make_page: Callable[..., Page]
) -> None:
    page = make_page(start_server(others={"small": 4}), **PHONE)
    page.locator("#model summary").tap()
    page.locator(".model-choice", has_text="The small one").tap()
    expect(page.get_by_role("radio", name="The small one")).to_be_checked()
    expect(page.locator("#model-line")).to_have_text("small · on disk")
    page.locator("#model summary").tap()
    page.locator("#more summary").tap()
    page.locator("label.switch", has=page.locator("#seamless")).tap()
    expect(page.locator("#seamless")).to_be_checked()
    page.fill("#prompt", "by a finger")
    with page.expect_response(lambda reply: reply.url.endswith("/v1/jobs") and reply.request.method == "POST") as sent:
        page.locator("#submit").tap()
    job = sent.value.json()
    assert (job["model"], job["seamless"]) == ("small", True)
    expect(page.locator('article[data-status="done"] img.final')).to_have_count(4)
    assert violations(page) == []


def test_a_remembered_model_that_has_gone_gives_way_to_the_first(page: Page, witness: Witness) -> None:
    page.evaluate("localStorage.setItem(`dalle-server.model ${location.origin}/`, 'gone')")
    page.reload()
    expect(page.locator("#model-line")).to_contain_text("fake · CPU")
    expect(draw(page, "still")).to_have_attribute("data-status", "done")
    assert witness.console == []


def test_rows_of_a_model_that_is_not_loaded_are_not_counted(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    server = start_server(others={"small": 4})
    page = make_page(server)
    choose_model(page, "The small one")
    open_card(draw(page, "by the small one"))
    page.get_by_role("button", name="Redraw").click()
    page.get_by_role("button", name="Draw the other 2 rows").click()
    branch = page.locator("article.card", has=page.locator(".origin"))
    open_card(branch)
    expect(page.locator("#viewer-facts")).to_contain_text("the first 2 of 4 rows were given")
    server.stop()
    server.start()
    page.reload()
    open_card(branch)
    expect(page.locator("#viewer-facts")).to_contain_text("the first rows were given")
    page.locator("#viewer-reuse").click()
    expect(page.locator("#given-what")).to_contain_text("its first rows stay")
    witness.console[:] = [line for line in witness.console if "ERR_" not in line and "503" not in line]
