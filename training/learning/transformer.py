"""Stage 3: from captions to image tokens. A DalleBart, trained on fresh scenes with caption dropout."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call

from dalle_server.models.dalle_bart import DalleBart
from training.learning import fsq
from training.learning.compiled import compiled_loss
from training.learning.loop import load_average, train
from training.learning.muon import Muon
from training.learning.tokens import scene
from training.preset import BOS, EOS, PAD, UNK, Preset
from training.scenes.captions import Captioner
from training.scenes.spec import SceneSampler

TEXT_TABLE = "encoder.embed_tokens.weight"
PLACES_TABLE = "decoder.embed_positions.weight"
TOLD = (0.7, 50, 0.7)  # temperature, top_k and top_p of what a model says that is told the truth so far


def build_model(preset: Preset, tokenizer: Tokenizer) -> DalleBart:
    """A model before its first step: the base's if there is one, its text embeddings carried over to new tokens.

    A run that has begun, or was restored, needs no base any more: its weights come from its own file.
    """
    torch.manual_seed(preset.seed)
    if preset.base is None or (preset.work_dir / "transformer.pt").exists():
        return fresh_model(preset, tokenizer.get_vocab_size())
    model = DalleBart(preset.transformer_config(tokenizer.get_vocab_size()))
    weights = load_average(preset.base.work_dir / "transformer.pt")
    known = Tokenizer.from_file(str(preset.base.work_dir / "tokenizer.json"))
    weights[TEXT_TABLE] = carried_over(weights[TEXT_TABLE], known, tokenizer)
    weights[PLACES_TABLE] = stretched(weights[PLACES_TABLE], preset.base.variety.grid, preset.variety.grid)
    model.load_state_dict(weights)
    return model


def carried_over(table: Tensor, known: Tokenizer, tokenizer: Tokenizer) -> Tensor:
    """A new text token starts as the mean of the old tokens that spell it; special tokens stay themselves."""
    rows = []
    for number in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(number)
        own = None if token is None else known.token_to_id(token)
        spelt = [own] if own is not None else known.encode(tokenizer.decode([number]), add_special_tokens=False).ids
        rows.append(table[spelt or [UNK]].mean(0))
    return torch.stack(rows)


def stretched(places: Tensor, before: int, after: int) -> Tensor:
    """The embeddings of a grid of `before` × `before` places, for one of `after` × `after` over the same picture."""
    grid = places.T.reshape(1, -1, before, before)
    return F.interpolate(grid, (after, after), mode="bilinear").flatten(2)[0].T.contiguous()


def fresh_model(preset: Preset, text_vocab_size: int) -> DalleBart:
    """Image-token embeddings start from their FSQ coordinates: codes that look alike begin alike."""
    model = DalleBart(preset.transformer_config(text_vocab_size))
    codes = fsq.codebook(preset.fsq_levels)
    codes = codes / codes.square().mean().sqrt()
    with torch.no_grad():
        for table in (model.decoder.embed_tokens.weight, model.lm_head.weight):
            projection = torch.randn(codes.shape[1], table.shape[1]) * table.std() / codes.shape[1] ** 0.5
            table[: len(codes)] = 0.5 * table[: len(codes)] + codes @ projection
    return model


def encode_captions(
    tokenizer: Tokenizer, captions: list[str], max_length: int, min_length: int = 0
) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T) each, padded to the longest (at least `min_length`, so that one compiled graph serves all).

    "" becomes [<s>, </s>]: no text.
    """
    rows = [tokenizer.encode(f" {text}").ids if text else [BOS, EOS] for text in captions]
    rows = [row if len(row) <= max_length else [*row[: max_length - 1], EOS] for row in rows]
    length = max(min_length, *map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return ids, (ids != PAD).long()


def optimizers(model: DalleBart, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (about half the steps of AdamW), AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    return [
        Muon(matrices, learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_transformer(
    preset: Preset,
    sampler: SceneSampler,
    tokens: Tensor,
    captioner: Captioner,
    tokenizer: Tokenizer,
    device: torch.device,
) -> DalleBart:
    """Train (or resume) on the scenes whose `tokens` (scenes, I) these are, and return the averaged model."""
    model = build_model(preset, tokenizer).to(device)
    schedule = preset.transformer_schedule
    start, longest = model.config.decoder_start_token_id, model.config.max_text_length

    def token_loss(ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        inputs = F.pad(tokens[:, :-1], (1, 0), value=start)
        # On an accelerator in bfloat16, on copies of the fp32 weights, which is where the gradients arrive. A CPU, even
        # one with AVX512-BF16, is faster in float32 at these widths.
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        weights = {name: weight.to(dtype) for name, weight in model.named_parameters()}
        logits = functional_call(model, weights, (ids, mask, inputs))
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    def batch(draw: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = random.Random(f"{preset.seed} transformer {draw}")
        numbers = [rng.randrange(len(tokens)) for _ in range(schedule.batch)]
        specs = [scene(sampler, preset.seed, number) for number in numbers]
        captions = ["" if rng.random() < preset.caption_dropout else captioner.caption(spec, rng) for spec in specs]
        ids, mask = encode_captions(tokenizer, captions, longest, longest if schedule.compile else 0)
        return ids.to(device), mask.to(device), tokens[numbers].long().to(device)

    loss_of_batch = compiled_loss(token_loss, model, batch(-1)) if schedule.compile else token_loss

    def loss_of_step(draw: int, _: float) -> tuple[Tensor, dict[str, float]]:
        return loss_of_batch(*batch(draw)), {}

    average = train(
        "transformer",
        model,
        optimizers(model, schedule.learning_rate),
        loss_of_step,
        schedule,
        preset.work_dir / "transformer.pt",
    )
    model.load_state_dict(average.values)
    return model.eval()


@torch.no_grad()
def told(model: DalleBart, ids: Tensor, mask: Tensor, tokens: Tensor, rng: random.Random) -> Tensor:
    """What the model says at every place when it is told the true `tokens` (B, I) of those before: sampled ids (B, I).

    A decoder that is trained on these learns what the model's slips stand for, as vocoders are trained on what a speech
    model predicts from the truth so far (Shen et al. 2018, arXiv:1712.05884).
    """
    logits = model(ids, mask, F.pad(tokens[:, :-1], (1, 0), value=model.config.decoder_start_token_id))
    codes = logits[..., : model.config.image_vocab_size].float()  # without the start token
    temperature, top_k, top_p = TOLD
    best, order = (codes.flatten(0, 1) / temperature).topk(min(top_k, codes.shape[-1]))
    shares = best.softmax(-1)
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= top_p, 0)
    drawn = torch.Generator(shares.device).manual_seed(rng.getrandbits(60))
    return order.gather(1, shares.multinomial(1, generator=drawn)).view_as(tokens)
