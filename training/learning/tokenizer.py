"""Stage 1: a byte-level BPE tokenizer of the captions, in the `tokenizers` form that BART-like models use."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import RobertaProcessing

from training.preset import BOS, EOS, MASK, PAD, UNK
from training.scenes.captions import Captioner
from training.scenes.spec import SceneSampler

SPECIAL_TOKENS = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK, "<mask>": MASK}
_NUM_CAPTIONS = 30_000


def train_tokenizer(
    sampler: SceneSampler, captioner: Captioner, *, vocab_size: int, seed: int, target: Path
) -> Tokenizer:
    """Learn merges from captions and from the concepts' names, and write `target` (tokenizer.json)."""
    rng = random.Random(f"{seed} tokenizer")

    def texts() -> Iterator[str]:
        for concept in sampler.concepts:
            yield from (f" {name}" for name in concept.names for _ in range(10))
        for _ in range(_NUM_CAPTIONS):
            # The text normaliser leaves one space in front of a prompt: so do we.
            yield " " + captioner.caption(sampler.sample(rng), rng)

    learner = ByteLevelBPETokenizer(add_prefix_space=False)
    learner.train_from_iterator(
        texts(), vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer: Tokenizer = learner._tokenizer
    tokenizer.post_processor = RobertaProcessing(
        ("</s>", EOS), ("<s>", BOS), trim_offsets=False, add_prefix_space=False
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target))
    return tokenizer
