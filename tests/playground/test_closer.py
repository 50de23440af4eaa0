"""Looking closer at a picture: before and after, redrawn from a row on, how likely its tokens are."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.storage.rows import Query
from tests.playground.conftest import Witness
from tests.playground.pictures import drawing, give, place_in, png, swipe
from tests.playground.server import GRID_SIDE, Server
from tests.playground.test_connection import KEY, expected
from tests.playground.test_drawing import draw
from tests.playground.test_given import open_card, results
from tests.playground.test_look import PHONE


@pytest.fixture
def viewer(page: Page) -> Page:
    """One picture of words alone, large."""
    open_card(draw(page, "a picture"))
    return page


def at(page: Page, layer: str, name: str) -> float:
    """A share of the layer, as it is shown."""
    shown: str = page.locator(layer).evaluate("(element, name) => element.style.getPropertyValue(name)", name)
    return float(shown.removesuffix("%"))


# -- compare


def test_before_and_after_are_compared_by_mouse_and_keyboard(page: Page) -> None:
    give(page, png(drawing()))
    open_card(draw(page, "changed"))
    page.get_by_role("button", name="Compare").click()
    before = page.locator("#compare-before")
    expect(before).to_have_js_property("naturalWidth", 64)
    assert "/given/image" in before.evaluate("image => image.src")
    expect(page.locator("#compare-at")).to_be_focused()
    page.keyboard.press("ArrowRight")
    assert at(page, "#compare-layer", "--at") == 51
    expect(page.locator("#viewer .facts")).to_contain_text("Picture1 of 1")  # the arrow did not walk on
    place = place_in(page, "#compare-layer")
    page.mouse.move(*place(0.5, 0.5))
    page.mouse.down()
    page.mouse.move(*place(0.2, 0.5), steps=3)
    page.mouse.up()
    assert at(page, "#compare-layer", "--at") == 20
    expect(page.locator("#compare-at")).to_have_attribute("aria-valuetext", "before up to 20 %, then after")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#compare-layer")).to_be_hidden()


def test_before_and_after_are_compared_by_touch(server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(server, **PHONE)
    give(page, png(drawing()))
    open_card(draw(page, "changed"))
    page.get_by_role("button", name="Compare").tap()
    place = place_in(page, "#compare-layer")
    swipe(page, place(0.5, 0.5), place(0.7, 0.5), place(0.8, 0.5))
    assert at(page, "#compare-layer", "--at") == pytest.approx(80, abs=1)


def test_a_before_that_comes_late_stands_beside_no_other_picture(
    start_server: Callable[..., Server], make_page: Callable[..., Page], witness: Witness
) -> None:
    """With a key it has to be fetched, and one may have walked on meanwhile."""
    page = make_page(start_server(api_keys=(f"me:{KEY}",)), wait=False)
    page.fill("#api_key", KEY)
    page.press("#api_key", "Enter")
    give(page, png(drawing()))
    for prompt in ("older", "newer"):
        expect(draw(page, prompt)).to_have_attribute("data-status", "done")
    held: list[Route] = []
    page.route("**/given/image", lambda route: held.append(route))
    page.reload()
    open_card(page.locator("article.card", has_text="newer"))
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Next picture").click()
    expect(page.locator("#viewer-prompt")).to_have_text("older")
    of_newer, of_older = held
    with page.expect_response(of_newer.request.url) as answered:
        of_newer.continue_()
    answered.value.finished()
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    assert page.locator("#compare-before").get_attribute("src") is None
    of_older.continue_()
    expect(page.locator("#compare-before")).to_have_js_property("naturalWidth", 64)
    expected(witness, "401")


def test_words_alone_have_no_before(viewer: Page) -> None:
    expect(viewer.get_by_role("button", name="Compare")).to_be_hidden()
    expect(viewer.get_by_role("button", name="Redraw")).to_be_visible()


# -- branch


def kept_rows(server: Server) -> list[bool]:
    """Of the two newest jobs: which rows of tokens are the same."""
    new, old = (results(server, number)[0] for number in (0, 1))
    px = new.shape[0] // GRID_SIDE
    return [bool((new[row * px : (row + 1) * px] == old[row * px : (row + 1) * px]).all()) for row in range(GRID_SIDE)]


def test_a_picture_is_redrawn_from_a_row_on(viewer: Page, server: Server) -> None:
    viewer.get_by_role("button", name="Redraw").click()
    expect(viewer.locator("#branch-rows-text")).to_have_text(f"4 of {GRID_SIDE}")
    expect(viewer.locator("#branch-rows")).to_be_focused()
    viewer.keyboard.press("ArrowRight")
    expect(viewer.locator("#branch-rows-text")).to_have_text(f"5 of {GRID_SIDE}")
    assert at(viewer, "#branch-layer", "--kept") == 62.5  # what stays is shown at once
    expect(viewer.locator("#branch-submit")).to_have_text("Draw the other 3 rows")
    viewer.fill("#branch-prompt", "another end")
    viewer.fill("#branch-seed", "77")
    viewer.press("#branch-seed", "Enter")
    expect(viewer.locator("#viewer")).to_be_hidden()
    card = viewer.locator("article.card", has_text="another end")
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator(".origin")).to_have_text("Branch")
    expect(card.get_by_role("button", name="Use seed 77")).to_be_visible()
    rows = kept_rows(server)
    assert rows[:5] == [True] * 5 and not rows[5]


def test_the_line_is_pulled_by_mouse_and_by_touch(server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(server, **PHONE)
    open_card(draw(page, "a picture"))
    page.get_by_role("button", name="Redraw").tap()
    place = place_in(page, "#branch-layer")
    swipe(page, place(0.5, 0.5), place(0.5, 0.4), place(0.5, 0.25))
    expect(page.locator("#branch-rows-text")).to_have_text(f"2 of {GRID_SIDE}")
    swipe(page, place(0.5, 0.5), place(0.5, 0.99))
    expect(page.locator("#branch-rows-text")).to_have_text(f"7 of {GRID_SIDE}")  # something is left to draw
    page.mouse.click(*place(0.3, 0.13))
    expect(page.locator("#branch-rows-text")).to_have_text(f"1 of {GRID_SIDE}")
    page.get_by_role("button", name="Draw the other 7 rows").click()
    expect(page.locator(".origin")).to_have_text("Branch")
    expect(page.locator('article[data-status="done"]')).to_have_count(2)
    assert kept_rows(server)[0]


def test_a_branch_is_watched_reloaded_and_made_again(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    slow_server.runner.step_s = 0
    open_card(draw(page, "a picture"))
    page.get_by_role("button", name="Redraw").click()
    slow_server.runner.step_s = 0.5
    page.get_by_role("button", name="Draw the other").click()
    expect(page.locator('article[data-status="running"] .under')).to_be_visible()
    page.reload()
    slow_server.runner.step_s = 0
    card = page.locator("article.card").first
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator(".origin")).to_have_text("Branch")
    card.hover()
    card.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#given-what")).to_contain_text("its first 4 rows stay")
    page.press("#prompt", "Enter")
    expect(page.locator('article[data-status="done"]')).to_have_count(3)
    assert kept_rows(slow_server) == [True] * GRID_SIDE


def test_a_wrong_field_of_a_branch_is_told(viewer: Page, server: Server) -> None:
    viewer.get_by_role("button", name="Redraw").click()
    viewer.fill("#branch-seed", "12a")
    viewer.press("#branch-seed", "Enter")
    expect(viewer.locator("#branch-error")).to_contain_text("digits only")
    viewer.fill("#branch-seed", "")
    viewer.fill("#branch-temperature", "0")
    viewer.press("#branch-temperature", "Enter")
    expect(viewer.locator("#branch-error")).to_contain_text("Temperature")
    expect(viewer.locator("#branch-temperature")).to_be_focused()
    assert len(server.app.extensions[JOBS].store.rows.find("", Query())) == 1


# -- likelihood


def test_the_likelihood_of_each_token_is_shown_and_told(viewer: Page) -> None:
    with viewer.expect_response("**/v1/images/score") as answered:
        viewer.get_by_role("button", name="Likelihood").click()
    logprobs = answered.value.json()["logprobs"]
    least = logprobs.index(min(logprobs))
    row, column = least // GRID_SIDE + 1, least % GRID_SIDE + 1
    readout, summary = viewer.locator("#heat-at"), viewer.locator("#heat-summary")
    expect(readout).to_contain_text(f"row {row}, column {column}")
    expect(summary).to_contain_text(f"The least expected is in row {row}, column {column}: 1 in ")
    size = viewer.locator("#heat-map").evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [GRID_SIDE, GRID_SIDE]
    viewer.mouse.move(*place_in(viewer, "#heat-layer")(0.97, 0.97))
    expect(readout).to_contain_text(f"row {GRID_SIDE}, column {GRID_SIDE}")
    viewer.locator("#heat-layer").focus()
    viewer.keyboard.press("ArrowLeft")
    viewer.keyboard.press("ArrowUp")
    expect(readout).to_contain_text(f"row {GRID_SIDE - 1}, column {GRID_SIDE - 1}")
    viewer.get_by_text("Row by row", exact=True).click()
    expect(viewer.locator("#heat-rows tr")).to_have_count(GRID_SIDE)
    expect(viewer.locator("#heat-rows tr").first).to_have_text(re.compile(r"1(1 in \d+|\d+ %)column \d, "))


def test_the_map_of_a_wide_picture_lies_where_the_model_saw_it(page: Page) -> None:
    """In the middle of a square: six of its eight rows are on 96×64 pixels, the first and the last in part."""
    give(page, png(np.tile(drawing(), (1, 2, 1))[:, :96]))
    open_card(draw(page, "wide"))
    with page.expect_response("**/v1/images/score") as answered:
        page.get_by_role("button", name="Likelihood").click()
    values = np.reshape(answered.value.json()["logprobs"], (GRID_SIDE, GRID_SIDE))
    expect(page.locator("#heat-rows tr")).to_have_count(6)
    layer, square = (page.locator(name).bounding_box() for name in ("#heat-layer", "#heat-square"))
    assert layer is not None and square is not None
    assert square["width"] == pytest.approx(layer["width"], abs=1)
    assert square["height"] == pytest.approx(layer["height"] * 1.5, abs=1)
    page.mouse.move(*place_in(page, "#heat-layer")(0.99, 0.01))
    expect(page.locator("#heat-at")).to_contain_text("row 1, column 8")
    chance = 1 / np.exp(values[1, 7])  # of the square's second row
    expect(page.locator("#heat-at strong")).to_have_text(f"1 in {float(f'{chance:.2g}'):,.0f}")
    page.mouse.move(*place_in(page, "#heat-layer")(0.01, 0.99))
    expect(page.locator("#heat-at")).to_contain_text("row 6, column 1")


def test_the_likelihood_is_asked_once_and_read_by_touch(
    server: Server, make_page: Callable[..., Page], witness: Witness
) -> None:
    page = make_page(server, **PHONE)
    open_card(draw(page, "a picture"))
    for _ in range(3):  # on, off, on
        page.get_by_role("button", name="Likelihood").tap()
    expect(page.locator("#heat-told")).to_be_visible()
    place = place_in(page, "#heat-layer")
    swipe(page, place(0.5, 0.5), place(0.03, 0.03))
    expect(page.locator("#heat-at")).to_contain_text("row 1, column 1")
    assert sum("/v1/images/score" in url for url in witness.requests) == 1


def test_a_refused_score_is_told_and_asked_again(viewer: Page, witness: Witness) -> None:
    refusal = {"error": {"message": "the queue is full", "code": "overloaded"}}
    viewer.route("**/v1/images/score", lambda route: route.fulfill(status=503, json=refusal))
    viewer.get_by_role("button", name="Likelihood").click()
    expect(viewer.locator("#heat-error")).to_have_text("the queue is full")
    expect(viewer.locator("#heat-layer")).to_be_hidden()
    viewer.unroute("**/v1/images/score")
    viewer.get_by_role("button", name="Likelihood").click()
    viewer.get_by_role("button", name="Likelihood").click()
    expect(viewer.locator("#heat-told")).to_be_visible()
    assert "503" in witness.console.pop()


def test_a_picture_without_words_has_no_likelihood(page: Page) -> None:
    give(page, png(drawing()))
    page.press("#prompt", "Enter")
    open_card(page.locator("article.card"))
    expect(page.get_by_role("button", name="Compare")).to_be_visible()
    expect(page.get_by_role("button", name="Likelihood")).to_be_hidden()


def test_a_mode_stays_while_one_walks_on(server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(server)
    open_card(draw(page, "two", 2))
    page.get_by_role("button", name="Likelihood").click()
    expect(page.locator("#heat-told")).to_be_visible()
    page.get_by_role("button", name="Next picture").click()
    expect(page.locator("#viewer .facts")).to_contain_text("2 of 2")
    expect(page.locator("#heat-told")).to_be_visible()
    expect(page.get_by_role("button", name="Likelihood")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Open picture 1").click()
    expect(page.get_by_role("button", name="Likelihood")).to_have_attribute("aria-pressed", "false")
