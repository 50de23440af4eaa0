"""Calls of the compiled code, written down with the memory they work on, and made again by another build under qemu."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.builds import OPTIONS, SOURCES, define_of
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.program import Program
from dalle_server.engine.runners.cpu.compiled.step import CompiledStep
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.texts import CompiledTexts
from dalle_server.engine.runners.cpu.compiled.vqgan.feature_maps import FeatureMap
from tests.runners.cpu.cpu_runners import RUNNABLE

BASE = 1 << 32  # where the emulated process has nothing of its own


class Image:
    """Pieces of this process's memory in one file, and the pointers among them as they are at BASE."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int, int]] = []  # address here, bytes, offset in the file
        self._contents: list[bytes] = []
        self._structures: list[int] = []  # which pieces hold pointers
        self._end = 0

    def add(self, piece: NDArray[Any] | ctypes.Structure | ctypes.Array[Any]) -> None:
        is_array = isinstance(piece, np.ndarray)
        address = piece.ctypes.data if isinstance(piece, np.ndarray) else ctypes.addressof(piece)
        contents = piece.tobytes() if is_array else bytes(piece)
        offset = -(-self._end // 64) * 64 + address % 64
        if not is_array:
            self._structures.append(len(self._places))
        self._places.append((address, len(contents), offset))
        self._contents.append(contents)
        self._end = offset + len(contents)

    def at(self, address: int) -> int | None:
        for start, size, offset in self._places:
            if start <= address < start + size:
                return BASE + offset + address - start
        return None

    def write(self, path: Path) -> None:
        memory = np.zeros(-(-self._end // 8) * 8, np.uint8)
        for (_, size, offset), contents in zip(self._places, self._contents, strict=True):
            memory[offset : offset + size] = np.frombuffer(contents, np.uint8)
        for index in self._structures:
            _, size, offset = self._places[index]
            words = memory[offset : offset + size // 8 * 8].view(np.uint64)
            for place, word in enumerate(words.tolist()):
                if moved := self.at(word):
                    words[place] = moved
        memory.tofile(path)

    def read(self, path: Path, like: NDArray[Any]) -> NDArray[Any]:
        """What is in the file where `like` lies here."""
        where = self.at(like.ctypes.data)
        assert where is not None
        return np.fromfile(path, like.dtype, like.size, offset=where - BASE).reshape(like.shape)


class Recorder(Team):
    """A team of one thread that writes its calls down, each with inputs and outputs of its own."""

    def __init__(self, part: CompiledStep | CompiledTexts):
        super().__init__(1)
        self.image = Image()
        self.calls: list[str] = []
        self.results: list[tuple[NDArray[Any], NDArray[Any]]] = []  # what the emulator writes into, what we computed
        self._kept: list[Any] = []
        arrays: list[Any] = [*part._memory._kept]
        if isinstance(part, CompiledStep):
            caches = part._caches
            arrays += [part._decoder, caches.cells, caches.texts, caches.text_lengths]
            arrays += {id(text.cells): text.cells for text in caches.kept if text is not None}.values()
        else:
            arrays += [part._encoder, part._cross, part._cache]
        for array in arrays:
            self.image.add(array)
        part._team = self

    def run(self, function: Callable[..., Any], arguments: ctypes.Structure, phases: int, phase_bytes: int) -> None:
        super().run(function, arguments, phases, phase_bytes)
        copy = type(arguments).from_buffer_copy(arguments)
        is_step = function.__name__ == "decode_step"
        for name, (size, dtype) in (_of_step if is_step else _of_text)(arguments).items():
            found = np.frombuffer(ctypes.string_at(getattr(arguments, name), size), dtype)
            is_output = name in ("logits", "states", "kept")
            there = np.zeros_like(found) if is_output else found.copy()
            if is_output:
                self.results.append((there, found.copy()))
            self._kept.append(there)
            self.image.add(there)
            setattr(copy, name, there.ctypes.data)
        self._kept.append(copy)
        self.image.add(copy)
        places = [self.image.at(address) for address in (ctypes.addressof(copy), phases)]
        self.calls += [function.__name__, *map(str, places), str(phase_bytes)]

    def repeat(self, emulator: list[str], path: Path) -> None:
        """Make the calls again, emulated; every result must be the same to the bit."""
        self.image.write(path)
        subprocess.run([*emulator, str(path), str(BASE), *self.calls], check=True, timeout=200)
        assert self.results
        for there, expected in self.results:
            np.testing.assert_array_equal(self.image.read(path, there), expected)


class PixelsRecorder(Team):
    """A team that computes nothing: it writes down what a decoder of another build would run."""

    def __init__(self) -> None:
        super().__init__(1)
        self.image = Image()
        self.call: list[str] = []
        self.program: Program | None = None

    def run(self, function: Callable[..., Any], arguments: ctypes.Structure, phases: int, phase_bytes: int) -> None:
        assert self.program is not None
        pieces = [arguments, self.program._operations, self.program._phases, *_pieces(self.program._kept)]
        for piece in pieces:
            self.image.add(piece)
        places = [self.image.at(address) for address in (ctypes.addressof(arguments), phases)]
        self.call = [function.__name__, *map(str, places), str(phase_bytes)]

    def repeat(self, emulator: list[str], path: Path, result: FeatureMap) -> NDArray[np.float32]:
        """`result` as the emulator computes it."""
        self.image.write(path)
        subprocess.run([*emulator, str(path), str(BASE), *self.call], check=True, timeout=200)
        return replace(result, memory=self.image.read(path, result.memory)).array()


def _pieces(kept: Any) -> list[Any]:
    """Every array and structure in it, each once."""
    found: dict[tuple[int, int], Any] = {}

    def look(thing: Any) -> None:
        if isinstance(thing, np.ndarray):
            found.setdefault((thing.ctypes.data, thing.nbytes), thing)
        elif isinstance(thing, ctypes.Structure):
            found.setdefault((ctypes.addressof(thing), ctypes.sizeof(thing)), thing)
        elif isinstance(thing, (list, tuple)):
            for part in thing:
                look(part)
        elif is_dataclass(thing):
            look([getattr(thing, field.name) for field in fields(thing)])

    look(kept)
    return list(found.values())


Sizes = dict[str, tuple[int, Any]]  # a pointer's name → bytes and type of what it points to


def _of_step(arguments: Any) -> Sizes:
    decoder, images = arguments.decoder.contents, arguments.images
    each = dict.fromkeys(("slots", "positions"), (4 * images, np.int32))
    wide = {
        "guidance": images,
        "embeddings": images * decoder.stack.width,
        "logits": 16 * images * decoder.lm_head.tiles,
    }
    return each | {name: (4 * count, np.float32) for name, count in wide.items()}


def _of_text(arguments: Any) -> Sizes:
    encoder = arguments.encoder.contents
    rows = (4 * arguments.rows * encoder.stack.width, np.float32)
    heads = encoder.kept_heads * (encoder.stack.num_layers if encoder.is_prefix else encoder.cross_layers)
    size = load_library(RUNNABLE[0]).cache_bytes(heads, arguments.length, encoder.kept_size, encoder.stack.cell)
    return {"embeddings": rows, "states": rows, "kept": (size, np.uint8)}


def compile_emulate(build: str, target: str, program: Path) -> None:
    defines = [f"-DBUILD={define_of(build)}", '-DSOURCES=""', f"-I{SOURCES}"]
    source = Path(__file__).with_name("emulate.c")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-static", *OPTIONS, *defines]
    subprocess.run([*command, "-o", program, source], check=True)
