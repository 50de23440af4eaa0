"""Prompts to token ids, each family its own way. No torch, no Flask."""

from collections.abc import Callable

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.text.janus import JanusTokenizer
from dalle_server.text.normalizer import TextNormalizer
from dalle_server.text.tokenizer import TextTokenizer

__all__ = ["JanusTokenizer", "TextNormalizer", "TextTokenizer", "open_tokenizer"]

_BY_FAMILY: dict[str, Callable[[Checkpoint], TextTokenizer | JanusTokenizer]] = {
    "dalle-bart": TextTokenizer.from_checkpoint,
    "janus": JanusTokenizer.from_checkpoint,
}


def open_tokenizer(checkpoint: Checkpoint) -> TextTokenizer | JanusTokenizer:
    """What reads prompts for this checkpoint's family. Raises CheckpointError when `tokenizer.json` is damaged."""
    return _BY_FAMILY[checkpoint.config.family](checkpoint)
