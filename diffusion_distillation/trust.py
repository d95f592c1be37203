"""Which code configs may name: a downloaded config must not name code, which would be imported and called.

`check_foreign` rejects such a config when it is read, unless one of the user's own configs names the same function in
this process (`trust`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from .errors import InputError
from .registry import names_code
from .runtime.files import is_foreign

_trusted: set[str] = set()  # functions that the user's own configs name, in this process


def trust(values: Any) -> None:
    """Allow the functions that one of the user's own configs names, for every config in this process."""
    _trusted.update(_code_in(values))


def check_foreign(values: Any, origin: epath.Path) -> None:
    """Raise an InputError if a downloaded config names a function that none of the user's own configs names.

    Call it with every config that is read from JSON, before the config is resolved.

    Args:
      values: the config as JSON. All its strings are checked, in `args` too.
      origin: the config's file. A local file that was not downloaded counts as the user's own.
    """
    if not is_foreign(origin):
        return
    for name in _code_in(values):
        if name not in _trusted:
            raise InputError(
                f"{str(origin)!r} names code to run, {name!r}, and others may have written this file. Read that "
                "code. If you trust it, copy the folder to this machine and use the path of the copy."
            )


def _code_in(values: Any) -> Iterator[str]:
    """Yield every string of a config that names a function."""
    if isinstance(values, str) and names_code(values):
        yield values
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _code_in(value)
