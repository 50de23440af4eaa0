"""A recipe so small that every stage of it takes a second."""

from pathlib import Path

import torch

from training.preset import load_preset
from training.recipe import Recipe
from training.scenes.artwork import STYLES, Atlas

PRESET = """
[run]
seed = 3
include_extra = false
sprite_px = 16
text_vocab_size = 400
num_scenes = 40
caption_dropout = 0.1
processes = 1
[variety]
styles = ["3d", "noto"]
mirrored = 0.5
turn_degrees = 5.0
[vqgan]
resolution = 16
ch = 4
ch_mult = [1, 2]
num_res_blocks = 1
attn_resolutions = []
num_groups = 2
z_channels = 8
fsq_levels = [4, 3]
[vqgan_schedule]
batch = 4
learning_rate = 1e-3
steps = 4
[decoder]
doublings = 1
critic_from = 0.5
[decoder_schedule]
batch = 4
learning_rate = 1e-3
steps = 2
[judge_schedule]
batch = 8
learning_rate = 1e-3
steps = 2
[transformer]
d_model = 32
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 2
decoder_attention_heads = 2
encoder_ffn_dim = 32
decoder_ffn_dim = 32
max_text_length = 32
[transformer_schedule]
batch = 4
learning_rate = 1e-3
steps = 4
"""


def make_recipe(folder: Path, preset: str = PRESET) -> Recipe:
    """A recipe in its own folder, on invented artwork: discs whose colour depends on the concept."""
    file = folder / "tiny.toml"
    file.write_text(preset)
    made = Recipe(load_preset(str(file), folder / "work"))
    num = len(made.concepts)
    disc = torch.linspace(-1, 1, 16).square()
    alpha = (disc[:, None] + disc[None] < 1).float().mul(255).byte()
    colours = torch.randint(0, 255, (len(STYLES) * num, 1, 1, 3), generator=torch.Generator().manual_seed(0))
    sprites = torch.cat([colours.expand(-1, 16, 16, -1).byte(), alpha.expand(len(colours), -1, -1)[..., None]], -1)
    mirrorable = torch.tensor([concept.mirrorable for concept in made.concepts])
    atlas = Atlas(sprites, torch.ones(len(colours), dtype=torch.bool), torch.full((len(colours),), 0.5), mirrorable)
    made.__dict__["atlas"] = atlas  # what the cached property would have rendered
    return made
