"""The text by which the AUTOMATIC1111 world describes a picture: prompt, negative prompt, one line of settings."""

from __future__ import annotations

from typing import Any

from dalle_server.pictures.metadata import PictureMetadata

SAMPLER = "Gumbel-max"


def parameters(metadata: PictureMetadata, size_px: tuple[int, int]) -> dict[str, Any]:
    """The settings line, as names and values. A step is one image token."""
    width, height = size_px
    return {
        "Steps": metadata.num_tokens,
        "Sampler": SAMPLER,
        "Top K": metadata.top_k,
        "Top P": metadata.top_p,
        "Temperature": metadata.temperature,
        "CFG scale": metadata.condition_scale,
        "Seed": metadata.seed,
        "Size": f"{width}x{height}",
        "Model hash": metadata.weights_digest[:10],
        "Model": metadata.model,
        "Version": metadata.program,
    }


def infotext(metadata: PictureMetadata, size_px: tuple[int, int]) -> str:
    lines = [metadata.prompt]
    if metadata.negative_prompt:
        lines.append(f"Negative prompt: {metadata.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in parameters(metadata, size_px).items()))
    return "\n".join(lines)
