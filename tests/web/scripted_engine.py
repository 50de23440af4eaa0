"""A stand-in for the engine at the web layer's seam: real requests, handles and events, pictures of one colour."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.engine.stats import EngineStats, Observer
from dalle_server.engine.tracker import Place
from dalle_server.errors import DalleServerError, InvalidRequest
from dalle_server.families import model_config
from dalle_server.generation import (
    TERMINAL,
    Cancelled,
    Done,
    Failed,
    GeneratedImage,
    Generation,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.models.config import ModelConfig
from dalle_server.request import GenerationRequest, ImageKey, Pixels, SamplingParams, Tokens

CONFIG = model_config(
    {
        "name": "scripted",
        "transformer": {
            "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_vocab_size": 64,
            "image_vocab_size": 16, "image_length": 16, "max_text_length": 8, "decoder_start_token_id": 16,
            "bos_token_id": 16, "eos_token_id": 16, "pad_token_id": 16,
        },
        "vqgan": {
            "ch": 8, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 8,
            "embed_dim": 8, "n_embed": 16, "resolution": 16,
        },
    }
)  # fmt: skip

INFO = RunnerInfo("scripted", "cpu", "a test", "fp32", "the tests asked for it", {"numpy": np.__version__})


@dataclass
class ScriptedEngine:
    """Each request runs in a thread of its own. Clear `gate` to hold every request after its first progress event."""

    gate: threading.Event = field(default_factory=threading.Event)
    submit_error: DalleServerError | None = None  # raised by submit
    fail_with: DalleServerError | None = None  # ends every generation
    num_held: int = 0  # places of requests that are being read
    requests: list[GenerationRequest] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    config: ModelConfig = CONFIG
    digest: str = "0123456789abcdef" * 4
    determinism: str = "bit-exact"
    info: RunnerInfo = INFO
    state: str = "ready"
    most_images: int = 68  # four slots and the queue
    observer: Observer = field(default_factory=Observer)

    def __post_init__(self) -> None:
        self.gate.set()

    def start(self) -> None: ...

    def stats(self) -> EngineStats:
        done = [generation for generation in self.generations if generation.terminal is not None]
        return EngineStats(num_slots=4, running=len(self.generations) - len(done), images=len(done))

    def stop(self, drain_s: float = 0.0) -> None:
        for generation in self.generations:
            generation.cancel("the engine stopped")

    def hold(self) -> Place:
        if self.submit_error is not None:
            raise self.submit_error
        self.num_held += 1
        return Place(self._release)

    def _release(self) -> None:
        self.num_held -= 1

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation:
        if held is not None:
            held.give_back()
        if self.submit_error is not None:
            raise self.submit_error
        if request.forced_tokens and len(request.forced_tokens) != self.config.picture.num_tokens:
            raise InvalidRequest("forced_tokens has the wrong length", param="forced_tokens")
        sampling = request.sampling.with_defaults(SamplingParams.reference_defaults())
        generation = Generation(request, sampling, text_token_count=len(request.prompt.split()) + 2)
        self.requests.append(request)
        self.generations.append(generation)
        generation.emit(Queued(0))
        threading.Thread(target=self._play, args=(generation,), daemon=True).start()
        return generation

    def tokenize(self, pixels: Pixels) -> Tokens:
        """The inverse of `paint`."""
        tokens: Tokens = (pixels[:, ::4, ::4, 0].reshape(len(pixels), -1) // 16).astype(np.int32)
        return tokens

    def detokenize(self, tokens: Tokens, *, seamless: bool = False) -> Pixels:
        return self.paint(ImageKey(0, 0), self.config.picture.width_px, tuple(tokens.tolist()))[1]

    def _play(self, generation: Generation) -> None:
        self._tell(generation)
        assert isinstance(generation.terminal, TERMINAL)
        self.observer.on_finished(generation, generation.terminal)

    def _tell(self, generation: Generation) -> None:
        request, length, side = generation.request, self.config.picture.num_tokens, self.config.picture.width_px
        total = length * len(request.images)
        generation.emit(Started(0.0))
        generation.emit(Progress(0, total, None))
        while not self.gate.wait(0.005) and generation.cancel_reason is None:
            pass
        if generation.cancel_reason is not None:
            generation.emit(Cancelled(generation.cancel_reason))
            return
        if self.fail_with is not None:
            generation.emit(Failed(self.fail_with))
            return
        images = []
        for index, key in enumerate(request.images):
            tokens, pixels = self.paint(key, side, request.forced_tokens)
            if generation.preview_every:
                for done in range(generation.preview_every, length, generation.preview_every):
                    generation.emit(Preview(index, done, pixels // 2))
            generation.emit(Progress((index + 1) * length, total, 0.0))
            image = GeneratedImage(index, key, pixels, tokens)
            generation.emit(ImageReady(image))
            images.append(image)
        generation.emit(Done(tuple(images), 0.0, 0.01))

    def paint(self, key: ImageKey, side: int, forced_tokens: tuple[int, ...] = ()) -> tuple[Tokens, Pixels]:
        """The picture of a key: one grey, a function of seed and index alone, but for forced tokens."""
        tokens = np.full((side // 4) ** 2, (key.seed + key.index) % 16, dtype=np.int32)
        if forced_tokens:
            forced = np.asarray(forced_tokens, dtype=np.int32)
            tokens = np.where(forced >= 0, forced, tokens).astype(np.int32)
        grey = np.kron(tokens.reshape(side // 4, -1) * 16, np.ones((4, 4))).astype(np.uint8)
        return tokens, np.stack([grey, grey, grey], axis=-1)
