"""Frozen dataclasses as plain JSON and back, by their annotations: what all stored results share.

`value_from_json` is the inverse of `to_json` and ignores keys it does not know, so that a newer file of the same schema
can still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from harness.errors import UsageError

_Kind = TypeVar("_Kind")
_AS_THEY_ARE = frozenset({str, int, float, bool, NoneType})


def to_json(value: Any) -> Any:
    """A result as plain dicts, lists, strings, numbers: what `json.dumps` takes. Key order is the dataclass's."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return str(value) if isinstance(value, StrEnum) else value


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind))


def value_from_json(kind: type[_Kind], data: Any, where: str) -> _Kind:
    """A value of one of the dataclasses that `to_json` writes; UsageError, naming the place, when it is none."""
    hint: Any = kind
    value: _Kind = _decoder(hint)(data, where)
    return value


_Decode = Callable[[Any, str], Any]


@cache
def _decoder(hint: Any) -> _Decode:
    """How to read JSON into a value annotated `hint`; built once each, since a run holds many thousands."""
    if is_dataclass(hint):
        return _dataclass_decoder(hint)
    if get_origin(hint) is tuple:
        return _tuple_decoder(_decoder(get_args(hint)[0]))
    if isinstance(hint, UnionType):
        return _union_decoder(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum_decoder(hint)
    return _plain_decoder(get_origin(hint) or hint)


def _dataclass_decoder(hint: Any) -> _Decode:
    hints = get_type_hints(hint)
    plan = [
        (item.name, _decoder(hints[item.name]), item.default is MISSING and item.default_factory is MISSING)
        for item in fields(hint)
    ]

    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise _mismatch(where, "an object", data)
        missing = [name for name, _, required in plan if required and name not in data]
        if missing:
            message = f"{where}: no {missing[0]!r}"
            raise UsageError(message)
        return hint(**{name: read(data[name], f"{where}.{name}") for name, read, _ in plan if name in data})

    return decode


def _tuple_decoder(item: _Decode) -> _Decode:
    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, list):
            raise _mismatch(where, "a list", data)
        return tuple(item(value, f"{where}[{number}]") for number, value in enumerate(data))

    return decode


def _union_decoder(hint: UnionType) -> _Decode:
    members = [member for member in get_args(hint) if member is not NoneType]
    if len(members) > 1:  # only ever plain types: int | str | None
        return _plain_decoder(*members, NoneType)
    inner = _decoder(members[0])
    return lambda data, where: None if data is None else inner(data, where)


def _enum_decoder(hint: type[StrEnum]) -> _Decode:
    members = {str(member): member for member in hint}

    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, str) or data not in members:
            raise _mismatch(where, f"one of {', '.join(members)}", data)
        return members[data]

    return decode


def _plain_decoder(*types: Any) -> _Decode:
    accepted = (*types, int) if float in types else types

    def decode(data: Any, where: str) -> Any:
        if Any not in accepted and not isinstance(data, accepted):
            raise _mismatch(where, " or ".join(kind.__name__ for kind in types), data)
        return data

    return decode


def _mismatch(where: str, wanted: str, data: Any) -> UsageError:
    return UsageError(f"{where}: {wanted} wanted, found {type(data).__name__} {str(data)[:40]!r}")
