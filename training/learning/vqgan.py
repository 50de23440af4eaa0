"""Stage 2: learn the image tokens. A VQGAN trained with FSQ on composed scenes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dalle_server.models.vqgan import VQGAN, AttnBlock, ResnetBlock, Upsample
from training.learning import fsq, parallel
from training.learning.compiled import Doubled, compiled_loss
from training.learning.loop import half_precision, load_average, placed, train
from training.preset import Preset
from training.scenes.composer import Composer
from training.scenes.spec import SceneSampler


def initialise(model: VQGAN, levels: tuple[int, ...]) -> None:
    """He initialisation with residual branches × 0.1 (8× fewer images to the same quality than PyTorch's default)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.get_parameter("bias"))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ResnetBlock):
                module.conv2.weight *= 0.1
            elif isinstance(module, AttnBlock):
                module.proj_out.weight *= 0.1
        model.decoder.conv_out.weight *= 0.1
        model.get_parameter("decoder.conv_out.bias").fill_(0.5)
        model.quantize.embedding.weight.copy_(fsq.codebook(levels))
    model.quantize.embedding.weight.requires_grad_(False)


@torch.no_grad()
def calibrate(model: VQGAN, images: Tensor, spread: float = 0.6) -> None:
    """Scale the encoder's output on a first batch to mean 0 and this standard deviation in every dimension.

    FSQ learns nothing from an encoder that stays within one step of the grid: it must fill the grid from the start.
    """
    z = model.encode_embeddings(images)
    deviation, mean = torch.std_mean(z, (0, 2, 3))
    model.quant_conv.weight *= (spread / deviation).view(-1, 1, 1, 1)
    bias = model.get_parameter("quant_conv.bias")
    bias.copy_((bias - mean) * spread / deviation)


def reconstruction_loss(images: Tensor, decoded: Tensor) -> Tensor:
    """Squared error. (L1 starts by painting the median, a white page, and is slow to leave it.)"""
    return 10 * (decoded - images).square().mean()


def edge_loss(images: Tensor, decoded: Tensor) -> Tensor:
    """Absolute error of the pixels and of their differences to the right and below: what is sharp stays sharp.

    Squared error alone hedges: where it cannot know an edge's exact place it paints a blur.
    """
    error = decoded - images
    across, down = error.diff(dim=3), error.diff(dim=2)
    return error.abs().mean() + across.abs().mean() + down.abs().mean() + 2 * error.square().mean()


def psnr(images: Tensor, decoded: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, averaged over pictures, of pictures clipped to [0, 1]."""
    mse = (images - decoded.float().clamp(0, 1)).square().mean((1, 2, 3))
    return float((-10 * mse.clamp(min=1e-10).log10()).mean())


def train_vqgan(preset: Preset, sampler: SceneSampler, composers: Callable[[int], Composer]) -> None:
    """Train (or resume) the whole VQGAN, from the base's if there is one; leaves vqgan.pt.

    `composers` gives the one of a picture's side.
    """
    composer = composers(preset.vqgan.resolution)
    torch.manual_seed(preset.seed)
    model = VQGAN(preset.vqgan)
    initialise(model, preset.fsq_levels)
    model = placed(model, composer.device)
    checkpoint = preset.work_dir / "vqgan.pt"
    if checkpoint.exists():
        pass  # its weights come from there
    elif preset.base is not None:
        model.load_state_dict(load_average(preset.base.work_dir / "vqgan.pt"))
    else:
        rng = random.Random(f"{preset.seed} vqgan")
        calibrate(model, composer.compose([sampler.sample(rng) for _ in range(64)], rng))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    schedule = preset.vqgan_schedule

    def scenes(draw: int) -> Tensor:
        rng = random.Random(f"{preset.seed} vqgan {draw}")
        early = 0 <= draw < preset.first_steps * parallel.world_size()
        stage = composers(preset.first_px) if early else composer
        images = stage.compose([sampler.sample(rng) for _ in range(schedule.batch)], rng)
        return images.contiguous(memory_format=torch.channels_last)

    def loss_of(images: Tensor) -> Tensor:
        with half_precision(composer.device):
            features = model.encode_embeddings(images)
        z = features.float()
        with half_precision(composer.device):
            decoded = model.decode_embeddings(fsq.quantize(z, preset.fsq_levels))
        return reconstruction_loss(images, decoded.float()) + 0.1 * fsq.overflow(z)

    loss_of_batch = loss_of
    if schedule.compile:
        for level in model.decoder.up:
            if isinstance(doubling := getattr(level, "upsample", None), Upsample):
                level.upsample = Doubled(doubling.conv)
        loss_of_batch = compiled_loss(loss_of, model, (scenes(-1),))
    # Not fused=True: on CPU it pairs weights and gradients by address, which is wrong when only one is channels-last.
    optimizer = torch.optim.AdamW(trained, schedule.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    train(
        "vqgan",
        model,
        [optimizer],
        lambda draw, _: (loss_of_batch(scenes(draw)), {}),
        schedule,
        checkpoint,
    )


def used_codes(ids: Tensor, num_codes: int) -> float:
    """Perplexity of the code usage: how many codes are in effective use."""
    share = torch.bincount(ids.flatten(), minlength=num_codes).double()
    share = share[share > 0] / share.sum()
    return math.exp(float(-(share * share.log()).sum()))


@torch.no_grad()
def tokenize_images(vqgan: VQGAN, images: Tensor) -> Tensor:
    """(B,3,H,W) in [0,1] → ids (B, I)."""
    images = images.contiguous(memory_format=torch.channels_last)
    with half_precision(images.device):
        z = vqgan.encode_embeddings(images)
    return vqgan.quantize.nearest(z.float())


@torch.inference_mode()
def decode_images(vqgan: VQGAN, tokens: Tensor) -> Tensor:
    """Tokens (B, I) → pictures (B,3,H,W), clipped to [0, 1]."""
    return torch.cat([vqgan.decode(part) for part in tokens.split(64)]).float().clamp(0, 1)
