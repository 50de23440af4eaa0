"""Weights from the hub: fetched, verified and converted, whatever the network does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants as hf
import numpy as np
import pytest

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.errors import CheckpointError, WeightsNotFound
from dalle_server.variants import VARIANTS, ModelSize
from tests.checkpoints.hub.stub import COMMIT, VQGAN_COMMIT, WEIGHTS, pull


def test_pull_downloads_verifies_and_converts(tmp_path, stub, transformer):
    seen: list[tuple[str, int, int]] = []
    folder = pull(tmp_path, progress=lambda *event: seen.append(event))
    assert folder == tmp_path / "cache" / "models" / "mini"
    checkpoint = open_checkpoint(folder)
    np.testing.assert_array_equal(checkpoint.transformer["lm_head.weight"], transformer["lm_head.weight"])
    assert (folder / "enwiki-words-frequency.txt").is_file()
    assert json.loads((folder / "config.json").read_text())["source"] == {
        "form": "Flax", "repository": "dalle-mini/dalle-mini", "revision": COMMIT,
    }  # fmt: skip
    assert stub.downloads("README.md") == []
    downloads = [event for event in seen if event[0] == "downloading"]
    assert downloads[-1][1] == downloads[-1][2] > 0
    assert [done for _, done, _ in downloads] == sorted(done for _, done, _ in downloads)


def test_a_second_pull_asks_nothing(tmp_path, stub):
    pull(tmp_path)
    stub.requests.clear()
    assert pull(tmp_path) == find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache")
    assert stub.requests == []


def test_serving_downloads_by_itself_unless_told_not_to(tmp_path, stub):
    with pytest.raises(WeightsNotFound, match="dalle-server pull mini"):
        find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache", download=False)
    open_checkpoint(find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache"))


def test_an_interrupted_download_resumes_where_it_stopped(tmp_path, stub):
    stub.cut_after[WEIGHTS] = 1000
    open_checkpoint(pull(tmp_path))
    ranges = [headers.get("range") for headers in stub.downloads(WEIGHTS)]
    assert "bytes=1000-" in ranges


def test_a_download_that_never_completes_poisons_nothing(tmp_path, stub):
    class DeadAfter300(dict):
        sent = 300

        def pop(self, name, default=None):
            if name != WEIGHTS:
                return default
            sent, self.sent = self.sent, 0
            return sent

    stub.cut_after = DeadAfter300()
    with pytest.raises(WeightsNotFound, match=rf"{WEIGHTS}.*--model_version nano"):
        pull(tmp_path)
    assert not (tmp_path / "cache" / "models" / "mini").exists()
    stub.cut_after = {}
    open_checkpoint(pull(tmp_path))


@pytest.mark.parametrize("name", [WEIGHTS, "vocab.json"])
def test_a_wrong_digest_is_an_error_and_leaves_a_clean_cache(tmp_path, stub, name):
    stub.corrupt.add(name)
    with pytest.raises(CheckpointError, match=rf"{name} was damaged on its way .* pull again"):
        pull(tmp_path)
    assert not (tmp_path / "cache" / "models" / "mini").exists()
    stub.corrupt.clear()
    open_checkpoint(pull(tmp_path))


def test_what_was_damaged_on_its_way_is_fetched_once_more(tmp_path, stub):
    class DamagedOnce(set):
        def __contains__(self, name):
            found = super().__contains__(name)
            self.discard(name)
            return found

    stub.corrupt = DamagedOnce({WEIGHTS})
    open_checkpoint(pull(tmp_path))
    assert len(stub.downloads(WEIGHTS)) == 3  # and the VQGAN's, of the same name


def test_main_is_asked_once_and_the_vqgan_is_pinned(tmp_path, stub):
    pull(tmp_path)
    revisions = [
        path.split("/")[4] for _, path, _ in stub.requests if path.startswith("/dalle-mini/dalle-mini/resolve/")
    ]
    assert revisions.count("main") == 1 and set(revisions) == {"main", COMMIT}
    assert {path.split("/")[4] for _, path, _ in stub.requests if "/vqgan" in path and "/resolve/" in path} == {
        VQGAN_COMMIT
    }


def test_a_hub_that_stumbles_is_asked_again(tmp_path, stub):
    stub.failures = [502, 503, 429]
    open_checkpoint(pull(tmp_path))


@pytest.mark.parametrize("etag", ["../../evil", "..%2f..%2fevil", "W/abc", "0" * 39, "g" * 64])
def test_an_etag_that_is_no_digest_becomes_no_path(tmp_path, stub, etag):
    stub.etags["config.json"] = etag
    with pytest.raises(WeightsNotFound, match=r"config.json|is no digest"):
        pull(tmp_path)
    assert not list(tmp_path.rglob("*evil*"))
    assert stub.downloads("config.json") == []


def test_a_login_page_is_called_one(tmp_path, stub):
    stub.login_page = True
    with pytest.raises(WeightsNotFound, match=r"what answers is no hub .* a login page"):
        pull(tmp_path)


def test_room_is_asked_for_before_anything_is_fetched(tmp_path, stub, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=0, used=0, free=10**9))
    with pytest.raises(CheckpointError, match=r"DALL-E Mini needs 2\.1 GB .* 1\.0 GB are free; make room"):
        pull(tmp_path)
    assert stub.downloads(WEIGHTS) == []


def test_what_the_cache_has_under_another_commit_needs_no_room(tmp_path, stub, monkeypatch):
    pull(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(type(stub), "commit", lambda self, repository: "e" * 40)
    room = SimpleNamespace(total=0, used=0, free=VARIANTS[ModelSize.MINI].weights_bytes + 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: room)
    stub.requests.clear()
    open_checkpoint(pull(tmp_path))
    assert stub.downloads(WEIGHTS) == []


@pytest.mark.parametrize("why", ["offline", "unreachable", "no such repository", "no such file"])
def test_without_weights_the_error_names_the_three_ways_out(tmp_path, stub, monkeypatch, why):
    if why == "offline":
        monkeypatch.setattr(hf, "HF_HUB_OFFLINE", True)
    elif why == "unreachable":
        stub.stop()
        stub.start = stub.stop = lambda: None
    elif why == "no such repository":
        stub.repositories.clear()
    else:
        stub.hidden.add("merges.txt")
    with pytest.raises(WeightsNotFound) as caught:
        find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache")
    for way_out in ("dalle-server pull mini", "--model_dir PATH", "--model_version nano", str(tmp_path / "cache")):
        assert way_out in str(caught.value)
    assert not (tmp_path / "cache" / "models" / "mini").exists()


def test_the_environment_is_respected(tmp_path, stub):
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, read by a fresh process."""
    program = (
        "from pathlib import Path; from dalle_server.checkpoints.hub import pull as hub;"
        "from dalle_server.variants import ModelSize;"
        f"hub.pull(ModelSize.MINI, cache_dir=Path({str(tmp_path / 'cache')!r}))"
    )
    source_root = str(Path(__file__).parents[3] / "src")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "PYTHONPATH": source_root,
        "HF_ENDPOINT": hf.ENDPOINT,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    open_checkpoint(tmp_path / "cache" / "models" / "mini")
    assert (tmp_path / "home" / "hub" / "models--dalle-mini--dalle-mini").is_dir()
    asked = [(path, headers.get("authorization")) for _, path, headers in stub.requests]
    assert {token for path, token in asked if "/resolve/" in path} == {"Bearer hf_secret"}
    assert {token for path, token in asked if path.startswith("/cdn/")} == {None}  # another host gets no token
