"""What a config names: an entry of ours, or a function of the user's own as 'package.module:function'.

A config that others may have written must not name code: it would be imported and called. `check_foreign` refuses such
a config as it is read, unless one of the user's own configs names the same function in this process.
"""

import importlib
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from .errors import InputError, did_you_mean
from .runtime.files import is_foreign

_of_the_user: set[str] = set()  # names of code in the user's own configs, in this process


def look_up(name: str, known: Mapping[str, Callable], field: str) -> Callable:
    """The function that a field of a config names.

    Args:
      name: a key of `known`, or 'package.module:function'.
      known: ours.
      field: of the config, for messages.

    Raises:
      InputError: for a name that is not known, or one that cannot be imported or is no function.
    """
    if name in known:
        return known[name]
    module_name, _, attribute = name.partition(":")
    if not _names_code(name):
        raise InputError(
            f"Unknown config.{field}={name!r}.{did_you_mean(name, known)} "
            "For one of your own give 'package.module:function'."
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # anything that the module does as it is imported
        raise InputError(
            f"config.{field}={name!r}: {module_name!r} cannot be imported ({type(error).__name__}: {error}). It is "
            "looked for in the current folder, on PYTHONPATH and among the installed packages."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(
            f"config.{field}={name!r}: {module_name!r} has no function {attribute!r}."
            f"{did_you_mean(attribute, [known for known in vars(module) if not known.startswith('_')])}"
        )
    return function


KINDS = {  # the simple types of arguments: a check for a value, and the type's name in messages
    bool: (lambda value: isinstance(value, numbers.Integral) and value in (0, 1), "True or False"),
    int: (lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool), "an integer"),
    float: (lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool), "a number"),
    str: (lambda value: isinstance(value, str | os.PathLike), "a string"),
    types.NoneType: (lambda value: value is None, "None"),
}


def check_arguments(function: Callable, args: Mapping[str, Any], prefix: str = "") -> None:
    """Check arguments from a config against the simple types (bool, int, float, str, None) in a function's signature.

    Arguments with other annotations are not checked. Without one, a default of True or False counts as bool.

    Args:
      function: takes the arguments by name.
      args: the arguments.
      prefix: goes before an argument's name in messages, such as 'config.dataset.args.'.

    Raises:
      InputError: for the first argument that is not of its type.
    """
    for name, parameter in signature(function).parameters.items():
        unknown = parameter.annotation is parameter.empty
        hint = bool if unknown and isinstance(parameter.default, bool) else parameter.annotation
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if name not in args or not all(kind in KINDS for kind in kinds):
            continue
        if not any(KINDS[kind][0](args[name]) for kind in kinds):
            allowed = " or ".join(KINDS[kind][1] for kind in kinds)
            raise InputError(f"{prefix}{name}={args[name]!r} must be {allowed}.")


def signature(function: Callable) -> inspect.Signature:
    """The signature of a function, with annotations as types where they can be evaluated."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # evaluating annotations may raise anything
        return inspect.signature(function)


def trust(values: Any) -> None:
    """Allow the code that one of the user's own configs names, for other configs in this process too."""
    _of_the_user.update(_code_in(values))


def check_foreign(values: Any, origin: epath.Path) -> None:
    """Raise an InputError if a config that others may have written names code that no config of the user names.

    Every config that is read from JSON goes through here before it is resolved.

    Args:
      values: the config as JSON. All its strings are checked, in `args` too.
      origin: the config's file. A local file that was not downloaded counts as the user's own.
    """
    if not is_foreign(origin):
        return
    for name in _code_in(values):
        if name not in _of_the_user:
            raise InputError(
                f"{str(origin)!r} names code to run, {name!r}, and others may have written this file. Read that "
                "code. If you trust it, copy the folder to this machine and give the path of the copy."
            )


def _code_in(values: Any) -> Iterator[str]:
    if isinstance(values, str) and _names_code(values):
        yield values
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _code_in(value)


def _names_code(name: str) -> bool:
    """Whether this is 'package.module:function'; 'fixed_medium:0.5' is not."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])
