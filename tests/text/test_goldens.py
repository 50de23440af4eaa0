"""Text must become the very ids of the reference's processor."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dalle_server.checkpoints.published.tokenizer_files import tokenizer_from_bpe
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.text import TextNormalizer, TextTokenizer
from dalle_server.text.hashtags import HashtagSplitter

PARITY = Path(__file__).parents[1] / "data" / "parity"
GOLDENS = json.loads((PARITY / "text_goldens.json").read_text("utf-8"))
CONFIG = DalleBartConfig.from_dict(json.loads((PARITY / "tiny-mega" / "config.json").read_text()))
RECORDS = [pytest.param(record, id=record["prompt"][:30]) for record in GOLDENS["records"]]


@pytest.fixture(scope="module")
def splitter() -> HashtagSplitter:
    return HashtagSplitter.from_file(PARITY / "enwiki-words-frequency.txt")


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json + merges.txt"])
def tokenizer(request) -> Tokenizer:
    folder = PARITY / "tokenizer"
    if request.param == "tokenizer.json":
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer_from_bpe(folder / "vocab.json", folder / "merges.txt")


@pytest.mark.parametrize("record", RECORDS)
def test_normalizer(splitter, record):
    assert TextNormalizer(splitter)(record["prompt"]) == record["normalized"]


@pytest.mark.parametrize("case", GOLDENS["hashtags"], ids=lambda case: case["tag"])
def test_hashtags(splitter, case):
    assert splitter(case["tag"]) == case["split"]


@pytest.mark.parametrize("suffix", ["", "_no_normalize"], ids=["normalised", "as it is"])
@pytest.mark.parametrize("record", RECORDS)
def test_ids(tokenizer, splitter, record, suffix):
    text = TextTokenizer(tokenizer, CONFIG, None if suffix else TextNormalizer(splitter))
    tokens = text.encode(record["prompt"])
    assert tokens.ids.tolist() == record[f"input_ids{suffix}"]
    assert tokens.ids.dtype == np.int32
    assert tokens.length == sum(record[f"attention_mask{suffix}"])


def test_unconditional_row(tokenizer, splitter):
    tokens = TextTokenizer(tokenizer, CONFIG, TextNormalizer(splitter)).pair("a fox")[1]
    assert tokens.ids.tolist() == GOLDENS["uncond_input_ids"]
    assert tokens.length == sum(GOLDENS["uncond_attention_mask"]) == 2
