"""The text normaliser that dalle-mini's captions went through: prompts must take the same road.

The order of the steps is the reference's (dalle_mini/model/text.py), and so are the placeholders: a dot
inside a hashtag is split as the letters of its placeholder. Two differences are deliberate. A lone "<person>" is
always "a person": the reference draws one of three phrases by chance, and the same request must give the same picture.
Runs of white space are merged earlier: otherwise a hostile prompt could make a pattern take quadratic time.

The model reads 64 tokens. Before and after each step the text is cut to far more than those can need, so that
a prompt costs a few milliseconds whatever it holds: hundreds of kilobytes, or emoji that grow 42-fold.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from itertools import islice

import emoji
import ftfy
from unidecode import unidecode

MAX_CHARS = 4096  # of a text between two steps: 64 for each token
MAX_FOREIGN_CHARS = 768  # of them beyond ASCII: tables are asked for each
MAX_LINES = 32  # that ftfy judges one by one; it takes what follows for one line
MAX_HASHTAG_CHARS = 1024  # in all hashtags together: splitting looks sixty characters back from each
MAX_NORMALIZED_CHARS = 2048  # 32 for each token: the longest words of a vocabulary are shorter

_SHORT_WORD = 64
_UP_TO_A_WORD = re.compile(r".*[\s,]", re.DOTALL)
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_FOREIGN_RUN = re.compile(r"[^\x00-\x7f]+")
_EMOJI_RUN = re.compile(r"[0-9#*]?[^\x00-\x7f]+")  # a keycap begins with an ASCII character
_ZEROS_OF_REFERENCE = re.compile(r"(&#[xX]?)0+(?=[0-9a-fA-F])")
_HUGE_REFERENCE = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{7,});?")  # no character; and int() refuses 4300 digits

_DOT, _QUOTE, _SLASH = (f"xtokx{name}xtokx" for name in ("dot", "quote", "slash"))

Substitution = tuple[re.Pattern[str], str]


def _rules(*rules: tuple[str, str]) -> list[Substitution]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


# From lower-cased ASCII up to the hashtags.
_BEFORE_HASHTAGS = _rules(
    (r"<person>(?:[,\s]*(?:(?:and)+[,\s]*)?<person>)+", " people "),
    (r"<person>", " a person "),
    (r"\A\s*\[\d+\]", ""),  # references of Wikipedia captions
    (r"\[\d+\]\s*\Z", ""),
    (r"<[^<]+?>", " "),  # HTML tags
    (r"http\S+", ""),
    (r"(\d),(\d{3})", r"\1\2"),  # 1,000,000: twice, because matches cannot overlap
    (r"(\d),(\d{3})", r"\1\2"),
    (r"(\w)\.(\w)", rf"\1{_DOT}\2"),
    (r"'(?=(?:[stdm]|ll|re|ve)\b)", _QUOTE),
    (r"(\d)/(\d)", rf"\1{_SLASH}\2"),
    (r"(\w)-(\w)", r"\1 \2"),
    (r"([%&/$*])", r" \1 "),
)
_HASHTAG = re.compile(r"#(\w+)")
_AFTER_HASHTAGS = _rules(
    (r"[_#\\]", " "),
    (r"['\"`]", ' " '),
    (r"[()\[\].,|:;?!=+~\-/{}]", ","),
    (_DOT, "."),
    (_QUOTE, "'"),
    (_SLASH, "/"),
    (r"(\D)\1{3,}", r"\1"),  # three of a kind are left for "viii"
    (r"\s+", " "),
    (r'(?:\s*"+\s*)+', ' " '),
    (r"(?:\s*,+\s*)+", ", "),
    (r"\s+", " "),
)


class TextNormalizer:
    """Callable: prompt → the normalised text, which starts with one space."""

    def __init__(self, split_hashtag: Callable[[str], str] | None = None):
        """Without `split_hashtag`, "#newyork" becomes "newyork"."""
        self._split_hashtag = split_hashtag or (lambda tag: tag)

    def __call__(self, text: str) -> str:
        """At most MAX_NORMALIZED_CHARS. Takes any text of whole characters, and raises nothing."""
        text = _unescape(_unescape(_head(ftfy.fix_text(_head(text)))))
        text = _EMOJI_RUN.sub(lambda match: emoji.demojize(match[0]), text)
        text = _FOREIGN_RUN.sub(lambda match: unidecode(match[0]), _cut(text))
        text = self._split_hashtags(_apply(_BEFORE_HASHTAGS, _cut(text).lower())[:MAX_CHARS])[:MAX_CHARS]
        text = _apply(_AFTER_HASHTAGS, text).strip()
        return f" {text.removesuffix(',').removeprefix(',').strip()}"[:MAX_NORMALIZED_CHARS]

    def _split_hashtags(self, text: str) -> str:
        """The text ends where its hashtags have used up what may be split."""
        parts: list[str] = []
        end, left = 0, MAX_HASHTAG_CHARS
        for match in _HASHTAG.finditer(text):
            parts += (text[end : match.start()], self._split_hashtag(match[1][:left]))
            end, left = match.end(), left - len(match[1])
            if left <= 0:
                return "".join(parts)
        return "".join(parts) + text[end:]


def _head(text: str) -> str:
    """The beginning that is looked at."""
    text = _cut(text.lstrip())
    beyond = next(islice(_FOREIGN.finditer(text), MAX_FOREIGN_CHARS, None), None)
    *lines, rest = (_cut(text, beyond.start()) if beyond else text).split("\n", MAX_LINES)
    return "\n".join([*lines, rest.replace("\n", " ")])


def _cut(text: str, end: int = MAX_CHARS) -> str:
    """At most `end` characters, without the beginning of a word: half a tag or address would stay where the whole one
    goes. A word that is longer than any name is cut.
    """
    if len(text) <= end:
        return text
    found = _UP_TO_A_WORD.match(text, max(0, end - _SHORT_WORD), end)
    return text[: found.end() if found else end]


def _unescape(text: str) -> str:
    text = _HUGE_REFERENCE.sub("\ufffd", _ZEROS_OF_REFERENCE.sub(r"\1", text))
    return html.unescape(text)


def _apply(rules: list[Substitution], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
