"""The pictures of docs/pictures-in.md: fixed prompts and seeds of the embedded model, nothing picked.

python -m benchmarks.pictures_in.sheets     writes docs/images/pictures-in/*.png
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_server import DalleModel
from dalle_server.drawing.painting import Shape, paint
from dalle_server.drawn import result_of
from dalle_server.request import GenerationRequest

THINGS = ("a red apple", "a house", "a yellow car", "a green frog")
SEED, OTHERS = 7, (1, 2, 3, 4)
CELL_PX, GAP_PX = 160, 6
TARGET = Path(__file__).parents[2] / "docs" / "images" / "pictures-in"

Row = Sequence[Image.Image]


def sheet(rows: Sequence[Row], name: str) -> Path:
    """Rows of pictures one below the other, each as high as a cell."""
    scaled = [[each.resize((round(CELL_PX * each.width / each.height), CELL_PX)) for each in row] for row in rows]
    width = max(sum(each.width + GAP_PX for each in row) for row in scaled) - GAP_PX
    page = Image.new("RGB", (width, len(rows) * (CELL_PX + GAP_PX) - GAP_PX), "white")
    for y, row in enumerate(scaled):
        x = 0
        for each in row:
            page.paste(each, (x, y * (CELL_PX + GAP_PX)))
            x += each.width + GAP_PX
    path = TARGET / f"{name}.png"
    page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def holes(side: int) -> Iterator[Image.Image]:
    """Masks: the upper half, the lower half, the right half, a quarter in the middle."""
    half, quarter = side // 2, side // 4
    middle = (quarter, quarter, 3 * quarter, 3 * quarter)
    boxes = ((0, 0, side, half), (0, half, side, side), (half, 0, side, side), middle)
    for box in boxes:
        mask = Image.new("L", (side, side))
        mask.paste(255, box)
        yield mask


def edits(model: DalleModel) -> Iterator[Row]:
    """Given, what is hidden of it, four edits with the same words."""
    side = model.engine.config.picture.width_px
    for text, mask in zip(THINGS, holes(side), strict=True):
        (given,) = model.generate_images(text, 1, SEED)
        hidden = Image.composite(Image.new("RGB", given.size, "grey"), given, mask)
        yield [given, hidden, *(model.edit_image(given, text, seed=seed, mask=mask)[0] for seed in OTHERS)]


def other_words(model: DalleModel) -> Iterator[Row]:
    """Given, then the lower half with other words."""
    side = model.engine.config.picture.width_px
    mask = list(holes(side))[1]
    for text, other in zip(THINGS, (*THINGS[1:], THINGS[0]), strict=True):
        (given,) = model.generate_images(text, 1, SEED)
        yield [given, *(model.edit_image(given, other, seed=seed, mask=mask)[0] for seed in OTHERS)]


def variations(model: DalleModel) -> Iterator[Row]:
    """Given, then a quarter, half, three quarters and all of it anew."""
    for text in THINGS:
        (given,) = model.generate_images(text, 1, SEED)
        yield [given, *(model.vary_image(given, 1, 1, text=text, strength=s)[0] for s in (0.25, 0.5, 0.75, 1.0))]


def branches(model: DalleModel) -> Iterator[Row]:
    """Given, then drawn again from below its second, fifth and eighth row of ten."""
    for text in THINGS:
        (given,) = model.generate_images(text, 1, SEED)
        yield [given, *(model.branch_image(given, rows, 1, 1, text=text)[0] for rows in (2, 5, 8))]


def shapes(model: DalleModel) -> Iterator[Row]:
    for text in THINGS:
        row = []
        for size in ((1024, 1024), (1536, 1024), (3072, 1024)):
            shape = Shape.of(size, model.engine.config.picture)
            request = GenerationRequest.of(text, seed=SEED)
            drawn = model.submit(request) if shape is None else paint(model.submit, shape, request)
            row.append(Image.fromarray(result_of(drawn)[0].pixels))
        yield row


def tiles(model: DalleModel) -> Iterator[Row]:
    """Each picture beside itself, three times: without and with edges that meet."""
    for text in ("a city at night", "a red apple on a blue background", "the sun"):
        row = []
        for seamless in (False, True):
            (image,) = model.generate_images(text, 1, SEED, seamless=seamless)
            row.append(Image.fromarray(np.concatenate([np.asarray(image)] * 3, axis=1)))
        yield row


SHEETS = {
    "edits": edits,
    "words": other_words,
    "variations": variations,
    "branches": branches,
    "shapes": shapes,
    "tiles": tiles,
}


def main() -> None:
    with DalleModel("nano") as model:
        for name, draw in SHEETS.items():
            print(sheet(list(draw(model)), name))


if __name__ == "__main__":
    main()
