"""The constructor arguments of another library: completed by its defaults, and refused by name where unsupported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

REQUIRED = object()


def complete(network: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the library's `defaults` (or REQUIRED) for what it leaves out.

    Raises:
        ValueError: an argument that the network does not have, or one that it needs and is not given.
    """
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise ValueError(f"{network} has no argument {unknown[0]!r}; it has: {', '.join(defaults)}")
    missing = [name for name, default in defaults.items() if default is REQUIRED and name not in given]
    if missing:
        raise ValueError(f"{network} needs the argument {missing[0]!r}")
    return {**defaults, **given}


def refuse(network: str, arguments: Mapping[str, Any], supported: Mapping[str, Collection[Any]]) -> None:
    """Raise `ValueError`, naming it, for an argument whose value is none of those supported."""
    for name, values in supported.items():
        if arguments[name] not in values:
            expected = " or ".join(repr(value) for value in values)
            raise ValueError(f"{network}: {name} {arguments[name]!r} is not supported; expected {expected}")
