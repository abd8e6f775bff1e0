"""The parts of a report that show how held-out images are segmented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unetdiff.figures import SEQUENTIAL
from unetdiff.mask_figures import PAGE
from unetdiff.training.evaluation import FOLDER, read_evaluation
from unetdiff.training.report_html import columns, figure, figure_row, plot, section, titled
from unetdiff.training.report_plots import (
    Record,
    confusion_plot,
    curve_plot,
    reliability_plot,
    risk_coverage_plot,
)

CURVES = (("mean_iou", "Mean IoU"), ("mean_dice", "Mean Dice"), ("ece", "Calibration error (ECE)"))
"""Drawn over steps: key and title."""

FIGURES = (
    *(("mean_iou", "mean IoU"), ("mean_dice", "mean Dice"), ("accuracy", "accuracy"), ("mean_hd95", "HD95")),
    *(("mean_boundary_f", "boundary F"), ("v_rand", "V-Rand"), ("v_info", "V-Info")),
    *(("ece", "ECE"), ("nll", "NLL"), ("aurc", "AURC")),
)
"""Of all held-out images: key and name."""

OF_A_CLASS = (
    *(("iou", "IoU"), ("dice", "Dice"), ("class_accuracy", "recall"), ("boundary_f", "boundary F"), ("hd95", "HD95")),
    *(("share", "true %"), ("predicted_share", "predicted %")),
)
"""Columns of the table of classes: key and title."""


def mask_sections(run: Path, validation: Sequence[Record]) -> str:
    """The sections, from the lines of kind `validation` and from `evaluation/`; what is missing is left out.

    The folder is read where its figures are those of the last line: a run that was killed after a validation and goes
    on from before it has a folder that is newer than its lines.
    """
    measured = [record for record in validation if record.get("iou")]
    if not measured:
        return ""
    last, held = measured[-1], read_evaluation(run)
    newest = all(held.get(key) == last.get(key) for key in ("loss", "iou"))
    found = {**last, **held} if newest else last
    return "\n".join(filter(None, (_overall(measured, found), _cases(run, found), _confidence(found))))


def _overall(measured: Sequence[Record], found: Record) -> str:
    """The figures of all images, over steps, by class."""
    figures = [(_cell(found[key]), name) for key, name in FIGURES if found.get(key) is not None]
    plots = [titled(title, plot(curve_plot(measured, key, False), f"{title.lower()} over steps"))
             for key, title in CURVES]  # fmt: skip
    names = _names(found)
    confusion = plot(confusion_plot(found.get("confusion", []), names), "confusion matrix")
    by_class = [titled("Classes", _class_table(found, names)),
                titled("Percent of each true class, by what is predicted", confusion)]  # fmt: skip
    images = f", {found['images']:,} images" if "images" in found else ""
    body = figure_row(figures) + columns("table-and-plot", by_class) + columns("three", plots)
    return section("Masks of held-out images", body, f"After step {found['step']:,}{images}.")


def _names(found: Record) -> list[str]:
    return [str(name) for name in found.get("class_names") or range(len(found["iou"]))]


def _class_table(found: Record, names: Sequence[str]) -> str:
    """A row per class, and their means."""
    values = {**found, **_shares(found.get("confusion"))}
    shown = [(key, title) for key, title in OF_A_CLASS if values.get(key)]
    swatches = [_swatch(colour) for colour in found.get("colours", [])] or [""] * len(names)
    lines = [_line("class", [title for _, title in shown], "th")]
    for place, (name, swatch) in enumerate(zip(names, swatches, strict=True)):
        lines.append(_line(f"{swatch}{escape(name)}", [_cell(values[key][place]) for key, _ in shown]))
    means = [_cell(found[f"mean_{key}"]) if f"mean_{key}" in found else "" for key, _ in shown]
    lines.append(_line("mean", means))
    return f'<div class="scroll"><table class="classes">{"".join(lines)}</table></div>'


def _line(head: str, cells: Sequence[str], tag: str = "td") -> str:
    return f"<tr><th>{head}</th>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _shares(confusion: Sequence[Sequence[int]] | None) -> dict[str, list[str]]:
    """The percentage of positions that each class has in the truth and in the prediction."""
    total = sum(map(sum, confusion or []))
    if not confusion or not total:
        return {}
    sides = {"share": confusion, "predicted_share": zip(*confusion, strict=True)}
    return {name: [f"{100 * sum(counts) / total:.2f}" for counts in side] for name, side in sides.items()}


def _cell(value: float | str | None) -> str:
    """A figure: a share, or a distance in positions; a class that occurs nowhere has none."""
    if isinstance(value, str):
        return value
    return "–" if value is None else f"{value:.4f}" if value < 10 else f"{value:.1f}"


def _swatch(colour: Sequence[int]) -> str:
    return f'<span class="swatch" style="background: rgb({", ".join(map(str, colour))})"></span>'


def _cases(run: Path, found: Record) -> str:
    """The worst images, the worst first, under what their colours mean."""
    shown = [
        figure(run / FOLDER / case["file"], PAGE, _case_caption(place, case), f"held-out image {case['name']}")
        for place, case in enumerate(found.get("cases", []), start=1)
    ]
    shown = list(filter(None, shown))
    hint = (
        "The lowest mean Dice over the classes of an image first. Error: wrong positions in orange, ignored ones grey."
    )
    body = f'{_legend(found)}<div class="cases">{"".join(shown)}</div>' if shown else ""
    return section("Worst held-out images", body, hint)


def _case_caption(place: int, case: Record) -> str:
    """The rank, name and figures of a case."""
    name = case["name"].rsplit("/", 1)[-1]
    where = "" if case.get("slice") is None else f", slice {case['slice']} (the one with the most errors)"
    figures = f"mean Dice {_cell(case['mean_dice'])}, mean IoU {_cell(case['mean_iou'])}"
    wrong = "" if case.get("accuracy") is None else f", {100 * (1 - case['accuracy']):.1f}% of positions wrong"
    return f'{place}. <span title="{escape(case["name"])}">{escape(name)}</span>{where}: {figures}{wrong}'


def _legend(found: Record) -> str:
    """The colours of the classes and of the entropy."""
    names = _names(found)
    classes = [f"<span>{_swatch(colour)}{escape(name)}</span>"
               for colour, name in zip(found.get("colours", []), names, strict=False)]  # fmt: skip
    scale = f"<span>entropy 0{_scale()}{math.log(len(names)):.2f} nats (log {len(names)}, no class likelier)</span>"
    return f'<div class="legend">{"".join([*classes, scale])}</div>'


def _scale() -> str:
    """The colours of ordered values as a bar."""
    import matplotlib

    stops = (matplotlib.colormaps[SEQUENTIAL](place / 8, bytes=True)[:3] for place in range(9))
    listed = ", ".join(f"rgb({', '.join(str(int(part)) for part in stop)})" for stop in stops)
    return f'<span class="bar" style="background: linear-gradient(to right, {listed})"></span>'


def _confidence(found: dict[str, Any]) -> str:
    """Whether probabilities mean what they say, and whether errors are where the network is unsure."""
    reliability = reliability_plot(found.get("reliability", []), found.get("ece"))
    curves = [
        (f"{name}, area {found[area]:.4f}", found.get(key, {}))
        for name, key, area in (
            ("positions: share of errors", "risk_coverage", "aurc"),
            ("images: 1 − mean Dice", "image_risk_coverage", "image_aurc"),
        )
        if found.get(area) is not None
    ]
    parts = [
        titled("Reliability", plot(reliability, "accuracy over confidence")),
        titled("Risk at each coverage", plot(risk_coverage_plot(curves), "risk over coverage")),
    ]
    hint = (
        "Left: how often the most probable class is right, by its probability; below the diagonal it is less often. "
        "Right: the errors among what the network is most sure of."
    )
    return section("Confidence", columns("two", parts), hint)
