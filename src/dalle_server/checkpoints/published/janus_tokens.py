"""The special tokens of Janus-Pro's vocabulary. They are known by their text: their numbers differ between sizes."""

from __future__ import annotations

from tokenizers import Tokenizer

from dalle_server.errors import CheckpointError

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
PADDING = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
_REQUIRED = (BEGIN_OF_SENTENCE, PADDING, BEGIN_OF_IMAGE, USER, ASSISTANT)


def special_ids(tokenizer: Tokenizer, vocab_size: int) -> dict[str, int]:
    """Text → id. Raises CheckpointError for one that is missing or beyond the embedding's rows."""
    found: dict[str, int] = {}
    for token in _REQUIRED:
        number = tokenizer.token_to_id(token)
        if number is None or number >= vocab_size:
            raise CheckpointError(f"the tokenizer has no {token} within the model's {vocab_size} ids")
        found[token] = number
    return found
