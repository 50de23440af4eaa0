"""The mask painter: brush, eraser, rectangle and shapes, by mouse, finger and keyboard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.playground.pictures import drawing, give, painted, pixels_of, place_in, png, swipe
from tests.playground.server import Server
from tests.playground.test_look import PHONE

TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT, CENTRE = (0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9), (0.5, 0.5)


def open_painter(page: Page) -> None:
    give(page, png(drawing()))
    page.locator("#given-paint").click()
    expect(page.locator("#editor")).to_be_visible()


@pytest.fixture
def painter(page: Page) -> Page:
    open_painter(page)
    return page


def drag(page: Page, *places: tuple[float, float]) -> None:
    place = place_in(page, "#editor-box")
    page.mouse.move(*place(*places[0]))
    page.mouse.down()
    for each in places[1:]:
        page.mouse.move(*place(*each), steps=4)
    page.mouse.up()


def button(page: Page, name: str) -> None:
    page.locator("#editor").get_by_role("button", name=name, exact=True).click()


def test_nothing_painted_is_no_mask(painter: Page) -> None:
    expect(painter.locator("#editor-share")).to_have_text("Nothing painted yet")
    for name in ("Undo", "Redo", "Clear", "Use this mask"):
        expect(painter.get_by_role("button", name=name)).to_be_disabled()


def test_a_mouse_paints_and_erases_a_line(painter: Page) -> None:
    drag(painter, TOP_LEFT, BOTTOM_RIGHT)
    assert painted(painter, TOP_LEFT, CENTRE, BOTTOM_RIGHT, TOP_RIGHT) == [True, True, True, False]
    painter.get_by_role("radio", name="Erase").check()
    drag(painter, TOP_RIGHT, BOTTOM_LEFT)
    assert painted(painter, TOP_LEFT, CENTRE, BOTTOM_RIGHT) == [True, False, True]


def test_the_brush_has_a_size(painter: Page) -> None:
    beside = (0.5, 0.3)
    drag(painter, (0.2, 0.5), (0.8, 0.5))
    assert painted(painter, beside) == [False]
    painter.locator("#editor-size").fill("50")
    expect(painter.locator("#editor-size-text")).to_have_text("32 px")
    drag(painter, (0.2, 0.5), (0.8, 0.5))
    assert painted(painter, beside) == [True]


def test_a_finger_paints(server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(server, **PHONE)
    open_painter(page)
    place = place_in(page, "#editor-box")
    swipe(page, place(*TOP_LEFT), place(0.3, 0.3), place(*CENTRE))
    assert painted(page, TOP_LEFT, (0.3, 0.3), CENTRE, BOTTOM_RIGHT) == [True, True, True, False]
    page.get_by_role("radio", name="Rectangle").check()
    swipe(page, place(0.6, 0.6), place(0.8, 0.8), place(0.95, 0.95))
    assert painted(page, (0.62, 0.93), BOTTOM_RIGHT, TOP_RIGHT) == [True, True, False]
    button(page, "Use this mask")  # no tap: right behind a swipe a browser takes it for the end of a fling
    expect(page.locator("#given-what")).to_contain_text("% anew")


def test_a_rectangle_is_pulled_open(painter: Page) -> None:
    painter.get_by_role("radio", name="Rectangle").check()
    drag(painter, (0.9, 0.75), (0.25, 0.25))
    assert painted(painter, CENTRE, (0.27, 0.27), (0.88, 0.73), TOP_LEFT, (0.95, 0.5)) == [
        True,
        True,
        True,
        False,
        False,
    ]
    expect(painter.locator("#editor-size")).to_be_disabled()


def test_the_keyboard_alone_paints(painter: Page) -> None:
    expect(painter.locator("#editor-box")).to_be_focused()
    painter.keyboard.press("Space")
    assert painted(painter, CENTRE, (0.5, 0.1)) == [True, False]
    for _ in range(13):
        painter.keyboard.press("Shift+ArrowUp")  # a line from where it stands
    assert painted(painter, (0.5, 0.3), (0.5, 0.1), TOP_LEFT) == [True, True, False]
    painter.keyboard.press("Delete")
    assert painted(painter, (0.5, 0.1), (0.5, 0.3)) == [False, True]


def test_the_keyboard_moves_and_stretches_a_rectangle(painter: Page) -> None:
    painter.get_by_role("radio", name="Rectangle").check()
    painter.locator("#editor-box").focus()
    for _ in range(8):
        painter.keyboard.press("ArrowLeft")
        painter.keyboard.press("ArrowUp")
    for _ in range(4):
        painter.keyboard.press("Shift+ArrowRight")  # from a half to three quarters of the width
    painter.keyboard.press("Enter")
    assert painted(painter, TOP_LEFT, (0.6, 0.45), (0.65, 0.1), (0.1, 0.55)) == [True, True, False, False]
    expect(painter.locator("#editor")).to_be_visible()  # Enter painted, and did not close the dialog


def test_parts_of_the_picture_are_one_press_away(painter: Page) -> None:
    places = (TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT, CENTRE)
    for name, expected in {
        "Top half": [True, True, False, False],
        "Left half": [True, False, True, False],
        "Bottom right quarter": [False, False, False, True],
        "Everything": [True, True, True, True],
    }.items():
        button(painter, name)
        assert painted(painter, *places)[:4] == expected, name
        button(painter, "Clear")
    button(painter, "Everything")
    painter.get_by_role("radio", name="Erase").check()
    button(painter, "Centre")
    assert painted(painter, *places) == [True, True, True, True, False]
    expect(painter.locator("#editor-share")).to_have_text("75 % of the picture is drawn anew")


def test_undo_redo_invert_and_clear(painter: Page) -> None:
    button(painter, "Left half")
    button(painter, "Invert")
    assert painted(painter, TOP_LEFT, TOP_RIGHT) == [False, True]
    painter.keyboard.press("Control+z")
    assert painted(painter, TOP_LEFT, TOP_RIGHT) == [True, False]
    button(painter, "Redo")
    assert painted(painter, TOP_LEFT, TOP_RIGHT) == [False, True]
    button(painter, "Clear")
    expect(painter.locator("#editor-share")).to_have_text("Nothing painted yet")
    button(painter, "Undo")
    assert painted(painter, TOP_LEFT, TOP_RIGHT) == [False, True]
    button(painter, "Undo")
    button(painter, "Undo")
    expect(painter.get_by_role("button", name="Undo")).to_be_disabled()
    button(painter, "Right half")
    expect(painter.get_by_role("button", name="Redo")).to_be_disabled()  # another way was taken


def test_a_painter_that_is_left_changes_nothing(painter: Page) -> None:
    button(painter, "Left half")
    painter.keyboard.press("Escape")
    expect(painter.locator("#given-what")).to_have_text("64 × 64 px · all of it may change")
    expect(painter.locator("#given-paint")).to_be_focused()


def test_a_mask_can_be_changed_and_taken_away(painter: Page) -> None:
    button(painter, "Left half")
    button(painter, "Use this mask")
    expect(painter.locator("#given-what")).to_contain_text("50 % anew")
    expect(painter.locator("#strength-text")).to_have_text("100 %")
    expect(painter.locator("#candidates-text")).to_have_text("4")
    painter.get_by_role("button", name="Change mask").click()
    assert painted(painter, TOP_LEFT, TOP_RIGHT) == [True, False]
    button(painter, "Top right quarter")
    button(painter, "Use this mask")
    expect(painter.locator("#given-what")).to_contain_text("75 % anew")
    painter.get_by_role("button", name="Remove the mask").click()
    expect(painter.locator("#given-what")).to_contain_text("all of it may change")
    expect(painter.locator("#strength-text")).to_have_text("50 %")


def test_the_mask_has_the_pictures_size_and_is_white_where_it_is_drawn_anew(page: Page) -> None:
    """Whatever size the painter shows it in: the file's pixels are the picture's."""
    give(page, png(np.full((90, 2100, 3), 200, np.uint8)))
    page.locator("#given-paint").click()
    button(page, "Right half")
    button(page, "Use this mask")
    mask = pixels_of(bytes(page.evaluate(
        """async () => {
        const { Mask } = await import("/playground/static/composer/mask.js");
        const mask = new Mask(2100, 90, [{ kind: "area", x: 1050, y: 0, width: 1050, height: 90 }]);
        return [...new Uint8Array(await (await mask.file()).arrayBuffer())];
      }"""
    )))  # fmt: skip
    assert mask.shape == (90, 2100, 3)
    assert (mask[:, :1040] == 0).all() and (mask[:, 1060:] == 255).all()
