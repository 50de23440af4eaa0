"""Draw pictures with a model in training: the whole path from captions to pixels in one function."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dalle_server.models.dalle_bart import DalleBart
from dalle_server.models.vqgan import VQGAN
from dalle_server.request import SamplingParams
from training.learning.transformer import encode_captions


@torch.inference_mode()
def sample_tokens(
    model: DalleBart, tokenizer: Tokenizer, captions: list[str], sampling: SamplingParams, seed: int
) -> Tensor:
    """Image tokens (B, I) of B captions, guided: logits = u + s·(c − u), then temperature, top_k, top_p, Gumbel-max.

    The server's engine draws its noise per picture; here one generator serves the whole batch.
    """
    config = model.config
    device = model.lm_head.weight.device
    params = sampling.with_defaults(SamplingParams.reference_defaults())
    scale, top_k, top_p, temperature = (
        params.condition_scale or 0.0,
        params.top_k or config.image_vocab_size,
        params.top_p or 1.0,
        params.temperature or 1.0,
    )
    num = len(captions)
    ids, mask = encode_captions(tokenizer, [*captions, *[""] * num], config.max_text_length)
    ids, mask = ids.to(device), mask.to(device)
    cache = model.new_cache(2 * num)
    cross_keys, cross_values = model.decoder.cross_keys_values(model.encode(ids, mask))
    length = ids.shape[1]
    cache.cross_keys[..., :length, :] = cross_keys
    cache.cross_values[..., :length, :] = cross_values
    cache.text_mask[:, :length] = mask.bool()
    noise = torch.Generator(device).manual_seed(seed)
    newest = torch.full((2 * num,), config.decoder_start_token_id, device=device)
    tokens = []
    for position in range(config.image_length):
        states = model.decoder.step(newest, torch.full_like(newest, position), cache, length=position + 1)
        conditional, unconditional = model.lm_head(states)[:, : config.image_vocab_size].float().chunk(2)
        logits = (unconditional + scale * (conditional - unconditional)) / temperature
        best, candidates = logits.topk(min(top_k, logits.shape[1]))
        shares = best.softmax(1)
        best = best.where(shares.cumsum(1) - shares < top_p, -torch.inf)
        gumbel = -torch.empty_like(best).exponential_(generator=noise).log()
        drawn = candidates.gather(1, (best + gumbel).argmax(1, keepdim=True)).squeeze(1)
        tokens.append(drawn)
        newest = drawn.repeat(2)
    return torch.stack(tokens, 1)


@torch.inference_mode()
def decode_images(vqgan: VQGAN, tokens: Tensor) -> Tensor:
    """Tokens (B, I) → pictures (B,3,H,W), clipped to [0, 1]."""
    return torch.cat([vqgan.decode(part) for part in tokens.split(64)]).float().clamp(0, 1)
