"""Takes the pictures of docs/images: every state of the playground, from a real server with the embedded model.

python -m tests.playground.take_screenshots [STATE …]
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from dalle_server.dalle_model import load_engine
from tests.playground.conftest import FLAGS
from tests.playground.server import Server
from tests.setup_browser import find_browser

DIRECTORY = Path(__file__).parents[2] / "docs" / "images"
WIDE = {"viewport": {"width": 1360, "height": 850}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
WRITTEN = """[...document.querySelectorAll(".cell.writing")]
  .map((cell) => parseFloat(cell.style.getPropertyValue("--written")))"""
PAST = [
    ("a red apple", 4), ("three rockets in space", 1), ("a cat to the left of a dog on a blue background", 4),
    ("two yellow flowers on a green background", 2), ("a penguin in the snow", 1), ("a blue whale in the ocean", 4),
]  # fmt: skip


def main(states: list[str]) -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        server = Server(Path(directory), load_engine, model_version="nano")
        server.start()
        for name, take in STATES.items():
            if not states or name in states or name == "gallery":
                started = time.monotonic()
                save(name, take(browser, server))
                print(f"{name}: {time.monotonic() - started:.1f} s")
        browser.close()
        server.stop()


def save(name: str, screenshot: bytes) -> None:
    """PNG of 256 colours: half the size, and no difference to the eye on a page of flat areas."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(DIRECTORY / f"playground-{name}.png", optimize=True)


def open_page(browser: Browser, server: Server, *, ready: bool = True, **options: Any) -> Page:
    page = browser.new_context(**{**WIDE, **options}).new_page()
    page.goto(f"{server.url}/playground")
    if ready:
        page.locator("#submit:enabled").wait_for()
    page.wait_for_timeout(500)
    return page


def draw(page: Page, prompt: str, num_images: int, seed: int) -> None:
    page.fill("#num_images", str(num_images))
    page.fill("#seed", str(seed))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def empty(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server)
    page.wait_for_timeout(5_000)  # until the drawing of the empty page is written
    return page.screenshot()


def gallery(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server)
    for seed, (prompt, num_images) in enumerate(PAST, start=11):
        draw(page, prompt, num_images, seed)
        page.locator('article[data-status="done"]', has_text=prompt).wait_for(timeout=120_000)
    page.reload()
    page.locator("#submit:enabled").wait_for()
    page.wait_for_timeout(1_500)
    return page.screenshot()


def running(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server)
    draw(page, "a purple heart on a yellow background", 4, 5)
    draw(page, "a pizza to the left of a coffee", 4, 6)
    while max(page.evaluate(WRITTEN), default=0) < 50:
        page.wait_for_timeout(20)
    return page.screenshot()


def done(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server)
    page.locator("article.card", has_text="a red apple").get_by_role("button", name="Open picture 1").click()
    page.wait_for_timeout(1_200)
    return page.screenshot()


def settings(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server)
    page.locator("#more summary").click()
    page.locator("#model summary").click()
    page.wait_for_timeout(500)
    return page.screenshot()


def error(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server)
    page.route("**/v1/jobs", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    page.fill("#prompt", "a red apple")
    page.press("#prompt", "Enter")
    page.wait_for_timeout(1_200)
    return page.screenshot()


def phone(browser: Browser, server: Server) -> bytes:
    return open_page(browser, server, **PHONE).screenshot(full_page=False)


def dark(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server, color_scheme="dark")
    page.wait_for_timeout(800)
    return page.screenshot()


STATES: dict[str, Callable[[Browser, Server], bytes]] = {
    "empty": empty, "gallery": gallery, "running": running, "done": done, "settings": settings, "error": error,
    "phone": phone, "dark": dark,
}  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1:])
