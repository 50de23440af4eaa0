"""Prompts to token ids: normaliser, hashtags, byte-level BPE. No torch, no Flask."""

from dalle_server.text.normalizer import TextNormalizer
from dalle_server.text.tokenizer import TextTokenizer

__all__ = ["TextNormalizer", "TextTokenizer"]
