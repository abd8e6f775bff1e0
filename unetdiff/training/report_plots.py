"""The plots of a run's report, each a function from lines of `metrics.jsonl` to an SVG, or None without data."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unetdiff.figures import COLOURS, MUTED, SEQUENTIAL, evenly_spaced, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
Size = tuple[float, float]

WIDE, HALF, THIRD = (11.15, 3.6), (5.4, 3.4), (3.6, 2.5)  # inches
MOST_POINTS = 1500  # of a curve; more cannot be seen and make the page heavy
SMOOTHING = 50  # a smoothed curve averages over one part in 50 of the run
LOG_FROM = 10.0  # ratio of largest to smallest value from which an axis is logarithmic


def series(records: Iterable[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which `key` has a finite value, and these values, both float64 of shape (n,)."""
    pairs = np.array([(r["step"], _number(r.get(key))) for r in records], np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    return pairs[:, 0], pairs[:, 1]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` values (n,), over as many as there are towards the ends."""
    kernel = np.ones(min(max(1, window), len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def loss_plot(train: Sequence[Record], validation: Sequence[Record]) -> str | None:
    """The training loss, as logged (faint) and smoothed, and the validation loss, over steps."""
    steps, values = series(train, "loss")
    held_out = _by_weights(validation)
    if not len(steps) and not held_out:
        return None
    with plot_style():
        axes = _axes(WIDE, "step")
        if len(steps):
            _curve(axes, steps, values, COLOURS[0], label="training")
        for colour, (weights, records) in zip(COLOURS[1:], held_out.items(), strict=False):
            axes.plot(*series(records, "loss"), "o-", color=colour, markersize=4.5, label=f"validation ({weights})")
        _fit_scale(axes)
        axes.legend(loc="upper right", ncols=3)
        return _svg(axes)


def curve_plot(train: Sequence[Record], key: str, noisy: bool = True) -> str | None:
    """One logged figure, such as the gradient norm, over steps; a noisy one faint, and smoothed."""
    steps, values = series(train, key)
    if not len(steps):
        return None
    with plot_style():
        axes = _axes(THIRD, "step")
        _curve(axes, steps, values, COLOURS[0], window=None if noisy else 1)
        _fit_scale(axes)
        return _svg(axes)


def noise_level_plot(validation: Sequence[Record]) -> str | None:
    """Validation loss over the timestep (large: much noise), at the first and the last validation."""
    ends = _binned(validation)
    if len(ends) == 0:
        return None
    ends = [ends[-1]] if len(ends) == 1 else [ends[0], ends[-1]]
    with plot_style():
        axes = _axes(HALF, "timestep")
        for record, colour in zip(ends, (COLOURS[0],) if len(ends) == 1 else (MUTED, COLOURS[0]), strict=True):
            edges = [record["bins"][0]["from"], *(entry["to"] + 1 for entry in record["bins"])]
            label = f"step {record['step']:,}"
            axes.stairs(_bin_losses(record), edges, baseline=None, color=colour, linewidth=1.8, label=label)
        _fit_scale(axes)
        axes.legend()
        return _svg(axes)


def noise_level_history_plot(validation: Sequence[Record]) -> str | None:
    """Validation loss of each range of timesteps over the steps of training, from two validations on."""
    import matplotlib

    records = _binned(validation)
    if len(records) < 2:
        return None
    steps = [record["step"] for record in records]
    losses = np.array([_bin_losses(record) for record in records])
    colours = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.92, losses.shape[1]))
    with plot_style():
        axes = _axes(HALF, "step")
        for entry, colour, values in zip(records[-1]["bins"], colours, losses.T, strict=True):
            label = f"{entry['from']}–{entry['to']}"
            axes.plot(steps, values, color=colour, linewidth=1.3, marker="o", markersize=2, label=label)
        _fit_scale(axes)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1], labels[::-1], title="timestep", title_fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5)
        )
        return _svg(axes)


def _number(value: Any) -> float:
    """A logged value as a float; NaN for what is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _by_weights(validation: Sequence[Record]) -> dict[str, list[Record]]:
    """Validation lines by the weights that they are of."""
    names = dict.fromkeys(str(record.get("weights", "raw")) for record in validation)
    return {name: [r for r in validation if str(r.get("weights", "raw")) == name] for name in names}


def _binned(validation: Sequence[Record]) -> list[Record]:
    """The validation lines of the weights that the last one is of, with the bins that the last one has."""
    records = [record for record in validation if record.get("bins")]
    if not records:
        return []
    last = records[-1]
    same = [record for record in records if record.get("weights") == last.get("weights")]
    return [record for record in same if len(record["bins"]) == len(last["bins"])]


def _bin_losses(record: Record) -> list[float]:
    return [_number(entry.get("loss")) for entry in record["bins"]]


def _axes(size: Size, x_label: str) -> Axes:
    """Axes of a new figure; no title, since the page has headings."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes = Figure(figsize=size, layout="constrained").add_subplot()
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(3, int(size[0])), integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(length=0)
    axes.margins(x=0.01)
    return axes


def _curve(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    colour: str,
    label: str | None = None,
    window: int | None = None,
) -> None:
    """Values as logged, faint, and their running mean over `window` values; where they are few, points too."""
    smoothed = smooth(values, window or len(values) // SMOOTHING)
    shown = evenly_spaced(len(steps), MOST_POINTS)
    marker = "o" if len(steps) < SMOOTHING else None
    axes.plot(steps[shown], values[shown], color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps[shown], smoothed[shown], color=colour, marker=marker, markersize=3, label=label)


def _fit_scale(axes: Axes) -> None:
    """A logarithmic y axis, with plain numbers, where the drawn values are positive and span a decade."""
    from matplotlib.patches import StepPatch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawn = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    drawn += [np.asarray(patch.get_data()[0]) for patch in axes.patches if isinstance(patch, StepPatch)]
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() <= 0 or values.max() < LOG_FROM * values.min():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 1000 * values.min() else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _svg(axes: Axes) -> str:
    """The figure of `axes` as an SVG element, the same bytes for the same data."""
    file = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    return text[text.index("<svg") :]
