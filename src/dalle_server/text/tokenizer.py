"""Prompt → token ids, the way dalle-mini's processor does it."""

from __future__ import annotations

import logging

import numpy as np
from tokenizers import Tokenizer

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.published.tokenizer_files import REQUIRED_TOKENS, WORD_FREQUENCY, open_tokenizer_file
from dalle_server.checks import is_blank
from dalle_server.engine.runners.base import TextTokens
from dalle_server.errors import CheckpointError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.text.hashtags import HashtagSplitter
from dalle_server.text.normalizer import MAX_NORMALIZED_CHARS, TextNormalizer

logger = logging.getLogger(__name__)


class TextTokenizer:
    """Byte-level BPE to exactly T = `max_text_length` ids: <s> … </s>, then <pad>. Safe to share among threads."""

    def __init__(self, tokenizer: Tokenizer, config: DalleBartConfig, normalizer: TextNormalizer | None):
        """`normalizer` None: the prompt is tokenised as it is. Raises CheckpointError without the special tokens."""
        vocabulary = tokenizer.get_vocab()
        for token in REQUIRED_TOKENS:
            if not vocabulary.get(token, config.encoder_vocab_size) < config.encoder_vocab_size:
                raise CheckpointError(
                    f"the tokenizer has no {token} within the encoder's {config.encoder_vocab_size} ids"
                )
        self._tokenizer = tokenizer
        self._normalizer = normalizer
        self._vocab_size = config.encoder_vocab_size
        self._unknown_id, self._pad_id = vocabulary["<unk>"], vocabulary["<pad>"]
        self._length = config.max_text_length
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._length)  # keeps </s> as the last id
        self._unconditional = self._tokens("")

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> TextTokenizer:
        """Raises CheckpointError when `tokenizer.json` is damaged."""
        config = checkpoint.config.sizes(DalleBartConfig)
        tokenizer = open_tokenizer_file(checkpoint.tokenizer_file)
        return cls(tokenizer, config, _normalizer(checkpoint) if config.normalize_text else None)

    def pair(self, prompt: str, negative_prompt: str = "") -> tuple[TextTokens, TextTokens]:
        """The two rows of a picture. Without a prompt, both are the unconditional one: the empty string, never
        normalised, <s> </s>. A negative prompt takes its place; a blank one is none.
        """
        conditional = self.encode(prompt) if prompt else self._unconditional
        return conditional, self._unconditional if is_blank(negative_prompt) else self.encode(negative_prompt)

    def encode(self, prompt: str) -> TextTokens:
        """The conditional row. An empty prompt that is normalised is a single space, not the unconditional row."""
        prompt = prompt.encode(errors="replace").decode()  # halves of a pair, which JSON can carry and UTF-8 cannot
        return self._tokens(self._normalizer(prompt) if self._normalizer else prompt[:MAX_NORMALIZED_CHARS])

    def _tokens(self, text: str) -> TextTokens:
        real = np.asarray(self._tokenizer.encode(text).ids, np.int32)
        # Mini's tokenizer has one entry more than its encoder has rows; an id beyond the table draws garbage.
        real[real >= self._vocab_size] = self._unknown_id
        ids = np.full(self._length, self._pad_id, np.int32)
        ids[: len(real)] = real
        ids.setflags(write=False)
        return TextTokens(ids, len(real))


def _normalizer(checkpoint: Checkpoint) -> TextNormalizer:
    path = checkpoint.path / WORD_FREQUENCY
    if path.is_file():
        return TextNormalizer(HashtagSplitter.from_file(path))
    logger.info("%s has no %s: #hashtags are read as one word", checkpoint.path, WORD_FREQUENCY)
    return TextNormalizer()
