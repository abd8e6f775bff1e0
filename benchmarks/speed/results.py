"""What cases find: tables and targets, kept as JSON per device, and their page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import in_words
from benchmarks.speed.timing import Spread
from unetdiff.files import read_json, write_json

Value = str | float
Row = dict[str, Value]


@dataclass(frozen=True)
class Table:
    """Rows by column name; columns appear in the order in which rows first have them."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Target:
    """What a figure should be: at most `limit`, or at least it; quartiles of a median."""

    says: str
    value: float
    limit: float
    at_least: bool = False
    quartiles: tuple[float, float] | None = None

    @classmethod
    def of(cls, says: str, spread: Spread, limit: float, at_least: bool = False) -> Target:
        """Of a median, with its quartiles."""
        return cls(says, spread.middle, limit, at_least, (spread.low, spread.high))

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Found:
    """What one case found. notes: sentences for the page, such as how outputs compared before anything was timed."""

    tables: Sequence[Table]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = field(default_factory=list)


def entry(says: str, header: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """A case's result as JSON: what it says, on what machine, its tables, targets and notes."""
    targets = [{**asdict(target), "met": target.met} for target in found.targets]
    tables = [asdict(table) for table in found.tables]
    return {"says": says, "machine": dict(header), "tables": tables, "targets": targets, "notes": [*found.notes]}


def keep(file: Path, case: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Put a case's result into the JSON file of a device, in place of its last one; what the file now holds."""
    held = {**(read_json(file) if file.is_file() else {}), case: dict(result)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, held)
    return held


def page(held: Mapping[str, Any], order: Sequence[str], command: str) -> str:
    """All results of a device as Markdown."""
    lines = [
        f"Written by `{command}`. What is compared runs in turn in one process (A B A B ...). A ratio is a row's time "
        "over that of its table's first row in the same round, below 1 where it is faster: the median, and quartiles."
    ]
    for case in (name for name in order if name in held):
        result = held[case]
        lines += ["", f"## {case}", "", result["says"], "", in_words(result["machine"])]
        lines += ["", *result["notes"]] if result["notes"] else []
        for table in result["tables"]:
            lines += ["", f"### {table['title']}", "", *markdown(table["rows"])]
        if result["targets"]:
            lines += ["", *markdown([_target_row(target) for target in result["targets"]])]
    return "\n".join(["# Speed", "", *lines]) + "\n"


def _target_row(target: Mapping[str, Any]) -> Row:
    bound = f"at {'least' if target['at_least'] else 'most'} {target['limit']:g}"
    quartiles = " ({:.3g} - {:.3g})".format(*target["quartiles"]) if target.get("quartiles") else ""
    return {
        "target": target["says"],
        "wanted": bound,
        "found": f"{target['value']:.3g}{quartiles}",
        "met": "yes" if target["met"] else "no",
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table's lines; numbers stand to the right, and what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name: all(not isinstance(row.get(name, 0), str) for row in rows) for name in columns}
    ruler = ["---:" if numeric[name] else "---" for name in columns]
    body = [[_cell(row.get(name)) for name in columns] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (columns, ruler, *body)]


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
