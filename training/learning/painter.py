"""Stage 4: better and larger pictures from the same tokens, as the encoder says them and as the transformer does."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_server.models.vqgan import VQGAN
from training.learning.critic import Critic, critic_losses
from training.learning.grow import first_levels, first_parameters, graft
from training.learning.loop import half_precision, load_average, placed, train
from training.learning.vqgan import edge_loss, initialise, tokenize_images
from training.preset import Preset
from training.scenes.composer import Composer, Plan
from training.scenes.spec import SceneSampler, SceneSpec

CRITIC_WEIGHT = 0.1
# What is said of scenes by the one whom the decoder will paint for: (specs, plans, the encoder's own ids, rng) → ids.
Said = Callable[[list[SceneSpec], list[Plan], Tensor, random.Random], Tensor]


class Painting(nn.Module):
    """What is trained: the VQGAN that will be served, and its critic, which will not."""

    def __init__(self, preset: Preset):
        super().__init__()
        self.vqgan = VQGAN(preset.picture_vqgan)
        self.critic = Critic()


def train_painter(preset: Preset, sampler: SceneSampler, composer: Composer, trunk: VQGAN, said: Said) -> None:
    """Train (or resume) the way from tokens to pixels, the tokens staying the trunk's; leaves decoder.pt.

    The encoder's new first levels learn to say what the trunk's say of the same picture at its own resolution. Three of
    four pictures are painted from what is `said` of them, the others from the encoder's own tokens.
    """
    torch.manual_seed(preset.seed)
    schedule = preset.decoder_schedule
    doublings = (preset.picture_vqgan.resolution // trunk.config.resolution).bit_length() - 1
    painting = Painting(preset)
    model = painting.vqgan
    initialise(model, preset.fsq_levels)
    graft(trunk, model, doublings)
    painting = placed(painting, composer.device)
    bottom = doublings + 1 if doublings else 0
    sampled = max(1, schedule.batch // 4)  # pictures the encoder's first levels learn from: they have little to learn
    num_said = 3 * schedule.batch // 4
    painted = [*model.post_quant_conv.parameters(), *model.decoder.parameters()]
    trained = [*painted, *first_parameters(model.encoder, bottom)]
    painting.requires_grad_(False)
    for parameter in (*trained, *painting.critic.parameters()):
        parameter.requires_grad_(True)

    def loss_of_step(draw: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{preset.seed} decoder {draw}")
        specs = [sampler.sample(rng) for _ in range(schedule.batch)]
        plans = composer.plan(specs, rng)
        images = composer.paint(plans).contiguous(memory_format=torch.channels_last)
        small = F.avg_pool2d(images, 1 << doublings)
        ids = tokenize_images(trunk, small)
        ids[:num_said] = said(specs[:num_said], plans[:num_said], ids[:num_said], rng)
        with half_precision(composer.device):
            with torch.no_grad():
                wanted = first_levels(trunk.encoder, small[:sampled], 1)
            decoded = model.decode(ids)
            seen = first_levels(model.encoder, images[:sampled], bottom) if bottom else wanted
        pixels = edge_loss(images, decoded.float())
        features = F.mse_loss(seen.float(), wanted.float()) / wanted.float().var()
        loss, measures = (
            pixels + 0.1 * features,
            {"pixels": float(pixels.detach()), "features": float(features.detach())},
        )
        if progress >= preset.critic_from:
            with half_precision(composer.device):
                liked, judged = critic_losses(painting.critic, images, decoded.float())
            loss = loss + CRITIC_WEIGHT * liked + judged
            measures |= {"liked": float(liked.detach()), "judged": float(judged.detach())}
        return loss, measures

    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(trained, schedule.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4),
        torch.optim.AdamW(painting.critic.parameters(), 3e-4, betas=(0.5, 0.9), weight_decay=0.0),
    ]
    train("decoder", painting, optimizers, loss_of_step, schedule, preset.work_dir / "decoder.pt")


def load_painted(preset: Preset, path: Path) -> VQGAN:
    """The averaged VQGAN of decoder.pt."""
    painting = Painting(preset)
    painting.load_state_dict(load_average(path))
    return painting.vqgan
