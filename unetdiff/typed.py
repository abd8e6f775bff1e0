"""Dataclasses that check themselves: types, ranges, and the way to JSON and back. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type hint; the containers here are JSON's, so a list may stand for any sequence."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is type(None):
        return hint is Any or value is None
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in inner)
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping) and all(fits(entry, inner[1]) for entry in value.values())
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin is not None:
        return isinstance(value, (list, tuple, frozenset)) and all(fits(entry, inner[0]) for entry in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _expected(hint: Any) -> str:
    """A type hint in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(_expected(choice) for choice in inner)
    if origin in (Mapping, dict):
        return "settings by name"
    if origin is not None:
        return f"a list ({_expected(inner[0])})"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


_hints = cache(get_type_hints)  # slow, and asked for at every value


def check_types(value: Any) -> None:
    """Raise `ValueError` where a field of the dataclass `value` is not of its type, with what was expected.

    Dataclasses do not check; settings files, Python callers and JSON all pass through here.
    """
    for name, hint in _hints(type(value)).items():
        held = getattr(value, name)
        if not fits(held, hint):
            raise ValueError(f"{name} is {held!r}; expected {_expected(hint)}")


def check_at_least(value: Any, least: float, *names: str) -> None:
    """Raise `ValueError` where one of the named fields of a dataclass is a number below `least`."""
    for name in names:
        held = getattr(value, name)
        if held is not None and held < least:
            raise ValueError(f"{name} is {held}; expected at least {least}")


def changed_fields(value: Any) -> list[str]:
    """The fields of a dataclass that differ from their defaults."""
    plain_values = {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(value)
    }
    return [name for name, default in plain_values.items() if getattr(value, name) != default]


def from_json(kind: type[T], value: Mapping[str, Any]) -> T:
    """Build the dataclass `kind` from a JSON object; a key it does not have is a `ValueError` that names it."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind.__name__} is {value!r}; expected settings by name")
    known = {entry.name for entry in fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ValueError(f"{kind.__name__} has no setting {unknown[0]!r}; it has: {', '.join(sorted(known))}")
    return kind(**value)


def plain(value: Any) -> Any:
    """Tuples and sets as lists, dataclasses as objects: what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value
