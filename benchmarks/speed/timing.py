"""Candidates timed in turn, and what is said of their times: medians, ratios, and the spread of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

Act = Callable[[], object]


def wait() -> None:
    """Until an accelerator, if there is one, has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def timed(act: Act) -> float:
    """Seconds that `act` takes, the accelerator's part included."""
    wait()
    start = time.perf_counter()
    act()
    wait()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Spread:
    """Several values of one quantity: the median, and the quartiles below and above it."""

    middle: float
    low: float
    high: float
    least: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        low, high = np.quantile(values, [0.25, 0.75])
        return cls(median(values), float(low), float(high), min(values))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} - {self.high:.2f})"


@dataclass(frozen=True)
class Timing:
    """One candidate among others: seconds per act, and the ratio of its time to the reference's, round by round."""

    seconds: Spread
    ratio: Spread

    def row(self, items: float = 1) -> dict[str, float | str]:
        """The columns of a table: milliseconds per item, and the ratio with its quartiles."""
        return {
            "ms": round(self.seconds.middle / items * 1e3, 3),
            "ratio": round(self.ratio.middle, 3),
            "quartiles": f"{self.ratio.low:.2f} - {self.ratio.high:.2f}",
        }


def in_turn(candidates: Mapping[str, Act], rounds: int, warmup: int = 1) -> list[dict[str, float]]:
    """Seconds of every candidate, `rounds` times A B C A B C ... after `warmup` untimed rounds.

    Machines are noisy and their clocks drift, so what is compared is done side by side. Every other round goes the
    other way round, so that no candidate always follows the same one.
    """
    for _ in range(warmup):
        for act in candidates.values():
            timed(act)
    times = []
    for number in range(rounds):
        order = list(candidates) if number % 2 == 0 else list(candidates)[::-1]
        found = {name: timed(candidates[name]) for name in order}
        times.append({name: found[name] for name in candidates})
    return times


def compare(candidates: Mapping[str, Act], reference: str, rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Every candidate's time, and its ratio to that of `reference` in the same round (below 1: faster)."""
    return against(in_turn(candidates, rounds, warmup), reference)


def against(times: Sequence[Mapping[str, float]], reference: str) -> dict[str, Timing]:
    """What rounds of times say of every candidate."""
    return {
        name: Timing(
            Spread.of([entry[name] for entry in times]),
            Spread.of([entry[name] / entry[reference] for entry in times]),
        )
        for name in times[0]
    }
