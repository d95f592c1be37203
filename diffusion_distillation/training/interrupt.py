"""Stopping when the user or the scheduler asks: SIGINT (Ctrl-C) and SIGTERM."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While in use, SIGINT and SIGTERM are noted in `received` instead of ending the process; a second one ends it."""

    received: int = 0

    def __enter__(self) -> "Interrupt":
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere signals are not ours to handle
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def exit(self, number: int, message: str) -> None:
        """Ends the process with the message and the status that shells give to the signal."""
        print(message, file=sys.stderr, flush=True)
        sys.exit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        print("Stopping after this step; once more to stop at once.", file=sys.stderr, flush=True)
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the process with a message and 128 + the signal's number, wherever it is; all is saved."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        print("Stopped; run the same command again to go on.", file=sys.stderr, flush=True)
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
