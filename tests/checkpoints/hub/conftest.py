"""A stand-in for the Hugging Face hub with small models in it, and its cache."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants as hf
import pytest

from tests.checkpoints.flax_writer import write_flax
from tests.checkpoints.hub.stub import Hub, cache_as_the_hubs_client_does

PARITY = Path(__file__).parents[2] / "data" / "parity"


@pytest.fixture
def repositories(tmp_path, tiny_config, transformer, vqgan) -> dict[str, Path]:
    """Mini, Mega and the VQGAN, small, as their repositories are laid out."""
    root = tmp_path / "published"
    mini = write_flax(root / "mini", tiny_config, transformer, vqgan, stacked=True)
    shutil.move(mini / "vqgan", root / "vqgan")
    (mini / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        shutil.copy(PARITY / "tokenizer" / name, mini / name)
    shutil.copytree(mini, root / "mega")
    shutil.copy(PARITY / "enwiki-words-frequency.txt", mini)
    (mini / "README.md").write_text("not wanted")
    return {
        "dalle-mini/dalle-mini": mini,
        "dalle-mini/dalle-mega": root / "mega",
        "dalle-mini/vqgan_imagenet_f16_16384": root / "vqgan",
    }


@pytest.fixture
def stub(tmp_path, repositories, monkeypatch):
    served = Hub(repositories)
    endpoint = served.start()
    monkeypatch.setattr(hf, "ENDPOINT", endpoint)
    monkeypatch.setattr(hf, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf, "HF_HUB_DISABLE_XET", True)  # its store cannot be played here; what it leaves can
    monkeypatch.setattr(hf, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=1 << 50, used=0, free=1 << 50))
    monkeypatch.setattr("time.sleep", lambda _s: None)  # the client waits a second between its attempts
    yield served
    served.stop()


@pytest.fixture
def shared(tmp_path, stub, repositories, monkeypatch) -> Path:
    """The hub's cache as its client 2.x leaves it, offline: large files in the store that all repositories share.

    The VQGAN was fetched by its commit, so that no ref names it.
    """
    for repository, folder in repositories.items():
        by_commit = "vqgan" in repository
        cache_as_the_hubs_client_does(
            tmp_path / "hub", repository, folder, commit=stub.commit(repository), ref=not by_commit
        )
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"
