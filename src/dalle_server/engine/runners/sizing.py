"""How many pictures at a time: as many as add speed and fit a modest memory."""

from __future__ import annotations

import math

from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.engine.runners.choice import Choice
from dalle_server.models.config import ModelConfig

# Memory that slots may take by themselves, and how many still add speed: on a CPU 32 rows cost almost 32
# times one row's arithmetic, on a GPU the weights still dominate.
_CPU_SLOTS = (4, 16, 256 << 20)  # at least, at most, budget in bytes
_GPU_SLOTS = (1, 32, 2 << 30)
_GPU_RESERVE_BYTES = 1 << 30  # the VQGAN, lm_head in fp32, activations, and what the driver takes


def default_num_slots(config: ModelConfig, choice: Choice) -> int:
    fewest, most, budget_bytes = _CPU_SLOTS if choice.device == "cpu" else _GPU_SLOTS
    value_bytes = 4 if choice.dtype == "fp32" else 2
    slot_bytes = _slot_bytes(config, choice)
    if choice.device.startswith("cuda"):
        free_bytes = _free_gpu_bytes(choice.device) - config.num_weights * value_bytes - _GPU_RESERVE_BYTES
        budget_bytes = min(budget_bytes, max(0, free_bytes))
    return max(fewest, min(most, budget_bytes // slot_bytes))


def weight_bytes(num_weights: int, choice: Choice) -> float:
    """Of a transformer's weights as they are kept in memory; int8 has a scale for each group of them."""
    return num_weights * {"fp32": 4.0, "int8": 1.15}.get(choice.dtype, 2.0)


def memory_bytes(config: ModelConfig, choice: Choice, num_slots: int, *, has_encoder: bool) -> int:
    """What the model takes when it is loaded, about: weights, slots, room to work in, and what the first picture that
    is read brings and leaves.
    """
    slot_bytes = _slot_bytes(config, choice)
    weights_bytes = weight_bytes(config.num_weights, choice) + 4 * num_vqgan_weights(config)
    encoder_bytes = _encoder_bytes(config, choice) if has_encoder else 0
    return int(weights_bytes + (num_slots + 1) * slot_bytes + _work_bytes(config) + encoder_bytes)


def _slot_bytes(config: ModelConfig, choice: Choice) -> int:
    cell_bytes = {"fp32": 4, "int8": config.transformer.int8_cache_bytes}.get(choice.dtype, 2)
    return config.transformer.slot_values() * cell_bytes


def num_vqgan_weights(config: ModelConfig) -> int:
    """Of its decoder."""
    return sum(math.prod(shape) for shape in vqgan_decoder_tensors(config.vqgan).values())


def _encoder_bytes(config: ModelConfig, choice: Choice) -> int:
    """The VQGAN's encoder, in fp32 always: its weights, the codebook once more, the distances from it, and its maps.
    Torch has its own decoder beside it. The first picture of Mini's shape took 272 MiB of a CPU with compiled code.
    """
    numbers = sum(math.prod(shape) for shape in vqgan_encoder_tensors(config.vqgan).values())
    again = num_vqgan_weights(config) if choice.runner == "torch" else config.vqgan.n_embed * config.vqgan.embed_dim
    distances = config.picture.num_tokens * config.picture.codebook_size
    return 4 * (numbers + again + distances) + _work_bytes(config) // 2


def _work_bytes(config: ModelConfig) -> int:
    """The widest feature maps of the VQGAN, in fp32, and as much again for what is made of them."""
    picture = config.picture
    return 8 * 4 * config.vqgan.ch * picture.height_px * picture.width_px


def total_gpu_bytes(device: str) -> int:
    import torch

    from dalle_server.engine.runners.torch.device import checked_device

    return torch.cuda.mem_get_info(checked_device(device))[1]


def _free_gpu_bytes(device: str) -> int:
    import torch

    from dalle_server.engine.runners.torch.device import checked_device

    return torch.cuda.mem_get_info(checked_device(device))[0]
