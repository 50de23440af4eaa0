"""Standard output and error that cannot end the program: what an encoding lacks is escaped, what nobody takes is lost.

A pipe whose reader has left, a full disk, a closed descriptor: the pictures matter more than the words about them.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


class Speech:
    """A text stream that raises no OSError. The first one is kept in `lost`; what follows it goes nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, say: Callable[[], object]) -> None:
        try:
            say()
        except OSError as error:
            if self.lost is None:
                self.lost = error
                # What is buffered would raise again at each flush, at the end of the process too.
                with suppress(OSError, ValueError):
                    _point_at_nothing(self._stream.fileno())

    @property
    def failed(self) -> bool:
        """Words were lost, and not because their reader wanted no more of them."""
        return self.lost is not None and self.lost.errno != errno.EPIPE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def forgiving() -> Iterator[tuple[Speech, Speech]]:
    """sys.stdout and sys.stderr are forgiving in the block."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    speeches = tuple(Speech(stream or Path(os.devnull).open("w")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = (cast(TextIO, speech) for speech in speeches)
    try:
        yield speeches[0], speeches[1]
    finally:
        for speech in speeches:
            speech.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """A file or socket that got number 1 or 2 would be written into."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _point_at_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)
