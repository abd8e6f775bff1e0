"""Studies of many fits with a file each: which are there already, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetdiff.files import read_json


def finished(path: Path, conditions: Mapping[str, Any]) -> bool:
    """Whether a result is there, made under these conditions.

    Raises:
        ValueError: it was made under others.
    """
    if not path.exists():
        return False
    held = read_json(path).get("conditions", {})
    for name, value in conditions.items():
        if held.get(name) != value:
            raise ValueError(f"{path} was made with {name} {held.get(name)!r}, not {value!r}; give another --results")
    return True


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, in the order of their names; `ValueError` where there are none."""
    results = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise ValueError(f"{folder} holds no results; run the study first")
    return results


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as (i, n) with i in 1 .. n."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"--shard is {text!r}; expected i/n with i from 1 to n, such as 1/4")
    return int(part), int(parts)
