import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dalle_server.errors import CheckpointError
from dalle_server.text import TextNormalizer, TextTokenizer

from .test_goldens import CONFIG, PARITY

END, UNKNOWN = 2, 3


def load(config=CONFIG, normalizer=None) -> TextTokenizer:
    return TextTokenizer(Tokenizer.from_file(str(PARITY / "tokenizer" / "tokenizer.json")), config, normalizer)


@pytest.fixture
def checkpoint(tmp_path: Path):
    shutil.copy(PARITY / "tokenizer" / "tokenizer.json", tmp_path)
    tokenizer_file = tmp_path / "tokenizer.json"
    config = SimpleNamespace(sizes=lambda family: replace(CONFIG, normalize_text=True))
    return SimpleNamespace(path=tmp_path, tokenizer_file=tokenizer_file, config=config)


def test_truncation_keeps_the_end_token():
    tokens = load().encode("an apple " * 100)
    assert tokens.length == len(tokens.ids) == CONFIG.max_text_length
    assert tokens.ids[-1] == END


def test_ids_beyond_the_encoders_table_become_unknown():
    whole = load().encode("a sleepy fox")
    last = int(whole.ids.max())
    cut = load(replace(CONFIG, encoder_vocab_size=last)).encode("a sleepy fox")
    assert cut.ids.tolist() == [UNKNOWN if token == last else token for token in whole.ids.tolist()]


def test_an_empty_prompt_is_a_space_and_no_unconditional_row():
    text = load(normalizer=TextNormalizer())
    assert text.encode("").length == 3
    assert [tokens.length for tokens in text.pair("")] == [2, 2]


def test_negative_prompts():
    text = load(normalizer=TextNormalizer())
    assert text.pair("a house", "  ")[1] is text.pair("")[1]
    assert text.pair("a house", "a fox")[1].ids.tolist() == text.encode("a fox").ids.tolist()


def test_rows_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        load().pair("")[1].ids[0] = 7


def test_from_checkpoint_uses_the_word_frequencies(checkpoint):
    shutil.copy(PARITY / "enwiki-words-frequency.txt", checkpoint.path)
    text = TextTokenizer.from_checkpoint(checkpoint)
    assert text.encode("#deepdream").ids.tolist() == text.encode("deep dream").ids.tolist()


def test_from_checkpoint_says_when_there_are_none(checkpoint, caplog):
    with caplog.at_level(logging.INFO):
        text = TextTokenizer.from_checkpoint(checkpoint)
    assert "#hashtags are read as one word" in caplog.text
    assert text.encode("#deepdream").ids.tolist() == text.encode("deepdream").ids.tolist()


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"}', "[" * 10_000])
def test_a_damaged_tokenizer_is_an_error_that_names_it(checkpoint, content):
    checkpoint.tokenizer_file.write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextTokenizer.from_checkpoint(checkpoint)


def test_a_table_without_room_for_the_special_tokens_is_refused():
    with pytest.raises(CheckpointError, match="<unk>"):
        load(replace(CONFIG, encoder_vocab_size=3))


def test_the_person_placeholder_is_always_the_same_words():
    normalizer = TextNormalizer()
    assert {normalizer("<PERSON> on a horse") for _ in range(20)} == {" a person on a horse"}
    assert normalizer("<person>, and <person> sing") == " people sing"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=200))
def test_any_text_becomes_valid_ids(prompt):
    for text in (load(normalizer=TextNormalizer(str.upper)), load()):
        tokens = text.encode(prompt)
        assert tokens.ids.shape == (CONFIG.max_text_length,)
        assert 2 <= tokens.length <= CONFIG.max_text_length
        assert tokens.ids.min() >= 0 and tokens.ids.max() < CONFIG.encoder_vocab_size
        assert tokens.ids[tokens.length - 1] == END
