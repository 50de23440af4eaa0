"""Takes the pictures of docs/images/playground: every state of it, from a real server with the embedded model.

python -m tests.playground.take_screenshots [STATE …]
"""

from __future__ import annotations

import io
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dalle_server.catalogue import describe
from dalle_server.config import Settings
from dalle_server.dalle_model import load_engine
from dalle_server.engine.stats import Observer
from tests.playground.conftest import FLAGS
from tests.playground.server import Server
from tests.setup_system import find_browser

DIRECTORY = Path(__file__).parents[2] / "docs" / "images" / "playground"
MAX_BYTES = 150_000
WIDE = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
MODELS = ("nano", "mini", "mega", "janus_pro_1b")
WRITTEN = """[...document.querySelectorAll(".cell.writing")]
  .map((cell) => parseFloat(cell.style.getPropertyValue("--written")))"""
PAST = [
    ("a crown", 4), ("a heart at the top", 1), ("a trophy", 4),
    ("a red apple", 4), ("a robot", 1), ("five hearts", 4),
]  # fmt: skip


class Brake(Observer):
    """Slows the engine down, so that a picture of its work can be taken."""

    step_s = 0.0

    def on_step(self, num_images: int, seconds: float) -> None:
        time.sleep(self.step_s)


BRAKE = Brake()


def main(states: list[str]) -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        server = Server(Path(directory), lambda settings: load_engine(settings, BRAKE), model_version="nano")
        server.start()
        for name, take in STATES.items():
            if not states or name in states or name == "gallery":
                started = time.monotonic()
                save(name, take(browser, server))
                print(f"{name}: {time.monotonic() - started:.1f} s")
        browser.close()
        server.stop()


def save(name: str, screenshot: bytes) -> None:
    """As PNG, in true colour where that is small enough."""
    image, path = Image.open(io.BytesIO(screenshot)).convert("RGB"), DIRECTORY / f"{name}.png"
    image.save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(path, optimize=True)
    assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size} bytes"


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
    BRAKE.step_s = 0.08
    page = open_page(browser, server)
    draw(page, "a frog", 4, 5)
    page.wait_for_timeout(200)
    draw(page, "a unicorn", 4, 6)
    while max(page.evaluate(WRITTEN), default=0) < 55:
        page.wait_for_timeout(20)
    BRAKE.step_s = 2.0
    page.wait_for_timeout(1_000)
    screenshot = page.screenshot()
    BRAKE.step_s = 0.0
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0, timeout=60_000)
    return screenshot


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


def models(browser: Browser, server: Server) -> bytes:
    """The menu of a server that has other models beside nano; they are told as a fresh machine's."""
    with tempfile.TemporaryDirectory() as directory:
        nano, *others = (describe(Settings(model_version=name, cache_dir=Path(directory))) for name in MODELS)
        several = Server(Path(directory), load_engine, listed=others, model_version="nano")
        several.described = nano.name, lambda: nano
        several.start()
        page = open_page(browser, several)
        page.locator("#model summary").click()
        page.wait_for_timeout(800)
        page.locator("#model-more").scroll_into_view_if_needed()
        screenshot = page.screenshot()
        page.close()
        several.stop()
    return screenshot


def error(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server)
    page.route("**/v1/jobs", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    page.fill("#prompt", "a red apple")
    page.press("#prompt", "Enter")
    page.wait_for_timeout(1_200)
    return page.screenshot()


def phone(browser: Browser, server: Server) -> bytes:
    return open_page(browser, server, **PHONE).screenshot(full_page=False)  # type: ignore[arg-type]


def dark(browser: Browser, server: Server) -> bytes:
    page = open_page(browser, server, color_scheme="dark")
    page.wait_for_timeout(800)
    return page.screenshot()


def shown(page: Page, prompt: str) -> Page:
    """A past picture of this prompt, large."""
    page.locator("article.card", has_text=prompt).last.get_by_role("button", name="Open picture 1").click()
    return page


def given(browser: Browser, server: Server) -> bytes:
    """A robot whose lower half is drawn anew; the mask is still in the composer."""
    page = shown(open_page(browser, server), "a robot")
    page.get_by_role("button", name="Paint over it").click()
    page.get_by_role("button", name="Bottom half").click()
    page.get_by_role("button", name="Use this mask").click()
    draw(page, "a red robot", 4, 21)
    page.locator('article[data-status="done"]', has_text="a red robot").wait_for(timeout=120_000)
    page.mouse.move(640, 790)
    page.wait_for_timeout(1_200)
    return page.screenshot()


def mask(browser: Browser, server: Server, **options: Any) -> bytes:
    page = shown(open_page(browser, server, **options), "a unicorn")
    page.get_by_role("button", name="Paint over it").click()
    page.wait_for_timeout(600)
    box = page.locator("#editor-box").bounding_box()
    assert box is not None
    x, y, size = box["x"], box["y"], box["width"]
    page.mouse.move(x + 0.3 * size, y + 0.32 * size)
    page.mouse.down()
    for share in range(12):
        angle = share / 11 * 4.5
        page.mouse.move(x + (0.5 - 0.2 * math.cos(angle)) * size, y + (0.32 - 0.14 * math.sin(angle)) * size, steps=3)
    page.mouse.up()
    page.get_by_role("radio", name="Rectangle").check()
    page.mouse.move(x + 0.62 * size, y + 0.7 * size)
    page.mouse.down()
    page.mouse.move(x + 0.92 * size, y + 0.93 * size, steps=4)
    page.mouse.up()
    page.wait_for_timeout(500)
    return page.screenshot()


def mask_phone(browser: Browser, server: Server) -> bytes:
    return mask(browser, server, **PHONE, color_scheme="dark")


def closer(prompt: str, mode: str) -> Callable[[Browser, Server], bytes]:
    def take(browser: Browser, server: Server) -> bytes:
        page = shown(open_page(browser, server), prompt)
        page.get_by_role("button", name=mode).click()
        if mode == "Likelihood":
            page.locator("#heat-told").wait_for()
        if mode == "Redraw":
            page.locator("#branch-rows").fill("5")
        page.wait_for_timeout(1_200)
        return page.screenshot()

    return take


STATES: dict[str, Callable[[Browser, Server], bytes]] = {
    "empty": empty, "gallery": gallery, "running": running, "done": done, "settings": settings, "models": models,
    "error": error,
    "phone": phone, "dark": dark, "given": given, "compare": closer("a red robot", "Compare"), "mask": mask,
    "mask-phone": mask_phone, "redraw": closer("a trophy", "Redraw"),
    "likelihood": closer("a robot", "Likelihood"),
}  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1:])
