"""The four plots of the study's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.normalization.figures import Arm, Arms, Figure
from benchmarks.normalization.placements import ARMS
from unetdiff.figures import COLOURS, MUTED, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL_NAMES = {"A": "timestep (large: much noise)", "B": "sigma", "C": "sigma"}
REGIME_TITLES = {"A": "A: VP, told t, target epsilon", "B": "B: raw, not told sigma", "C": "C: raw, told sigma"}
PANEL, LEGEND = (4.1, 3.9), 2.4  # inches
MARKERS, DASHES = "os^D", ("-", (0, (4, 1.5)))

Curve = Callable[[Arm, Arms], list[Figure]]


def beta(arm: Arm, arms: Arms) -> list[Figure]:
    """Calibration slope per noise level."""
    return arm.over_levels("beta")


def amplitude(arm: Arm, arms: Arms) -> list[Figure]:
    """Transmission H per noise level."""
    return arm.over_levels("H")


def relative_error(arm: Arm, arms: Arms) -> list[Figure]:
    """NMSE per noise level over the mean NMSE without norms, or NMSE itself where that was not measured."""
    figures = arm.over_levels("nmse")
    if "none" not in arms:
        return figures
    bases = [figure.mean for figure in arms["none"].over_levels("nmse")]
    return [
        Figure(figure.mean / base, figure.deviation / base, figure.count)
        for figure, base in zip(figures, bases, strict=True)
    ]


def look(placement: str) -> dict[str, Any]:
    """Colour, marker and dashes of a placement: the same in every plot."""
    index = list(ARMS).index(placement)
    turn = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[turn],
    }


@dataclass(frozen=True)
class LevelPlot:
    """A metric over noise levels: what is drawn, its name, where a line is ruled, whether its axis is logarithmic."""

    curve: Curve
    label: str
    ideal: float | None = None
    log: bool = False


def level_plot(regimes: Mapping[str, Arms], plot: LevelPlot, path: Path) -> None:
    """One panel per regime: a curve over noise levels per placement, bars of one standard deviation over seeds."""
    from matplotlib.figure import Figure as Canvas

    with plot_style():
        canvas = Canvas(figsize=(PANEL[0] * len(regimes) + LEGEND, PANEL[1]), dpi=110, layout="constrained")
        panels = canvas.subplots(1, len(regimes), squeeze=False)[0]
        for axes, (regime, arms) in zip(panels, regimes.items(), strict=True):
            _level_panel(axes, regime, arms, plot)
        panels[0].set_ylabel(plot.label)
        handles: dict[str, Any] = {}
        for axes in panels:
            handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        canvas.legend(list(handles.values()), list(handles), loc="outside right center")
        canvas.savefig(path, metadata={"Software": None})


def _level_panel(axes: Axes, regime: str, arms: Arms, plot: LevelPlot) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if plot.ideal is not None:
        axes.axhline(plot.ideal, color=MUTED, linewidth=0.8)
    for index, arm in enumerate(arms.values()):
        figures = plot.curve(arm, arms)
        means = [figure.mean for figure in figures]
        bars = np.nan_to_num([figure.deviation for figure in figures])
        levels = np.array(arm.noise_levels)
        # Moved aside by a little, so that bars of different placements do not hide each other.
        shift = (index - (len(arms) - 1) / 2) / len(arms)
        levels = levels + 30 * shift if regime == "A" else levels * 1.1**shift
        axes.errorbar(
            levels, means, bars, label=arm.title, markersize=3.2, linewidth=1.1, elinewidth=0.9, **look(arm.placement)
        )
    if regime != "A":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if plot.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(LEVEL_NAMES[regime])
    axes.set_title(REGIME_TITLES[regime])
    axes.tick_params(length=0)


def brightness_plot(arms: Arms, path: Path) -> None:
    """Brightness spread of samples over that of test images: a dot per seed, mean and deviation per placement."""
    from matplotlib.figure import Figure as Canvas

    drawn = {name: figure for name, arm in arms.items() if (figure := arm.sampled("brightness_ratio"))}
    with plot_style():
        canvas = Canvas(figsize=(7.5, 0.32 * len(drawn) + 1.1), dpi=110, layout="constrained")
        axes = canvas.add_subplot()
        axes.axvline(1, color=MUTED, linewidth=0.8)
        for row, (name, figure) in enumerate(drawn.items()):
            colour = COLOURS[0]
            values = [result["samples"]["brightness_ratio"] for result in arms[name].results]
            axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            axes.errorbar(figure.mean, row, xerr=np.nan_to_num(figure.deviation), fmt="|", color=colour, markersize=11)
        axes.set_yticks(range(len(drawn)), [arms[name].title for name in drawn])
        axes.tick_params(axis="y", labelcolor="black", length=0)
        axes.tick_params(axis="x", length=0)
        axes.invert_yaxis()
        axes.set_xlabel("spread of the mean brightness of samples, over that of test images")
        canvas.savefig(path, metadata={"Software": None})


PLOTS = {
    "norm_study_beta": LevelPlot(beta, "calibration slope beta", 1.0),
    "norm_study_transmission": LevelPlot(amplitude, "amplitude transmission H"),
    "norm_study_error": LevelPlot(relative_error, "NMSE over that without norms", 1.0, log=True),
}


def draw_plots(regimes: Mapping[str, Arms], folder: Path) -> None:
    """Write the plots as PNG files; that of the brightness where regime A was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        level_plot(regimes, plot, folder / f"{name}.png")
    if "A" in regimes:
        brightness_plot(regimes["A"], folder / "norm_study_brightness.png")
