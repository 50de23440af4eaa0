"""The hub's own cache, which other programs fill and damage: read offline, never harmed."""

import json
import shutil

import huggingface_hub.constants as hf
import pytest

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.errors import CheckpointError, WeightsNotFound
from dalle_server.variants import ModelSize
from tests.checkpoints.hub.stub import WEIGHTS, cache_as_the_hubs_client_does, damage, pull


@pytest.mark.parametrize("name", [WEIGHTS, "merges.txt", "tokenizer.json", "enwiki-words-frequency.txt"])
def test_damage_in_the_hubs_cache_is_found_before_conversion(tmp_path, stub, monkeypatch, name):
    pull(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    link = next((tmp_path / "hub").rglob(f"snapshots/*/{name}"))
    blob = link.resolve()
    damage(blob)
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"{name} was damaged"):
        find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache")
    assert not blob.exists() and not link.is_symlink()


@pytest.mark.parametrize("size", [ModelSize.MINI, ModelSize.MEGA, ModelSize.MEGA_FULL])
def test_a_cache_with_a_shared_store_is_enough_and_stays_whole(tmp_path, stub, shared, size):
    before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    open_checkpoint(find_checkpoint(size, cache_dir=tmp_path / "cache"))
    assert before == {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    assert (tmp_path / "cache" / "models" / size.folder_name / "enwiki-words-frequency.txt").is_file()
    assert stub.requests == []


def test_what_all_repositories_share_is_never_deleted(tmp_path, stub, shared, monkeypatch):
    link = next(shared.glob(f"models--dalle-mini--dalle-mini/snapshots/*/{WEIGHTS}"))
    payload = link.resolve()
    assert payload.parent.parent == shared / "blobs"
    damage(payload)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} was damaged"):
        find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache")
    assert payload.exists() and not link.is_symlink()
    # The client would link to the damaged payload again; a pull gets the file anew.
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", False)
    open_checkpoint(pull(tmp_path))
    assert len(stub.downloads(WEIGHTS)) >= 1


def test_another_commit_in_the_cache_will_do(tmp_path, stub, repositories, monkeypatch):
    for repository, folder in repositories.items():
        cache_as_the_hubs_client_does(tmp_path / "hub", repository, folder, commit="ab" * 20, ref=False)
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", True)
    found = find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache")
    assert json.loads((found / "config.json").read_text())["source"]["revision"] == "ab" * 20


def test_a_link_whose_file_is_gone_is_named(tmp_path, stub, shared):
    link = next(shared.glob(f"models--dalle-mini--dalle-mini/snapshots/*/{WEIGHTS}"))
    link.resolve().unlink()
    with pytest.raises(WeightsNotFound, match=f"HF_HUB_OFFLINE is set, and the file behind .*{WEIGHTS} is gone"):
        find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache")


def test_a_cache_without_links_is_read(tmp_path, stub, shared, monkeypatch):
    for link in list(shared.glob("models--*/snapshots/*/*")):  # as on Windows
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)
    open_checkpoint(find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache"))


def test_offline_the_hubs_cache_is_enough(tmp_path, stub, monkeypatch):
    pull(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    stub.requests.clear()
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", True)
    open_checkpoint(find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    open_checkpoint(pull(tmp_path))
    assert stub.requests == []
