"""Our VQGAN against vqgan-jax's and min-dalle's outputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dalle_server.engine.runners.torch.weights import load_detokenizer
from dalle_server.models.vqgan import to_pixels
from tests.parity.loading import CPU, goldens, load_vqgan, min_dalle_checkpoint

TOLERANCE = 5e-4


def nhwc(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def nchw(images: np.ndarray) -> Tensor:
    return torch.tensor(images).permute(0, 3, 1, 2)


def assert_within_one(actual: np.ndarray, golden: np.ndarray) -> None:
    assert actual.dtype == np.uint8
    assert np.abs(actual.astype(int) - golden).max() <= 1


def test_pixels():
    model, golden = load_vqgan(), goldens("tiny-vqgan/goldens.npz")
    images = model.decode(torch.tensor(golden["indices"]))
    np.testing.assert_allclose(nhwc(images), golden["pixels"], rtol=0, atol=TOLERANCE)
    assert_within_one(to_pixels(images).numpy(), golden["pixels_uint8"])


def test_stages():
    model, golden = load_vqgan(), goldens("tiny-vqgan/goldens.npz")
    entry = model.quantize.embedding(torch.tensor(golden["indices"][:1])).view(1, 4, 4, -1).permute(0, 3, 1, 2)
    np.testing.assert_allclose(nhwc(entry), golden["dbg_codebook_entry"], rtol=0, atol=1e-7)
    z = model.post_quant_conv(entry)
    np.testing.assert_allclose(nhwc(z), golden["dbg_post_quant"], rtol=0, atol=TOLERANCE)
    after_mid = model.decoder.mid(model.decoder.conv_in(z))
    np.testing.assert_allclose(nhwc(after_mid), golden["dbg_after_mid"], rtol=0, atol=TOLERANCE)


def test_encoding():
    model, golden = load_vqgan(), goldens("tiny-vqgan/goldens.npz")
    images = nchw(golden["encode_images"])
    np.testing.assert_allclose(nhwc(model.encode_embeddings(images)), golden["encode_prequant"], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(model.encode(images).numpy(), golden["encode_indices"])


def test_min_dalle_detokenizer():
    golden = goldens("min-dalle-tiny/detoker_goldens.npz")
    model = load_detokenizer(min_dalle_checkpoint("min-dalle-tiny"), CPU, torch.float32)
    images = model.decode(torch.tensor(golden["indices"]))
    # min-dalle normalises with torch's default eps 1e-5 where vqgan-jax has 1e-6: hence the distance.
    np.testing.assert_allclose(nhwc(images), golden["raw_pixels"], rtol=0, atol=TOLERANCE)


def test_to_pixels_clips_and_truncates():
    values = torch.tensor([-0.5, 0.0, 0.9999 / 255, 1.5 / 255, 254.999 / 255, 1.0, 7.0])
    pixels = to_pixels(values.repeat(1, 3, 1, 1))
    assert pixels.shape == (1, 1, 7, 3)
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 0, 1, 254, 255, 255]
