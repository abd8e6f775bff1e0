"""Masks against their truth: figures of whole images and of large ones by rows, and the tables of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unetdiff.masks.inputs import TruthMask
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.segmentation.overlap import overlaps
from unetdiff.segmenting import Segmentation


class TruthScores:
    """The figures of images with truth, added up one by one.

    Of an image that is not held whole, what is counted by position is measured (overlap, calibration), and the rest
    (boundaries, Rand scores) of the other images alone.
    """

    def __init__(self, options: MetricOptions) -> None:
        self.options = options
        self._by_position = replace(options, boundary_tolerance=None, hd95=False, membrane=None)
        self._whole = SegmentationMetrics(options)
        self._large: list[SegmentationMetrics] = []

    def add(self, name: str, found: Segmentation, truth: np.ndarray, spacing: Sequence[float] | None = None) -> None:
        """Add an image that is held whole, beside its labels (*space) int64; see `SegmentationMetrics.update`."""
        probabilities, labels = torch.from_numpy(found.probabilities)[None], torch.from_numpy(truth)[None]
        self._whole.update(probabilities, labels, spacing, names=[name])

    def add_rows(
        self, name: str, rows: Iterator[tuple[int, Segmentation]], truth: TruthMask
    ) -> Iterator[tuple[int, Segmentation]]:
        """Add a large image as its rows pass; it counts once they have all passed."""
        parts = SegmentationMetrics(self._by_position)
        for start, part in rows:
            labels = torch.from_numpy(truth.rows(start, len(part.labels)))
            parts.update(torch.from_numpy(part.probabilities)[None], labels[None])
            yield start, part
        parts.rows = [_joined(name, parts)]
        self._large.append(parts)

    @classmethod
    def merged(cls, parts: Sequence[TruthScores]) -> TruthScores:
        """What one process would hold after all the images of `parts`, which several have measured."""
        total = cls(parts[0].options)
        total._whole = SegmentationMetrics.merged([part._whole for part in parts])
        total._large = [image for part in parts for image in part._large]
        total._large.sort(key=lambda image: image.rows[0]["name"])
        return total

    def compute(self) -> dict[str, Any]:
        """As `SegmentationMetrics.compute`; beside it `images_whole`, of how many images all figures are."""
        computed = self._whole.compute()
        if self._large:
            small = SegmentationMetrics(self._by_position)
            small.counts = {name: self._whole.counts[name] for name in small.counts}
            small.rows = list(self._whole.rows)
            computed |= SegmentationMetrics.merged([small, *self._large]).compute()
        return {**computed, "images_whole": len(self._whole.rows)}


def _joined(name: str, parts: SegmentationMetrics) -> dict[str, Any]:
    """The row of an image from those of its parts: ratios from all counts, means weighted by positions."""
    measured = [row for row in parts.rows if row["positions"]]
    total = sum(row["positions"] for row in measured)
    means = {
        key: sum(row[key] * row["positions"] for row in measured) / total if total else None
        for key in ("nll", "brier", "confidence")
        if key in parts.rows[0]
    }
    return {"name": name, "positions": total, **overlaps(parts.counts["confusion"]), **means}


_SUMMARY = {
    "mean_iou": "mean IoU",
    "mean_dice": "mean Dice",
    "accuracy": "accuracy",
    "mean_boundary_f": "mean boundary F",
    "mean_hd95": "mean HD95 (positions; of NIfTI files millimetres)",
    "v_rand": "V-Rand",
    "v_info": "V-Info",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
    "nll": "negative log-likelihood (nats)",
}
_PER_CLASS = {"iou": "IoU", "dice": "Dice", "class_accuracy": "recall", "boundary_f": "boundary F", "hd95": "HD95"}
_PER_IMAGE = {"mean_dice": "mean Dice", "mean_iou": "mean IoU", "accuracy": "accuracy", "positions": "positions"}


def shown(value: float | int | None) -> str:
    """A figure as tables have it; a dash where it is not defined."""
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def worst_first(computed: dict[str, Any]) -> list[dict[str, Any]]:
    """The images by rising mean Dice; those without any truth last."""
    return sorted(computed["per_image"], key=lambda row: (row["mean_dice"] is None, row["mean_dice"], row["name"]))


def score_page(computed: dict[str, Any], annotators: int = 1) -> str:
    """The figures of `TruthScores.compute` as a page of tables in Markdown.

    annotators: how many truths each image was added with.
    """
    counted, classes = computed["images"], computed["class_names"]
    said = f"{counted} images" if annotators == 1 else f"{counted // annotators} images with {annotators} truths each"
    parts = "" if computed["images_whole"] == counted else (
        f"\n\nBoundaries and Rand scores are those of the {computed['images_whole']} images that are held whole."
    )  # fmt: skip
    totals = [[label, shown(computed[key])] for key, label in _SUMMARY.items() if key in computed]
    columns = {key: label for key, label in _PER_CLASS.items() if key in computed}
    of_truth = [sum(row) / max(computed["positions"], 1) for row in computed["confusion"]]
    per_class = [
        [name, *(shown(computed[key][place]) for key in columns), f"{100 * of_truth[place]:.2f}%"]
        for place, name in enumerate(classes)
    ]
    per_image = [[row["name"], *(shown(row[key]) for key in _PER_IMAGE)] for row in worst_first(computed)]
    return "\n\n".join(
        [
            f"# Masks against their truth\n\n{said}, {computed['positions']} positions, "
            f"{computed['ignored']} more ignored. A dash: not defined.{parts}",
            table(["", "all images"], totals),
            "## By class\n\n" + table(["class", *columns.values(), "share of truth"], per_class),
            "## By image, the worst first\n\n" + table(["image", *_PER_IMAGE.values()], per_image),
        ]
    ) + "\n"  # fmt: skip


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; the first column on the left, numbers on the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score_list(computed: dict[str, Any]) -> str:
    """A line per image in CSV, the worst first: its own figures, then IoU and Dice of each class."""
    keys = ("iou", "dice")
    classes = computed["class_names"]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", *_PER_IMAGE, *(f"{key}_{name}" for key in keys for name in classes)])
    for row in worst_first(computed):
        values = [row[key] for key in _PER_IMAGE] + [value for key in keys for value in row[key]]
        lines.writerow([row["name"], *("" if value is None else value for value in values)])
    return text.getvalue()
