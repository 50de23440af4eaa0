"""VQGAN's own contracts: true size, gradients through both halves, half a model for serving."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dalle_server.models.config import VQGANConfig
from dalle_server.models.vqgan import VQGAN

MANIFESTS = Path(__file__).parents[1] / "data" / "parity" / "manifests"


def test_true_size():
    manifest = json.loads((MANIFESTS / "vqgan_imagenet_f16_16384.json").read_text())
    with torch.device("meta"):
        model = VQGAN(VQGANConfig.from_dict(manifest["config"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == 76_073_859 == manifest["num_params"]


def test_shapes_and_round_trip(vqgan_config):
    model = VQGAN(vqgan_config)
    ids = torch.randint(vqgan_config.n_embed, (2, 36))
    images = model.decode(ids)
    assert images.shape == (2, 3, 12, 12)
    assert model.encode(images).shape == (2, 36)


def test_nearest_finds_the_codebook_entry_itself(vqgan_config):
    model = VQGAN(vqgan_config)
    ids = torch.randint(vqgan_config.n_embed, (2, 36))
    z = model.quantize.embedding(ids).transpose(1, 2).unflatten(2, (6, 6))
    assert torch.equal(model.quantize.nearest(z), ids)


def test_every_parameter_but_the_codebook_has_a_gradient(vqgan_config):
    torch.manual_seed(0)
    model = VQGAN(vqgan_config)
    images = torch.rand(2, 3, 12, 12)
    loss = (model.decode_embeddings(model.encode_embeddings(images)) - images).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        if name != "quantize.embedding.weight":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_serving_half_decodes_alike(vqgan_config):
    whole, half = VQGAN(vqgan_config), VQGAN(vqgan_config, with_encoder=False)
    kept = {name: tensor for name, tensor in whole.state_dict().items() if name in half.state_dict()}
    half.load_state_dict(kept, strict=True)
    assert not any(name.startswith(("encoder", "quant_conv")) for name in half.state_dict())
    ids = torch.randint(vqgan_config.n_embed, (1, 36))
    torch.testing.assert_close(half.decode(ids), whole.decode(ids))
