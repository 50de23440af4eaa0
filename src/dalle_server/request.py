"""What is asked of the engine: one prompt, N pictures, and how they are sampled. A leaf: no torch, no Flask.

Letters of shapes, everywhere the same: B rows, T text positions (64 for Mini and Mega), I image positions (256 for
them, a grid of 16×16), H heads, D head size, C codebook entries, N images.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server import checks
from dalle_server.errors import InvalidRequest

MAX_SEED = 2**63 - 1
MAX_IMAGE_INDEX = 2**32 - 1  # a word of the noise's counter
MAX_IMAGES = 10_000  # of one request: more than any queue takes
MAX_TOKEN_ID = 2**31 - 1
MAX_TIMEOUT_S = 1e9  # as good as none
MAX_PULL = 1e6
WIRE_VERSION = 1
FREE = -1  # in forced_tokens: this position is sampled

Pixels = NDArray[np.uint8]  # (height, width, 3)
Tokens = NDArray[np.int32]  # (I,) codebook ids in reading order
# (I, 2) natural logarithms of how likely each token was. First: over the whole codebook at temperature 1 and guidance
# 1. Second: under the sampling that was used; −inf where a given token would not have passed its filters.
LogProbs = NDArray[np.float32]


# Field, lowest, highest; whole where the bounds are.
_SAMPLING_BOUNDS = (
    ("temperature", 0.01, 100.0),
    ("top_k", 0, 2**31 - 1),
    ("top_p", 1e-6, 1.0),
    ("condition_scale", 0.0, 100.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a token is drawn. None means the checkpoint's own default.

    temperature > 0 divides the guided logits; top_k ≥ 0 keeps the k best (0 = all);
    0 < top_p ≤ 1 keeps the smallest set that holds this much probability;
    condition_scale s guides: u + s·(c − u) (1 = no guidance).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    condition_scale: float | None = None

    @classmethod
    def reference_defaults(cls) -> SamplingParams:
        """dalle-mini's: config.json's top_k 50 and the condition_scale of its inference notebook."""
        return cls(temperature=1.0, top_k=50, top_p=1.0, condition_scale=10.0)

    @classmethod
    def of(cls, source: object) -> SamplingParams:
        """From whatever has these fields: a body, parsed arguments, a recipe. Raises InvalidRequest."""
        return cls(**{f.name: getattr(source, f.name) for f in fields(cls)})

    def __post_init__(self) -> None:
        for name, low, high in _SAMPLING_BOUNDS:
            if (value := getattr(self, name)) is not None:
                check = checks.whole_number if isinstance(low, int) else checks.number
                object.__setattr__(self, name, check(name, value, low, high))  # type: ignore[arg-type]

    def with_defaults(self, defaults: SamplingParams) -> SamplingParams:
        """Fill every None from `defaults`."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(defaults, **given)


def require_words(prompt: str, param: str = "prompt") -> None:
    """Raises InvalidRequest for a prompt in which nothing can be seen."""
    if checks.is_blank(checks.text(param, prompt)):
        raise InvalidRequest(f"{param} must not be empty; describe the picture you want", param=param)


@dataclass(frozen=True, slots=True)
class ImageKey:
    """Names the noise of one picture: same key, prompt, parameters and weights → same bytes."""

    seed: int
    index: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checks.whole_number("seed", self.seed, 0, MAX_SEED))
        object.__setattr__(self, "index", checks.whole_number("image_index", self.index, 0, MAX_IMAGE_INDEX))


def image_keys(num_images: int, seed: int | None) -> tuple[ImageKey, ...]:
    """Image i has the key (seed, i); None draws a seed. Raises InvalidRequest."""
    seed = secrets.randbelow(2**32) if seed is None else seed
    return tuple(ImageKey(seed, i) for i in range(checks.whole_number("num_images", num_images, 1, MAX_IMAGES)))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt, N pictures. Build it with `GenerationRequest.of`, which draws a seed when none is given.

    Whatever builds one, all of it is checked here, so that nothing that reaches the engine's thread can fault it.
    `to_dict` is its one wire form: jobs keep it, pictures carry it, a cluster sends it.
    """

    prompt: str  # empty = the unconditional text: the model paints what it likes
    images: tuple[ImageKey, ...]
    sampling: SamplingParams = SamplingParams()
    negative_prompt: str = ""  # the unconditional row's text; empty = the reference's [<s>, </s>]
    forced_tokens: tuple[int, ...] = ()  # empty, or I ids with FREE where the model chooses
    near_tokens: tuple[int, ...] = ()  # empty, or I ids that tokens are drawn towards, FREE where nothing draws them
    pull: float = 0.0  # how strongly; engine/pull.py says what it means
    preview_every: int = 0  # tokens between previews; 0 = none
    logprobs: bool = False  # tell how likely each token was: GeneratedImage.logprobs
    seamless: bool = False  # decode the grid as if it went on at its other end, so that opposite edges meet
    timeout_s: float | None = None
    client: str = ""  # whom fairness counts against: a key or an address
    id: str = field(default_factory=lambda: f"gen-{secrets.token_hex(8)}")

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt", "client", "id"):
            checks.text(name, getattr(self, name))
        for name in ("images", "forced_tokens", "near_tokens"):
            object.__setattr__(self, name, checks.sequence(name, getattr(self, name)))
        if not self.id:
            raise InvalidRequest("id must not be empty; leave it out to get one", param="id")
        if self.prompt:
            require_words(self.prompt)
        if not self.images:
            raise InvalidRequest("num_images must be at least 1", param="num_images")
        if not all(isinstance(key, ImageKey) for key in self.images):
            raise InvalidRequest("images must be ImageKeys: a seed and an index each", param="images")
        if not isinstance(self.sampling, SamplingParams):
            raise InvalidRequest(
                f"sampling must be SamplingParams, not {checks.shown(self.sampling)}", param="sampling"
            )
        for name in ("forced_tokens", "near_tokens"):
            tokens = tuple(checks.whole_number(name, token, FREE, MAX_TOKEN_ID) for token in getattr(self, name))
            object.__setattr__(self, name, tokens)
        object.__setattr__(self, "pull", checks.number("pull", self.pull, 0.0, MAX_PULL))
        if bool(self.near_tokens) != (self.pull > 0):
            raise InvalidRequest("pull and near_tokens belong together: how strongly, and towards what", param="pull")
        object.__setattr__(
            self, "preview_every", checks.whole_number("preview_every", self.preview_every, 0, MAX_TOKEN_ID)
        )
        checks.true_or_false("logprobs", self.logprobs)
        checks.true_or_false("seamless", self.seamless)
        if self.timeout_s is not None:
            if not checks.is_number(self.timeout_s) or not self.timeout_s > 0:  # `not >`: NaN too
                shown = checks.shown(self.timeout_s)
                raise InvalidRequest(f"timeout_s must be positive, not {shown}", param="timeout_s")
            object.__setattr__(self, "timeout_s", float(self.timeout_s) if self.timeout_s < MAX_TIMEOUT_S else None)

    @classmethod
    def of(
        cls,
        prompt: str,
        num_images: int = 1,
        seed: int | None = None,
        *,
        sampling: SamplingParams | None = None,
        negative_prompt: str = "",
        forced_tokens: tuple[int, ...] = (),
        preview_every: int = 0,
        logprobs: bool = False,
        seamless: bool = False,
        timeout_s: float | None = None,
        client: str = "",
    ) -> GenerationRequest:
        """N pictures of one seed and of a prompt that says something: image i has the key (seed, i).

        Raises InvalidRequest, naming the field.
        """
        require_words(prompt)
        return cls(
            prompt=prompt,
            images=image_keys(num_images, seed),
            sampling=sampling or SamplingParams(),
            negative_prompt=negative_prompt,
            forced_tokens=forced_tokens,
            preview_every=preview_every,
            logprobs=logprobs,
            seamless=seamless,
            timeout_s=timeout_s,
            client=client,
        )

    def to_dict(self) -> dict[str, Any]:
        """The request as plain JSON; `from_dict` gives an equal one. Fields that say nothing are left out."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given["images"] = [[key.seed, key.index] for key in self.images]
        given["sampling"] = {name: value for name, value in asdict(self.sampling).items() if value is not None}
        given |= {name: list(getattr(self, name)) for name in ("forced_tokens", "near_tokens")}
        return {"version": WIRE_VERSION, **{name: value for name, value in given.items() if value or name == "prompt"}}

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any]) -> GenerationRequest:
        """Inverse of `to_dict`. Raises InvalidRequest, naming the field, for whatever else it is given."""
        checks.known_fields("request", wire, {"version", *(f.name for f in fields(cls))})
        version = checks.whole_number("version", wire.get("version"), 1, 2**31)
        if version > WIRE_VERSION:
            message = f"the request was written by a newer dalle-server (form {version}; this one reads {WIRE_VERSION})"
            raise InvalidRequest(message, param="version")
        given = {name: value for name, value in wire.items() if name != "version"}
        for name in ("prompt", "images"):
            if name not in given:
                raise InvalidRequest(f"the request lacks {name}", param=name)
        sampling = given.get("sampling", {})
        checks.known_fields("sampling", sampling, (f.name for f in fields(SamplingParams)))
        return cls(**{**given, "images": _read_keys(given["images"]), "sampling": SamplingParams(**sampling)})


def _read_keys(pairs: Any) -> tuple[ImageKey, ...]:
    keys = [checks.sequence("images", pair) for pair in checks.sequence("images", pairs)]
    if any(len(key) != 2 for key in keys):
        raise InvalidRequest(f"images must be a list of [seed, index], not {checks.shown(pairs)}", param="images")
    return tuple(ImageKey(*key) for key in keys)
