"""The text normaliser that dalle-mini's captions went through: prompts must take the same road.

The order of the steps is the reference's (dalle_mini/model/text.py), and so are the placeholders: a dot
inside a hashtag is split as the letters of its placeholder. Two deliberate differences: a lone "<person>"
is always "a person" (the reference draws among three phrases, and a picture must be a function of its
request), and runs of white space are merged earlier (no pattern takes quadratic time on a hostile prompt).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import emoji
import ftfy
from unidecode import unidecode

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
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        text = unidecode(emoji.demojize(text)).lower()
        text = _apply(_BEFORE_HASHTAGS, text)
        text = _HASHTAG.sub(lambda match: self._split_hashtag(match.group(1)), text)
        text = _apply(_AFTER_HASHTAGS, text).strip()
        return f" {text.removesuffix(',').removeprefix(',').strip()}"


def _apply(rules: list[Substitution], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
