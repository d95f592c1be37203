"""What a config names: an entry of ours, or a function of the user's own as 'package.module:function'."""

import importlib
from collections.abc import Callable, Mapping

from .errors import InputError, did_you_mean


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
    module_name, colon, attribute = name.partition(":")
    if not colon:
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
