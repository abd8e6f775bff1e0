"""The constructor arguments of another library: completed by its defaults, and refused by name where unsupported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

from unetdiff.typed import check_types, plain


def defaults(kind: type) -> dict[str, Any]:
    """The arguments that a constructor does not need to be given, with their values."""
    return {entry.name: entry.default for entry in fields(kind) if entry.default is not MISSING}


def complete(network: str, given: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """`given` with the library's defaults for what it leaves out.

    Args:
        network: what to call the network in an error.
        given: arguments by name.
        kind: a dataclass whose fields are the constructor's arguments, with their types and defaults.

    Raises:
        ValueError: an argument that the network does not have, that it needs and is not given, or of another type.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{network}: the arguments are {type(given).__name__}; expected them by name")
    known, optional = [entry.name for entry in fields(kind)], defaults(kind)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{network} has no argument {unknown[0]!r}; it has: {', '.join(known)}")
    missing = [name for name in known if name not in optional and name not in given]
    if missing:
        raise ValueError(f"{network} needs the argument {missing[0]!r}")
    arguments = {name: plain(given.get(name, optional.get(name))) for name in known}
    try:
        check_types(kind(**arguments))
    except ValueError as error:
        raise ValueError(f"{network}: {error}") from error
    return arguments


def require_positive(network: str, arguments: Mapping[str, Any], *names: str) -> None:
    """Raise `ValueError`, naming it, for an argument that is not a positive number, or a list of at least one."""
    for name in names:
        held = arguments[name]
        numbers = held if isinstance(held, list) else [held]
        if not numbers or any(number is not None and number < 1 for number in numbers):
            raise ValueError(f"{network}: {name} is {held!r}; expected at least 1")


def refuse(network: str, arguments: Mapping[str, Any], supported: Mapping[str, Collection[Any]]) -> None:
    """Raise `ValueError`, naming it, for an argument whose value is none of those supported."""
    for name, values in supported.items():
        if arguments[name] not in values:
            expected = " or ".join(repr(value) for value in values)
            raise ValueError(f"{network}: {name} {arguments[name]!r} is not supported; expected {expected}")
