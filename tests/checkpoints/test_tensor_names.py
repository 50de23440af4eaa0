"""The names and shapes must cover the published trees: the manifests list them, made by the reference."""

import json
from math import prod
from pathlib import Path

import pytest

from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import VQGANConfig

MANIFESTS = Path(__file__).parents[1] / "data" / "parity" / "manifests"


def manifest(name: str) -> dict:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["mini-1-noscan", "mega-1-noscan"])
def test_transformer_has_as_many_tensors_and_parameters_as_published(name):
    published = manifest(name)
    shapes = DalleBartConfig.from_dict(published["config"]).tensors()
    assert len(shapes) == published["num_leaves"]
    assert sum(map(prod, shapes.values())) == published["num_params"]


def test_vqgan_has_as_many_tensors_and_parameters_as_published():
    published = manifest("vqgan_imagenet_f16_16384")
    config = VQGANConfig.from_dict(published["config"])
    shapes = vqgan_decoder_tensors(config) | vqgan_encoder_tensors(config)
    assert len(shapes) == published["num_leaves"]
    assert sum(map(prod, shapes.values())) == published["num_params"]
