"""All measurements of the study, each a file that is there whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.resumable import finished, read_results
from unetdiff.files import remove_leftovers, write_json
from unetdiff.progress import progress


@dataclass(frozen=True)
class Measurement:
    """One result to come.

    experiment: which of the study's. name: of its file, without the ending. conditions: all that decides the result,
    as JSON. run: makes the result, as JSON.
    """

    experiment: str
    name: str
    conditions: dict[str, Any]
    run: Callable[[], dict[str, Any]]


def run_study(measurements: Iterable[Measurement], folder: Path) -> int:
    """Run the measurements whose result is not in `folder` yet, and return how many there were.

    A process that is killed loses the measurement it was at; the same command goes on from there.

    Raises:
        ValueError: a result there was made under other conditions.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    waiting = [entry for entry in measurements if not finished(folder / f"{entry.name}.json", entry.conditions)]
    for entry in progress(desc="skip study", unit="measurement", iterable=waiting):
        start = time.perf_counter()
        result = entry.run()
        made = {
            "experiment": entry.experiment,
            "conditions": entry.conditions,
            "seconds": round(time.perf_counter() - start, 1),
            "device": "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_json(folder / f"{entry.name}.json", {**made, **result})
    return len(waiting)


def read_experiments(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The results in a folder by experiment, in the order of their files' names.

    Raises:
        ValueError: there are none.
    """
    results = read_results(folder)
    return {name: [r for r in results if r["experiment"] == name] for name in {r["experiment"] for r in results}}


def pick(results: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The results whose fields have these values."""
    return [result for result in results if all(result[name] == value for name, value in wanted.items())]
