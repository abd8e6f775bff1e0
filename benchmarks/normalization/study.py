"""All networks of a study, each a file that is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.normalization.settings import Job, StudyConfig
from benchmarks.resumable import finished
from unetdiff.files import remove_leftovers, write_json
from unetdiff.progress import progress


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
    waiting = [job for job in jobs if not finished(folder / job.file, config.conditions)]
    for job in progress(desc=f"norm study {folder.name}", unit="network", iterable=waiting):
        write_json(folder / job.file, run(job))
    return len(waiting)
