"""The text side of a checkpoint: one `tokenizer.json`, and the word frequencies that split hashtags."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import RobertaProcessing

from dalle_server.checkpoints.hub.damage import unreadable
from dalle_server.errors import CheckpointError

TOKENIZER = "tokenizer.json"
WORD_FREQUENCY = "enwiki-words-frequency.txt"
REQUIRED_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
SPECIAL_TOKENS = (*REQUIRED_TOKENS, "<mask>")


def find_tokenizer_files(directory: Path, suffix: str = "") -> dict[str, Path | bytes]:
    """Name → file or content, for `write_native`.

    Looks in the checkpoint's folder, then in `tokenizer` inside it, then in `tokenizer` beside it;
    `tokenizer.json` is preferred to `vocab.json` + `merges.txt`, which are converted. The word
    frequencies may lie in any of these, beside the folder, or in a folder
    beside it. Raises CheckpointError when there is no tokenizer.
    """
    places = (directory, directory / "tokenizer", directory.parent / "tokenizer")
    files: dict[str, Path | bytes] = {}
    for place in places:
        if (place / TOKENIZER).is_file():
            files[TOKENIZER] = place / TOKENIZER
            break
        vocab, merges = place / f"vocab{suffix}.json", place / f"merges{suffix}.txt"
        if vocab.is_file() and merges.is_file():
            files[TOKENIZER] = tokenizer_from_bpe(vocab, merges).to_str(pretty=False).encode()
            break
    else:
        raise CheckpointError(f"{directory} has no tokenizer: copy {TOKENIZER}, or vocab.json and merges.txt, into it")
    # It is published with Mini only, and Mega's hashtags want it too: a clone of Mini beside a clone of Mega has it.
    for place in (
        *places,
        directory.parent,
        *sorted(path.parent for path in directory.parent.glob(f"*/{WORD_FREQUENCY}")),
    ):
        if (place / WORD_FREQUENCY).is_file():
            files[WORD_FREQUENCY] = place / WORD_FREQUENCY
            break
    return files


def open_tokenizer_file(path: Path) -> Tokenizer:
    """Raises CheckpointError, with the reason and the remedy, for a file that is no tokenizer."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(unreadable(path, "a tokenizer", error)) from error


def tokenizer_from_bpe(vocab: Path, merges: Path) -> Tokenizer:
    """BART's byte-level BPE from its two older files. Raises CheckpointError for damaged ones."""
    try:
        model = BPE.from_file(str(vocab), str(merges), continuing_subword_prefix="", end_of_word_suffix="")
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{vocab} and {merges} are not a BPE vocabulary ({error})") from error
    tokenizer = Tokenizer(model)
    vocabulary = tokenizer.get_vocab()
    known = {token: vocabulary[token] for token in SPECIAL_TOKENS if token in vocabulary}
    missing = set(REQUIRED_TOKENS) - set(known)
    if missing:
        raise CheckpointError(f"{vocab} lacks the special tokens {', '.join(sorted(missing))}")
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", normalized=False) for token in known])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end = (("<s>", known["<s>"]), ("</s>", known["</s>"]))
    tokenizer.post_processor = RobertaProcessing(end, begin, add_prefix_space=False)
    return tokenizer
