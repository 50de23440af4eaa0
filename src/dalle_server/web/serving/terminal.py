"""What the process says: words for people on standard output, log lines on standard error.

Either may be closed, full, or a pipe that nobody reads; no request and no signal may ever wait for one of them.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import sys
import threading
from typing import TextIO

MOST_LINES = 10_000  # kept while nobody reads; beyond it lines are dropped, and counted
GATHER_S = 0.01  # that lines wait for others: a burst of them must not take turns at the interpreter with its requests
LAST_LINES_S = 1.0  # for the rest to be written at the end


class Terminal:
    """Writes lines in a thread of its own. Safe from any thread, and from signal handlers."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()  # it may be used in signals
        self._closing = threading.Event()
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="terminal", daemon=True)
        self._out, self._err = (_descriptor(stream) for stream in (sys.stdout, sys.stderr))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what is left, unless nobody reads it."""
        self._lines.put(None)
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(LAST_LINES_S)

    def say(self, text: str) -> None:
        """A line on standard output."""
        self._put(self._out, text)

    def complain(self, text: str) -> None:
        """A line on standard error."""
        self._put(self._err, text)

    def _put(self, descriptor: int | None, text: str) -> None:
        if descriptor is None:
            return
        if self._lines.qsize() < MOST_LINES:
            self._lines.put((descriptor, text.encode("utf-8", "backslashreplace") + b"\n"))
        else:
            self._num_dropped += 1

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._num_dropped and self._err is not None:
                dropped, self._num_dropped = self._num_dropped, 0
                _write(self._err, f"{dropped} lines were dropped here: nobody read this output\n".encode())
            _write(*line)
            if self._lines.empty():
                self._closing.wait(GATHER_S)


class TerminalHandler(logging.Handler):
    """Log records as lines on standard error."""

    def __init__(self, terminal: Terminal):
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._terminal.complain(self.format(record))
        except Exception:
            self.handleError(record)


def hold_standard_streams() -> None:
    """Where one is closed, the next socket would get its number, and a library's message would go to a client."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def _descriptor(stream: TextIO | None) -> int | None:
    """Of a stream that is there; a process may be started without."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def _write(descriptor: int, data: bytes) -> None:
    """A full disk and a pipe without a reader lose the line, not the server."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]
