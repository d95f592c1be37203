"""Tables of config fields: what each may hold, its default, and checking and listing values by such a table.

A table is a dict from a field's name to what it may hold:

- a value, which is the default, and whose type is the type of the field; numbers are not negative unless it is;
- a type, for a field that every config must set;
- `OneOf`, `OrNone`, `Option` or `Free`;
- another table, for a section.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .errors import InputError, did_you_mean
from .registry import signature


class OneOf(tuple):
    """The values that a field may take, its default first.

    >>> one_of("v", ("x", "eps", "v"))
    ('v', 'x', 'eps')
    """


class Free(dict):
    """A section whose fields are checked by whatever reads it; it holds their defaults, if there are any."""


@dataclasses.dataclass(frozen=True)
class OrNone:
    """A field of this type that may be None, which is the default."""

    kind: type


@dataclasses.dataclass(frozen=True)
class Option:
    """An argument of a function, which checks its range.

    Attributes:
      kind: its type; None for any.
      default: its default.
      optional: whether it may be None.
    """

    kind: type | None
    default: Any
    optional: bool = False


SIMPLE = (bool, int, float, str, tuple)


def one_of(default: Any, values: Any) -> OneOf:
    """The values that a field may take, with the default moved to the front."""
    return OneOf(dict.fromkeys((default, *values)))


def options_of(function: Callable) -> dict[str, Any]:
    """The table of a function's keyword-only arguments: their types are its annotations.

    Args:
      function: any; one that takes `**kwargs` takes any field.

    >>> def make(config, schedule, *, decay: float = 0.5, kind: typing.Literal["a", "b"] = "a"): ...
    >>> options_of(make)
    {'decay': Option(kind=<class 'float'>, default=0.5, optional=False), 'kind': ('a', 'b')}
    """
    parameters = signature(function).parameters.values()
    table = {
        parameter.name: _spec_of(parameter) for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return Free(defaults_of(table)) if takes_any else table


def _spec_of(parameter: inspect.Parameter) -> Any:
    hint, default = parameter.annotation, parameter.default
    if typing.get_origin(hint) is typing.Literal:
        values = typing.get_args(hint)
        return one_of(values[0] if default is parameter.empty else default, values)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    optional = types.NoneType in kinds
    kinds = [kind for kind in kinds if kind is not types.NoneType]
    kind = kinds[0] if len(kinds) == 1 and kinds[0] in SIMPLE else None
    if default is parameter.empty:
        return kind or object
    return Option(kind, default, optional or default is None)


def defaults_of(table: dict) -> dict:
    """The default of every field of a table; a placeholder of the field's type where it has none."""
    return {name: _default(spec) for name, spec in table.items()}


def _default(spec: Any) -> Any:
    if isinstance(spec, dict):
        return dict(spec) if isinstance(spec, Free) else defaults_of(spec)
    if isinstance(spec, OneOf):
        return spec[0]
    if isinstance(spec, Option):
        return placeholder(spec.kind or object) if spec.default is None else spec.default
    if isinstance(spec, OrNone):
        return placeholder(spec.kind)
    return placeholder(spec) if isinstance(spec, type) else spec


def add_missing(config: ConfigDict, table: dict) -> None:
    """Add to a config every field of a table that it lacks, in its sections too."""
    for name, spec in table.items():
        if name not in config:
            config[name] = _default(spec)
        elif isinstance(spec, dict) and isinstance(config[name], ConfigDict):
            add_missing(config[name], spec)


def listed(table: dict, values: dict, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the dotted name of each field, its value or else its default, and what is allowed, in words."""
    for name, spec in table.items():
        value = values.get(name)
        if isinstance(spec, Free):
            found = {f"{path}{name}.{field}": str(part) for field, part in {**spec, **(value or {})}.items()}
            yield from ((field, part, "") for field, part in (found or {f"{path}{name}": "{}"}).items())
        elif isinstance(spec, dict):
            yield from listed(spec, value or {}, f"{path}{name}.")
        else:
            yield f"{path}{name}", *_described(spec, value)


def _described(spec: Any, value: Any) -> tuple[str, str]:
    """A field's value or else its default, and what is allowed."""
    if isinstance(spec, OneOf):
        return str(spec[0] if value is None else value), f"one of {', '.join(map(str, spec))}"
    if isinstance(spec, OrNone):
        return str(value), f"{spec.kind.__name__} or None"
    if isinstance(spec, Option):
        kind = spec.kind.__name__ if spec.kind else ""
        return str(spec.default if value is None else value), kind + " or None" * (bool(kind) and spec.optional)
    if isinstance(spec, type):
        return "" if value is None else str(value), f"{spec.__name__}, must be set"
    return str(spec if value is None else value), type(spec).__name__


def fill(table: dict, values: dict, path: str = "") -> dict:
    """Check values by a table and fill in the defaults.

    Args:
      table: the fields.
      values: their values; None counts as unset.
      path: goes before a field's name in messages, such as 'train.'.

    Returns:
      A value for every field, with tuples in place of lists and floats in place of integers where the table has them.

    Raises:
      InputError: for an unknown field, or a value that the table does not allow.

    >>> fill({"name": "x", "rate": 0.5}, {"rate": 1})
    {'name': 'x', 'rate': 1.0}
    """
    for name in values:
        if name not in table:
            nearest = did_you_mean(name, table) if table else " There are none here."
            raise InputError(f"Unknown field config.{path}{name}.{nearest}")
    return {name: _value(spec, values.get(name), f"{path}{name}") for name, spec in table.items()}


def _value(spec: Any, value: Any, path: str) -> Any:
    """The value of a field, or its default, checked against its line of a table."""
    if isinstance(spec, dict):
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise InputError(f"config.{path}={value!r} must be a section with fields of its own.")
        return tuples_for_lists({**spec, **value}) if isinstance(spec, Free) else fill(spec, value, path + ".")
    if isinstance(spec, OneOf):
        value = spec[0] if value is None else value
        if value not in spec:
            raise InputError(f"config.{path}={value!r} is not one of {list(spec)}.{did_you_mean(value, spec)}")
        return value
    if value is None and isinstance(spec, type):
        raise InputError(f"config.{path} is missing: every config must set it ({spec.__name__}).")
    if value is None:
        return spec.default if isinstance(spec, Option) else None if isinstance(spec, OrNone) else spec
    if isinstance(spec, Option):
        return _of_kind(spec.kind, value, path) if spec.kind else tuples_for_lists(value)
    kind = spec.kind if isinstance(spec, OrNone) else spec if isinstance(spec, type) else type(spec)
    value = _of_kind(kind, value, path)
    if isinstance(spec, tuple) and spec:
        value = tuple(_element(type(spec[0]), element, value, path) for element in value)
    least = -math.inf if type(spec) is float and spec < 0 else 0
    if type(value) in (int, float) and not value >= least:
        raise InputError(f"config.{path}={value!r} must not be negative.")
    return value


def _of_kind(kind: type, value: Any, path: str) -> Any:
    """The value, checked to be of this type; an integer is a float too, and a list a tuple."""
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if type(value) is not kind and kind is not object:
        raise InputError(f"config.{path}={value!r} must be of type {kind.__name__}.")
    return value


def _element(kind: type, element: Any, value: tuple, path: str) -> Any:
    """An element of a tuple, checked to be of the one type that the field's default holds."""
    if kind is float and type(element) is int:
        element = float(element)
    if type(element) is not kind:
        raise InputError(f"config.{path}={value!r} must hold values of type {kind.__name__}; {element!r} is not.")
    return element


def tuples_for_lists(value: Any) -> Any:
    """The value with tuples in place of the lists that JSON has, in sections too.

    >>> tuples_for_lists({"ch_mult": [1, 2]})
    {'ch_mult': (1, 2)}
    """
    if isinstance(value, dict):
        return {name: tuples_for_lists(part) for name, part in value.items()}
    return tuple(map(tuples_for_lists, value)) if isinstance(value, list | tuple) else value
