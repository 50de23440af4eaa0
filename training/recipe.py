"""The recipe, top to bottom: which stage needs what, and in which order they run."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dalle_server import assets
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.models.vqgan import VQGAN
from dalle_server.request import SamplingParams
from training.export import export
from training.judging.classifier import Classifier, train_classifier
from training.judging.evaluate import (
    Asking,
    Question,
    questions,
    reconstruction,
    remembered,
    report,
    right_share,
    sampling_grid,
    score,
    seeds_differ,
)
from training.judging.judge import Judge
from training.judging.served import served, through
from training.judging.sheets import SHEETS, save_sheet
from training.learning.loop import load_average, placed
from training.learning.painter import load_painted, train_painter
from training.learning.stamps import Stamps
from training.learning.tokenizer import train_tokenizer
from training.learning.tokens import load_tokens, tokenize_scenes
from training.learning.transformer import encode_captions, told, train_transformer
from training.learning.vqgan import decode_images, tokenize_images, train_vqgan
from training.preset import Preset
from training.restore import restore
from training.scenes.artwork import Atlas, load_atlas
from training.scenes.captions import Captioner
from training.scenes.composer import Composer, Plan
from training.scenes.concepts import Concept, load_concepts
from training.scenes.held_out import HeldOut, load_held_out
from training.scenes.spec import SceneSampler, SceneSpec

SHIPPED = Path(assets.__file__).parent / "nano"


class Recipe:
    """One run: a preset, and the things its stages share, made when first needed."""

    def __init__(self, preset: Preset, asking: Asking | None = None):
        self.preset = preset
        self.asking = asking or Asking()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._composers: dict[int, Composer] = {}
        preset.work_dir.mkdir(parents=True, exist_ok=True)

    @cached_property
    def concepts(self) -> list[Concept]:
        return load_concepts(include_extra=self.preset.include_extra)

    @cached_property
    def held_out(self) -> HeldOut:
        return load_held_out(self.concepts)

    @cached_property
    def atlas(self) -> Atlas:
        return load_atlas(self.concepts, sprite_px=self.preset.sprite_px, work_dir=self.preset.work_dir.parent)

    @cached_property
    def sampler(self) -> SceneSampler:
        return SceneSampler(self.concepts, self.held_out, self.preset.mixture)

    def composer(self, image_px: int) -> Composer:
        """Kept, one for each size: the pictures that become tokens, and those that are served."""
        if image_px not in self._composers:
            self._composers[image_px] = Composer(self.atlas, image_px, self.preset.variety, self.device)
        return self._composers[image_px]

    @property
    def small_composer(self) -> Composer:
        """At the resolution of the preset's first VQGAN: for what need not look closely."""
        return self.composer(self.preset.vqgan.resolution)

    @property
    def token_composer(self) -> Composer:
        return self.composer(self.trunk.config.resolution)

    @cached_property
    def captioner(self) -> Captioner:
        return Captioner(self.concepts)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if not self.tokenizer_file.exists():
            train_tokenizer(
                self.sampler, self.captioner,
                vocab_size=self.preset.text_vocab_size, seed=self.preset.seed, target=self.tokenizer_file,
            )  # fmt: skip
        return Tokenizer.from_file(str(self.tokenizer_file))

    @property
    def pictures(self) -> Composer:
        """At the resolution of the VQGAN to be served."""
        return self.composer(self.vqgan.config.resolution)

    @property
    def tokens_folder(self) -> Path:
        """Another one for other scenes, or another encoder: such tokens would be captioned as what they are not."""
        preset = self.preset
        scenes = (preset.seed, preset.mixture, preset.variety, preset.stamps, self.concepts, self.held_out.sorted())
        told = hashlib.sha256(repr(scenes).encode())
        for weight in self.trunk.state_dict().values():
            told.update(weight.cpu().contiguous().numpy().tobytes())
        return preset.work_dir / f"tokens-{told.hexdigest()[:12]}"

    @property
    def tokenizer_file(self) -> Path:
        return self.preset.work_dir / "tokenizer.json"

    @property
    def transformer_file(self) -> Path:
        return self.preset.work_dir / "transformer.pt"

    @property
    def sampling_file(self) -> Path:
        return self.preset.work_dir / "sampling.json"

    @property
    def sampling(self) -> SamplingParams:
        """What the stage `choose` found best."""
        return SamplingParams(**json.loads(self.sampling_file.read_text(encoding="utf-8")))

    @cached_property
    def questions(self) -> list[Question]:
        judge = Judge(self.small_composer, self.classifier)
        return questions(self.sampler, judge, everyday=self.asking.everyday(False))

    @property
    def classifier_file(self) -> Path:
        return self.preset.work_dir / "classifier.pt"

    @cached_property
    def classifier(self) -> Classifier:
        """The trained eyes of the judge."""
        model = Classifier(len(self.concepts))
        model.load_state_dict(load_average(self.classifier_file))
        return placed(model, self.device).eval()

    @cached_property
    def trunk(self) -> VQGAN:
        """The VQGAN that makes the tokens, as far as it has come. Restored from a checkpoint it is the one served."""
        weights = load_average(self.preset.work_dir / "vqgan.pt")
        grown = any(name.startswith(f"encoder.down.{len(self.preset.vqgan.ch_mult)}.") for name in weights)
        model = VQGAN(self.preset.picture_vqgan if grown else self.preset.vqgan)
        model.load_state_dict(weights)
        return placed(model, self.device).eval()

    @cached_property
    def stamps(self) -> Stamps | None:
        return Stamps(self.token_composer, self.trunk) if self.preset.stamps else None

    def tokens_of(self, plans: list[Plan]) -> Tensor:
        """What the transformer shall say of scenes, ids (B, I); stamps on the CPU, others on the device."""
        if self.stamps:
            return self.stamps.tokens(plans)
        return tokenize_images(self.trunk, self.token_composer.paint(plans))

    def said_of(self, specs: list[SceneSpec], plans: list[Plan], own: Tensor, rng: random.Random) -> Tensor:
        """What the transformer says of scenes when it is told the truth so far, ids (B, I), and the truth itself before
        it has learned anything. `own` is what the encoder says of them, (B, I).
        """
        truth = self.stamps.tokens(plans).to(own.device) if self.stamps else own
        if not self.transformer_file.exists():
            return truth
        captions = [self.captioner.caption(spec, rng) for spec in specs]
        ids, mask = encode_captions(self.tokenizer, captions, self.transformer.config.max_text_length)
        return told(self.transformer, ids.to(own.device), mask.to(own.device), truth, rng)

    @cached_property
    def vqgan(self) -> VQGAN:
        """The VQGAN to be served, as far as it has come: without the stage `decoder`, the trunk."""
        painted = self.preset.work_dir / "decoder.pt"
        if not painted.exists():
            return self.trunk
        return placed(load_painted(self.preset, painted), self.device).eval()

    def decoded(self, plans: list[Plan]) -> Tensor:
        """Pictures of what a perfect transformer would say of scenes, (B, 3, H, W) in [0, 1]."""
        return decode_images(self.vqgan, self.tokens_of(plans).to(self.device))

    @property
    def checkpoint(self) -> Path:
        """What the stage `export` wrote. Raises RuntimeError if the run has gone on since: those are other weights."""
        path, folder = self.preset.work_dir / "checkpoint", self.preset.work_dir
        weights = [file for stage in ("vqgan", "transformer", "decoder") for file in folder.glob(f"{stage}.pt")]
        if later := [file.name for file in weights if path.exists() and file.stat().st_mtime > path.stat().st_mtime]:
            raise RuntimeError(f"{path} is older than {', '.join(later)}: run the stage export again")
        return path

    @cached_property
    def transformer(self) -> DalleBart:
        """The trained transformer (its averaged weights), as far as it has come."""
        model = DalleBart(self.preset.transformer_config(self.tokenizer.get_vocab_size()))
        model.load_state_dict(load_average(self.transformer_file))
        return model.to(self.device).eval()


def fetch_data(recipe: Recipe) -> None:
    print(f"{len(recipe.concepts)} concepts, sprites {tuple(recipe.atlas.sprites.shape)}")


def learn_text_tokens(recipe: Recipe) -> None:
    tokenizer = recipe.tokenizer
    print(f"{tokenizer.get_vocab_size()} text tokens; ' a red apple' → {tokenizer.encode(' a red apple').tokens}")


def learn_image_tokens(recipe: Recipe) -> None:
    train_vqgan(recipe.preset, recipe.sampler, recipe.composer)


def write_tokens(recipe: Recipe) -> None:
    preset = recipe.preset
    composer = recipe.token_composer
    tokenize_scenes(preset.seed, preset.num_scenes, recipe.sampler, composer, recipe.tokens_of, recipe.tokens_folder)


def learn_to_paint(recipe: Recipe) -> None:
    composer = recipe.composer(recipe.preset.picture_vqgan.resolution)
    train_painter(recipe.preset, recipe.sampler, composer, recipe.trunk, recipe.said_of)
    vars(recipe).pop("vqgan", None)  # an earlier stage may have loaded the decoder as it was


def learn_to_draw(recipe: Recipe) -> None:
    preset = recipe.preset
    tokens = load_tokens(preset.num_scenes, recipe.tokens_folder)
    train_transformer(preset, recipe.sampler, tokens, recipe.captioner, recipe.tokenizer, recipe.device)
    vars(recipe).pop("transformer", None)  # an earlier stage may have loaded it as it was


def learn_to_judge(recipe: Recipe) -> None:
    train_classifier(
        recipe.concepts, recipe.small_composer, recipe.preset.judge_schedule,
        seed=recipe.preset.seed, checkpoint=recipe.classifier_file,
    )  # fmt: skip


def choose_sampling(recipe: Recipe) -> None:
    """Guidance, temperature and the filters, by the score of a grid on part of the fixed prompts.

    One-standard-error rule: among the settings that the data cannot tell from the best, the warmest, because a seed
    should make a difference.
    """
    asked = [q for q in recipe.questions if q.name in ("single object, top-1", "background colour")]
    thinned = [replace(question, prompts=question.prompts[::3]) for question in asked]
    results = []
    draft = _exported(recipe, SamplingParams.reference_defaults(), "draft")
    with served(draft) as engine:
        for sampling in sampling_grid():
            draw = through(engine, recipe.device, sampling)
            results.append((sum(right_share(q, draw) for q in thinned) / len(thinned), sampling))
            print(f"{results[-1][0]:.3f} {sampling}", flush=True)
    shutil.rmtree(draft)
    best, _ = max(results, key=lambda result: result[0])
    error = sum(0.25 / len(question.prompts) for question in thinned) ** 0.5 / len(thinned)  # of their mean, at most
    close = [(value, sampling) for value, sampling in results if value >= best - error]
    _, chosen = max(close, key=lambda result: (result[1].temperature or 0.0, result[0]))
    recipe.sampling_file.write_text(json.dumps(asdict(chosen)) + "\n", encoding="utf-8")


def export_checkpoint(recipe: Recipe) -> None:
    target = _exported(recipe, recipe.sampling, "checkpoint")
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 1e6:.1f} MB")


def _exported(recipe: Recipe, sampling: SamplingParams, folder: str) -> Path:
    preset = recipe.preset
    return export(
        recipe.transformer, recipe.vqgan, recipe.tokenizer_file, sampling, preset.work_dir / folder,
        max_condition_scale=preset.max_condition_scale,
    )  # fmt: skip


def evaluate(recipe: Recipe) -> None:
    """Scores into scores.json and a table; the picture sheets beside them."""
    work_dir, composer, seeds = recipe.preset.work_dir, recipe.pictures, recipe.asking.seeds
    checkpoint, asked = recipe.checkpoint, recipe.asking.thinned(recipe.questions)
    quality = reconstruction(recipe.vqgan, recipe.decoded, recipe.sampler, composer)
    with served(checkpoint) as engine:
        draw = remembered(through(engine, recipe.device), seeds)
        for name, prompts in SHEETS.items():
            save_sheet(draw(prompts, 0), work_dir / f"{name}.png", columns=8)
        quality["seeds_differ"] = seeds_differ(draw, asked[0].prompts, composer)
        print(quality, flush=True)
        scores = []
        for question in asked:
            scores.append(score(question, draw, recipe.decoded, composer, seeds=seeds))
            print(scores[-1], flush=True)
    print(report(scores, quality, work_dir / "scores.json"))


def restore_checkpoint(recipe: Recipe) -> None:
    restore(SHIPPED, recipe.preset.work_dir, image_length=recipe.preset.image_length)
    print(f"{recipe.preset.work_dir} goes on from {SHIPPED}")


STAGES: dict[str, Callable[[Recipe], None]] = {
    "data": fetch_data,
    "tokenizer": learn_text_tokens,
    "vqgan": learn_image_tokens,
    "tokens": write_tokens,
    "transformer": learn_to_draw,
    "decoder": learn_to_paint,
    "judge": learn_to_judge,
    "choose": choose_sampling,
    "export": export_checkpoint,
    "evaluate": evaluate,
}
# Run by every process of torchrun; the first process alone runs the others.
PARALLEL_STAGES = ("vqgan", "tokens", "transformer", "decoder", "judge")
# What another preset needs of its base.
LEARNING_STAGES = ("data", "tokenizer", "vqgan", "tokens", "transformer")
# Only on request: start from the weights in the package instead of from nothing.
EXTRA_STAGES: dict[str, Callable[[Recipe], None]] = {"restore": restore_checkpoint}
