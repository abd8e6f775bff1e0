"""The tables and the picture of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unetdiff.figures import COLOURS, MUTED, plot_style

Row = Mapping[str, Any]
SPEED_COLUMNS = ("batch", "precision", "sampler", "library", "interval", "divided at", "images/s", "of diffusers'")
PRICE_COLUMNS = ("interval", "divided at", "speed", "read as their class", "Frechet, pixels", "Frechet, classes",
                 "change")  # fmt: skip
LOOKS = tuple(zip(COLOURS, "os^D", strict=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(results: Mapping[str, Any]) -> str:
    """The page of one measurement."""
    settings = results["settings"]
    parts = [
        f"# Sampling, {settings['preset']}",
        f"{results['date']}, {results['device']}, torch {results['torch']}, diffusers {results['diffusers']}. "
        f"`{results['command']}`",
        f"Both libraries hold the same weights; their images differ by {results['difference']:.1e} of [0, 1] before "
        f"anything is timed. {settings['rounds']} rounds in turn; a speed over diffusers' pipeline is the median of "
        "the rounds (and its range). Times are those of a few steps in which as large a share is recomputed "
        f"({settings['timed_steps']} or so; {settings['timed_steps_large']} for batches above 16), taken to all steps: "
        "50 of DDIM, 20 of DPM-Solver++.",
        table(SPEED_COLUMNS, [_speed_cells(row) for row in results["speed"]]),
    ]
    if "price" in results:
        priced = results["price"]
        parts += [
            "## The price",
            f"{priced['count']} samples of `{priced['run']}` ({priced['sampler']}, {priced['steps']} steps) from the "
            "same seeds: the share that a classifier of real digits reads as their class, squared Frechet distances "
            f"from the real training digits over {priced['components']} principal components of the pixels and over "
            "the classifier's ten decision values, and the root mean square change of pixels of [-1, 1] from sampling "
            "without reuse. The speed is over sampling without reuse, in turn.",
            table(PRICE_COLUMNS, [_price_cells(row) for row in priced["rows"]]),
            "![Price and speed](sample_speed.png)",
        ]
    return "\n\n".join(parts) + "\n"


def _speed_cells(row: Row) -> list[str]:
    ours = row["library"] == "unetdiff"
    ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} - {row['ratio_high']:.2f})" if ours else "1"
    cells = [row["batch_size"], row["precision"], row["sampler"], row["library"], row["interval"] if ours else ""]
    return [*map(str, cells), _divided(row) if ours else "", f"{row['images_per_second']:.3g}", ratio]


def _divided(row: Row) -> str:
    return "" if row["interval"] == 1 else f"`{row['cache_step']}`"


def _price_cells(row: Row) -> list[str]:
    quality = [f"{row['share']:.1%}", f"{row['pixel_frechet']:.2f}", f"{row['class_frechet']:.3f}"]
    if "real" in row:
        return ["real test digits", "", "", *quality, ""]
    other = " (other seeds)" if row["interval"] == 1 and row["change"] else ""
    return [f"{row['interval']}{other}", _divided(row), f"{row['speed']:.2f}", *quality, f"{row['change']:.2f}"]


PANELS = {"share": "share read as their class", "pixel_frechet": "Frechet distance, pixels",
          "class_frechet": "Frechet distance, classes"}  # fmt: skip


def draw(rows: Sequence[Row], path: Path) -> None:
    """Each figure of quality against the speed, a line per place where the network is divided."""
    from matplotlib.figure import Figure

    plain, chance, *reused, real = rows
    with plot_style():
        canvas = Figure(figsize=(3.4 * len(PANELS), 3.4), dpi=110, layout="constrained")
        panels = canvas.subplots(1, len(PANELS))
        for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
            axes.axhline(real[name], color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), label="real test digits")
            axes.plot([1, 1], [plain[name], chance[name]], "x", color=MUTED, label="without reuse, two sets of seeds")
            for (colour, marker), step in zip(LOOKS, dict.fromkeys(row["cache_step"] for row in reused), strict=False):
                line = [row for row in reused if row["cache_step"] == step]
                speeds, values = [[row[key] for row in (plain, *line)] for key in ("speed", name)]
                axes.plot(speeds, values, color=colour, marker=marker, markersize=5, label=step)
                for speed, value, row in zip(speeds[1:], values[1:], line, strict=True):
                    axes.annotate(str(row["interval"]), (speed, value), xytext=(4, 4), textcoords="offset points")
            axes.set_xlabel("speed over sampling without reuse")
            axes.set_title(title)
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        canvas.savefig(path, metadata={"Software": None})
