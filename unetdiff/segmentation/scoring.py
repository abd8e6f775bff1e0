"""What a metric is given, one image at a time, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

Counts = dict[str, Tensor]
"""int64 tensors on the CPU whose sums over images and over processes are exact in any order."""

Row = dict[str, Any]
"""Values of one image, ready for JSON; None where a value is not defined."""


@dataclass(frozen=True)
class ScoredImage:
    """One image's prediction beside its truth.

    Attributes:
        probabilities: (K, *space) float32, in [0, 1], summing to 1 over classes.
        labels: (*space) int64; 0..K-1 where `counted`.
        counted: (*space) bool; what is False counts nowhere, neither as truth nor as prediction.
        spacing: the distance between neighbours along each axis, or None for 1.
    """

    probabilities: Tensor
    labels: Tensor
    counted: Tensor
    spacing: tuple[float, ...] | None = None

    @property
    def classes(self) -> int:
        """K."""
        return len(self.probabilities)

    @cached_property
    def prediction(self) -> Tensor:
        """(*space) int64: the most probable class."""
        return self.probabilities.argmax(0)


class Metric(Protocol):
    """One family of values. It holds settings only; what accumulates lies outside, as `Counts` and `Row`s."""

    def zeros(self) -> Counts:
        """The counts of no image."""
        ...

    def measure(self, image: ScoredImage) -> tuple[Counts, Row]:
        """The counts to add, and the values of this image."""
        ...

    def summary(self, counts: Counts, rows: list[Row]) -> dict[str, Any]:
        """The values of the data set, ready for JSON."""
        ...


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient, or None (not defined) where the denominator is 0."""
    return numerator / denominator if denominator else None


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None, or None without any; the same bits in any order (`math.fsum`)."""
    defined = [value for value in values if value is not None]
    return ratio(math.fsum(defined), len(defined))


def mean_per_class(rows: list[Row], key: str, classes: int) -> list[float | None]:
    """For each class the mean over the images in which `rows[i][key][class]` is defined."""
    return [mean_of_defined(row[key][place] for row in rows) for place in range(classes)]
