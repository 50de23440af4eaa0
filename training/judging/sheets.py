"""Picture sheets: grids of pictures as one PNG."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Fixed before any picture was seen; nobody picked among prompts or seeds.
SHEETS = {
    "objects": ["a red apple", "a cat", "a dog", "a rocket", "a rose", "the sun", "a heart", "a house",
                "a car", "a fish", "a bird", "a tree", "a star", "the moon", "a pizza", "a banana",
                "a butterfly", "an umbrella", "a guitar", "a crown", "a frog", "a whale", "a smiley", "a robot"],
    "colours": [f"a {colour} {thing}" for thing in ("car", "balloon", "t-shirt")
                for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")],
    "scenes": ["a blue car on a green background", "a rocket in space", "a fish in the sea",
               "a red apple on a blue background",
               "a tree in the snow", "a house at night", "a cat on the grass", "a sailboat at sunset",
               "a small star", "a big elephant", "a dog on the left", "a dog on the right",
               "a heart at the top", "a heart at the bottom", "a ball in the top left corner", "a flat flower"],
    "compositions": ["two cats", "three apples", "four stars", "five hearts", "six bees",
                     "two red balloons", "three rockets in space", "four fish",
                     "a cat and a dog", "a cat to the left of a dog on a blue background",
                     "an apple above a book", "a bird over a house",
                     "a star below the moon", "a car next to a tree", "a robot and a heart", "parliament"],
    # Fifty as people ask, to be counted by eye; a few are of what it has never seen (a lighthouse, rain), for people
    # do not know its list. Written in November 2026 without a look at any picture.
    "fifty": ["an elephant", "a lion", "a penguin", "a turtle", "a cup of coffee", "a slice of watermelon",
              "a birthday cake", "an ice cream cone", "a bicycle", "a train", "a hot air balloon", "a castle",
              "a lighthouse", "a snowman", "a teddy bear", "a dragon", "a treasure chest", "a pirate ship",
              "a pink elephant", "a blue butterfly", "a green hat", "a yellow umbrella", "a purple flower",
              "a red bicycle", "a black cat", "a white horse",
              "a dog on the beach", "a penguin in the snow", "a lighthouse at night", "a castle at sunset",
              "a house in the rain", "a lion on a yellow background", "a strawberry on a pink background",
              "a whale in the sea", "an astronaut in space", "a cow on the grass",
              "two dogs", "three balloons", "four bananas", "five stars", "six eggs",
              "a dog and a ball", "a cat next to a fish", "a cup of coffee and a donut", "the sun above a mountain",
              "a big pumpkin", "a small bird", "draw me a monkey", "a picture of a tiger", "a cute owl"],
}  # fmt: skip


def save_sheet(images: Tensor, path: Path, *, columns: int, side_px: int | None = None, gap_px: int = 2) -> None:
    """Write (B,3,H,W) pictures in [0, 1] row by row, enlarged to `side_px` as a browser does it."""
    side = side_px or images.shape[-1]
    enlarged = F.interpolate(images.float().cpu(), (side, side), mode="bilinear")
    big = F.pad(enlarged, (gap_px, 0, gap_px, 0), value=1.0)
    rows = -(-len(big) // columns)
    big = F.pad(big, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(big)), value=1.0)
    side += gap_px
    grid = big.view(rows, columns, 3, side, side).permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((grid * 255).clamp(0, 255).byte().numpy()).save(path, optimize=True)
