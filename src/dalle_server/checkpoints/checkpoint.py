"""A checkpoint in our native form: what serving reads, whatever the weights came as.

DIR/config.json                   ModelConfig.to_dict(), plus "format": 1
DIR/transformer.safetensors       DalleBart, (out, in) linear weights, names of models/dalle_bart.py
DIR/vqgan.safetensors             VQGAN, OIHW convolutions, names of models/vqgan.py
DIR/tokenizer.json                `tokenizers` file, byte-level BPE
DIR/enwiki-words-frequency.txt    optional: splits #hashtags the way the reference does
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle_server.models.config import ModelConfig

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A native checkpoint, opened. The tensors are numpy views of memory-mapped files (fp32, fp16, or
    ml_dtypes.bfloat16), checked against the config: none missing, none extra, none misshapen."""

    path: Path
    config: ModelConfig
    transformer: Mapping[str, Any]  # name → ndarray
    vqgan: Mapping[str, Any]
    digest: str  # sha256 over config and tensor files: names the weights in metadata

    @property
    def has_encoder(self) -> bool:
        """Whether the VQGAN can turn pixels into tokens: all of its encoder is there, or nothing."""
        return "quant_conv.weight" in self.vqgan

    @property
    def codebook(self) -> Any:
        """(C, E) what each id stands for, of the ids that are ever drawn."""
        return self.vqgan["quantize.embedding.weight"][: self.config.picture.codebook_size]

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.json"
