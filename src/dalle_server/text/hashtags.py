"""Splitting a #hashtagwithoutspaces into its likeliest words.

Words cost the logarithm of their frequency rank, and the cheapest split wins (dynamic programming, as
in the wordninja library that dalle-mini adapted). The list is its `enwiki-words-frequency.txt`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

_NOT_IN_WORDS = re.compile(r"[^a-zA-Z0-9']+")


class HashtagSplitter:
    """Callable: "newyork2022" → "new york 2022"."""

    def __init__(self, ranked_words: list[str]):
        """`ranked_words`: most frequent first."""
        self._cost = {word: math.log(rank) for rank, word in enumerate(ranked_words, 1)}
        self._longest = max(map(len, self._cost), default=1)

    @classmethod
    def from_file(cls, path: Path) -> HashtagSplitter:
        """`path` holds "word count" lines; only the word and its place count."""
        lines = path.read_text("utf-8", errors="replace").splitlines()
        return cls([line.split()[0] for line in lines if line.strip()])

    def __call__(self, tag: str) -> str:
        return " ".join(word for part in _NOT_IN_WORDS.split(tag) for word in _rejoin(self._cheapest_split(part)))

    def _cheapest_split(self, text: str) -> list[str]:
        # best[i]: cost of text[:i] and the length of its last word. Unknown words cost infinity, so that
        # the tie goes to the shortest: they fall apart into letters.
        lowered, cost_of = text.lower(), self._cost.get
        best: list[tuple[float, int]] = [(0.0, 0)]
        for end in range(1, len(text) + 1):
            cheapest = (math.inf, 1)
            for length in range(1, min(end, self._longest) + 1):
                cost = best[end - length][0] + cost_of(lowered[end - length : end], math.inf)
                if cost < cheapest[0]:
                    cheapest = (cost, length)
            best.append(cheapest)
        words: list[str] = []
        end = len(text)
        while end > 0:
            words.append(text[end - best[end][1] : end])
            end -= best[end][1]
        return words[::-1]


def _rejoin(words: list[str]) -> list[str]:
    """Put 's back on its word, and digits back together."""
    joined: list[str] = []
    for word in reversed(words):
        follows = joined[-1] if joined else ""
        if word != "'" and (follows == "'s" or (word[-1].isdigit() and follows[:1].isdigit())):
            joined[-1] = word + follows
        else:
            joined.append(word)
    return joined[::-1]
