"""Stop on SIGINT (Ctrl-C) and SIGTERM, which the user or the scheduler sends.

A run records the first signal, saves and stops. Its signal handlers are removed when the run ends, so a notebook keeps
its own. Python runs signal handlers between two of its instructions, which may be minutes apart while a program
compiles or samples. Scripts may end on a signal, so there a separate thread reads the signals and acts at once.
"""

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from . import multihost

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RESUME_HINT = "run the same command again to resume."

_active: list["Interrupt"] = []  # the innermost last
_thread_reads_signals = False


class Interrupt:
    """Record the first SIGINT or SIGTERM within the context in `received`; stop the run at once on a second one.

    The first signal stops the run at once too if nothing would be lost. Stopping at once raises what `stopped` returns;
    in a script, it ends the process. Outside the main thread, signals are not recorded.

    Attributes:
      received: the number of the signal; 0 before the first one.
      nothing_to_save: whether all progress is saved. The run keeps this up to date.
    """

    received: int = 0
    nothing_to_save: bool = True

    def __enter__(self) -> "Interrupt":
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_handlers(_do_nothing if _thread_reads_signals else self._handle))
        _active.append(self)
        self._stack.callback(_active.remove, self)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def note(self, number: int) -> bool:
        """Record a signal. Return whether to stop at once instead."""
        if self.received or self.nothing_to_save:
            return True
        self.received = number
        print("Stopping after this update. Signal again to stop at once.", file=sys.stderr, flush=True)
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.note(number):
            raise stopped(number)


def stopped(number: int) -> BaseException:
    """The exception for a signal: KeyboardInterrupt for SIGINT, SystemExit with status 128 + number for other signals.

    >>> stopped(signal.SIGTERM).code
    143
    """
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """End the process at once on a SIGINT or SIGTERM that no run records. For scripts only.

    The exit status is 128 + number, as in shells.
    """
    global _thread_reads_signals
    reader, writer = socket.socketpair()  # on Windows, pipes cannot be non-blocking before Python 3.12
    writer.setblocking(False)

    def read() -> None:
        while number := reader.recv(1)[0]:
            if number in SIGNALS and (not _active or _active[-1].note(number)):  # a signal of another library
                _exit_at_once(number)

    thread = threading.Thread(target=read, name="signals", daemon=True)
    thread.start()
    fd_before = signal.set_wakeup_fd(writer.fileno())
    _thread_reads_signals = True
    try:
        with _handlers(_do_nothing):
            yield
    finally:
        _thread_reads_signals = False
        signal.set_wakeup_fd(fd_before)
        writer.send(b"\0")
        thread.join()
        reader.close()
        writer.close()


def _exit_at_once(number: int) -> None:
    print("Stopped. Run the same command again to finish it.", file=sys.stderr, flush=True)
    multihost.stop_others(f"signal {number}", 128 + number)
    multihost.exit_now(128 + number)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A Python handler for signals that the thread handles."""


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install a signal handler within the context. Scripts need one too, as jax.distributed handles SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
