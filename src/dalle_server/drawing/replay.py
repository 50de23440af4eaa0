"""Making a saved picture again, from its seed or from its token grid, and saying whether it is the same."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dalle_server.drawing.painting import Shape, paint
from dalle_server.drawing.repaint import DrawingEngine
from dalle_server.drawn import Drawn, result_of
from dalle_server.errors import InvalidRequest
from dalle_server.generation import GeneratedImage
from dalle_server.models.config import ModelConfig
from dalle_server.pictures.metadata import DrawnOver, PictureMetadata, pixels_sha256


class ReplaySource(StrEnum):
    TOKENS = "tokens"  # the grid goes through the image decoder once: a moment
    SEED = "seed"  # the whole generation again


@dataclass(frozen=True, slots=True)
class Replay:
    """A picture made again, beside what its file says."""

    source: ReplaySource
    image: GeneratedImage
    generation: Drawn
    same_weights: bool
    same_tokens: bool
    same_pixels: bool  # bit for bit, before resizing and compression

    @property
    def same_recipe(self) -> bool:
        """The file's metadata is true of this picture too."""
        return self.same_weights and self.same_tokens

    @property
    def verdict(self) -> str:
        if not self.same_weights:
            return f"from its {self.source}: made with OTHER WEIGHTS than the file names; the pictures may differ"
        if not self.same_tokens:
            return f"from its {self.source}: DIFFERENT tokens, although the weights are the same"
        if not self.same_pixels:
            return (
                f"from its {self.source}: the same tokens; the pixels differ in rounding "
                "(another device, data type or library version decoded them)"
            )
        return f"from its {self.source}: the same picture, bit for bit"


def replay(metadata: PictureMetadata, engine: DrawingEngine, source: ReplaySource) -> Replay:
    """Make the picture again with the loaded model and compare.

    Raises InvalidRequest when the model's grid or codebook is of another size, and what generation raises.
    """
    _check_fits(metadata, engine.config)
    request, grid = metadata.request(), metadata.token_grid()
    if metadata.grid_width:
        shape = Shape(metadata.num_tokens // metadata.grid_width, metadata.grid_width, engine.config.picture)
        generation: Drawn = paint(engine.submit, shape, request, grid if source is ReplaySource.TOKENS else None)
    elif source is ReplaySource.TOKENS:
        generation = engine.submit(dataclasses.replace(request, forced_tokens=tuple(grid.tolist())))
    else:
        generation = engine.submit(request)
    (image,) = result_of(generation)
    return Replay(
        source=source,
        image=image,
        generation=generation,
        same_weights=metadata.weights_digest == engine.digest,
        same_tokens=np.array_equal(image.tokens, grid),
        same_pixels=metadata.pixels_sha256 == pixels_sha256(image.pixels),
    )


def _check_fits(metadata: PictureMetadata, config: ModelConfig) -> None:
    picture, columns = config.picture, metadata.grid_width
    length, codes = picture.num_tokens, picture.codebook_size
    highest = int(metadata.token_grid().max())
    if columns:
        fits = Shape(metadata.num_tokens // columns, columns, picture).is_sound
    else:
        fits = metadata.num_tokens == length
    if not fits or highest >= codes:
        raise InvalidRequest(
            f"the picture is {metadata.num_tokens} tokens (ids up to {highest}) of model {metadata.model!r}; the "
            f"loaded {config.name!r} paints {length} tokens of {codes} codes; load the model that made it "
            "(--model_version)",
            param="image",
        )


def info_text(metadata: PictureMetadata) -> str:
    """What a picture says about itself, one line a fact, its token grid as a square of ids."""
    facts = {
        "prompt": metadata.prompt + (" … (cut; the file keeps the beginning)" if metadata.text_cut else ""),
        "negative prompt": metadata.negative_prompt,
        "seed": f"{metadata.seed}, image index {metadata.image_index}",
        "sampling": f"temperature {metadata.temperature:g}, top_k {metadata.top_k}, top_p {metadata.top_p:g}, "
        f"condition_scale {metadata.condition_scale:g}",
        "model": f"{metadata.model}, weights sha256 {metadata.weights_digest}",
        "program": metadata.program,
        "pixels sha256": metadata.pixels_sha256,
        "drawn over": "" if metadata.over is None else _over_text(metadata.over),
        "edges": "meet those across: it can be tiled" if metadata.seamless else "",
        "tokens": f"{metadata.num_tokens}"
        + (", some of them given" if metadata.forced else "")
        + (", drawn towards given ones" if metadata.towards else "")
        + (f", painted by windows over {metadata.grid_width} columns" if metadata.grid_width else ""),
    }
    lines = [f"{name + ':':17}{_one_line(value)}" for name, value in facts.items() if value]
    grid = metadata.token_grid()
    side = metadata.grid_width or max(1, round(len(grid) ** 0.5))
    width = len(str(grid.max()))
    lines += [" ".join(f"{token:{width}}" for token in grid[i : i + side]) for i in range(0, len(grid), side)]
    return "\n".join(lines)


def _over_text(over: DrawnOver) -> str:
    kept = f", its first {over.keep_tokens} tokens kept" if over.keep_tokens else ""
    return (
        f"a picture of {over.width_px}x{over.height_px}, at ({over.x_px}, {over.y_px}) a square of {over.side_px}"
        f"{', as a mask shows' if over.mask else ''}: strength {over.strength:g}, candidates {over.candidates}{kept}"
    )


def _one_line(text: str) -> str:
    """A stranger's file must neither steer the terminal nor add lines that look like ours."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
