"""Janus's prompts against the reference's ids."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tokenizers import Tokenizer

from dalle_server.checkpoints.published.janus_tokens import BEGIN_OF_IMAGE
from dalle_server.errors import CheckpointError
from dalle_server.families.janus import JanusConfig
from dalle_server.text.janus import JanusTokenizer, formatted
from tests.families.janus_goldens import DATA, text_goldens

PROMPTS = text_goldens()["prompts"]


def config(max_text_length: int = 640, vocab_size: int = 600) -> JanusConfig:
    return JanusConfig(
        d_model=64,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        ffn_dim=176,
        vocab_size=vocab_size,
        image_vocab_size=272,
        image_length=36,
        max_text_length=max_text_length,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
    )


@pytest.fixture(params=["deepseek-tiny", "hf-tiny"])
def library(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_file(str(DATA / request.param / "tokenizer.json"))


@pytest.mark.parametrize("golden", PROMPTS, ids=lambda golden: repr(golden["prompt"])[:30])
def test_both_rows_are_the_references(library: Tokenizer, golden: dict[str, object]) -> None:
    conditional, unconditional = JanusTokenizer(library, config()).pair(str(golden["prompt"]))
    assert formatted(str(golden["prompt"])) == golden["formatted"]
    assert conditional.ids.tolist() == golden["ids"]
    assert unconditional.ids.tolist() == golden["uncond_ids"]
    assert conditional.length == unconditional.length == len(conditional.ids)


def test_a_negative_prompt_is_a_turn_of_its_own(library: Tokenizer) -> None:
    tokenizer = JanusTokenizer(library, config())
    (conditional, negative), (other, _) = (
        tokenizer.pair("a red cube", "a blue ball, blurry"),
        tokenizer.pair("a blue ball, blurry"),
    )
    np.testing.assert_array_equal(negative.ids, other.ids)
    assert conditional.length != negative.length
    assert tokenizer.pair("a red cube", "  ")[1].ids.tolist() == PROMPTS[0]["uncond_ids"]


def test_a_long_prompt_loses_its_end_and_keeps_the_frame(library: Tokenizer) -> None:
    whole = JanusTokenizer(library, config(10_000)).pair("many words " * 100)[0].ids.tolist()
    cut, blank = JanusTokenizer(library, config(40)).pair("many words " * 100)
    assert len(whole) > 40 == cut.length == blank.length
    frame = text_goldens()["prompts"][0]["ids"][-5:]  # two line ends, the role, its colon, the picture
    assert cut.ids.tolist() == whole[:35] + frame


def test_a_prompt_of_any_length_is_read_in_a_moment(library: Tokenizer) -> None:
    tokenizer = JanusTokenizer(library, config())
    for text in ("x" * 60_000, "🍎" * 30_000, " " * 60_000 + "x", "\n" * 60_000 + "x"):
        begun = time.thread_time()
        tokenizer.pair(text)
        assert time.thread_time() - begun < 2, "seconds would mean that the whole text was read"


def test_a_tokenizer_of_more_ids_than_the_weights_have_is_refused(library: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has an id 539, but the weights know 300"):
        JanusTokenizer(library, config(vocab_size=300))
    assert library.token_to_id(BEGIN_OF_IMAGE) == text_goldens()["ids"][BEGIN_OF_IMAGE]
