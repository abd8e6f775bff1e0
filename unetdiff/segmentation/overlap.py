"""IoU, Dice and accuracy from the confusion matrix of the whole data set, and of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetdiff.segmentation.scoring import Counts, Row, ScoredImage, mean_of_defined, mean_per_class, ratio


def confusion_matrix(image: ScoredImage) -> Tensor:
    """(K, K) int64 on the CPU: rows are the truth, columns the prediction; counted positions only."""
    cells = image.labels[image.counted] * image.classes + image.prediction[image.counted]
    return torch.bincount(cells, minlength=image.classes**2).reshape(image.classes, image.classes).cpu()


def overlaps(confusion: Tensor) -> dict[str, Any]:
    """IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN), accuracies, from a confusion matrix (K, K).

    A class that neither truth nor prediction holds has no IoU and no Dice (None) and is left out of the means;
    a class that is predicted and never true has 0 and counts. A class without truth has no accuracy (recall).

    Returns:
        `iou`, `dice`, `class_accuracy`: lists of K values in [0, 1] or None; `mean_iou`, `mean_dice`,
        `mean_class_accuracy`: their means over the classes that have one; `accuracy`: the share of positions.
    """
    hits, truth, predicted = (sums.tolist() for sums in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    per_class = {
        "iou": [ratio(h, t + p - h) for h, t, p in zip(hits, truth, predicted, strict=True)],
        "dice": [ratio(2 * h, t + p) for h, t, p in zip(hits, truth, predicted, strict=True)],
        "class_accuracy": [ratio(h, t) for h, t in zip(hits, truth, strict=True)],
    }
    means = {f"mean_{name}": mean_of_defined(values) for name, values in per_class.items()}
    return {**per_class, **means, "accuracy": ratio(sum(hits), sum(truth))}


@dataclass(frozen=True)
class Overlap:
    """The confusion matrix and what follows from it, for `classes` classes; `overlaps` states the rules.

    Of the data set: the matrix of all images added up, then the ratios, beside `image_iou` and `image_dice`, per
    class the mean over the images in which it is defined, and `mean_image_iou` and `mean_image_dice`, the mean over
    images of the image's own mean over classes.
    """

    classes: int

    def zeros(self) -> Counts:
        return {
            "confusion": torch.zeros(self.classes, self.classes, dtype=torch.int64),
            "ignored": torch.zeros((), dtype=torch.int64),
        }

    def measure(self, image: ScoredImage) -> tuple[Counts, Row]:
        confusion = confusion_matrix(image)
        ignored = (~image.counted).sum().cpu()
        return {"confusion": confusion, "ignored": ignored}, {"positions": int(confusion.sum()), **overlaps(confusion)}

    def summary(self, counts: Counts, rows: list[Row]) -> dict[str, Any]:
        confusion = counts["confusion"]
        per_image: dict[str, Any] = {}
        for name in ("iou", "dice"):
            per_image[f"image_{name}"] = mean_per_class(rows, name, self.classes)
            per_image[f"mean_image_{name}"] = mean_of_defined(row[f"mean_{name}"] for row in rows)
        return {
            "positions": int(confusion.sum()),
            "ignored": int(counts["ignored"]),
            **overlaps(confusion),
            **per_image,
            "confusion": confusion.tolist(),
        }
