"""Stopping when the user or the scheduler asks: SIGINT (Ctrl-C) and SIGTERM.

A run records the first signal, saves and stops. Its signal handlers are removed when the run ends, so a notebook keeps
its own. Python runs signal handlers between two of its instructions, which may be minutes apart while a program
compiles or samples are drawn. So in scripts, which a signal may end, a separate thread reads the signals and acts at
once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from . import multihost

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RESUME_HINT = "run the same command again to go on."

_at_work: list["Interrupt"] = []  # the innermost last
_a_thread_reads = False


class Interrupt:
    """Within the context, the first SIGINT or SIGTERM is recorded in `received`; a second one stops the run at once.

    The first one stops the run at once too if nothing would be lost. Stopping at once raises what `stopped` returns; in
    a script, it ends the process. Outside the main thread, signals are not recorded.

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
        """Record a signal. Returns whether to stop at once instead."""
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
    """End the process at once on a SIGINT or SIGTERM that no run records, with the exit status that shells use.

    This is for scripts only.
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
    print(f"Stopped; {RESUME_HINT}", file=sys.stderr, flush=True)
    multihost.stop_others(f"signal {number}", 128 + number)
    multihost.exit_now(128 + number)


def _left_to_the_thread(number: int, frame: FrameType | None) -> None:
    """A Python handler that does nothing, as a thread reads the signals."""


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install a signal handler within the context. Scripts need it too, as jax.distributed takes SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # where signals are not ours to handle
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
