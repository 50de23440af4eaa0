"""The text by which the AUTOMATIC1111 world describes a picture: prompt, negative prompt, one line of settings.

Its web UI writes it into PNGs as a text chunk named `parameters`; sites and tools read it there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dalle_server import __version__
from dalle_server.pictures.metadata import PictureMetadata
from dalle_server.request import SamplingParams
from dalle_server.web.drawing import Drawing

SAMPLER = "Gumbel-max"
KEYWORD = "parameters"


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of one picture, finished or not."""

    prompt: str
    negative_prompt: str
    seed: int
    settings: dict[str, Any]  # the settings line, as names and values

    @property
    def infotext(self) -> str:
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(", ".join(f"{name}: {value}" for name, value in self.settings.items()))
        return "\n".join(lines)


def told_by_file(metadata: PictureMetadata, size_px: tuple[int, int], model_name: str) -> Told:
    model = (metadata.weights_digest, model_name, metadata.program)
    settings = _settings(metadata.num_tokens, SamplingParams.of(metadata), metadata.seed, size_px, model)
    return Told(metadata.prompt, metadata.negative_prompt, metadata.seed, settings)


def told_by_request(drawing: Drawing, position: int) -> Told:
    """Of the picture at a position of the request."""
    request, config = drawing.generation.request, drawing.engine.config
    model = (drawing.engine.digest, drawing.model_name, f"dalle-server {__version__}")
    seed = request.images[position].seed
    settings = _settings(config.picture.num_tokens, drawing.generation.sampling, seed, drawing.size_px, model)
    return Told(request.prompt, request.negative_prompt, seed, settings)


def _settings(
    num_tokens: int, sampling: SamplingParams, seed: int, size_px: tuple[int, int], model: tuple[str, str, str]
) -> dict[str, Any]:
    """A step is one image token."""
    digest, name, program = model
    return {
        "Steps": num_tokens,
        "Sampler": SAMPLER,
        "Top K": sampling.top_k,
        "Top P": sampling.top_p,
        "Temperature": sampling.temperature,
        "CFG scale": sampling.condition_scale,
        "Seed": seed,
        "Size": f"{size_px[0]}x{size_px[1]}",
        "Model hash": digest[:10],
        "Model": name,
        "Version": program,
    }


_PAIR = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
MAX_SETTINGS_CHARS = 4_000  # the line is searched for pairs from each of its characters on


def parse_infotext(text: str) -> dict[str, str]:
    """What another program's infotext says, by name: `Prompt`, `Negative prompt`, and its last line of settings."""
    if not text.strip():
        return {}
    *lines, last = text.strip().split("\n")
    settings = dict(_PAIR.findall(last)) if len(last) <= MAX_SETTINGS_CHARS else {}
    if len(settings) < 3:  # a prompt that happens to hold a colon
        lines, settings = [*lines, last], {}
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    return {"Prompt": prompt.strip(), "Negative prompt": negative.strip(), **settings}


def decode_comment(comment: bytes) -> str:
    """EXIF's UserComment, as the web UI writes it into JPEGs. The first eight bytes name the character set."""
    charset, text = comment[:8], comment[8:]
    if charset == b"UNICODE\0":
        return text.decode("utf-16-le" if text[1:2] == b"\0" else "utf-16-be", "replace").rstrip("\0")
    return text.decode("utf-8", "replace").rstrip("\0") if charset in (b"ASCII\0\0\0", b"\0" * 8) else ""
