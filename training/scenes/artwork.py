"""Fetch the openly licensed emoji artwork and render it to one square RGBA sprite per concept and style."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from training.scenes.concepts import Concept
from training.scenes.palette import tint_statistics

STYLES = ("3d", "flat", "noto")
# Exact versions: another version is other artwork, and other weights. Licences: THIRD_PARTY_NOTICES.md.
PACKAGES = {
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
}


@dataclass(frozen=True, slots=True)
class Atlas:
    """All artwork: sprites (N,S,S,4) uint8 straight alpha, N = styles × concepts, style-major."""

    sprites: Tensor
    colourful: Tensor  # (N,) bool
    mid: Tensor  # (N,) luminance that a tint maps to the named colour
    mirrorable: Tensor  # (concepts,) bool: a left arrow is not

    @property
    def num_concepts(self) -> int:
        return len(self.mirrorable)

    def index(self, style: str, concept: int) -> int:
        return STYLES.index(style) * self.num_concepts + concept


def load_atlas(concepts: list[Concept], *, sprite_px: int, work_dir: Path) -> Atlas:
    """Render every concept in every style, or reuse the rendering of an earlier run."""
    asked = f"{sprite_px} {PACKAGES} {[concept.emoji for concept in concepts]}"
    cache = work_dir / f"atlas-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.npz"
    work_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):  # every process of a parallel stage comes here
        if not cache.exists():
            _render_atlas(concepts, sprite_px, work_dir, cache)
    loaded = np.load(cache)
    return Atlas(
        **{key: torch.from_numpy(loaded[key]) for key in ("sprites", "colourful", "mid")},
        mirrorable=torch.tensor([concept.mirrorable for concept in concepts]),
    )


def _render_atlas(concepts: list[Concept], sprite_px: int, work_dir: Path, cache: Path) -> None:
    sources = {style: fetch(package, work_dir / "artwork") for style, package in PACKAGES.items()}
    renderers: dict[str, _Fluent3D | _Iconify] = {
        "3d": _Fluent3D(sources["3d"]),
        "flat": _Iconify(sources["flat"]),
        "noto": _Iconify(sources["noto"]),
    }
    sprites = np.stack([_square(renderers[style].render(c.emoji), sprite_px) for style in STYLES for c in concepts])
    statistics = [tint_statistics(sprite.astype(np.float32) / 255) for sprite in sprites]
    colourful, mid = zip(*statistics, strict=True)
    partial = cache.with_suffix(".part.npz")
    np.savez_compressed(partial, sprites=sprites, colourful=np.array(colourful), mid=np.array(mid, np.float32))
    partial.replace(cache)


def fetch(package: str, directory: Path) -> Path:
    """Download one npm package with `npm pack` and unpack it; returns its folder."""
    target = directory / package.strip("@").replace("/", "-")
    if not target.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(f"npm is needed to fetch {package}; install Node.js, or unpack the package to {target}")
        directory.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            [npm, "pack", package, "--silent"], cwd=directory, check=True, capture_output=True, text=True
        )
        archive = directory / packed.stdout.strip().splitlines()[-1]
        _unpack(archive, directory / "unpacking")
        (directory / "unpacking" / "package").rename(target)
        archive.unlink()
    return target


def _unpack(archive: Path, folder: Path) -> None:
    """Its files, and none that would lie elsewhere: tarfile's own filter came with Python 3.11.4."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path, content = folder / member.name, tar.extractfile(member) if member.isfile() else None
            if content is not None and path.resolve().is_relative_to(folder.resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())


class _Fluent3D:
    """WebP files named by code points: assets/1f34e.webp."""

    def __init__(self, package: Path):
        self.assets = package / "assets"

    def render(self, emoji: str) -> Image.Image:
        bare = [f"{ord(char):04x}" for char in emoji if char != "\ufe0f"]
        full = [f"{ord(char):04x}" for char in emoji]
        for code in ("-".join(full), "-".join(bare), "-".join([*bare, "fe0f"])):
            path = self.assets / f"{code}.webp"
            if path.exists():
                return Image.open(path).convert("RGBA")
        raise KeyError(f"{emoji}: no 3d artwork for {'-'.join(bare)}")


class _Iconify:
    """SVG bodies in one JSON file, found through the code points in chars.json."""

    def __init__(self, package: Path):
        icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
        self.icons, self.aliases, self.side = icons["icons"], icons.get("aliases", {}), icons["width"]
        self.names = json.loads((package / "chars.json").read_text(encoding="utf-8"))

    def render(self, emoji: str) -> Image.Image:
        code = "-".join(f"{ord(char):04x}" for char in emoji if char != "\ufe0f")
        name = self.names[code]
        alias = self.aliases.get(name, {})
        body = self.icons[alias.get("parent", name)]["body"]
        if alias.get("hFlip"):
            body = f'<g transform="translate({self.side} 0) scale(-1 1)">{body}</g>'
        box = f"0 0 {self.side} {self.side}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="256" height="256">{body}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def _square(image: Image.Image, side: int) -> np.ndarray:
    """Crop to what is visible, centre in a square, reduce to (side, side, 4) uint8."""
    box = image.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
    image = image.crop(box)
    edge = max(image.size)
    canvas = Image.new("RGBA", (edge, edge))
    canvas.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    # Resize with premultiplied alpha ("RGBa"), so that transparent black does not bleed into the outline.
    return np.asarray(canvas.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA"))
