"""The models that go by name: where their weights are published, how large they are, under which licence.

Sizes are data here, never branches elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dalle_server.errors import ConfigError


class ModelSize(Enum):
    """The values are the original server's spelling."""

    NANO = "Nano"
    MINI = "Mini"
    MEGA = "Mega"
    MEGA_FULL = "Mega_full"
    JANUS_PRO_1B = "Janus_Pro_1B"
    JANUS_PRO_7B = "Janus_Pro_7B"

    @classmethod
    def parse(cls, name: str) -> ModelSize:
        """Any case, dashes or underscores. Raises ConfigError listing the names."""
        for size in cls:
            if isinstance(name, str) and size.folder_name == name.strip().lower().replace("-", "_"):
                return size
        names = ", ".join(size.folder_name for size in cls)
        raise ConfigError(f"unknown model {name!r}: choose one of {names}", param="model_version")

    @property
    def folder_name(self) -> str:
        return self.value.lower()


@dataclass(frozen=True, slots=True)
class HubFiles:
    """Files of one repository on the Hugging Face hub."""

    repository: str
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()
    revision: str = "main"
    weights: tuple[str, ...] = ()  # the first of them that is there; an index stands for the files that it names


@dataclass(frozen=True, slots=True)
class Publication:
    """One place to get a model from. The transformer and the VQGAN may share a repository."""

    transformer: HubFiles
    download_bytes: int  # approximate: the hub tells the truth when asked
    vqgan: HubFiles | None = None  # None: in the transformer's files
    word_frequency: HubFiles | None = None  # splits hashtags; only ever published with Mini
    dtype: str | None = None  # to convert the transformer to; None keeps what is published
    file_suffix: str | None = None  # in a min-dalle repository: which of its two models


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that goes by name."""

    size: ModelSize
    title: str
    licence: str
    dtype: str  # of the transformer's weights as they are stored: float16, bfloat16 or float32
    weights_bytes: int  # on disk after conversion
    published: Publication | None  # None: shipped inside this package
    mirror: Publication | None = None

    @property
    def num_weights(self) -> int:
        """About: as if the VQGAN's were stored as the transformer's are."""
        return self.weights_bytes // (4 if self.dtype == "float32" else 2)


# The commit that dalle-mini's own programs pin: their caches hold it, without a ref called main.
_VQGAN_COMMIT = "e93a26e7707683d349bf5d5c41c5b0ef69b677a9"
_VQGAN = HubFiles("dalle-mini/vqgan_imagenet_f16_16384", ("config.json", "flax_model.msgpack"), revision=_VQGAN_COMMIT)
_WORDS = HubFiles("dalle-mini/dalle-mini", (), ("enwiki-words-frequency.txt",))
_VQGAN_BYTES = 76_073_859 * 4
_DETOKENIZER_BYTES = 46_000_000 * 4
_MINI_PARAMS, _MEGA_PARAMS = 437_833_712, 2_587_521_024
_LICENCE = "Apache-2.0 (VQGAN: none stated, its code MIT)"
_JANUS_LICENCE = "DeepSeek Model License (with use restrictions)"


def _flax(repository: str, transformer_bytes: int, dtype: str | None = None) -> Publication:
    names = ("config.json", "flax_model.msgpack", "vocab.json", "merges.txt")
    files = HubFiles(repository, names, ("tokenizer.json",))
    return Publication(files, transformer_bytes + _VQGAN_BYTES, _VQGAN, _WORDS, dtype)


def _min_dalle(suffix: str, transformer_bytes: int) -> Publication:
    names = (f"encoder{suffix}.pt", f"decoder{suffix}.pt", f"vocab{suffix}.json", f"merges{suffix}.txt")
    vqgan = HubFiles("kuprel/min-dalle", ("detoker.pt",))
    files = HubFiles("kuprel/min-dalle", names)
    return Publication(files, transformer_bytes + _DETOKENIZER_BYTES, vqgan, _WORDS, file_suffix=suffix)


def _janus(size: ModelSize, name: str, num_published: int, num_kept: int) -> Variant:
    """Published in bfloat16. The transformers library's form needs no torch to be read; the authors' own is pickles."""
    safe = ("model.safetensors", "model.safetensors.index.json")
    library = HubFiles(f"deepseek-community/{name}", ("config.json", "tokenizer.json"), weights=safe)
    pickles = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    files = ("config.json", "tokenizer.json", "processor_config.json")
    authors = HubFiles(f"deepseek-ai/{name}", files, weights=pickles)
    published, mirror = (Publication(part, num_published * 2) for part in (library, authors))
    title = name.replace("-", " ").replace(" ", "-", 1)
    return Variant(size, title, _JANUS_LICENCE, "bfloat16", num_kept * 2, published, mirror)


VARIANTS: dict[ModelSize, Variant] = {
    variant.size: variant
    for variant in (
        Variant(ModelSize.NANO, "DALL-E Nano", "Apache-2.0", "float16", 25_000_000, None),
        Variant(
            ModelSize.MINI,
            "DALL-E Mini",
            _LICENCE,
            "float32",
            _MINI_PARAMS * 4 + _VQGAN_BYTES,
            _flax("dalle-mini/dalle-mini", _MINI_PARAMS * 4),
            _min_dalle("_mini", _MINI_PARAMS * 2),
        ),
        Variant(
            ModelSize.MEGA,
            "DALL-E Mega",
            _LICENCE,
            "float16",
            _MEGA_PARAMS * 2 + _VQGAN_BYTES,
            _flax("dalle-mini/dalle-mega", _MEGA_PARAMS * 4, "float16"),
            _min_dalle("", _MEGA_PARAMS * 2),
        ),
        Variant(
            ModelSize.MEGA_FULL,
            "DALL-E Mega_full",
            _LICENCE,
            "float32",
            _MEGA_PARAMS * 4 + _VQGAN_BYTES,
            _flax("dalle-mini/dalle-mega", _MEGA_PARAMS * 4, "float32"),
        ),
        _janus(ModelSize.JANUS_PRO_1B, "Janus-Pro-1B", 2_076_636_811, 1_620_000_000),
        _janus(ModelSize.JANUS_PRO_7B, "Janus-Pro-7B", 7_407_773_323, 6_781_000_000),
    )
}
