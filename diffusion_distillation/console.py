"""What a run prints. A run does not live by it: what nobody can read any more is dropped, and the run continues."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

_in_place = 0  # the length of the progress line that the cursor of the terminal is behind; 0 for none


# The reader is gone or the disk is full; a signal handler prints while the stream is being written; it is closed.
UNWRITABLE = (OSError, RuntimeError, ValueError)


class Steady:
    """A text stream that never raises, as for a pipe whose reader is gone, or for a full disk.

    On a terminal it clears the progress line before anything else is printed.

    Args:
      stream: sys.stdout or sys.stderr; None where it is closed.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text, or drops it."""
        if self._stream is not None:
            _clear(self)
            with contextlib.suppress(*UNWRITABLE):
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:  # as of a file name that is not UTF-8
                    encoding = self._stream.encoding
                    self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if anybody reads it."""
        if self._stream is not None:
            with contextlib.suppress(*UNWRITABLE):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_steady() -> None:
    """Makes stdout and stderr `Steady` until the process ends, Python's own last flush included."""
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, Steady) else Steady(stream) for stream in (sys.stdout, sys.stderr)
    )


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Makes stdout and stderr `Steady` within the context."""
    before = sys.stdout, sys.stderr
    make_steady()
    try:
        yield
    finally:
        if _in_place:
            _clear(sys.stdout)
        sys.stdout, sys.stderr = before


def show_progress(line: str, *, last: bool) -> None:
    """Prints a progress line; on a terminal in place of the one before, and only the last one stays."""
    global _in_place
    if not sys.stdout.isatty():
        print(line, flush=True)
        return
    line = line[: shutil.get_terminal_size().columns - 1]  # of a line that wraps, only the end could be cleared
    print(line, end="\n" if last else "", flush=True)
    _in_place = 0 if last else len(line)


def _clear(stream: Any) -> None:
    """Clears the progress line, if there is one and the stream is on a terminal, as the progress line is."""
    global _in_place
    if _in_place and stream.isatty():
        blank, _in_place = " " * _in_place, 0
        sys.stdout.write(f"\r{blank}\r")
        sys.stdout.flush()
