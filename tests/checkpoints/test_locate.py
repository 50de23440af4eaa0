"""From a name or a path to a native folder."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from dalle_server.checkpoints import cache, find_checkpoint, locate, open_checkpoint
from dalle_server.checkpoints.convert import convert
from dalle_server.errors import CheckpointError, ConfigError, WeightsNotFound
from dalle_server.variants import VARIANTS, ModelSize

from .flax_writer import write_flax

PARITY = Path(__file__).parents[1] / "data" / "parity"


@pytest.fixture
def flax_dir(tmp_path, tiny_config, transformer, vqgan) -> Path:
    return write_flax(tmp_path / "mine", tiny_config, transformer, vqgan, stacked=True)


def test_a_native_folder_is_taken_as_it_is(native_dir, tmp_path):
    assert find_checkpoint(str(native_dir), cache_dir=tmp_path / "cache") == native_dir
    assert not (tmp_path / "cache").exists()


def test_a_flax_folder_is_converted_once(flax_dir, tmp_path, monkeypatch):
    first = find_checkpoint(flax_dir, cache_dir=tmp_path / "cache")
    assert first.parent == tmp_path / "cache" / "converted" and first.name.startswith("mine-")
    open_checkpoint(first)
    monkeypatch.setattr(locate, "convert", lambda *_: pytest.fail("converted again"))
    assert find_checkpoint(flax_dir, cache_dir=tmp_path / "cache") == first


@pytest.mark.parametrize("changed", ["flax_model.msgpack", "tokenizer.json", "vqgan/flax_model.msgpack"])
def test_a_changed_source_is_converted_anew(flax_dir, tmp_path, changed):
    first = find_checkpoint(flax_dir, cache_dir=tmp_path / "cache")
    os.utime(flax_dir / changed, (1e9, 1e9))
    assert find_checkpoint(flax_dir, cache_dir=tmp_path / "cache") != first


def test_the_shared_tokenizer_and_vqgan_beside_are_found(tmp_path):
    """The layout of the reference data: one tokenizer and one VQGAN for several models."""
    checkpoint = open_checkpoint(find_checkpoint(PARITY / "tiny-mini", cache_dir=tmp_path))
    assert checkpoint.tokenizer_file.read_bytes() == (PARITY / "tokenizer" / "tokenizer.json").read_bytes()
    assert (checkpoint.path / "enwiki-words-frequency.txt").is_file()


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(WeightsNotFound, match="model_dir ~no-such-user/x: expected a path whose ~ is a known home"):
        find_checkpoint("~no-such-user/x", cache_dir=tmp_path)
    with pytest.raises(WeightsNotFound, match="is not a folder"):
        find_checkpoint(tmp_path / "nowhere", cache_dir=tmp_path / "cache")
    with pytest.raises(CheckpointError, match="is no checkpoint: it has neither"):
        find_checkpoint(tmp_path, cache_dir=tmp_path / "cache")


def test_a_vqgan_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        find_checkpoint(PARITY / "tiny-vqgan", cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written(flax_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        find_checkpoint(flax_dir, cache_dir=tmp_path / "file")


def test_a_lock_that_cannot_be_taken(tmp_path):
    (tmp_path / ".target.lock").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        cache.converted_once(tmp_path / "target", lambda: pytest.fail("without the lock"))


def test_several_at_once_convert_once(flax_dir, tmp_path, monkeypatch):
    conversions = []

    def counted(*arguments):
        conversions.append(arguments)
        return convert(*arguments)

    monkeypatch.setattr(locate, "convert", counted)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(find_checkpoint(flax_dir, cache_dir=tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(conversions) == 1


def test_what_a_killed_conversion_left_is_removed(flax_dir, tmp_path):
    target = find_checkpoint(flax_dir, cache_dir=tmp_path / "cache")
    shutil.rmtree(target)
    left = target.parent / f".{target.name}.0badf00d.partial"
    left.mkdir()
    find_checkpoint(flax_dir, cache_dir=tmp_path / "cache")
    assert not left.exists()


def test_a_folder_that_nobody_may_look_into_is_passed_over(tmp_path, tiny_config, transformer, vqgan, monkeypatch):
    """lost+found beside the models, on a disk of its own."""
    model = write_flax(tmp_path / "mine", tiny_config, transformer, vqgan, stacked=True)
    shutil.move(model / "vqgan", tmp_path / "the vqgan")
    closed = tmp_path / "lost+found"
    closed.mkdir()
    stat, iterdir = os.stat, Path.iterdir

    def stat_as_a_user(path, *args, **options):
        if closed in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **options)

    def iterdir_as_a_user(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(os, "stat", stat_as_a_user)
    monkeypatch.setattr(Path, "iterdir", iterdir_as_a_user)
    open_checkpoint(find_checkpoint(model, cache_dir=tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"cannot look into .*lost\+found"):
        find_checkpoint(closed, cache_dir=tmp_path / "cache")


def test_a_name_in_another_encoding_changes_nothing(flax_dir, tmp_path):
    (flax_dir / os.fsdecode(b"caf\xe9.txt")).write_text("not ours")
    open_checkpoint(find_checkpoint(flax_dir, cache_dir=tmp_path / "cache"))


def test_nano_is_the_embedded_one(native_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "EMBEDDED", native_dir)
    assert find_checkpoint(ModelSize.NANO, cache_dir=tmp_path / "cache") == native_dir
    monkeypatch.setattr(cache, "EMBEDDED", tmp_path / "gone")
    with pytest.raises(WeightsNotFound, match="embedded"):
        find_checkpoint(ModelSize.NANO, cache_dir=tmp_path / "cache")


def test_names_in_any_case():
    assert ModelSize.parse("MEGA_Full") is ModelSize.parse("mega-full") is ModelSize.MEGA_FULL
    with pytest.raises(ConfigError, match="nano, mini, mega, mega_full"):
        ModelSize.parse("giga")


def test_published_sizes_follow_from_the_manifests():
    vqgan = json.loads((PARITY / "manifests" / "vqgan_imagenet_f16_16384.json").read_text())["num_params"]
    for size, manifest, item_bytes in (
        (ModelSize.MINI, "mini-1", 4),
        (ModelSize.MEGA, "mega-1", 2),
        (ModelSize.MEGA_FULL, "mega-1", 4),
    ):
        parameters = json.loads((PARITY / "manifests" / f"{manifest}.json").read_text())["num_params"]
        assert VARIANTS[size].weights_bytes == parameters * item_bytes + vqgan * 4
