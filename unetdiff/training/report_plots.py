"""The plots of a run's report, each a function from logged figures to an SVG, or None without data."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unetdiff.figures import COLOURS, INK, MUTED, PANEL, PAPER, RULE, SEQUENTIAL, evenly_spaced, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
Size = tuple[float, float]

WIDE, HALF, THIRD = (11.15, 3.6), (5.4, 3.4), (3.6, 2.5)  # inches
HALF_HIGH, LARGEST_MATRIX = (5.4, 4.2), 4.6
MOST_CLASSES_NAMED, LONGEST_NAME, MOST_LETTERS = 15, 14, 40  # beside and below a confusion matrix
MOST_POINTS = 1500  # of a curve; more cannot be seen and make the page heavy
SMOOTHING = 50  # a smoothed curve averages over one part in 50 of the run
FEW_POSITIONS = 30  # of a bin of the reliability diagram
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


def reliability_plot(bins: Sequence[Record], ece: float | None) -> str | None:
    """Accuracy over confidence by bins of confidence, beside the diagonal, over how many positions each bin holds.

    The accuracy of a bin with few positions is chance: such a bin is a hollow point beside the curve.

    bins, ece: as `Calibration` has them.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    held = [entry for entry in bins if entry["positions"]]
    if not held:
        return None
    edges = [bins[0]["low"], *(entry["high"] for entry in bins)]
    few, many = ([e for e in held if (e["positions"] < FEW_POSITIONS) == small] for small in (True, False))
    with plot_style():
        figure = _figure(HALF_HIGH)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1, label="calibrated")
        for entry in many:
            upper.fill_between((entry["low"], entry["high"]), entry["accuracy"], color=COLOURS[5], alpha=0.35, lw=0)
        upper.plot(*_points(many), "o-", color=COLOURS[0], markersize=4, label="network")
        if few:
            style = {"color": MUTED, "markerfacecolor": PAPER, "markersize": 4, "linestyle": "none"}
            upper.plot(*_points(few), "o", **style, label=f"< {FEW_POSITIONS} positions")
        upper.set(ylim=(0, 1.02), ylabel="accuracy", title="" if ece is None else f"ECE {ece:.4f}")
        upper.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), ncols=3, columnspacing=1, handlelength=1.5)
        lower.stairs([entry["positions"] for entry in bins], edges, baseline=0.5, fill=True, color=COLOURS[5])
        lower.set(xlim=(0, 1), yscale="log", ylim=(0.5, None), xlabel="confidence", ylabel="positions")
        lower.yaxis.set_major_locator(LogLocator(numticks=4))
        lower.yaxis.set_major_formatter(EngFormatter(sep=""))
        lower.yaxis.set_minor_formatter(NullFormatter())
        for axes in (upper, lower):
            axes.tick_params(length=0)
        figure.align_ylabels()
        return _svg(upper)


def _points(bins: Sequence[Record]) -> tuple[list[float], list[float]]:
    return [entry["confidence"] for entry in bins], [entry["accuracy"] for entry in bins]


def risk_coverage_plot(curves: Sequence[tuple[str, Record]]) -> str | None:
    """The risk among the most confident share, for each share: (what risk, lists `coverage` and `risk`) each."""
    drawn = [(name, curve) for name, curve in curves if curve.get("coverage")]
    if not drawn:
        return None
    with plot_style():
        axes = _figure(HALF_HIGH).add_subplot()
        for (name, curve), colour in zip(drawn, COLOURS, strict=False):
            axes.plot(curve["coverage"], curve["risk"], color=colour, label=name)
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage (most confident first)", ylabel="risk")
        axes.tick_params(length=0)
        axes.legend(loc="upper left")
        axes.set_ylim(0, 1.25 * max(axes.get_ylim()[1], 1e-6))  # room for the legend
        return _svg(axes)


def confusion_plot(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str | None:
    """How often positions of each true class (rows) are predicted as each class (columns), as shares of the rows."""
    from matplotlib.colors import LinearSegmentedColormap

    matrix = np.array(counts, np.float64)
    if not matrix.size or not matrix.sum():
        return None
    truth = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, truth, out=np.full_like(matrix, np.nan), where=truth > 0)
    shown = evenly_spaced(len(names), MOST_CLASSES_NAMED)
    labels = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    with plot_style():
        side = min(LARGEST_MATRIX, 2.4 + 0.35 * len(names))
        axes = _figure((side + 0.6, side)).add_subplot()
        axes.grid(visible=False)
        axes.set_facecolor(RULE)
        colours = LinearSegmentedColormap.from_list("shares", [PANEL, COLOURS[0]])
        axes.imshow(shares, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        if len(names) <= MOST_CLASSES_NAMED:
            for (row, column), share in np.ndenumerate(shares):
                if share >= 0.005:
                    ink = PAPER if share > 0.5 else INK
                    axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
        turned = len(shown) * max(len(labels[i]) for i in shown) > MOST_LETTERS
        turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(shown, [labels[i] for i in shown], **turn)
        axes.set_yticks(shown, [labels[i] for i in shown])
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0, labelsize=9)
        return _svg(axes)


def _number(value: Any) -> float:
    """A logged value as a float; NaN for what is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _by_weights(validation: Sequence[Record]) -> dict[str, list[Record]]:
    """Validation lines by the weights that they are of."""
    names = dict.fromkeys(str(record.get("weights", "raw")) for record in validation)
    return {name: [r for r in validation if str(r.get("weights", "raw")) == name] for name in names}


def _binned(validation: Sequence[Record]) -> list[Record]:
    """The validation lines of the weights that the last one is of, with the bins that the last one has, if several."""
    records = [record for record in validation if len(record.get("bins") or ()) > 1]
    if not records:
        return []
    last = records[-1]
    same = [record for record in records if record.get("weights") == last.get("weights")]
    return [record for record in same if len(record["bins"]) == len(last["bins"])]


def _bin_losses(record: Record) -> list[float]:
    return [_number(entry.get("loss")) for entry in record["bins"]]


def _figure(size: Size) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _axes(size: Size, x_label: str) -> Axes:
    """Axes over steps of a new figure; no title, since the page has headings."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes = _figure(size).add_subplot()
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
