"""Print messages and progress. A run does not depend on its output: text that cannot be written is dropped."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

# The reader is gone or the disk is full; a signal handler prints during a write; the stream is closed.
UNWRITABLE = (OSError, RuntimeError, ValueError)

_progress_length = 0  # characters of the progress line on the terminal; 0 if there is none


class SafeStream:
    """A text stream that never raises, even if the reader of its pipe is gone or the disk is full.

    On a terminal, it clears the progress line before it prints anything else.

    Args:
      stream: sys.stdout or sys.stderr; None if it is closed.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or drop it if it cannot be written."""
        if self._stream is not None:
            _clear(self)
            with contextlib.suppress(*UNWRITABLE):
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:  # such as for a file name that is not UTF-8
                    encoding = self._stream.encoding
                    self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible."""
        if self._stream is not None:
            with contextlib.suppress(*UNWRITABLE):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install_safe_output() -> None:
    """Make stdout and stderr a `SafeStream` until the process ends, including Python's flush at exit."""
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, SafeStream) else SafeStream(stream) for stream in (sys.stdout, sys.stderr)
    )


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Make stdout and stderr a `SafeStream` within the context."""
    before = sys.stdout, sys.stderr
    install_safe_output()
    try:
        yield
    finally:
        if _progress_length:
            _clear(sys.stdout)
        sys.stdout, sys.stderr = before


def show_progress(line: str, *, last: bool) -> None:
    """Print a progress line. On a terminal, each one replaces the previous one, and only the last one stays."""
    global _progress_length
    if not sys.stdout.isatty():
        print(line, flush=True)
        return
    line = line[: shutil.get_terminal_size().columns - 1]  # if a line wraps, only its end can be cleared
    print(line, end="\n" if last else "", flush=True)
    _progress_length = 0 if last else len(line)


def _clear(stream: Any) -> None:
    """Clear the progress line, if there is one and the stream is on the same terminal."""
    global _progress_length
    if _progress_length and stream.isatty():
        blank = " " * _progress_length
        _progress_length = 0
        sys.stdout.write(f"\r{blank}\r")
        sys.stdout.flush()
