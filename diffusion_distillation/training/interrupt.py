"""Stopping when the user or the scheduler asks: SIGINT (Ctrl-C) and SIGTERM.

Python runs its signal handlers between two of its own instructions, which may be minutes away while a program is being
compiled or samples are drawn. Here a thread of its own reads what came, and acts at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from .. import multihost

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GO_ON = "run the same command again to go on."

_handlers: list[Callable[[int], None]] = []


class Interrupt:
    """While in use, the first SIGINT or SIGTERM is noted in `received`; a second one ends the process at once.

    So does the first, where nothing would be lost by it.

    Attributes:
      received: the number of the signal; 0 before there was one.
      nothing_to_save: whether all that was done is saved.
    """

    received: int = 0
    nothing_to_save: bool = True

    def __enter__(self) -> "Interrupt":
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_handling(self._note))
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _note(self, number: int) -> None:
        if self.received or self.nothing_to_save:
            _exit_at_once(number)
        self.received = number
        print("Stopping after this step; once more to stop at once.", file=sys.stderr, flush=True)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the process at once, with a message and the status that shells give to the signal."""
    with _handling(_exit_at_once):
        yield


def _exit_at_once(number: int) -> None:
    print(f"Stopped; {GO_ON}", file=sys.stderr, flush=True)
    multihost.tell_others(f"signal {number}", 128 + number)
    multihost.exit_now(128 + number)


@contextlib.contextmanager
def _handling(handler: Callable[[int], None]) -> Iterator[None]:
    """Gives signals to this handler, in a thread of its own, until the end of the context."""
    if threading.current_thread() is not threading.main_thread():  # where signals are not ours to handle
        yield
        return
    with contextlib.ExitStack() as stack:
        _handlers.append(handler)
        stack.callback(_handlers.pop)
        if len(_handlers) == 1:
            stack.enter_context(_reading_signals())
        for number in SIGNALS:  # again each time: jax.distributed takes SIGTERM for itself
            signal.signal(number, lambda *_: None)
        yield


@contextlib.contextmanager
def _reading_signals() -> Iterator[None]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def read() -> None:
        while number := os.read(reader, 1)[0]:
            _handlers[-1](number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    fd_before = signal.set_wakeup_fd(writer)
    thread = threading.Thread(target=read, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
