"""Downloads against a hub on this machine: whole, interrupted, damaged, absent."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants as hf
import numpy as np
import pytest

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.checkpoints.hub import pull as hub
from dalle_server.checkpoints.tensor_file import open_tensors, write_tensors
from dalle_server.errors import CheckpointError, WeightsNotFound
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.variants import VARIANTS, ModelSize

from .flax_writer import write_flax
from .hub_stub import COMMIT, VQGAN_COMMIT, Hub, cache_as_the_hubs_client_does

PARITY = Path(__file__).parents[1] / "data" / "parity"
JANUS = PARITY.with_name("parity-janus")
WEIGHTS = "flax_model.msgpack"


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


def pull(tmp_path: Path, size: ModelSize = ModelSize.MINI, **options) -> Path:
    return hub.pull(size, cache_dir=tmp_path / "cache", **options)


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


def test_mega_is_half_precision_and_mega_full_is_not(tmp_path, stub):
    dtypes = {
        size: {array.dtype.name for array in open_checkpoint(pull(tmp_path, size)).transformer.values()}
        for size in (ModelSize.MEGA, ModelSize.MEGA_FULL)
    }
    assert dtypes == {ModelSize.MEGA: {"float16"}, ModelSize.MEGA_FULL: {"float32"}}
    assert len(stub.downloads(WEIGHTS)) == 2  # one transformer for both, one VQGAN
    assert (tmp_path / "cache" / "models" / "mega" / "enwiki-words-frequency.txt").is_file()


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


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


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


def test_offline_the_hubs_cache_is_enough(tmp_path, stub, monkeypatch):
    pull(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    stub.requests.clear()
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", True)
    open_checkpoint(find_checkpoint(ModelSize.MINI, cache_dir=tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    open_checkpoint(pull(tmp_path))
    assert stub.requests == []


def test_the_mirror(tmp_path, stub, monkeypatch):
    pytest.importorskip("torch")
    folder = tmp_path / "published" / "mirror"
    shutil.copytree(PARITY / "min-dalle-tiny", folder)
    for name in ("encoder.pt", "decoder.pt", "vocab.json", "merges.txt"):
        path = folder / name
        shutil.copy(path, folder / f"{path.stem}_mini{path.suffix}")
    stub.repositories["kuprel/min-dalle"] = folder
    published = VARIANTS[ModelSize.MINI]
    with_dims = replace(published.mirror.transformer, optional=("dims.json",))  # tiny heads are not 64 wide
    assert published.mirror is not None
    variant = replace(published, mirror=replace(published.mirror, transformer=with_dims))
    monkeypatch.setitem(VARIANTS, ModelSize.MINI, variant)
    checkpoint = open_checkpoint(pull(tmp_path, mirror=True))
    assert checkpoint.config.sizes(DalleBartConfig).d_model == 32
    assert stub.downloads("encoder.pt") == []


def test_janus_is_pulled_whole_or_in_shards(tmp_path, stub):
    """1B in one file, 7B in several behind an index; the mirror's pickles are the same weights."""
    whole, sharded = tmp_path / "published" / "1b", tmp_path / "published" / "7b"
    shutil.copytree(JANUS / "hf-tiny", whole)
    shutil.copytree(JANUS / "hf-tiny", sharded)
    tensors = open_tensors(whole / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    shards = {f"model-0000{n + 1}-of-00002.safetensors": list(tensors)[n::2] for n in range(2)}
    for shard, names in shards.items():
        write_tensors(sharded / shard, {name: tensors[name] for name in names})
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    stub.repositories |= {
        "deepseek-community/Janus-Pro-1B": whole,
        "deepseek-community/Janus-Pro-7B": sharded,
        "deepseek-ai/Janus-Pro-1B": JANUS / "deepseek-tiny",
    }
    one, seven = (pull(tmp_path, size) for size in (ModelSize.JANUS_PRO_1B, ModelSize.JANUS_PRO_7B))
    assert one.name == "janus_pro_1b" and open_checkpoint(one).digest == open_checkpoint(seven).digest
    assert stub.downloads("README.md") == stub.downloads("pytorch_model.bin") == []
    shutil.rmtree(tmp_path / "cache")
    stub.requests.clear()
    assert find_checkpoint(ModelSize.JANUS_PRO_7B, cache_dir=tmp_path / "cache", download=False).is_dir()
    assert stub.requests == [], "the hub's cache has all that the index names"
    mirrored = hub.pull(ModelSize.JANUS_PRO_1B, cache_dir=tmp_path / "other", mirror=True)
    assert open_checkpoint(mirrored).digest == open_checkpoint(seven).digest


@pytest.mark.parametrize("weight_map", [{}, {"a": "../../evil.safetensors"}, {"a": 3}])
def test_an_index_that_names_no_files_beside_it_is_refused(tmp_path, stub, weight_map):
    folder = tmp_path / "published" / "7b"
    shutil.copytree(JANUS / "hf-tiny", folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    stub.repositories["deepseek-community/Janus-Pro-7B"] = folder
    with pytest.raises(CheckpointError, match="names no files of weights"):
        pull(tmp_path, ModelSize.JANUS_PRO_7B)
    assert not list(tmp_path.rglob("*evil*"))


def test_mega_full_has_no_mirror_and_nano_needs_none(tmp_path, stub):
    with pytest.raises(WeightsNotFound, match="has no mirror"):
        pull(tmp_path, ModelSize.MEGA_FULL, mirror=True)
    assert stub.requests == []


def test_the_word_frequencies_are_welcome_but_not_needed(tmp_path, stub):
    stub.repositories.pop("dalle-mini/dalle-mini")
    folder = pull(tmp_path, ModelSize.MEGA)
    open_checkpoint(folder)
    assert not (folder / "enwiki-words-frequency.txt").exists()


def test_list_models_says_what_is_here_and_what_it_would_take(tmp_path, stub):
    def states() -> dict[ModelSize, str]:
        return {status.size: status.state for status in hub.list_models(tmp_path / "cache")}

    assert states()[ModelSize.MINI] == "absent"
    [mini] = [status for status in hub.list_models(tmp_path / "cache") if status.size is ModelSize.MINI]
    assert mini.download_bytes > 1e9 and mini.weights_bytes > 1e9 and mini.path is None
    folder = pull(tmp_path)
    assert states()[ModelSize.MINI] == "ready"
    shutil.rmtree(folder)
    assert states()[ModelSize.MINI] == "downloaded"
    assert states()[ModelSize.MEGA] == "absent"


def test_the_environment_is_respected(tmp_path, stub):
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, read by a fresh process."""
    program = (
        "from pathlib import Path; from dalle_server.checkpoints.hub import pull as hub;"
        "from dalle_server.variants import ModelSize;"
        f"hub.pull(ModelSize.MINI, cache_dir=Path({str(tmp_path / 'cache')!r}))"
    )
    source_root = str(Path(__file__).parents[2] / "src")
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
