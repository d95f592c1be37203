"""The errors that scripts print without a traceback: for what a user gave, and for what befell a run."""

import difflib
import errno
from collections.abc import Iterable
from typing import Any

# Errors for sound files, from a file system that fails for a moment or a machine short of memory or file handles.
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
    """Something given to us cannot work; the message says what was given, what is allowed and what to do.

    Scripts print the message alone and exit with status 2.
    """


class RunError(RuntimeError):
    """A run cannot go on; the message says why, and what is left of it.

    Scripts print the message alone and exit with status 1. Any other error is a bug, and keeps its traceback.
    """


class DivergedError(RunError):
    """A training whose updates are not finite any more."""


def is_transient(error: BaseException) -> bool:
    """Whether an error comes from the machine or its storage, not from the file: a later read may succeed."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in TRANSIENT)


def did_you_mean(name: Any, names: Iterable[Any]) -> str:
    """A sentence for the end of a message: the nearest of the names that would do, or all of them."""
    names = [str(known) for known in names]
    close = difflib.get_close_matches(str(name), names, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known here: {', '.join(names)}."
