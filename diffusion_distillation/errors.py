"""Errors that scripts print without a traceback: wrong inputs, and failures of a run."""

import difflib
import errno
from collections.abc import Iterable
from typing import Any

CLOSE = 0.65  # similarity of a name that is suggested; difflib's own 0.6 suggests 'claims' for 'list'
# Errors that do not come from the file: the file system fails for a moment, or the machine lacks memory or handles.
TRANSIENT = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "EINTR", "EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "ENOBUFS", "EREMOTEIO",
        "ENOTCONN", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN",
        "ENETUNREACH",
    )
    if hasattr(errno, name)
}  # fmt: skip


class InputError(ValueError):
    """An input cannot work. The message says what is wrong, what is allowed and what to do.

    Scripts print only the message and exit with status 2.
    """


class RunError(RuntimeError):
    """A run cannot continue. The message says why, and what is left of the run.

    Scripts print only the message and exit with status 1. Any other error is a bug, and keeps its traceback.
    """


class DivergedError(RunError):
    """The updates of a training run are no longer finite."""


def is_transient(error: BaseException) -> bool:
    """Whether an error comes from the machine or its storage, not from the file. A later attempt may succeed.

    >>> is_transient(MemoryError()), is_transient(FileNotFoundError())
    (True, False)
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in TRANSIENT)


def did_you_mean(name: Any, names: Iterable[Any]) -> str:
    """A sentence for the end of a message: the nearest known name, or all known names if none is near.

    >>> did_you_mean("digts", ["digits", "MNIST"])
    " Did you mean 'digits'?"
    >>> did_you_mean("cars", ["digits", "MNIST"])
    ' Known: digits, MNIST.'
    >>> did_you_mean("list", ["claims", "train"])
    ' Known: claims, train.'
    """
    names = [str(known) for known in names]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=CLOSE)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(names)}."
