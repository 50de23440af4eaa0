import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dalle_server
from dalle_server import DalleModel, ModelSize
from dalle_server.config import parse_arg_dalle_version
from dalle_server.dalle_model import DEFAULT_IMG_OUTPUT_DIR, load_engine
from dalle_server.errors import ConfigError, InvalidRequest, WeightsNotFound
from tests.families.tiny import TINY


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DalleModel]:
    cache_dir = tmp_path_factory.mktemp("cache")
    with DalleModel(ModelSize.MINI, model_dir=TINY[request.param], cache_dir=cache_dir, num_threads=1) as model:
        yield model


def test_a_text_becomes_pictures(model: DalleModel) -> None:
    images = model.generate_images("a red apple", 3)
    side = model.engine.config.picture.width_px
    assert [(image.mode, image.size) for image in images] == [("RGB", (side, side))] * 3


def test_a_seed_names_the_pictures(model: DalleModel) -> None:
    first, same, other = (model.generate_images("a red apple", 2, seed=seed) for seed in (1, 1, 2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, same, strict=True))
    assert first[0].tobytes() not in (first[1].tobytes(), other[0].tobytes())


def test_parameters_reach_the_model(model: DalleModel) -> None:
    greedy = [model.generate_images("a boat", 1, seed=seed, top_k=1)[0] for seed in (1, 2)]
    assert greedy[0].tobytes() == greedy[1].tobytes()
    with pytest.raises(InvalidRequest, match="temperature must lie between"):
        model.generate_images("a boat", 1, temperature=0)
    for blank in (" ", "\u200b\u2060\ufe0f", "\0", "\u3164\u2800", "\U000e0041"):
        with pytest.raises(InvalidRequest, match="prompt must not be empty"):
            model.generate_images(blank, 1)
    for wrong in ({"top_k": 1.5}, {"top_k": True}, {"seed": 2.0}, {"temperature": "hot"}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(wrong))} must be a"):
            model.generate_images("a boat", 1, **wrong)
    for wrong in ({"text": "\udcff"}, {"text": "a boat", "negative_prompt": "\ud800"}):
        with pytest.raises(InvalidRequest, match="prompt must be text of whole characters"):
            model.generate_images(num_images=1, **wrong)  # type: ignore[arg-type]
    numbers: dict[str, Any] = {"seed": np.int64(1), "temperature": np.float32(1), "top_k": np.int32(5)}
    assert len(model.generate_images("a boat", 1, **numbers)) == 1
    with pytest.raises(InvalidRequest, match="seed must lie between 0 and 9223372036854775807, not -1"):
        model.generate_images("a boat", 1, seed=-1)


def test_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="is not a folder"):
        DalleModel(ModelSize.MINI, model_dir=tmp_path / "nothing")


def test_a_size_goes_by_name_too() -> None:
    with DalleModel("nano") as model:
        assert model.engine.config.name == "nano"
        for text in (None, 7, b"a fox"):
            with pytest.raises(InvalidRequest, match=f"prompt must be text, not {text!r}"):
                model.generate_images(text, 1)  # type: ignore[arg-type]
    for name in ("giga", None, 7):
        with pytest.raises(ConfigError, match=f"unknown model {name!r}: choose one of nano, mini"):
            DalleModel(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"devise": "cpu"}, "devise is no setting; did you mean device?"),
        ({"num_slots": 0}, "num_slots: expected greater than or equal to 1, not 0"),
    ],
)
def test_a_wrong_setting_is_an_error_of_ours(setting: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        DalleModel(ModelSize.MINI, **setting)


def test_the_originals_names_are_found() -> None:
    assert DEFAULT_IMG_OUTPUT_DIR == "generations"
    assert {size.value for size in ModelSize} >= {"Nano", "Mini", "Mega", "Mega_full"}
    assert {parse_arg_dalle_version(size.value) for size in ModelSize} == {size.folder_name for size in ModelSize}
    assert callable(load_engine)


def test_importing_the_package_costs_nothing() -> None:
    code = "import dalle_server, sys; assert not {'numpy', 'flask', 'pydantic', 'torch'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(dalle_server.__file__).parents[1])}
    )


def test_public_names() -> None:
    assert dir(dalle_server) == ["DalleModel", "ModelSize", "SamplingParams", "__version__", "errors"]
    assert all(getattr(dalle_server, name) for name in dir(dalle_server))
    with pytest.raises(AttributeError):
        _ = dalle_server.nothing
