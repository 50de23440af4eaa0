"""The recipe, top to bottom: which stage needs what, and in which order they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dalle_server import assets
from dalle_server.generation import SamplingParams
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.models.vqgan import VQGAN
from training.artwork import Atlas, load_atlas
from training.captions import Captioner
from training.classifier import Classifier, train_classifier
from training.concepts import Concept, load_concepts
from training.evaluate import Generate, Question, questions, reconstruction, report, sampling_grid, score
from training.export import export
from training.held_out import HeldOut, load_held_out
from training.judge import Judge
from training.loop import load_average
from training.preset import Preset
from training.restore import restore
from training.sample import decode_images, sample_tokens
from training.scenes import Composer, Mixture, SceneSampler
from training.sheets import SHEETS, save_sheet
from training.tokenizer import train_tokenizer
from training.transformer import train_transformer
from training.vqgan import finetune_decoder, train_vqgan

NUM_SEEDS = 3
SHIPPED = Path(assets.__file__).parent / "nano"


class Recipe:
    """One run: a preset, and the things its stages share, made when first needed."""

    def __init__(self, preset: Preset):
        self.preset = preset
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        return SceneSampler(self.concepts, self.held_out, Mixture())

    @cached_property
    def composer(self) -> Composer:
        return Composer(self.atlas, self.preset.vqgan.resolution, self.device)

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
    def tokenizer_file(self) -> Path:
        return self.preset.work_dir / "tokenizer.json"

    @property
    def sampling_file(self) -> Path:
        return self.preset.work_dir / "sampling.json"

    @property
    def sampling(self) -> SamplingParams:
        """What the stage `choose` found best."""
        return SamplingParams(**json.loads(self.sampling_file.read_text(encoding="utf-8")))

    @cached_property
    def questions(self) -> list[Question]:
        return questions(self.sampler, Judge(self.composer, self.classifier))

    @property
    def classifier_file(self) -> Path:
        return self.preset.work_dir / "classifier.pt"

    @cached_property
    def classifier(self) -> Classifier:
        """The trained eyes of the judge."""
        model = Classifier(len(self.concepts))
        model.load_state_dict(load_average(self.classifier_file))
        return model.to(self.device, memory_format=torch.channels_last).eval()

    @cached_property
    def vqgan(self) -> VQGAN:
        """The trained VQGAN (its averaged weights), as far as it has come."""
        model = VQGAN(self.preset.vqgan)
        finetuned = self.preset.work_dir / "decoder.pt"
        model.load_state_dict(load_average(finetuned if finetuned.exists() else self.preset.work_dir / "vqgan.pt"))
        return model.to(self.device, memory_format=torch.channels_last).eval()

    @cached_property
    def transformer(self) -> DalleBart:
        """The trained transformer (its averaged weights), as far as it has come."""
        model = DalleBart(self.preset.transformer_config(self.tokenizer.get_vocab_size()))
        model.load_state_dict(load_average(self.preset.work_dir / "transformer.pt"))
        return model.to(self.device).eval()

    def generate(self, sampling: SamplingParams) -> Generate:
        """Captions and a seed to pictures (B,3,H,W), a part of the captions at a time."""

        def draw(captions: list[str], seed: int) -> Tensor:
            parts = [captions[start : start + 64] for start in range(0, len(captions), 64)]
            tokens = [
                sample_tokens(self.transformer, self.tokenizer, part, sampling, seed * 1000 + i)
                for i, part in enumerate(parts)
            ]
            return decode_images(self.vqgan, torch.cat(tokens))

        return draw


def fetch_data(recipe: Recipe) -> None:
    print(f"{len(recipe.concepts)} concepts, sprites {tuple(recipe.atlas.sprites.shape)}")


def learn_text_tokens(recipe: Recipe) -> None:
    tokenizer = recipe.tokenizer
    print(f"{tokenizer.get_vocab_size()} text tokens; ' a red apple' → {tokenizer.encode(' a red apple').tokens}")


def learn_image_tokens(recipe: Recipe) -> None:
    train_vqgan(recipe.preset, recipe.sampler, recipe.composer)


def learn_to_paint(recipe: Recipe) -> None:
    finetune_decoder(recipe.preset, recipe.sampler, recipe.composer)
    vars(recipe).pop("vqgan", None)  # an earlier stage may have loaded the decoder as it was


def learn_to_draw(recipe: Recipe) -> None:
    train_transformer(recipe.preset, recipe.sampler, recipe.composer, recipe.vqgan, recipe.captioner, recipe.tokenizer)


def learn_to_judge(recipe: Recipe) -> None:
    train_classifier(
        recipe.concepts, recipe.composer, seed=recipe.preset.seed, checkpoint=recipe.classifier_file
    )  # fmt: skip


def choose_sampling(recipe: Recipe) -> None:
    """Guidance, temperature and top_k, by the score of a grid on part of the fixed prompts.

    One-standard-error rule: among the settings that the data cannot tell from the best, the warmest, because a seed
    should make a difference.
    """
    asked = [q for q in recipe.questions if q.name in ("single object, top-1", "background colour")]
    thinned = [replace(question, prompts=question.prompts[::3]) for question in asked]
    results = []
    for sampling in sampling_grid():
        values = [score(q, recipe.generate(sampling), recipe.vqgan, recipe.composer, seeds=1) for q in thinned]
        results.append((sum(value.score for value in values) / len(values), sampling))
        print(f"{results[-1][0]:.3f} {sampling}", flush=True)
    best, _ = max(results, key=lambda result: result[0])
    error = (0.25 / len(thinned[0].prompts)) ** 0.5 / len(thinned)
    close = [(value, sampling) for value, sampling in results if value >= best - error]
    _, chosen = max(close, key=lambda result: (result[1].temperature or 0.0, result[0]))
    recipe.sampling_file.write_text(json.dumps(asdict(chosen)) + "\n", encoding="utf-8")


def export_checkpoint(recipe: Recipe) -> None:
    target = recipe.preset.work_dir / "checkpoint"
    export(recipe.transformer, recipe.vqgan, recipe.tokenizer_file, recipe.sampling, target)
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 1e6:.1f} MB")


def evaluate(recipe: Recipe) -> None:
    """Scores into scores.json and a table; the picture sheets beside them."""
    draw = recipe.generate(recipe.sampling)
    scores = []
    for question in recipe.questions:
        scores.append(score(question, draw, recipe.vqgan, recipe.composer, seeds=NUM_SEEDS))
        print(scores[-1], flush=True)
    quality = reconstruction(recipe.vqgan, recipe.sampler, recipe.composer)
    print(quality)
    print(report(scores, quality, recipe.preset.work_dir / "scores.json"))
    for name, prompts in SHEETS.items():
        save_sheet(draw(prompts, 0), recipe.preset.work_dir / f"{name}.png", columns=8)


def restore_checkpoint(recipe: Recipe) -> None:
    restore(SHIPPED, recipe.preset.work_dir)
    print(f"{recipe.preset.work_dir} goes on from {SHIPPED}")


STAGES: dict[str, Callable[[Recipe], None]] = {
    "data": fetch_data,
    "tokenizer": learn_text_tokens,
    "vqgan": learn_image_tokens,
    "transformer": learn_to_draw,
    "decoder": learn_to_paint,
    "judge": learn_to_judge,
    "choose": choose_sampling,
    "export": export_checkpoint,
    "evaluate": evaluate,
}
# Run by every process of torchrun; the first process alone runs the others.
PARALLEL_STAGES = ("vqgan", "transformer", "decoder", "judge")
# Only on request: start from the weights in the package instead of from nothing.
EXTRA_STAGES: dict[str, Callable[[Recipe], None]] = {"restore": restore_checkpoint}
