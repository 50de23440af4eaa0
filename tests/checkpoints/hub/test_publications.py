"""Where each model is published, and in which form."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.checkpoints.hub import pull as hub
from dalle_server.checkpoints.tensor_file import open_tensors, write_tensors
from dalle_server.errors import CheckpointError, WeightsNotFound
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.variants import VARIANTS, ModelSize
from tests.checkpoints.hub.stub import WEIGHTS, pull

PARITY = Path(__file__).parents[2] / "data" / "parity"
JANUS = PARITY.with_name("parity-janus")


def test_mega_is_half_precision_and_mega_full_is_not(tmp_path, stub):
    dtypes = {
        size: {array.dtype.name for array in open_checkpoint(pull(tmp_path, size)).transformer.values()}
        for size in (ModelSize.MEGA, ModelSize.MEGA_FULL)
    }
    assert dtypes == {ModelSize.MEGA: {"float16"}, ModelSize.MEGA_FULL: {"float32"}}
    assert len(stub.downloads(WEIGHTS)) == 2  # one transformer for both, one VQGAN
    assert (tmp_path / "cache" / "models" / "mega" / "enwiki-words-frequency.txt").is_file()


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
    assert pull(tmp_path, mirror=True) == checkpoint.path
    with pytest.raises(
        CheckpointError, match=r"mini holds the weights of kuprel/min-dalle: delete it to have those of "
    ):
        pull(tmp_path)


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
    with pytest.raises(CheckpointError, match=r"has no weight_map|no \.safetensors file of its own folder"):
        pull(tmp_path, ModelSize.JANUS_PRO_7B)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("content", ["", "{}", "[1"])
def test_a_damaged_index_in_the_cache_hides_its_own_model_alone(tmp_path, stub, content):
    """And pulling makes it whole."""
    folder = tmp_path / "published" / "7b"
    shutil.copytree(JANUS / "hf-tiny", folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = open_tensors(folder / "model-1.safetensors")
    index = json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")})
    (folder / "model.safetensors.index.json").write_text(index)
    stub.repositories["deepseek-community/Janus-Pro-7B"] = folder
    shutil.rmtree(pull(tmp_path, ModelSize.JANUS_PRO_7B))
    pull(tmp_path)
    (kept,) = (tmp_path / "hub").rglob("model.safetensors.index.json")
    kept.resolve().write_text(content)
    states = {status.size: status.state for status in hub.list_models(tmp_path / "cache")}
    assert (states[ModelSize.MINI], states[ModelSize.JANUS_PRO_7B]) == ("ready", "absent")
    open_checkpoint(pull(tmp_path, ModelSize.JANUS_PRO_7B))


def test_a_mirror_asks_for_the_room_of_its_unpickled_copy(tmp_path, stub, monkeypatch):
    folder = tmp_path / "published" / "mirror"
    shutil.copytree(PARITY / "min-dalle-tiny", folder)
    for name in ("encoder.pt", "decoder.pt", "vocab.json", "merges.txt"):
        shutil.copy(folder / name, folder / f"{Path(name).stem}_mini{Path(name).suffix}")
    stub.repositories["kuprel/min-dalle"] = folder
    pickles = sum((folder / name).stat().st_size for name in ("encoder_mini.pt", "decoder_mini.pt", "detoker.pt"))
    free = VARIANTS[ModelSize.MINI].weights_bytes + pickles + pickles // 2  # enough to fetch and to convert them
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=0, used=0, free=free))
    with pytest.raises(CheckpointError, match="to be downloaded and converted"):
        pull(tmp_path, mirror=True)
    assert stub.downloads("encoder_mini.pt") == []


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
