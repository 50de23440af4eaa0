"""A preset: every number of one run of the recipe, read from presets/NAME.toml."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import VQGANConfig
from training.learning.grow import grown
from training.scenes.spec import Mixture, Variety

PRESETS = Path(__file__).with_name("presets")
BOS, PAD, EOS, UNK, MASK = range(5)  # ids of <s> <pad> </s> <unk> <mask>, as in BART


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast to train. The run ends at `steps` or after `seconds`, whichever comes first.

    With `seconds` alone the learning rate follows the clock, so that a slow machine still finishes on time;
    set `steps` to repeat a run exactly.
    """

    batch: int
    learning_rate: float
    seconds: float | None = None
    steps: int | None = None
    warmup_steps: int = 100
    ema_decay: float = 0.999
    compile: bool = False  # torch.compile: about twice as fast here, after minutes of compiling

    def progress(self, step: int, elapsed_s: float) -> float:
        """Done share of the run, 0…1."""
        by_step = step / self.steps if self.steps else 0.0
        by_clock = elapsed_s / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_step, by_clock))

    def learning_rate_scale(self, step: int, elapsed_s: float) -> float:
        """Linear warm-up, then half a cosine down to 1 %."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress(step, elapsed_s))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    name: str
    seed: int
    include_extra: bool  # every concept of concepts.txt, or only the everyday ones
    sprite_px: int
    fsq_levels: tuple[int, ...]
    text_vocab_size: int
    caption_dropout: float
    processes: int  # data parallel, one thread each: on a CPU better than one process of as many threads
    variety: Variety
    mixture: Mixture
    vqgan: VQGANConfig
    vqgan_schedule: Schedule
    doublings: int  # levels that the stage `decoder` puts in front of the VQGAN's: each doubles the picture's side
    critic_from: float  # share of that stage after which a critic joins
    num_scenes: int  # tokenised for the transformer
    decoder_schedule: Schedule
    judge_schedule: Schedule
    transformer: dict[str, Any]
    transformer_schedule: Schedule
    work_dir: Path
    stamps: bool = (
        False  # the transformer's scenes are put together from tokens, not from pixels, see learning/stamps.py
    )
    base: Preset | None = None  # whose VQGAN and transformer this one goes on from
    max_condition_scale: float | None = None  # the guidance that the trained model bears, see ModelConfig
    first_px: int = 0  # the VQGAN's first steps are on smaller pictures, of this side: cheaper, and nearly as good
    first_steps: int = 0

    @property
    def picture_vqgan(self) -> VQGANConfig:
        """The VQGAN that is served."""
        return grown(self.vqgan, self.doublings)

    @property
    def image_length(self) -> int:
        return self.variety.grid**2

    def transformer_config(self, text_vocab_size: int) -> DalleBartConfig:
        """Start, eos and pad ids follow dalle-mini: start = number of codes, bos = eos = pad = start + 1."""
        codes = self.vqgan.n_embed
        return DalleBartConfig(
            **self.transformer,
            encoder_vocab_size=text_vocab_size,
            image_vocab_size=codes,
            image_length=self.image_length,
            decoder_start_token_id=codes,
            bos_token_id=codes + 1,
            eos_token_id=codes + 1,
            pad_token_id=codes + 1,
        )


def load_preset(name: str, work_root: Path | None = None) -> Preset:
    """`name` is a file of presets/ without .toml, or a path to such a file."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    levels = tuple(raw["vqgan"].pop("fsq_levels"))
    vqgan = VQGANConfig.from_dict({**raw["vqgan"], "embed_dim": len(levels), "n_embed": math.prod(levels)})
    variety: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in raw["variety"].items()
    }
    work_root = work_root or Path(__file__).with_name("work")
    if raw["run"].get("stamps") and variety.get("turn_degrees"):
        raise ValueError(f"{path}: stamps stand upright; take turn_degrees out of [variety], or stamps out of [run]")
    base = raw["run"].pop("base", None)
    return Preset(
        name=path.stem,
        fsq_levels=levels,
        variety=Variety(**variety, grid=vqgan.resolution // vqgan.scale_factor),
        mixture=Mixture(**raw.get("mixture", {})),
        vqgan=vqgan,
        vqgan_schedule=Schedule(**raw["vqgan_schedule"]),
        decoder_schedule=Schedule(**raw["decoder_schedule"]),
        **raw["decoder"],
        judge_schedule=Schedule(**raw["judge_schedule"]),
        transformer=raw["transformer"],
        transformer_schedule=Schedule(**raw["transformer_schedule"]),
        work_dir=work_root / path.stem,
        base=load_preset(base, work_root) if base else None,
        **raw["run"],
    )
