"""Stopping when the user or the scheduler asks: SIGINT (Ctrl-C) and SIGTERM.

A run only notes the first signal, and saves; nothing of that outlasts the run, in a notebook say. Python runs signal
handlers between two of its own instructions, which may be minutes away while a program is being compiled or samples
are drawn. So in our scripts, which a signal may end, a thread of its own reads what came, and acts at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from .. import multihost

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GO_ON = "run the same command again to go on."

_at_work: list["Interrupt"] = []  # the innermost last
_a_thread_reads = False


class Interrupt:
    """While in use, the first SIGINT or SIGTERM is noted in `received`; a second one stops the run at once.

    So does the first, where nothing would be lost by it. To stop at once is to raise what `stopped` returns, or in a
    script to end the process. Outside of the main thread signals are not noted.

    Attributes:
      received: the number of the signal; 0 before there was one.
      nothing_to_save: whether all that was done is saved.
    """

    received: int = 0
    nothing_to_save: bool = True

    def __enter__(self) -> "Interrupt":
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_handlers(_left_to_the_thread if _a_thread_reads else self._handle))
        _at_work.append(self)
        self._stack.callback(_at_work.remove, self)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def note(self, number: int) -> bool:
        """Takes note of a signal; returns whether to stop at once instead."""
        if self.received or self.nothing_to_save:
            return True
        self.received = number
        print("Stopping after this step; once more to stop at once.", file=sys.stderr, flush=True)
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.note(number):
            raise stopped(number)


def stopped(number: int) -> BaseException:
    """What a signal raises: KeyboardInterrupt for SIGINT, SystemExit with 128 + number for others."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Ends the process at once on SIGINT and SIGTERM that no run notes, with the status that shells give to the signal.

    This is for scripts alone.
    """
    global _a_thread_reads
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def read() -> None:
        while number := os.read(reader, 1)[0]:
            if number in SIGNALS and (not _at_work or _at_work[-1].note(number)):  # other signals are not ours
                _exit_at_once(number)

    thread = threading.Thread(target=read, name="signals", daemon=True)
    thread.start()
    fd_before = signal.set_wakeup_fd(writer)
    _a_thread_reads = True
    try:
        with _handlers(_left_to_the_thread):
            yield
    finally:
        _a_thread_reads = False
        signal.set_wakeup_fd(fd_before)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


def _exit_at_once(number: int) -> None:
    print(f"Stopped; {GO_ON}", file=sys.stderr, flush=True)
    multihost.tell_others(f"signal {number}", 128 + number)
    multihost.exit_now(128 + number)


def _left_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Python's own handler, where a thread reads signals."""


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Gives signals to this handler until the end of the context. In a script too: jax.distributed takes SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # where signals are not ours to handle
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
