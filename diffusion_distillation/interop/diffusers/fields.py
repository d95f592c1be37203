"""Check the fields of diffusers' JSON configs."""

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import InputError

VERSION = "0.42.1"  # of diffusers, which our files are written for


def header(class_name: str) -> dict[str, Any]:
    """The fields that every config of diffusers starts with."""
    return {"_class_name": class_name, "_diffusers_version": VERSION}


def with_defaults(
    values: Mapping[str, Any], defaults: Mapping[str, Any], allowed: Mapping[str, Collection[Any]], origin: str
) -> dict[str, Any]:
    """Fill in the defaults of a config.

    Args:
      values: the config.
      defaults: the values that diffusers uses for missing fields.
      allowed: the supported values of some fields.
      origin: the config's file, for error messages.

    Raises:
      InputError: if a field has a value that is not supported.

    >>> with_defaults({"act_fn": "silu"}, {"dropout": 0.0}, {"act_fn": ("silu",)}, "config.json")
    {'_class_name': None, 'dropout': 0.0, 'act_fn': 'silu'}
    """
    filled = {"_class_name": None, **defaults, **values}
    for name, choices in allowed.items():
        if filled[name] not in choices:
            raise InputError(f"{origin}: {name}={filled[name]!r} is not supported. Supported: {list(choices)}.")
    return filled


def check_integer(value: Any, name: str, origin: str, *, least: int = 1) -> int:
    """Return a field's value if it is an integer of at least `least`; raise an InputError if not."""
    if type(value) is not int or value < least:
        raise InputError(f"{origin}: {name}={value!r} must be an integer of at least {least}.")
    return value
