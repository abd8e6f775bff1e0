"""What a run says while it trains: a progress bar, `metrics.jsonl`, a tracker."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from unetdiff.files import write_text
from unetdiff.progress import progress

METRICS = "metrics.jsonl"


def keep_metrics_until(run: Path, step: int) -> tuple[float, int]:
    """Drop the lines of `metrics.jsonl` after `step`, and a broken last one: a resumed run writes them again.

    Returns the seconds that the run had trained until then, and the steps that it had skipped.
    """
    path = run / METRICS
    if not path.is_file():
        return 0.0, 0
    kept, elapsed, skipped = [], 0.0, 0
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
            if entry["step"] <= step:
                kept.append(line)
                elapsed, skipped = entry.get("elapsed", elapsed), entry.get("skipped", skipped)
        except (json.JSONDecodeError, KeyError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))
    return elapsed, skipped


class RunLog:
    """Progress on the terminal and lines in `metrics.jsonl`; every process has one, only the first speaks."""

    def __init__(
        self,
        run: Path,
        accelerator: Accelerator,
        *,
        first_step: int,
        steps: int,
        samples_per_step: int,
        elapsed: float = 0.0,
    ):
        self.run, self.accelerator, self.samples_per_step = run, accelerator, samples_per_step
        self.speaks = accelerator.is_main_process
        self.bar = progress(desc=run.name, total=steps, initial=first_step, disable=not self.speaks)
        self.since = time.perf_counter()
        self.start = self.since - elapsed
        self.paused = 0.0
        self.last_step = first_step

    def say(self, text: str) -> None:
        """A line on the terminal that leaves the progress bar whole."""
        if self.speaks:
            tqdm.write(text, file=sys.stderr)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """A line in `metrics.jsonl`; numbers go to the tracker too."""
        if self.speaks:
            with (self.run / METRICS).open("a") as file:
                file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=step)

    def training(self, step: int, **values: float) -> None:
        """The figures of the steps since the last call, with their throughput."""
        now = time.perf_counter()
        seconds = now - self.since - self.paused
        rate = (step - self.last_step) * self.samples_per_step / max(seconds, 1e-9)
        self.since, self.paused, self.last_step = now, 0.0, step
        self.write("train", step, **values, samples_per_second=round(rate, 2), elapsed=round(now - self.start, 2))
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", samples=f"{rate:,.0f}/s", refresh=False)

    def step_done(self) -> None:
        """Move the progress bar."""
        self.bar.update()

    def pause(self, seconds: float) -> None:
        """Leave time spent on something other than training steps out of the throughput."""
        self.paused += seconds

    def close(self) -> None:
        """End the progress bar and the tracker; processes stay together, for what may follow the run."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
