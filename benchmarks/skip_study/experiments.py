"""The experiments of the study, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from benchmarks.skip_study.few_images import FewImages
from benchmarks.skip_study.flood import FloodFill
from benchmarks.skip_study.gradient import Gradient
from benchmarks.skip_study.spike import Spike
from benchmarks.skip_study.study import Measurement


class Experiment(Protocol):
    """What the study runs: settings that name their measurements."""

    def measurements(self) -> Iterator[Measurement]: ...


EXPERIMENTS: Mapping[str, Experiment] = {
    "spike": Spike(),
    "gradient": Gradient(),
    "flood": FloodFill(),
    "few_images": FewImages(longer=4),
    "few_images_x0": FewImages(
        experiment="few_images_x0", target="x0", counts=(8, 32, 128, 1347), seeds=(0, 1), shown_counts=()
    ),
}


def measurements(names: Sequence[str] | None = None) -> Iterator[Measurement]:
    """The measurements of the named experiments, or of all.

    Raises:
        ValueError: for a name that is not in the table.
    """
    for name in EXPERIMENTS if names is None else names:
        if name not in EXPERIMENTS:
            raise ValueError(f"no experiment is called {name!r}; there are: {', '.join(EXPERIMENTS)}")
        yield from EXPERIMENTS[name].measurements()
