"""Prompt → token ids, the way Janus-Pro's chat template does it: the prompt is a user's turn, the picture its answer.

The template stands in deepseek-ai/Janus, janus/utils/conversation.py and generation_inference.py, with the role names
of Janus-Pro's README.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.published.janus_tokens import (
    ASSISTANT,
    BEGIN_OF_IMAGE,
    BEGIN_OF_SENTENCE,
    PADDING,
    USER,
    special_ids,
)
from dalle_server.checkpoints.published.tokenizer_files import TOKENIZER, open_tokenizer_file
from dalle_server.checks import is_blank
from dalle_server.engine.runners.base import TextTokens
from dalle_server.families.janus import JanusConfig


class JanusTokenizer:
    """Byte-level BPE of one chat turn, at most `max_text_length` ids: a longer prompt loses its end, never the frame.

    Safe to share among threads.
    """

    def __init__(self, tokenizer: Tokenizer, config: JanusConfig, where: Path = Path(TOKENIZER)):
        """Raises CheckpointError without the special tokens, which are known by their text alone: their numbers differ
        between the published sizes.
        """
        ids = special_ids(tokenizer, config.vocab_size, where)
        self._tokenizer = tokenizer
        self._begin, self._pad, self._image = (ids[t] for t in (BEGIN_OF_SENTENCE, PADDING, BEGIN_OF_IMAGE))
        self._length = config.max_text_length
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._frame = len(self._ids(_ANSWER))
        # Later letters cannot reach a token that is kept: none is longer than the longest of the vocabulary.
        self._most_chars = self._length * max(len(token) for token in tokenizer.get_vocab())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> JanusTokenizer:
        """Raises CheckpointError when `tokenizer.json` is damaged."""
        file = checkpoint.tokenizer_file
        return cls(open_tokenizer_file(file), checkpoint.config.sizes(JanusConfig), file)

    def pair(self, prompt: str, negative_prompt: str = "") -> tuple[TextTokens, TextTokens]:
        """The conditional and the unconditional row of one picture. A negative prompt is a turn of its own; without it,
        the row is as long as the prompt's, with padding in the prompt's place, which the model sees like any token.
        """
        conditional = self._encode(prompt)
        if not is_blank(negative_prompt):
            return conditional, self._encode(negative_prompt)
        blank = np.full(conditional.length, self._pad, np.int32)
        blank[0], blank[-1] = self._begin, self._image
        return conditional, _tokens(blank)

    def _encode(self, prompt: str) -> TextTokens:
        prompt = prompt.encode(errors="replace").decode()  # halves of a pair, which JSON can carry and UTF-8 cannot
        ids = [self._begin, *self._ids(formatted(prompt.strip()[: self._most_chars]))]
        if len(ids) > self._length:
            ids = ids[: self._length - self._frame] + ids[-self._frame :]
        return _tokens(np.array(ids, np.int32))

    def _ids(self, text: str) -> list[int]:
        # Whether the published post-processor adds a beginning differs between the two forms: ask for none.
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


_ANSWER = f"\n\n{ASSISTANT}:{BEGIN_OF_IMAGE}"


def formatted(prompt: str) -> str:
    """The turn as text. `strip` is Python's, as in the reference; without a prompt, the blanks around it go too."""
    prompt = prompt.strip()
    return f"{USER}: {prompt}{_ANSWER}" if prompt else f"{USER}:{ASSISTANT}:{BEGIN_OF_IMAGE}"


def _tokens(ids: NDArray[np.int32]) -> TextTokens:
    ids.setflags(write=False)
    return TextTokens(ids, len(ids))
