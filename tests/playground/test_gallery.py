"""Past pictures: search, open large, walk, reuse, copy as code, download, delete."""

from __future__ import annotations

import ast
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Page, Route, expect

from dalle_server.pictures.metadata import read_metadata
from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.storage.rows import Query
from tests.playground.conftest import Witness
from tests.playground.server import Server

PROMPTS = ("a red apple", "three rockets in space", "a cat & <b>dog</b>")


@pytest.fixture
def gallery(server: Server, make_page: Callable[..., Page]) -> Page:
    """A page that opens with three finished jobs of two pictures each."""
    fill(server, PROMPTS)
    page = make_page(server)
    expect(page.locator("article.card")).to_have_count(3)
    return page


def fill(server: Server, prompts: tuple[str, ...]) -> None:
    jobs = server.app.extensions[JOBS]
    server.runner.step_s = 0
    for number, prompt in enumerate(prompts):
        wanted: dict[str, Any] = {
            "prompt": prompt,
            "num_images": 2,
            "seed": 40 + number,
            "top_k": 7,
            "condition_scale": 3.5,
        }
        accepted = requests.post(f"{server.url}/v1/jobs", json=wanted, timeout=20)
        view = jobs.feed.join("", accepted.json()["id"])
        assert [entry for entries in view.entries(5) for entry in entries][-1].event == "done"
        view.close()


def test_search_finds_by_words_and_by_seed(gallery: Page) -> None:
    gallery.locator("h1").click()  # out of the prompt, where a slash is a slash
    gallery.keyboard.press("/")
    expect(gallery.locator("#search")).to_be_focused()
    gallery.fill("#search", "ROCKETS three")
    expect(gallery.locator(".card-prompt")).to_have_text(["three rockets in space"])
    gallery.fill("#search", "42")
    expect(gallery.locator(".card-prompt")).to_have_text(["a cat & <b>dog</b>"])
    gallery.fill("#search", "nothing of the kind")
    expect(gallery.locator("#empty")).to_contain_text("Nothing for “nothing of the kind”")


def test_older_pictures_come_page_by_page(server: Server, make_page: Callable[..., Page]) -> None:
    fill(server, tuple(f"number {number}" for number in range(26)))
    page = make_page(server)
    expect(page.locator("article.card")).to_have_count(24)
    page.get_by_role("button", name="Show older pictures").click()
    expect(page.locator("article.card")).to_have_count(26)
    expect(page.get_by_role("button", name="Show older pictures")).to_be_hidden()


def test_older_pictures_come_when_the_oldest_shown_is_deleted(server: Server, make_page: Callable[..., Page]) -> None:
    fill(server, tuple(f"number {number}" for number in range(26)))
    page = make_page(server)
    expect(page.locator("article.card")).to_have_count(24)
    oldest = page.locator("article.card").last
    oldest.hover()
    oldest.get_by_role("button", name="Delete").click()
    page.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(page.locator("article.card")).to_have_count(23)
    page.get_by_role("button", name="Show older pictures").click()
    expect(page.locator("article.card")).to_have_count(25)
    expect(page.locator("article.card").last).to_contain_text("number 0")


def test_older_pictures_that_cannot_be_had_are_told(
    server: Server, make_page: Callable[..., Page], witness: Witness
) -> None:
    fill(server, tuple(f"number {number}" for number in range(25)))
    page = make_page(server)
    expect(page.locator("article.card")).to_have_count(24)
    page.route("**/v1/jobs?*", lambda route: route.abort())
    page.get_by_role("button", name="Show older pictures").click()
    expect(page.locator("#banner")).to_contain_text("No answer from")
    assert any("ERR_FAILED" in line for line in witness.console)
    witness.console.clear()
    page.unroute("**/v1/jobs?*")
    expect(page.locator("#banner")).to_be_hidden()
    page.get_by_role("button", name="Show older pictures").click()
    expect(page.locator("article.card")).to_have_count(25)


def test_a_picture_opens_large_and_the_arrows_walk(gallery: Page) -> None:
    gallery.get_by_role("button", name="Open picture 1").first.click()
    viewer = gallery.locator("#viewer")
    expect(viewer.locator("h2")).to_have_text("a cat & <b>dog</b>")
    expect(viewer.locator(".facts")).to_contain_text("Guidance3.5")
    image = gallery.locator("#viewer-image")
    expect(image).to_be_visible()
    size = image.bounding_box()
    assert size is not None and size["width"] % 64 == 0  # whole multiples: every pixel is a square
    expect(gallery.locator("#viewer-previous")).to_be_disabled()
    gallery.keyboard.press("ArrowRight")
    gallery.keyboard.press("ArrowRight")
    expect(viewer.locator("h2")).to_have_text("three rockets in space")
    gallery.keyboard.press("Escape")
    expect(viewer).to_be_hidden()


def test_settings_and_seed_are_reused(gallery: Page) -> None:
    card = gallery.locator("article.card", has_text="a red apple")
    card.hover()
    card.get_by_role("button", name="Use these settings").click()
    expect(gallery.locator("#prompt")).to_have_value("a red apple")
    for name, value in {"seed": "40", "num_images": "2", "top_k": "7", "condition_scale": "3.5", "top_p": ""}.items():
        expect(gallery.locator(f"#{name}")).to_have_value(value)
    gallery.locator("article.card", has_text="rockets").get_by_role("button", name="Use seed 41").click()
    expect(gallery.locator("#seed")).to_have_value("41")
    expect(gallery.locator("#prompt")).to_have_value("a red apple")


def test_a_download_is_the_file_with_its_recipe(gallery: Page, tmp_path: Path) -> None:
    gallery.get_by_role("button", name="Open picture 2").last.click()
    with gallery.expect_download() as download:
        gallery.locator("#viewer-download").click()
    assert download.value.suggested_filename == "40-1.png"
    download.value.save_as(tmp_path / "picture.png")
    recipe = read_metadata(tmp_path / "picture.png")
    assert (recipe.prompt, recipe.seed, recipe.image_index, recipe.top_k) == ("a red apple", 40, 1, 7)


def test_the_code_is_copied_and_says_the_same(gallery: Page, server: Server) -> None:
    gallery.context.grant_permissions(["clipboard-read", "clipboard-write"])
    gallery.get_by_role("button", name="Open picture 1").last.click()
    gallery.get_by_role("button", name="Copy").click()
    expect(gallery.locator("#copy-text")).to_have_text("Copied")
    curl = gallery.evaluate("navigator.clipboard.readText()")
    assert curl.startswith(f"curl {server.url}/v1/jobs")
    body = json.loads(curl.split("--json '")[1].rstrip("'"))
    assert (body["prompt"], body["seed"], body["top_k"]) == ("a red apple", 40, 7)
    gallery.get_by_role("tab", name="curl").press("ArrowRight")
    expect(gallery.get_by_role("tab", name="Python")).to_be_focused()
    program = gallery.locator("#snippet-text").inner_text()
    compile(program, "snippet.py", "exec")
    gallery.get_by_role("tab", name="openai").click()
    program = gallery.locator("#snippet-text").inner_text()
    compile(program, "snippet.py", "exec")
    assert f'base_url="{server.url}/v1"' in program


@pytest.mark.parametrize("language", ["curl", "Python", "openai"])
def test_a_program_draws_the_very_picture(server: Server, make_page: Callable[..., Page], language: str) -> None:
    """Whatever was asked of it: a shape, a way to reach it, the best of many, what to steer away from."""
    asked: dict[str, Any] = {
        "prompt": "it's wide",
        "negative_prompt": "fog",
        "size": "96x64",
        "fit": "crop",
        "best_of": 3,
        "seed": 7,
    }
    requests.post(f"{server.url}/v1/jobs", json=asked, timeout=20)
    page = make_page(server)
    page.get_by_role("button", name="Open picture 1").click()
    page.get_by_role("tab", name=language).click()
    program = page.locator("#snippet-text").inner_text()
    files: list[io.BytesIO] = []
    if language == "curl":
        words = shlex.split(program.replace("\\\n", " "))
        again = requests.post(words[1], json=json.loads(words[words.index("--json") + 1]), timeout=20).json()
        assert {name: again[name] for name in asked} == asked and again["model"] == "fake"
        return
    exec(program, {"open": lambda *_: files.append(Kept()) or files[-1]})
    job = next(job for job in server.app.extensions[JOBS].store.rows.find("", Query()) if job.pictures)
    first = server.app.extensions[JOBS].store.read(job.pictures[0])
    again, wanted = (np.asarray(Image.open(io.BytesIO(data))) for data in (files[0].getvalue(), first))
    assert wanted.shape == (64, 96, 3) and np.array_equal(again, wanted)
    assert 'model="fake"' in program if language == "openai" else '"model": "fake"' in program


class Kept(io.BytesIO):
    """A file whose content outlives it."""

    def close(self) -> None:
        pass


def test_deleting_asks_first(gallery: Page, server: Server) -> None:
    card = gallery.locator("article.card", has_text="a red apple")
    card.hover()
    card.get_by_role("button", name="Delete").click()
    gallery.locator("#confirm").get_by_role("button", name="Keep").click()
    expect(card).to_be_visible()
    card.hover()
    card.get_by_role("button", name="Delete").click()
    gallery.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(gallery.locator("article.card")).to_have_count(2)
    assert len(server.app.extensions[JOBS].store.rows.find("", Query())) == 2


def test_a_picture_made_again_from_the_page_is_the_same(gallery: Page, server: Server) -> None:
    card = gallery.locator("article.card", has_text="a red apple")
    card.hover()
    card.get_by_role("button", name="Use these settings").click()
    gallery.press("#prompt", "Enter")
    expect(gallery.locator('article[data-status="done"]', has_text="a red apple")).to_have_count(2)
    store = server.app.extensions[JOBS].store
    again, first = (
        [store.read(picture) for picture in job.pictures] for job in store.rows.find("", Query(words=("apple",)))
    )
    assert again == first


def test_code_of_a_strange_answer_runs_nothing(gallery: Page, server: Server) -> None:
    """Another server's words, copied into a shell or a program, stay words."""
    evil = "'$(touch hit)`touch hit`\"; import os #"

    def answer(route: Route) -> None:
        listed = route.fetch()
        body = listed.json()
        for job in body["data"]:
            job |= {
                "prompt": evil,
                "model": evil,
                "format": 'png"); evil("',
                "seed_text": "1); evil(",
                "top_k": "2); evil(",
            }
        route.fulfill(response=listed, json=body)

    gallery.route("**/v1/jobs?*", answer)
    gallery.reload()
    gallery.get_by_role("button", name="Open picture 1").first.click()
    curl = gallery.locator("#snippet-text").inner_text()
    words = shlex.split(curl.replace("\\\n", " "))
    assert words[0] == "curl" and words[-2] == "--json" and len(words) == 4
    assert json.loads(words[-1])["prompt"] == evil
    for language in ("Python", "openai"):
        gallery.get_by_role("tab", name=language).click()
        tree = ast.parse(gallery.locator("#snippet-text").inner_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called <= {"open", "OpenAI", "enumerate"}


def test_the_age_of_a_picture_grows(server: Server, make_page: Callable[..., Page]) -> None:
    fill(server, PROMPTS[:1])
    page = make_page(server)
    page.clock.install()
    page.reload()
    expect(page.locator("article.card time")).to_have_text("just now")
    page.clock.fast_forward("05:00")
    expect(page.locator("article.card time")).to_have_text("5 min. ago")
