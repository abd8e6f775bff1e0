"""The pictures of the study's page, each a function of an experiment's results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.skip_study.figures import ARM_TITLES, Results, arms_in, average_curve, in_order, over_depth, over_images
from benchmarks.skip_study.images import unpack
from benchmarks.skip_study.study import pick
from unetdiff.figures import COLOURS, MUTED, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS: dict[str, dict[str, Any]] = {
    "unet": {"color": COLOURS[0], "marker": "o", "linestyle": "-"},
    "added": {"color": COLOURS[2], "marker": "^", "linestyle": (0, (4, 1.5))},
    "autoencoder": {"color": COLOURS[1], "marker": "s", "linestyle": "-"},
}
DOTS_PER_INCH = 110
LEAST_RANGE = 30.0  # of a gradient's axis, above and below its middle, so that a small difference looks small
FLOOD_COLOURS = {"wall": (31, 41, 51), "free": (255, 255, 255), "seed": (213, 94, 0), "reached": (86, 180, 233)}


def _canvas(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _show(axes: Axes, image: np.ndarray, **how: Any) -> None:
    axes.imshow(image, interpolation="nearest", **how)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


# ---- spike


def spike_picture(results: Results) -> Figure:
    """A row per placement: the spike, what each network returns, and all of them along the spike's row."""
    placements = list(dict.fromkeys(r["placement"] for r in results))
    arms = arms_in(results)
    canvas = _canvas(2.0 * (len(arms) + 1) + 3.4, 2.35 * len(placements))
    ratios = [1.0] * (len(arms) + 1) + [1.6]
    panels = canvas.subplots(len(placements), len(ratios), squeeze=False, width_ratios=ratios)
    for row, placement in zip(panels, placements, strict=True):
        held = {r["arm"]: r["pictures"] for r in pick(results, placement=placement) if "pictures" in r}
        images = {"input": unpack(next(iter(held.values()))["input"])}
        images |= {ARM_TITLES[arm]: unpack(held[arm]["output"]) for arm in arms if arm in held}
        line = int(np.argmax(images["input"].max(1)))
        for axes, (title, image) in zip(row, images.items(), strict=False):
            _show(axes, image, cmap="gray", vmin=-0.4, vmax=1)
            axes.set_title(title, fontsize=9)
        row[0].set_ylabel("no norm" if placement == "bare" else "group norm", color="black")
        row[-1].plot(images["input"][line], color=MUTED, linewidth=4, alpha=0.35, label="input")
        for arm in arms:
            if arm in held:
                look = {**LOOKS[arm], "marker": ""}
                row[-1].plot(images[ARM_TITLES[arm]][line], linewidth=1.3, label=ARM_TITLES[arm], **look)
        row[-1].set_title("along the spike's row, spike = 1", fontsize=9)
        row[-1].tick_params(length=0)
    panels[0][-1].legend(loc="upper right", fontsize=8)
    return canvas


# ---- gradient


def gradient_plot(results: Results) -> Figure:
    """A panel per start: gradient norm at the first convolution over depth, a curve per network."""
    columns = 3
    rows = -(-(len(results) + 1) // columns)
    canvas = _canvas(3.7 * columns, 2.9 * rows)
    panels = canvas.subplots(rows, columns, squeeze=False).flatten()
    for axes, result in zip(panels, in_order(results), strict=False):
        depths = result["conditions"]["depths"]
        for arm in arms_in([result]):
            means, deviations = over_depth(result, arm)
            bars = [means - means / deviations, means * deviations - means]
            axes.errorbar(depths, means, bars, label=ARM_TITLES[arm], markersize=4, **LOOKS[arm])
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        middle = math.sqrt(low * high)
        axes.set_ylim(min(low, middle / LEAST_RANGE), max(high, middle * LEAST_RANGE))
        axes.set_title(result["title"], fontsize=10)
        axes.set_xticks(depths)
        axes.set_xlabel("levels")
        axes.tick_params(length=0, which="both")
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    panels[0].set_ylabel("gradient norm at the first convolution")
    panels[len(results)].legend(*panels[0].get_legend_handles_labels(), loc="center", fontsize=10)
    return canvas


# ---- flood fill


def flood_image(walls: np.ndarray, seeds: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3), uint8: walls dark, the seed orange, the region blue by how sure it is: (H, W) in 0 .. 1 each."""
    free, blue = np.array(FLOOD_COLOURS["free"]), np.array(FLOOD_COLOURS["reached"])
    pixels = free + reached[..., None] * (blue - free)
    pixels[walls > 0.5] = 0.35 * pixels[walls > 0.5] + 0.65 * np.array(FLOOD_COLOURS["wall"])
    pixels[seeds > 0.5] = FLOOD_COLOURS["seed"]
    return np.rint(pixels).astype(np.uint8)


def flood_picture(results: Results) -> Figure:
    """A column per held-out image: the truth, and what each network says."""
    held = {
        r["arm"]: {name: [unpack(x, 0, 1) for x in images] for name, images in r["pictures"].items()}
        for r in results
        if "pictures" in r
    }
    arms = [arm for arm in arms_in(results) if arm in held]
    first = held[arms[0]]
    number = len(first["walls"])
    rows = {"input": [np.zeros_like(x) for x in first["walls"]], "truth": first["truth"]}
    rows |= {ARM_TITLES[arm]: held[arm]["found"] for arm in arms}
    canvas = _canvas(1.9 * number + 0.4, 1.9 * len(rows))
    panels = canvas.subplots(len(rows), number, squeeze=False)
    for row, (title, reached) in zip(panels, rows.items(), strict=True):
        row[0].set_ylabel(title, color="black")
        for axes, *parts in zip(row, first["walls"], first["seeds"], reached, strict=True):
            _show(axes, flood_image(*parts))
    return canvas


def flood_curve(results: Results) -> Figure:
    """Intersection over union over steps: a faint curve per seed, and their mean."""
    canvas = _canvas(6.4, 3.6)
    axes = canvas.add_subplot()
    axes.axhline(0.95, color=MUTED, linewidth=0.8)
    for arm in arms_in(results):
        look = LOOKS[arm]
        for result in pick(results, arm=arm):
            axes.plot(*zip(*result["curve"], strict=True), color=look["color"], alpha=0.3, linewidth=0.9)
        axes.plot(*average_curve(pick(results, arm=arm)), label=ARM_TITLES[arm], markersize=4, **look)
    axes.set_xlabel("steps")
    axes.set_ylabel("IoU on held-out images, mean")
    axes.set_ylim(None, 1)
    axes.tick_params(length=0)
    axes.legend(loc="lower right")
    return canvas


# ---- few images


def few_images_plot(results: Results) -> Figure:
    """Held-out error over the number of training images, and over noise levels."""
    canvas = _canvas(11, 3.9)
    left, right = canvas.subplots(1, 2)
    _image_panel(left, results)
    counts = sorted({result["images"] for result in results})
    timesteps = results[0]["conditions"]["timesteps"]
    for arm in arms_in(results):
        for images, style in zip((counts[0], counts[-1]), (":", "-"), strict=True):
            errors = np.mean([r["errors"] for r in pick(results, arm=arm, images=images)], 0)
            label = f"{ARM_TITLES[arm]}, {images:,} images"
            right.plot(timesteps, errors, **{**LOOKS[arm], "linestyle": style}, markersize=3.5, label=label)
    right.set_xlabel("timestep (large: much noise)")
    right.set_ylim(0, None)
    right.legend()
    right.tick_params(length=0)
    return canvas


def other_target_plot(results: Results) -> Figure:
    """Held-out error over the number of training images."""
    canvas = _canvas(5.6, 3.7)
    _image_panel(canvas.add_subplot(), results)
    return canvas


def _image_panel(axes: Axes, results: Results) -> None:
    """Errors on held-out and on training images over the number of the latter."""
    counts = sorted({result["images"] for result in results})
    for arm in arms_in(results):
        look = LOOKS[arm]
        means, seen = ([figure.mean for figure in over_images(results, arm, n)[1]] for n in ("error", "training_error"))
        bars = np.nan_to_num([figure.deviation for figure in over_images(results, arm, "error")[1]])
        axes.errorbar(counts, means, bars, label=ARM_TITLES[arm], markersize=4.5, **look)
        axes.plot(counts, seen, color=look["color"], linestyle=":", linewidth=1.2)
    axes.plot([], [], color=MUTED, linestyle=":", label="on the training images")
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("training images")
    axes.set_ylabel("mean squared error of the prediction")
    axes.set_ylim(0, None)
    axes.legend()
    axes.tick_params(length=0)


def few_images_picture(results: Results) -> Figure:
    """Held-out digits, with noise, and denoised by networks trained on few images."""
    held = [r for r in results if "pictures" in r]
    rows = {"held-out": held[0]["pictures"]["clean"], "with noise": held[0]["pictures"]["noisy"]}
    for images in sorted({result["images"] for result in held}):
        for arm in arms_in(results):
            for result in pick(held, images=images, arm=arm):
                rows[f"{ARM_TITLES[arm]}, {images}"] = result["pictures"]["denoised"]
    number = len(rows["held-out"])
    canvas = _canvas(number + 1.6, len(rows))
    panels = canvas.subplots(len(rows), number, squeeze=False)
    for row, (title, images) in zip(panels, rows.items(), strict=True):
        row[0].set_ylabel(title, color="black", rotation=0, ha="right", va="center")
        for axes, image in zip(row, images, strict=True):
            _show(axes, unpack(image), cmap="gray", vmin=-1, vmax=1)
    return canvas


PICTURES: dict[str, dict[str, Callable[[Results], Figure]]] = {
    "spike": {"skips_spike": spike_picture},
    "gradient": {"skips_gradient": gradient_plot},
    "flood": {"skips_flood": flood_picture, "skips_flood_curve": flood_curve},
    "few_images": {"skips_few_images": few_images_plot, "skips_few_images_digits": few_images_picture},
    "few_images_x0": {"skips_few_images_x0": other_target_plot},
}
"""For each experiment its pictures, by file name."""


def draw(experiment: str, results: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write an experiment's pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES[experiment].items():
        with plot_style():
            picture(results).savefig(folder / f"{name}.png", metadata={"Software": None})
