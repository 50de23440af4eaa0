"""Damaged files: always a CheckpointError, never a crash, never a half-made result."""

import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_server.checkpoints import convert, open_checkpoint
from dalle_server.checkpoints.native import SUMS_NAME, TRANSFORMER, VQGAN  # type: ignore[attr-defined]
from dalle_server.checkpoints.published.flax_file import read_leaves
from dalle_server.errors import CheckpointError

from .flax_writer import pack_array, write_flax

FLIPS = 250  # in each of four places


def boundaries(num_bytes: int, dense: int) -> list[int]:
    """Lengths short of the whole: every one up to `dense`, a spread over the rest, and the last ones."""
    spread = np.linspace(0, num_bytes - 1, 60, dtype=int).tolist()
    return sorted({*range(min(dense, num_bytes)), *spread, *range(max(0, num_bytes - 20), num_bytes)})


def flipped(content: bytes, generator: np.random.Generator, within: int) -> bytes:
    position = int(generator.integers(min(within, len(content))))
    changed = bytearray(content)
    changed[position] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def opens(directory: Path) -> bool:
    """Whether it opens; anything but success and CheckpointError is a failure of the test."""
    try:
        open_checkpoint(directory)
    except CheckpointError as error:
        assert str(error)
        return False
    return True


@pytest.mark.parametrize("name", ["config.json", TRANSFORMER, VQGAN, SUMS_NAME, "tokenizer.json"])
def test_native_every_truncation(native_dir, name):
    content = (native_dir / name).read_bytes()
    for length in boundaries(len(content), 400):
        (native_dir / name).write_bytes(content[:length])
        # SHA256SUMS without its last newline still says everything.
        assert not opens(native_dir) or (name == SUMS_NAME and length == len(content) - 1), length


@pytest.mark.parametrize("name", ["config.json", TRANSFORMER, VQGAN, SUMS_NAME])
def test_native_every_flipped_bit_is_noticed(native_dir, name):
    content = (native_dir / name).read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(FLIPS):
        (native_dir / name).write_bytes(flipped(content, generator, len(content)))
        assert not opens(native_dir)


@pytest.mark.parametrize("name", ["config.json", TRANSFORMER])
def test_native_without_sums_never_crashes(native_dir, name):
    """Nothing guards the weights then, but the structure still must hold."""
    (native_dir / SUMS_NAME).unlink()
    content = (native_dir / name).read_bytes()
    header_bytes = 8 + int.from_bytes(content[:8], "little") if name == TRANSFORMER else len(content)
    generator = np.random.default_rng(2)
    refused = 0
    for _ in range(FLIPS):
        (native_dir / name).write_bytes(flipped(content, generator, header_bytes))
        refused += not opens(native_dir)
    assert refused > FLIPS * 0.6


@pytest.fixture
def flax_dir(tmp_path, tiny_config, transformer, vqgan) -> Path:
    return write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=True)


def converts(source: Path, target: Path) -> bool:
    try:
        convert(source, target)
    except CheckpointError as error:
        assert str(error)
        assert not target.exists()
        return False
    finally:
        assert {path.name for path in target.parent.iterdir()} <= {"flax", target.name}
    shutil.rmtree(target)
    return True


def test_flax_every_truncation(flax_dir, tmp_path):
    path = flax_dir / "flax_model.msgpack"
    content = path.read_bytes()
    for length in boundaries(len(content), 300):
        path.write_bytes(content[:length])
        assert not converts(flax_dir, tmp_path / "native"), length


@pytest.mark.parametrize("name", ["flax_model.msgpack", "config.json", "vqgan/flax_model.msgpack", "vqgan/config.json"])
def test_flax_flipped_bits_never_crash(flax_dir, tmp_path, name):
    path = flax_dir / name
    content = path.read_bytes()
    generator = np.random.default_rng(3)
    for _ in range(60):
        path.write_bytes(flipped(content, generator, 1500))
        converts(flax_dir, tmp_path / "native")  # a flip in a weight or a default passes; a crash does not


def test_flax_trailing_bytes(flax_dir, tmp_path):
    with (flax_dir / "flax_model.msgpack").open("ab") as file:
        file.write(b"\0")
    assert not converts(flax_dir, tmp_path / "native")


LEAF = pack_array(np.zeros((2, 3), np.float32))
TREES = st.recursive(
    st.sampled_from(
        [LEAF, None, True, 7, -1, 1.5, b"x", "x", [], msgpack.ExtType(2, b""), msgpack.ExtType(1, b"\x93")]
    ),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "__msgpack_chunked_array__", "shape", "chunks"]), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(tree=TREES, cut=st.integers(0, 40))
def test_any_msgpack_is_read_or_refused(tmp_path_factory, tree, cut):
    path = tmp_path_factory.getbasetemp() / "any.msgpack"
    content = msgpack.packb(tree)
    path.write_bytes(content[: max(0, len(content) - cut)] if cut else content)
    try:
        leaves = read_leaves(path)
    except CheckpointError:
        return
    for leaf in leaves.values():
        assert leaf.read().shape == leaf.shape


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.bytes"
    path.write_bytes(content)
    try:
        read_leaves(path)
    except CheckpointError:
        return
    assert content == b"\x80"  # only an empty map has no leaf to get wrong


@pytest.mark.parametrize(
    "content",
    [
        b"\xdf\xff\xff\xff\xff",  # a map of four billion
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",  # a tensor of four gigabytes
        b"\x81\xa1a" * 5000,  # deep nesting
        b"\x81\xdb\xff\xff\xff\xffa",  # a name of four gigabytes
    ],
)
def test_absurd_sizes_are_refused_at_once(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_leaves(tmp_path / "f")


def test_a_file_that_shrinks_while_it_is_read(tmp_path, tiny_config, transformer, vqgan):
    source = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=True)
    path = source / "flax_model.msgpack"
    leaves = read_leaves(path)
    last = max(leaves.values(), key=lambda leaf: leaf.pieces[-1])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="became shorter"):
        last.read()
