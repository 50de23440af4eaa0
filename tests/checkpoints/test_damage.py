"""Copies of weights that went wrong in the usual ways are told apart, whatever the form."""

import subprocess
import sys
from pathlib import Path

import pytest

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.errors import CheckpointError

from .flax_writer import write_flax

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12\n"
PAGE = b"\n<!DOCTYPE html><html><title>Sign in</title></html>"
CASES = {POINTER: "git lfs pull", PAGE: "is a web page", b"": "is empty; copy it again"}


@pytest.mark.parametrize(("content", "says"), CASES.items(), ids=["pointer", "page", "empty"])
@pytest.mark.parametrize("name", ["transformer.safetensors", "vqgan.safetensors", "config.json"])
def test_native(native_dir: Path, name: str, content: bytes, says: str) -> None:
    (native_dir / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is not .*{says}"):
        open_checkpoint(native_dir)


@pytest.fixture
def flax_dir(tmp_path, tiny_config, transformer, vqgan) -> Path:
    folder = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=True)
    (folder / "tokenizer.json").write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(("content", "says"), CASES.items(), ids=["pointer", "page", "empty"])
@pytest.mark.parametrize("name", ["flax_model.msgpack", "vqgan/flax_model.msgpack"])
def test_flax(flax_dir: Path, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (flax_dir / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        find_checkpoint(flax_dir, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["flax_model.msgpack", "config.json"])
def test_a_link_to_nothing(flax_dir: Path, tmp_path: Path, name: str) -> None:
    (flax_dir / name).unlink()
    (flax_dir / name).symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to \.\./\.\./blobs/0123, which is not there"):
        find_checkpoint(flax_dir, cache_dir=tmp_path / "cache")


def test_a_byte_order_mark_is_no_damage(native_dir: Path) -> None:
    (native_dir / "SHA256SUMS").unlink()
    config = native_dir / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    open_checkpoint(native_dir)


def test_a_pickle(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "encoder.pt").write_bytes(POINTER)
    words = [sys.executable, "-m", "dalle_server.checkpoints.published.unpickle", "", "encoder.pt", "out.safetensors"]
    source = str(Path(__file__).parents[2] / "src")
    ended = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": source}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "encoder.pt cannot be read as weights: it is a git-LFS pointer" in ended.stderr
