"""The special tokens of Janus-Pro's vocabulary. They are known by their text: their numbers differ between sizes."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from dalle_server.errors import CheckpointError

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
PADDING = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
_REQUIRED = (BEGIN_OF_SENTENCE, PADDING, BEGIN_OF_IMAGE, USER, ASSISTANT)


def special_ids(tokenizer: Tokenizer, vocab_size: int, where: Path) -> dict[str, int]:
    """Text → id. Raises CheckpointError, naming `where` it comes from, for one that is missing, and for a token beyond
    the embedding's rows.
    """
    found: dict[str, int] = {}
    for token in _REQUIRED:
        number = tokenizer.token_to_id(token)
        if number is None:
            raise CheckpointError(f"{where} has no {token}; is it the tokenizer of these weights?")
        found[token] = number
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise CheckpointError(
            f"{where} has an id {highest}, but the weights know {vocab_size}; do both belong together?"
        )
    return found
