"""The VQGAN in compiled code: vqgan-jax's numbers, torch's at sizes that fill no block, the same bits everywhere."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_names import vqgan_encoder_tensors
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan.halves import CompiledDecoder, CompiledEncoder
from dalle_server.engine.runners.cpu.compiled.vqgan.pixels import CompiledPixels
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import Ranges, VQGANWeights
from dalle_server.errors import CheckpointError, NotSupported
from dalle_server.models.vqgan import VQGAN
from tests.parity.loading import golden_checkpoint, goldens, min_dalle_checkpoint
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled
from tests.runners.random_checkpoint import START, random_checkpoint

pytestmark = needs_compiled

BUILDS = pytest.mark.parametrize("build", RUNNABLE)
TOLERANCE = 5e-5
TEAM = Team(2)


def decoder(
    checkpoint: Checkpoint, size: tuple[int, int], build: str = "auto", ranges: Ranges | None = None, team: Team = TEAM
) -> CompiledDecoder:
    library = load_library(build)
    weights = VQGANWeights(checkpoint.vqgan, checkpoint.config.vqgan, ranges or {}, library.lowered())
    return CompiledDecoder(library, team, weights, *size)


def encoder(checkpoint: Checkpoint, size: tuple[int, int], build: str = "auto") -> CompiledEncoder:
    library = load_library(build)
    weights = VQGANWeights(checkpoint.vqgan, checkpoint.config.vqgan, {}, library.lowered())
    return CompiledEncoder(library, TEAM, weights, *size, num_codes=checkpoint.config.vqgan.n_embed)


@cache
def with_encoder() -> tuple[Checkpoint, VQGAN]:
    """A random model in both forms; its channels fill no tile, its groups are of two and of four."""
    checkpoint, generator = random_checkpoint(), np.random.default_rng(4)
    for name, shape in vqgan_encoder_tensors(checkpoint.config.vqgan).items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100
        values = generator.standard_normal(shape) / np.sqrt(fan_in) + name.endswith(
            ("norm1.weight", "norm2.weight", "norm.weight", "norm_out.weight")
        )
        checkpoint.vqgan[name] = values.astype(np.float32)
    model = VQGAN(checkpoint.config.vqgan)
    model.load_state_dict({name: torch.tensor(array) for name, array in checkpoint.vqgan.items()}, strict=True)
    return checkpoint, model.eval().requires_grad_(False)


@BUILDS
def test_golden_pixels(build: str) -> None:
    golden, found = goldens("tiny-vqgan/goldens.npz"), decoder(golden_checkpoint("tiny-mega"), (4, 4), build)
    for ids, pixels in zip(golden["indices"], golden["pixels"], strict=True):
        np.testing.assert_allclose(found.decode(ids), pixels, rtol=0, atol=TOLERANCE)


@BUILDS
def test_golden_codes(build: str) -> None:
    golden, found = goldens("tiny-vqgan/goldens.npz"), encoder(golden_checkpoint("tiny-mega"), (64, 64), build)
    for image, ids, embeddings in zip(
        golden["encode_images"], golden["encode_indices"], golden["encode_prequant"], strict=True
    ):
        np.testing.assert_array_equal(found.encode(image), ids.ravel())
        np.testing.assert_allclose(found.embeddings(), embeddings, rtol=0, atol=TOLERANCE)


def test_min_dalle_pixels() -> None:
    golden, found = (
        goldens("min-dalle-tiny/detoker_goldens.npz"),
        decoder(min_dalle_checkpoint("min-dalle-tiny"), (4, 4)),
    )
    for ids, pixels in zip(golden["indices"], golden["raw_pixels"], strict=True):
        # min-dalle's group norm has another epsilon.
        np.testing.assert_allclose(found.decode(ids), pixels, rtol=0, atol=5e-4)


@pytest.mark.parametrize("size", [(6, 6), (1, 1), (3, 7), (17, 5), (2, 40)])
def test_any_size_of_grid(size: tuple[int, int]) -> None:
    checkpoint, model = with_encoder()
    ids = np.random.default_rng(5).integers(0, START, size).astype(np.int32)
    z = model.quantize.embedding(torch.tensor(ids).long()).permute(2, 0, 1).unsqueeze(0)
    expected: np.ndarray = model.decode_embeddings(z)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(decoder(checkpoint, size).decode(ids.ravel()), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [(12, 12), (2, 2), (6, 14), (34, 10)])
def test_any_size_of_picture(size: tuple[int, int]) -> None:
    checkpoint, model = with_encoder()
    picture = np.random.default_rng(6).random((*size, 3), np.float32)
    images = torch.tensor(picture).permute(2, 0, 1).unsqueeze(0)
    found = encoder(checkpoint, size)
    np.testing.assert_array_equal(found.encode(picture), model.encode(images)[0])
    expected = model.encode_embeddings(images)[0].permute(1, 2, 0)
    np.testing.assert_allclose(found.embeddings(), expected, rtol=0, atol=TOLERANCE)


def test_features_far_from_zero_are_normalised_all_the_same() -> None:
    """Far beyond a trained model: the mean of squares less the square of the mean would be negative here."""
    checkpoint = random_checkpoint()
    ids = np.arange(36, dtype=np.int32)
    near = decoder(checkpoint, (6, 6)).decode(ids).copy()
    checkpoint.vqgan["decoder.up.1.upsample.conv.bias"] += 1000
    far = decoder(checkpoint, (6, 6)).decode(ids)
    model = VQGAN(checkpoint.config.vqgan, with_encoder=False)
    model.load_state_dict({name: torch.tensor(array) for name, array in checkpoint.vqgan.items()})
    with torch.no_grad():
        expected = model.double().decode(torch.tensor(ids[None]).long())[0].permute(1, 2, 0).numpy()
    assert np.abs(near - far).max() > 0.01
    np.testing.assert_allclose(far, expected, rtol=0, atol=2e-2)


@cache
def bits(build: str, *, int8: bool) -> bytes:
    """Of pictures of several models and sizes, and of codes."""
    found = []
    for checkpoint, size in ((golden_checkpoint("tiny-mega"), (4, 4)), (random_checkpoint(), (3, 7))):
        exact = decoder(checkpoint, size, build)
        ids = np.random.default_rng(7).integers(0, START, size).astype(np.int32).ravel()
        found.append(exact.decode(ids).copy())
        if int8:
            ranges = {name: value for name, value in exact.largest().items() if name.endswith(("conv1", "conv2"))}
            found.append(decoder(checkpoint, size, build, ranges).decode(ids).copy())
            assert not np.array_equal(found[-1], found[-2])
    codes = encoder(golden_checkpoint("tiny-mega"), (64, 64), build)
    codes.encode(np.random.default_rng(8).random((64, 64, 3), np.float32))
    return b"".join(array.tobytes() for array in [*found, codes.embeddings()])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("build", RUNNABLE[1:])
def test_every_build_gives_the_same_bits(build: str, int8: bool) -> None:
    assert bits(build, int8=int8) == bits(RUNNABLE[0], int8=int8)


@pytest.mark.parametrize("int8", [False, True])
def test_one_thread_paints_what_three_do(int8: bool) -> None:
    checkpoint, ids = random_checkpoint(), np.arange(36, dtype=np.int32)
    exact = decoder(checkpoint, (6, 6))
    exact.decode(ids)
    ranges = {name: value for name, value in exact.largest().items() if name.endswith(("conv1", "conv2"))}
    one, three = (
        decoder(checkpoint, (6, 6), ranges=ranges if int8 else {}, team=Team(threads)).decode(ids) for threads in (1, 3)
    )
    np.testing.assert_array_equal(one, three)


def test_a_picture_does_not_depend_on_the_one_before() -> None:
    found = decoder(random_checkpoint(), (6, 6))
    first = found.decode(np.arange(36, dtype=np.int32)).copy()
    found.decode(np.full(36, 90, np.int32))
    np.testing.assert_array_equal(found.decode(np.arange(36, dtype=np.int32)), first)


def test_pixels_are_clipped_and_truncated() -> None:
    golden, library = goldens("tiny-vqgan/goldens.npz"), load_library()
    pixels = CompiledPixels(library, TEAM, golden_checkpoint("tiny-mega"))
    for ids, expected in zip(golden["indices"], golden["pixels_uint8"], strict=True):
        found = pixels.decode(ids)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected).max() <= 1
    # At values that float32 holds exactly, a rounding would show.
    assert (pixels.decode(golden["indices"][0]) != np.rint(golden["pixels"][0].clip(0, 1) * 255)).mean() > 0.2


def test_a_picture_becomes_codes_again() -> None:
    golden, library = goldens("tiny-vqgan/goldens.npz"), load_library()
    pixels = CompiledPixels(library, TEAM, golden_checkpoint("tiny-mega"))
    picture = np.rint(golden["encode_images"][0] * 255).astype(np.uint8)
    assert (pixels.encode(picture) == golden["encode_indices"][0].ravel()).mean() > 0.8


def test_a_checkpoint_without_an_encoder_says_so() -> None:
    pixels = CompiledPixels(load_library(), TEAM, random_checkpoint())
    with pytest.raises(NotSupported, match="no encoder"):
        pixels.encode(np.zeros((12, 12, 3), np.uint8))


def test_weights_that_are_no_numbers_give_no_picture() -> None:
    checkpoint = random_checkpoint()
    checkpoint.vqgan["decoder.up.0.block.0.conv1.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        CompiledPixels(load_library(), TEAM, checkpoint).decode(np.zeros(36, np.int32))
    with pytest.raises(CheckpointError, match=r"decoder\.up\.0\.block\.0\.conv1: a weight is not finite"):
        decoder(checkpoint, (6, 6), ranges={"decoder.up.0.block.0.conv1": 5.0})
