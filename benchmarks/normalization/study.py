"""All networks of a study, each a file that is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.normalization.settings import Job, StudyConfig
from unetdiff.files import read_json, remove_leftovers, write_json
from unetdiff.progress import progress


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as (i, n) with i in 1 .. n."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"--shard is {text!r}; expected i/n with i from 1 to n, such as 1/4")
    return int(part), int(parts)


def run_study(
    config: StudyConfig, folder: Path, run: Callable[[Job], dict[str, Any]], shard: tuple[int, int] = (1, 1)
) -> int:
    """Run the jobs whose result is not in `folder` yet, and return how many there were.

    A process that is killed loses the network it was training; the same command goes on from there. Processes share a
    study by shards: every n-th job, from the i-th.

    Raises:
        ValueError: a result there was made under other conditions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part, parts = shard
    if parts == 1:
        remove_leftovers(folder)
    jobs = list(config.jobs())[part - 1 :: parts]
    waiting = [job for job in jobs if not _finished(folder / job.file, config)]
    for job in progress(desc=f"norm study {folder.name}", unit="network", iterable=waiting):
        write_json(folder / job.file, run(job))
    return len(waiting)


def _finished(path: Path, config: StudyConfig) -> bool:
    """Whether a result is there, made under these conditions."""
    if not path.exists():
        return False
    held = read_json(path).get("conditions", {})
    for name, value in config.conditions.items():
        if held.get(name) != value:
            raise ValueError(f"{path} was made with {name} {held.get(name)!r}, not {value!r}; give another --results")
    return True


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, in the order of their names; `ValueError` where there are none."""
    results = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise ValueError(f"{folder} holds no results; run the study first")
    return results
