"""What the newest validation of a segmentation run found: its figures, and pictures of the worst images, in a folder.

The lines of `metrics.jsonl` stay short; what is long is here, for `report.html` and for whoever wants to read it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdiff.data.formats import DataFormat
from unetdiff.data.volumes import stem_of
from unetdiff.files import write_folder, write_json
from unetdiff.mask_figures import case_captions, case_planes, most_wrong_slice, panels
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.segmentation.scoring import Row

FOLDER, FIGURES = "evaluation", "figures.json"
MOST_CASES = 10
OF_A_CASE = ("name", "mean_dice", "mean_iou", "accuracy")
"""What is stored of a case beside its picture."""


@dataclass(frozen=True)
class Case:
    """A held-out image among the worst.

    Attributes:
        row: its figures, among them `name` and `mean_dice`.
        place: of the slice that is shown, of a volume; None of an image or a signal.
        planes: as `case_planes` returns them.
    """

    row: Row
    place: int | None
    planes: list[np.ndarray]

    def drawn(self) -> DrawnCase:
        """The case with its picture as the bytes of a PNG file, much smaller than the planes."""
        file = io.BytesIO()
        panels([self.planes], case_captions(len(self.row["iou"]))).save(file, format="PNG")
        return DrawnCase({**{name: self.row[name] for name in OF_A_CASE}, "slice": self.place}, file.getvalue())


@dataclass(frozen=True)
class DrawnCase:
    """What is stored of a case: its figures, and a PNG file."""

    figures: Row
    picture: bytes


def badness(figures: Row) -> tuple[float, str]:
    """Cases are in this order, the lowest mean Dice over the image's classes first; ties by name."""
    return figures["mean_dice"], figures["name"]


@dataclass
class Evaluation:
    """What a process has seen of the held-out images: metrics, losses by name, the worst cases."""

    metrics: SegmentationMetrics
    losses: dict[str, float] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    @classmethod
    def start(cls, options: MetricOptions) -> Evaluation:
        """Nothing seen yet."""
        return cls(SegmentationMetrics(options))

    def add(
        self,
        name: str,
        image: np.ndarray,
        labels: np.ndarray,
        probabilities: Tensor,
        loss: float,
        format: DataFormat,
        colours: np.ndarray,
    ) -> None:
        """Count one image.

        Args:
            name: of the image, once only.
            image: (*space, C) in the form of the data. labels: (*space) int64. probabilities: (K, *space) float32.
            loss: of the image.
            format, colours: for its picture.
        """
        self.metrics.update(probabilities[None], torch.from_numpy(labels)[None], names=[name])
        self.losses[name] = loss
        row = self.metrics.rows[-1]
        if row["mean_dice"] is None or (len(self.cases) == MOST_CASES and badness(row) > badness(self.cases[-1].row)):
            return
        found = probabilities.numpy()
        place = most_wrong_slice(found.argmax(0), labels) if format.dims == 3 else None
        case = Case(row, place, case_planes(image, labels, found, format, colours, place))
        self.cases = sorted([*self.cases, case], key=lambda case: badness(case.row))[:MOST_CASES]

    def parts(self) -> tuple[SegmentationMetrics, dict[str, float], list[DrawnCase]]:
        """What processes exchange."""
        return self.metrics, self.losses, [case.drawn() for case in self.cases]


def merged(
    parts: Sequence[tuple[SegmentationMetrics, dict[str, float], list[DrawnCase]]],
) -> tuple[dict[str, Any], list[DrawnCase]]:
    """The figures of all images, with `loss` their mean loss, and the worst cases; the same for any division."""
    figures = SegmentationMetrics.merged([metrics for metrics, _, _ in parts]).compute()
    losses = {name: loss for _, part, _ in parts for name, loss in part.items()}
    figures["loss"] = sum(losses[name] for name in sorted(losses)) / len(losses)
    cases = [case for _, _, part in parts for case in part]
    return figures, sorted(cases, key=lambda case: badness(case.figures))[:MOST_CASES]


def write_evaluation(run: Path, figures: dict[str, Any], cases: Sequence[DrawnCase], colours: np.ndarray) -> None:
    """Write `evaluation/` of a run folder, replacing an older one in one step.

    `figures.json` holds the figures but those of each image, `colours` (K colours, red, green, blue), and `cases`, for
    each its figures and its `file`: a picture called by its place and its image's name.
    """
    files = [f"{place:02d}_{_file_name(case.figures['name'])}.png" for place, case in enumerate(cases)]
    held = {name: value for name, value in figures.items() if name != "per_image"}
    held["colours"] = colours.tolist()
    held["cases"] = [{**case.figures, "file": file} for case, file in zip(cases, files, strict=True)]

    def fill(folder: Path) -> None:
        write_json(folder / FIGURES, held)
        for case, file in zip(cases, files, strict=True):
            (folder / file).write_bytes(case.picture)

    write_folder(run / FOLDER, fill)


def _file_name(name: str) -> str:
    """The last part of an image's name, without its suffix and what file systems do not take."""
    return re.sub(r"[^\w.-]+", "_", stem_of(Path(name))).strip("_")[:60] or "image"


def read_evaluation(run: Path) -> dict[str, Any]:
    """What `write_evaluation` left in a run folder; empty where there is nothing that can be read."""
    try:
        held = json.loads((run / FOLDER / FIGURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
