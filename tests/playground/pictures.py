"""Pictures for the page, and what is seen of those that it has."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import JSHandle, Page

from tests.fake_runner import FakeRunner, fake_config
from tests.playground.server import GRID_SIDE

Array = NDArray[np.uint8]


def drawing(seed: int = 7) -> Array:
    """(64, 64, 3): a picture whose tokens the fake runner reads exactly."""
    config = fake_config(GRID_SIDE)
    tokens = np.random.default_rng(seed).integers(0, config.picture.codebook_size, (1, GRID_SIDE**2), dtype=np.int32)
    return FakeRunner(config).detokenize(tokens)[0]


def png(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(file: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def choose(page: Page, file: bytes, name: str = "mine.png", kind: str = "image/png") -> None:
    """Behind it the page reads the file; wait for what it says of it."""
    page.locator("#picture-file").set_input_files({"name": name, "mimeType": kind, "buffer": file})


def give(page: Page, file: bytes) -> None:
    """Chooses a picture that the page takes."""
    choose(page, file)
    page.locator("#given-title", has_text="mine.png").wait_for()


def carried(page: Page, file: bytes, name: str = "mine.png", kind: str = "image/png") -> JSHandle:
    """A DataTransfer with a file in it, as a drop or a paste brings one."""
    return page.evaluate_handle(
        """([encoded, name, type]) => {
        const carried = new DataTransfer();
        const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
        carried.items.add(new File([bytes], name, { type }));
        return carried;
      }""",
        [base64.b64encode(file).decode(), name, kind],
    )


def painted(page: Page, *places: tuple[float, float]) -> list[bool]:
    """Whether the mask painter shows these places, as shares of the picture's width and height, as painted."""
    found: list[bool] = page.evaluate(
        """async (places) => {
        await new Promise(requestAnimationFrame);
        const canvas = document.getElementById("editor-canvas");
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
        const at = (share, length) => Math.min(length - 1, Math.floor(share * length));
        return places.map(([x, y]) => data[(at(y, canvas.height) * canvas.width + at(x, canvas.width)) * 4 + 3] > 0);
      }""",
        [list(place) for place in places],
    )
    return found


def place_in(page: Page, selector: str) -> Callable[[float, float], tuple[float, float]]:
    """place(x, y), shares of the element's width and height → where that is in the window."""
    box = page.locator(selector).bounding_box()
    assert box is not None
    return lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])


def swipe(page: Page, *places: tuple[float, float]) -> None:
    """One finger, put down at the first place, moved over the others, and lifted."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, points: list[dict[str, Any]]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    for number, (x, y) in enumerate(places):
        touch("touchMove" if number else "touchStart", [{"x": x, "y": y}])
    touch("touchEnd", [])
    session.detach()
