"""The page with the embedded model behind it: what a newcomer sees first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dalle_server.dalle_model import load_engine
from tests.playground.server import Server
from tests.playground.test_drawing import draw


@pytest.fixture
def nano(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, load_engine, model_version="nano", num_threads=1)
    server.start()
    yield server
    server.stop()


def test_nano_draws_while_one_looks_on(nano: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(nano)
    page.locator("#model summary").click()
    expect(page.locator("#model-more")).to_contain_text("nano is the small model that comes with the server")
    page.locator("#model summary").click()
    page.locator(".idea", has_text="a red apple").click()
    page.fill("#seed", "7")
    card = draw(page, page.locator("#prompt").input_value(), 2)
    expect(card).to_have_attribute("data-status", "done", timeout=60_000)
    picture = card.locator("img.final").first
    expect(picture).to_be_visible()
    # No word on previews: nano may be done before the page asks for one. test_drawing.py has them, with a slow engine.
    size = nano.engine.config.picture.width_px
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [size, size]
    red, green, blue = picture.evaluate(
        """(image) => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d");
        const third = image.naturalWidth / 3;
        canvas.drawImage(image, third, third, third, third, 0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      }"""
    )
    assert red > green + 40 and red > blue + 40  # the middle of a red apple is red
