"""A prompt costs little whatever it holds, and is read as if it had never been cut."""

import html
import string
from pathlib import Path
from types import SimpleNamespace

import emoji
import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from unidecode import unidecode

from dalle_server import assets
from dalle_server.checkpoints import open_checkpoint
from dalle_server.text import TextNormalizer, TextTokenizer, normalizer
from dalle_server.text.hashtags import HashtagSplitter
from dalle_server.text.normalizer import MAX_CHARS, MAX_HASHTAG_CHARS, MAX_NORMALIZED_CHARS

from .test_goldens import CONFIG, PARITY

NANO = Path(assets.__file__).parent / "nano"
SPLITTER = HashtagSplitter.from_file(PARITY / "enwiki-words-frequency.txt")
WHOLE_PROMPT_CHARS = 256 * 1024  # more than any route accepts

HOSTILE = {
    "a reference of more digits than int() takes": "&#" + "1" * 5000 + ";",
    "a reference of as many zeros": "&#" + "0" * 5000 + "65;",
    "a reference made by another": "&amp;#" + "1" * 5000 + ";",
    "a hexadecimal reference": "&#x" + "f" * 5000 + ";",
    "a hashtag": "#" + "sleepyfox" * 30_000,
    "hashtags": "#sleepyfox" * 30_000,
    "emoji": "😀" * WHOLE_PROMPT_CHARS,
    "a family": "👨\u200d👩\u200d👧\u200d👦" * 40_000,
    "keycaps": "#\ufe0f\u20e3" * 80_000,
    "ligatures": "\ufdfa" * WHOLE_PROMPT_CHARS,
    "music": "\U0001d160" * WHOLE_PROMPT_CHARS,
    "lines": "é\n" * 130_000,
    "zero width": "\u200b" * WHOLE_PROMPT_CHARS,
    "one foreign letter": "a" * WHOLE_PROMPT_CHARS + "é",
    "halves of pairs": "\ud83d" * WHOLE_PROMPT_CHARS,
    "dots": "a." * 130_000,
    "stars": "*" * WHOLE_PROMPT_CHARS,
    "tags": "<a" * 130_000,
    "people": "<person>," * 29_000,
    "quotes": '" ' * 130_000,
    "blanks": " " * WHOLE_PROMPT_CHARS,
    "NUL": "\0" * WHOLE_PROMPT_CHARS,
}


@pytest.fixture(scope="module")
def nano() -> TextTokenizer:
    return TextTokenizer.from_checkpoint(open_checkpoint(NANO))


def uncut(text: str) -> str:
    """The steps of the reference, on the whole text."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = unidecode(emoji.demojize(text)).lower()
    text = normalizer._apply(normalizer._BEFORE_HASHTAGS, text)
    text = normalizer._HASHTAG.sub(lambda match: SPLITTER(match[1]), text)
    text = normalizer._apply(normalizer._AFTER_HASHTAGS, text).strip()
    return f" {text.removesuffix(',').removeprefix(',').strip()}"


def words(*alphabets: str, longest: int = 16) -> st.SearchStrategy[str]:
    return st.one_of([st.text(alphabet, min_size=1, max_size=longest) for alphabet in alphabets])


SAMPLES = (
    "fox", "Ã©tÃ©", "â€œredâ€", "&amp;", "&lt;b&gt;", "&#65;", "<b>", "😀", "👩🏽\u200d🚀", "1,000", "3/4",
    "#sleepyfox", "[12]", "it's", "U.S.A", "...", "!!", "http://a.b/c", "<person>", "ﬁne", "ｗｉｄｅ", "e\u0301",
    "½", "#\ufe0f\u20e3", "$5", "well-known",
)  # fmt: skip
PIECES = st.one_of(
    words(string.ascii_letters, string.ascii_lowercase, "абвгдежзийклмнопрст", "éèüßøçñ", "漢字かなカナ", "هذانص"),
    st.sampled_from(SAMPLES),
)
PROMPTS = st.builds("".join, st.lists(st.builds("{}{}".format, PIECES, st.sampled_from(" ,\n")), max_size=120))
LONG_PROMPTS = st.builds(lambda prompt, times: prompt * times, PROMPTS, st.sampled_from([1, 5, 200]))


@pytest.mark.parametrize("gone", ["http://a.b/c ", "<b> ", "&lt;b&gt;,", "&lt;é&gt; ", "<b>\n", "&lt;b&gt; "])
@pytest.mark.parametrize("shift", range(13))
def test_of_what_goes_no_half_stays_at_the_cut(gone: str, shift: int) -> None:
    assert TextNormalizer(SPLITTER)("fox" + " " * shift + gone * 5000) == " fox"


def test_a_word_longer_than_any_is_cut_and_not_left_out() -> None:
    assert TextNormalizer(SPLITTER)("fox " + "ab" * 5000).startswith(" fox abab")


@settings(max_examples=300, deadline=None)
@given(LONG_PROMPTS)
def test_a_text_that_is_cut_becomes_the_ids_of_the_whole(prompt: str) -> None:
    cut = TextTokenizer(parity_tokenizer(), CONFIG, TextNormalizer(SPLITTER))
    whole = TextTokenizer(parity_tokenizer(), CONFIG, None)._tokens(uncut(prompt))
    np.testing.assert_array_equal(cut.encode(prompt).ids, whole.ids)


def parity_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(PARITY / "tokenizer" / "tokenizer.json"))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab cé漢😀\n"), max_size=200), st.integers(1, 400))
def test_a_text_that_is_not_normalised_is_cut_the_same_way(piece: str, times: int) -> None:
    text = TextTokenizer(parity_tokenizer(), CONFIG, None)
    np.testing.assert_array_equal(text.encode(piece * times).ids, text._tokens(piece * times).ids)


@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE)
def test_no_step_sees_more_than_the_tokens_can_need(
    nano: TextTokenizer, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    seen: dict[str, int] = {}

    def counted(step, name):
        def call(text: str, *rest):
            seen[name] = seen.get(name, 0) + len(text)
            return step(text, *rest)

        return call

    monkeypatch.setattr(ftfy, "fix_text", counted(ftfy.fix_text, "ftfy"))
    monkeypatch.setattr(html, "unescape", counted(html.unescape, "html"))
    monkeypatch.setattr(emoji, "demojize", counted(emoji.demojize, "emoji"))
    monkeypatch.setattr(normalizer, "unidecode", counted(unidecode, "unidecode"))
    monkeypatch.setattr(normalizer, "_apply", _within_bounds)
    text_normalizer = TextNormalizer(counted(SPLITTER, "hashtags"))
    assert len(text_normalizer(prompt.encode(errors="replace").decode())) <= MAX_NORMALIZED_CHARS
    assert seen["ftfy"] <= MAX_CHARS and seen["html"] <= 2 * MAX_CHARS
    assert max(seen.get("emoji", 0), seen.get("unidecode", 0)) <= 2 * normalizer.MAX_FOREIGN_CHARS
    assert seen.get("hashtags", 0) <= MAX_HASHTAG_CHARS
    nano.encode(prompt)


def _within_bounds(rules, text: str) -> str:
    assert len(text) <= MAX_CHARS
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE)
def test_the_tokenizer_sees_little_too(monkeypatch: pytest.MonkeyPatch, prompt: str, normalize: bool) -> None:
    text = TextTokenizer(parity_tokenizer(), CONFIG, TextNormalizer(SPLITTER) if normalize else None)
    seen: list[int] = []
    fake = SimpleNamespace(encode=lambda given: seen.append(len(given)) or SimpleNamespace(ids=[0, 2]))
    monkeypatch.setattr(text, "_tokenizer", fake)
    text.encode(prompt)
    assert max(seen) <= MAX_NORMALIZED_CHARS


AWKWARD = (
    "&#", "&#x", "&amp;", "0" * 50, "9" * 5000, ";", "#", "<", ">", "<person>", "http", "[1]", "'s", "\u200d", "\ufe0f",
    "\u20e3", "\ud800", "\udc00", "\0", "\x85", "\u2028", "\x1b[31m", "Ã", "\xa0", "\x81", "â€", "🏴", "\U000e0067",
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(), max_size=20)), max_size=40).map("".join))
def test_any_text_is_tokens_to_the_embedded_model(nano: TextTokenizer, prompt: str) -> None:
    for tokens in nano.pair(prompt, prompt):
        assert 2 <= tokens.length <= len(tokens.ids) and tokens.ids.min() >= 0


def test_references_mean_what_they_meant() -> None:
    read = TextNormalizer()
    assert read("&#0000000000000000000000000065;pple &#x0041; &amp;#66;") == " apple a b"
    assert read("a &#99999999; b &#x1000000; c &#55296; d") == read("a \ufffd b \ufffd c \ufffd d")
