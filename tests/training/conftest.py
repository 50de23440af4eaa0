"""A run of the recipe, up to its transformer."""

from collections.abc import Iterator

import pytest

from tests.training.tiny import make_recipe
from training import recipe
from training.learning import tokenizer
from training.recipe import Recipe


@pytest.fixture(scope="module", autouse=True)
def few_captions() -> Iterator[None]:
    """A tokenizer of fewer captions than a run's: learning one is the longest part of these tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokenizer, "_NUM_CAPTIONS", 2000)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = make_recipe(tmp_path_factory.mktemp("recipe"))
    recipe.learn_text_tokens(made)
    recipe.learn_image_tokens(made)
    recipe.write_tokens(made)
    recipe.learn_to_draw(made)
    return made
