"""Tables of config fields: to check the values of a config, fill in its defaults, and list its fields.

A table maps the name of a field to its specification:

- a value: the field's default. Its type is the field's type, and a number must not be negative unless the default is;
- a type: every config must set this field;
- `OneOf`, `OrNone` or `Option`: a field with other rules;
- a table: a section of fields;
- `Free`: a section of any fields.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from .errors import InputError, did_you_mean
from .registry import signature
from .runtime.files import tuples_for_lists


class OneOf(tuple):
    """The allowed values of a field, the default first."""


class Free(dict):
    """A section of any fields, with the defaults of some. The function that receives the fields checks them."""


@dataclasses.dataclass(frozen=True)
class OrNone:
    """A field of this type or None. The default is None."""

    kind: type


@dataclasses.dataclass(frozen=True)
class Option:
    """A keyword argument of a function. The function checks its range.

    Attributes:
      kind: its type; None for any type.
      default: its default.
      optional: whether None is allowed.
    """

    kind: type | None
    default: Any
    optional: bool = False


SIMPLE = (bool, int, float, str, tuple)


def one_of(default: Any, values: Any) -> OneOf:
    """Return the allowed values of a field, with the default moved to the front.

    >>> one_of("v", ("x", "eps", "v"))
    ('v', 'x', 'eps')
    """
    return OneOf(dict.fromkeys((default, *values)))


def options_of(function: Callable) -> dict[str, Any]:
    """Return the table of a function's keyword-only arguments.

    Args:
      function: any function. Annotations of bool, int, float, str, tuple, Literal and `| None` are checked; arguments
        with other annotations take any value.

    Returns:
      A table with one field per keyword-only argument. It is a `Free` section if the function takes `**kwargs`.

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


def attributes_of(cls: type, omit: Collection[str] = ()) -> dict[str, Any]:
    """Return the table of a dataclass's attributes, such as those of a Flax module.

    Args:
      cls: the class. Its annotations are checked as those of `options_of`; sequences become tuples.
      omit: attributes that are not fields.

    >>> @dataclasses.dataclass
    ... class Network:
    ...     widths: Sequence[int]
    ...     depth: int = 2
    >>> attributes_of(Network)
    {'widths': <class 'tuple'>, 'depth': Option(kind=<class 'int'>, default=2, optional=False)}
    """
    return {name: _spec_of(parameter) for name, parameter in signature(cls).parameters.items() if name not in omit}


def _spec_of(parameter: inspect.Parameter) -> Any:
    """The specification of the field for an argument."""
    hint, default = parameter.annotation, parameter.default
    if typing.get_origin(hint) is typing.Literal:
        values = typing.get_args(hint)
        return one_of(values[0] if default is parameter.empty else default, values)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    optional = types.NoneType in kinds
    kinds = [typing.get_origin(kind) or kind for kind in kinds if kind is not types.NoneType]
    kinds = [tuple if kind is Sequence else kind for kind in kinds]
    kind = kinds[0] if len(kinds) == 1 and kinds[0] in SIMPLE else None
    if default is parameter.empty:
        return kind or object
    return Option(kind, default, optional or default is None)


def defaults_of(table: dict) -> dict:
    """Return the default of every field of a table, or a placeholder of its type if it has no default."""
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
    """Add the fields of a table that a config lacks, with their defaults, in sections too."""
    for name, spec in table.items():
        if name not in config:
            config[name] = _default(spec)
        elif isinstance(spec, dict) and isinstance(config[name], ConfigDict):
            add_missing(config[name], spec)


def list_fields(table: dict, values: dict, path: str = "") -> Iterator[tuple[str, str, str]]:
    """List the fields of a table.

    Args:
      table: the fields.
      values: their values. A field without a value is listed with its default.
      path: prefix of the names, such as 'train.'.

    Yields:
      The dotted name of each field, its value, and a description of the allowed values.

    >>> list(list_fields({"name": "x", "kind": one_of("a", "ab")}, {"name": "y"}))
    [('name', 'y', 'str'), ('kind', 'a', 'one of a, b')]
    """
    for name, spec in table.items():
        value = values.get(name)
        if isinstance(spec, Free):
            fields = {**spec, **(value or {})}
            yield from ((f"{path}{name}.{field}", str(part), "") for field, part in fields.items())
            if not fields:
                yield f"{path}{name}", "{}", ""
        elif isinstance(spec, dict):
            yield from list_fields(spec, value or {}, f"{path}{name}.")
        else:
            yield f"{path}{name}", *_describe(spec, value)


def _describe(spec: Any, value: Any) -> tuple[str, str]:
    """The value of a field, or its default if it has none, and a description of the allowed values."""
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
    """Check values against a table and fill in the defaults.

    Args:
      table: the fields.
      values: their values; None counts as unset.
      path: prefix of the names in messages, such as 'train.'.

    Returns:
      A value for every field. Lists become tuples and integers become floats if the field's type requires it.

    Raises:
      InputError: for an unknown field, or a value that is not allowed.

    >>> fill({"name": "x", "rate": 0.5}, {"rate": 1})
    {'name': 'x', 'rate': 1.0}
    """
    for name in values:
        if name not in table:
            hint = did_you_mean(name, table) if table else f" config.{path[:-1]} takes no fields."
            raise InputError(f"Unknown field config.{path}{name}.{hint}")
    return {name: _value(spec, values.get(name), f"{path}{name}") for name, spec in table.items()}


def _value(spec: Any, value: Any, path: str) -> Any:
    """The value of a field, checked against its specification, or its default."""
    if isinstance(spec, dict):
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise InputError(f"config.{path}={value!r} must be a section of fields, not a value.")
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
    """The value, checked to be of this type. An integer becomes a float, and a list a tuple, if the type is one."""
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if type(value) is not kind and kind is not object:
        raise InputError(f"config.{path}={value!r} must be of type {kind.__name__}.")
    return value


def _element(kind: type, element: Any, value: tuple, path: str) -> Any:
    """An element of a field's tuple, checked to be of this type. An integer becomes a float if the type is float."""
    if kind is float and type(element) is int:
        element = float(element)
    if type(element) is not kind:
        raise InputError(f"config.{path}={value!r} must contain values of type {kind.__name__}, not {element!r}.")
    return element
