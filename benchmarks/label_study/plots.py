"""Pictures of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_arms(points: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """By figure and arm, a point per fit and a line at their mean, the arms one below the other; a PNG."""
    arms = list(next(iter(points.values())))
    figure = Figure(figsize=(9, 0.4 * len(arms) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    for axis, (title, by_arm) in zip(axes, points.items(), strict=True):
        for place, arm in enumerate(reversed(arms)):
            values = by_arm[arm]
            if values:
                axis.plot(values, [place] * len(values), "o", alpha=0.6, color="tab:blue", markersize=5)
                axis.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color="black", linewidth=2)
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(arms)), list(reversed(arms)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
