"""What models there are, told without loading one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from dalle_server import catalogue
from dalle_server.catalogue import describe, prepared
from dalle_server.checkpoints import convert, open_checkpoint
from dalle_server.checkpoints.cache import EMBEDDED
from dalle_server.checkpoints.locate import find_checkpoint
from dalle_server.config import Settings, load_settings
from dalle_server.engine.runners.base import LOGPROBS, PULL, SEAMLESS, TOKENIZE
from dalle_server.engine.stats import Observer
from dalle_server.errors import CheckpointError, ConfigError, WeightsNotFound
from dalle_server.web.pool.sources import sources

DATA = Path(__file__).parent / "data"
BART = DATA / "parity" / "tiny-mega"
JANUS = DATA / "parity-janus" / "hf-tiny"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return Settings(cache_dir=tmp_path / "cache")


def test_a_native_checkpoint_tells_all_but_its_weights(settings: Settings) -> None:
    card = describe(settings.model_copy(update={"model_version": "nano"}))
    loaded = open_checkpoint(EMBEDDED)
    assert (card.name, card.place, card.family, card.image_px) == ("nano", "on_disk", "dalle-bart", 160)
    assert card.image_px == loaded.config.picture.width_px
    assert card.digest == loaded.digest
    assert card.features == (LOGPROBS, SEAMLESS, PULL, TOKENIZE)
    assert 5e6 < card.size_bytes < card.memory_bytes < 200e6


def test_more_slots_and_fewer_bits_are_counted(settings: Settings) -> None:
    def memory(**changes: object) -> int:
        return describe(settings.model_copy(update={"model_version": "nano", **changes})).memory_bytes

    assert memory(num_slots=64) > memory(num_slots=16) > memory(num_slots=1)
    assert memory(dtype="int8") < memory(dtype="fp32")


def test_a_published_folder_is_told_before_it_is_converted(settings: Settings) -> None:
    card = describe(settings.model_copy(update={"model_dir": BART}))
    assert (card.name, card.place, card.family, card.digest) == ("tiny-mega", "on_disk", "", "")
    assert card.size_bytes == card.memory_bytes > 100_000


def test_a_name_whose_weights_are_not_here(settings: Settings) -> None:
    card = describe(settings)
    assert (card.name, card.place, card.size_bytes > 1e9) == ("mini", "absent", True)


@pytest.mark.parametrize(
    ("version", "dtype", "gigabytes"),
    [("mega", "fp32", 12.3), ("mega", "int8", 4.3), ("mega_full", "int8", 4.3), ("janus_pro_1b", "int8", 2.9)],
)
def test_memory_follows_the_dtype_also_before_the_weights_are_here(
    settings: Settings, version: str, dtype: str, gigabytes: float
) -> None:
    """Mega as it is when it is loaded, from its config; Janus-Pro within what was measured and a half more."""
    card = describe(settings.model_copy(update={"model_version": version, "dtype": dtype}))
    assert card.memory_bytes / 1e9 == pytest.approx(gigabytes, rel=0.1)


def test_a_card_is_made_again_when_its_model_is_loaded(settings: Settings) -> None:
    """What was converted on the way tells more than what lay there before."""

    def load(one: Settings, _: Observer) -> Any:
        assert one.model_dir is not None
        find_checkpoint(one.model_dir, cache_dir=one.cache_dir)

    source = sources(settings.model_copy(update={"models": (str(BART), "nano")}), load, describe)[0]
    card = source.card()
    assert card is not None and (card.family, card.digest) == ("", "")
    source.load(Observer())
    card = source.card()
    assert card is not None and (card.family, len(card.digest), card.name) == ("dalle-bart", 64, source.name)


def test_what_is_no_model_is_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="is not a folder"):
        describe(settings.model_copy(update={"model_dir": tmp_path / "nothing"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        describe(settings.model_copy(update={"model_dir": tmp_path / "empty"}))


def test_all_is_what_is_here_the_default_first(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings.model_copy(update={"models": ("all",)})
    assert prepared(settings).models == ("nano",)
    converted = convert(JANUS, settings.cache_dir / "converted" / "hf-tiny-1")
    damaged = settings.cache_dir / "converted" / "damaged"
    shutil.copytree(converted, damaged)
    (damaged / "config.json").write_text("{")
    assert prepared(settings).models == (str(converted), "nano")
    assert prepared(settings.model_copy(update={"model_version": "nano"})).models == ("nano", str(converted))
    served = prepared(settings.model_copy(update={"model_dir": BART})).models
    assert served == (str(BART), str(converted), "nano")
    monkeypatch.setattr(catalogue, "_all_here", lambda settings: ())
    with pytest.raises(ConfigError, match="pull one"):
        prepared(settings)


def test_of_several_conversions_of_a_folder_all_takes_the_newest(settings: Settings, tmp_path: Path) -> None:
    """Each update of a folder's weights leaves one behind, and two of a name cannot be served."""
    converted, everything = settings.cache_dir / "converted", settings.model_copy(update={"models": ("all",)})
    for number, name in enumerate(("tiny-a", "tiny-b", "tiny-c")):
        convert(BART, converted / name)
        os.utime(converted / name / "config.json", (1e9 + number % 2, 1e9 + number % 2))
    assert prepared(everything).models == (str(converted / "tiny-b"), "nano")
    source = tmp_path / open_checkpoint(converted / "tiny-a").config.name
    shutil.copytree(BART, source)
    shutil.copytree(BART.parent / "tiny-vqgan", tmp_path / "vqgan")
    for directory in (source, converted / "tiny-c"):
        served = prepared(everything.model_copy(update={"model_dir": directory}))
        assert served.models == (str(directory), "nano")
        assert [source.name for source in sources(served, Mock(), describe)][1:] == ["nano"]


def test_all_takes_a_folder_of_the_name_of_a_model_that_is_not_here(settings: Settings) -> None:
    own = convert(BART, settings.cache_dir / "converted" / "mini-1", name="mini")
    assert prepared(settings.model_copy(update={"models": ("all",)})).models == (str(own), "nano")


def test_a_folder_that_lacks_its_vqgan_costs_the_others_nothing(settings: Settings, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely"
    shutil.copytree(BART, lonely)
    several = settings.model_copy(update={"models": ("nano", str(lonely))})
    assert [source.name for source in sources(several, Mock(), describe)] == ["nano", "lonely"]


def test_several_have_a_budget_and_one_has_not(settings: Settings) -> None:
    assert prepared(settings.model_copy(update={"models": ("nano",)})).memory_budget is None
    several = settings.model_copy(update={"models": ("nano", str(BART))})
    budget = prepared(several).memory_budget
    assert budget is not None and budget > 100e6
    assert prepared(several.model_copy(update={"memory_budget": 7})).memory_budget == 7


@pytest.mark.parametrize(
    ("written", "num_bytes"), [("12GB", 12 * 10**9), ("800 mb", 8 * 10**8), ("1.5GiB", 3 * 2**29), ("4096", 4096)]
)
def test_bytes_are_written_as_people_do(written: str, num_bytes: int) -> None:
    assert load_settings({"memory_budget": written}, {}).memory_budget == num_bytes


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"memory_budget": "much"}, "--memory_budget: expected a number of bytes such as 12GB or 800MB, or auto"),
        ({"models": "nano,maxi"}, "--models: expected nano, mini, mega, .*, directories, or NAME=DIRECTORY"),
        ({"models": "all,nano"}, "--models: expected all to stand alone"),
        ({"database": "mysql://user:secret@x/y"}, "--database: expected sqlite:///PATH or postgresql://"),
        ({"picture_store": "ftp://secret@x"}, "--picture_store: expected file:///PATH or s3://"),
    ],
)
def test_senseless_settings_say_what_makes_sense(flags: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_settings(flags, {})
    assert "secret" not in caught.value.message
