"""The page with a model of 24×24 tokens behind it, twice as many to a side as any other that is served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from tests.fake_runner import FakeRunner, FakeTokenizer, fake_janus_config
from tests.playground.pictures import place_in
from tests.playground.server import Server
from tests.playground.test_drawing import draw
from tests.playground.test_given import open_card

SIDE = 24


@pytest.fixture
def janus(tmp_path: Path) -> Iterator[Server]:
    def load(settings: Settings) -> Engine:
        runner = FakeRunner(fake_janus_config(SIDE), step_s=0.002, num_slots=2)
        return Engine(runner, FakeTokenizer(), digest="2" * 64)

    server = Server(tmp_path, load)
    server.start()
    yield server
    server.stop()


def test_a_grid_of_24_rows_is_drawn_redrawn_and_looked_into(janus: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(janus)
    card = draw(page, "a picture")
    expect(card.locator(".status")).to_contain_text(f"/ {SIDE**2} tokens")
    expect(card).to_have_attribute("data-status", "done")
    assert card.locator("img.final").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [384, 384]
    open_card(card)
    with page.expect_response("**/v1/images/score") as answered:
        page.get_by_role("button", name="Likelihood").click()
    assert len(answered.value.json()["logprobs"]) == SIDE**2
    expect(page.locator("#heat-at")).to_be_visible()
    assert page.locator("#heat-map").evaluate("canvas => [canvas.width, canvas.height]") == [SIDE, SIDE]
    page.mouse.move(*place_in(page, "#heat-layer")(0.99, 0.99))
    expect(page.locator("#heat-at")).to_contain_text(f"row {SIDE}, column {SIDE}")
    page.get_by_role("button", name="Likelihood").click()
    page.get_by_role("button", name="Redraw").click()
    expect(page.locator("#branch-rows-text")).to_have_text(f"{SIDE // 2} of {SIDE}")
    with page.expect_request("**/v1/jobs") as asked:
        page.get_by_role("button", name="Draw the other 12 rows").click()
    assert (asked.value.post_data_json or {})["keep_tokens"] == SIDE**2 // 2
    expect(page.locator('article[data-status="done"]')).to_have_count(2)
