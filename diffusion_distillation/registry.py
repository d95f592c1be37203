"""Find the function that a config names: one of the package's, or the user's as 'package.module:function'.

A downloaded config must not name code: see `trust`.
"""

import importlib
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from .errors import InputError, did_you_mean


def look_up(name: str, known: Mapping[str, Callable], field: str) -> Callable:
    """Return the function that a field of a config names.

    Args:
      name: a key of `known`, or 'package.module:function'.
      known: the package's own functions, by name.
      field: the dotted name of the field, for messages.

    Raises:
      InputError: for an unknown name, or a name that cannot be imported or is not a function.

    >>> look_up("math:sqrt", {}, "model.name")(4)
    2.0
    """
    if name in known:
        return known[name]
    module_name, _, attribute = name.partition(":")
    if not names_code(name):
        raise InputError(
            f"Unknown config.{field}={name!r}.{did_you_mean(name, known)} "
            "To use a function of your own, set 'package.module:function'."
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing a module may raise anything
        raise InputError(
            f"config.{field}={name!r}: {module_name!r} cannot be imported ({type(error).__name__}: {error}). Modules "
            "are imported from the current folder, PYTHONPATH and the installed packages."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(
            f"config.{field}={name!r}: {module_name!r} has no function {attribute!r}."
            f"{did_you_mean(attribute, [public for public in vars(module) if not public.startswith('_')])}"
        )
    return function


KINDS = {  # for each simple type, whether a value is of this type, and the type's name in messages
    bool: (lambda value: isinstance(value, numbers.Integral) and value in (0, 1), "True or False"),
    int: (lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool), "an integer"),
    float: (lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool), "a number"),
    str: (lambda value: isinstance(value, str | os.PathLike), "a string"),
    types.NoneType: (lambda value: value is None, "None"),
}


def check_arguments(function: Callable, args: Mapping[str, Any], prefix: str = "") -> None:
    """Check arguments from a config against the simple types (bool, int, float, str, None) in a function's signature.

    An argument with another annotation is not checked. An argument without annotation is checked as a bool if its
    default is one.

    Args:
      function: the function that the arguments are for.
      args: the arguments by name.
      prefix: prefix of the names in messages, such as 'config.dataset.args.'.

    Raises:
      InputError: for the first argument that is not of its type.

    >>> def folder(path: str, image_size: int): ...
    >>> check_arguments(folder, {"path": "images", "image_size": "64"}, "config.dataset.args.")
    Traceback (most recent call last):
    diffusion_distillation.errors.InputError: config.dataset.args.image_size='64' must be an integer.
    """
    for name, parameter in signature(function).parameters.items():
        untyped = parameter.annotation is parameter.empty
        hint = bool if untyped and isinstance(parameter.default, bool) else parameter.annotation
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if name not in args or not all(kind in KINDS for kind in kinds):
            continue
        if not any(KINDS[kind][0](args[name]) for kind in kinds):
            allowed = " or ".join(KINDS[kind][1] for kind in kinds)
            raise InputError(f"{prefix}{name}={args[name]!r} must be {allowed}.")


def signature(function: Callable) -> inspect.Signature:
    """Return the signature of a function, with its annotations evaluated if they can be."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # evaluating an annotation may raise anything
        return inspect.signature(function)


def names_code(name: str) -> bool:
    """Return whether a string has the form 'package.module:function'.

    >>> names_code("my_data:stripes"), names_code("fixed_medium:0.5")
    (True, False)
    """
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])
