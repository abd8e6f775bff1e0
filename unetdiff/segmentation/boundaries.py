"""How far the predicted outlines lie from the true ones: boundary F and the 95% Hausdorff distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unetdiff.segmentation.scoring import Counts, Row, ScoredImage, mean_of_defined, mean_per_class

Masks = tuple[np.ndarray, np.ndarray]
"""The edges of one class, in the prediction and in the truth, bool (*space)."""


def edges(mask: np.ndarray, counted: np.ndarray, border: bool) -> np.ndarray:
    """The positions of a mask that have a neighbour along an axis outside it.

    Args:
        mask: (*space) bool.
        counted: (*space) bool; what is not counted is no edge and makes no edge of its neighbours.
        border: whether what lies beyond the border of the image is outside the mask, so that a mask cut off by it
            has an edge there.
    """
    from scipy.ndimage import binary_erosion

    inside = np.asarray(binary_erosion(mask | ~counted, border_value=not border), bool)
    return mask & counted & ~inside


def surface_distances(
    one: np.ndarray, other: np.ndarray, spacing: tuple[float, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distances from each position of `one` to the nearest of `other`, and the reverse; neither is empty.

    Args:
        one, other: (*space) bool.
        spacing: the distance between neighbours along each axis; None: 1.
    """
    from monai.metrics.utils import get_surface_distance

    steps = None if spacing is None else list(spacing)
    return (
        np.asarray(get_surface_distance(one, other, spacing=steps)),
        np.asarray(get_surface_distance(other, one, spacing=steps)),
    )


def class_edges(image: ScoredImage, border: bool) -> list[Masks]:
    """The edges of each class in the prediction and in the truth."""
    prediction, labels, counted = (part.cpu().numpy() for part in (image.prediction, image.labels, image.counted))
    return [
        (edges(prediction == place, counted, border), edges(labels == place, counted, border))
        for place in range(image.classes)
    ]


@dataclass(frozen=True)
class BoundaryF:
    """Boundary F: Martin et al. 2004, https://doi.org/10.1109/TPAMI.2004.1273918; Csurka et al. 2013 (BMVC).

    Precision is the share of a class's predicted edge within `tolerance` positions (Euclidean, whatever the spacing)
    of its true edge, recall the share of the true edge within `tolerance` of the predicted one, F = 2PR / (P + R).
    An edge is a position of the class beside another class; the border of the image is no edge. Over the data set
    the four counts are added up before the ratios. A class with no edge on either side has no F (None) and is left
    out of the mean; with an edge on one side only, F is 0.
    """

    classes: int
    tolerance: float

    def zeros(self) -> Counts:
        return {"edges": torch.zeros(self.classes, 4, dtype=torch.int64)}

    def measure(self, image: ScoredImage) -> tuple[Counts, Row]:
        counts = torch.tensor([self._matches(*masks) for masks in class_edges(image, border=False)])
        return {"edges": counts}, {"boundary_f": [_f_score(*numbers) for numbers in counts.tolist()]}

    def _matches(self, predicted: np.ndarray, truth: np.ndarray) -> list[int]:
        """Predicted edge positions matched and in all, true edge positions matched and in all."""
        if not (predicted.any() and truth.any()):
            return [0, int(predicted.sum()), 0, int(truth.sum())]
        there, back = surface_distances(predicted, truth)
        return [int((there <= self.tolerance).sum()), there.size, int((back <= self.tolerance).sum()), back.size]

    def summary(self, counts: Counts, rows: list[Row]) -> dict[str, Any]:
        scores = [_f_score(*numbers) for numbers in counts["edges"].tolist()]
        return {
            "boundary_f": scores,
            "mean_boundary_f": mean_of_defined(scores),
            "boundary_tolerance": self.tolerance,
        }


def _f_score(predicted_hits: int, predicted: int, truth_hits: int, truth: int) -> float | None:
    if not predicted and not truth:
        return None
    if not predicted_hits or not truth_hits:
        return 0.0
    precision, recall = predicted_hits / predicted, truth_hits / truth
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class HausdorffDistance:
    """HD95: the larger of the two directed 95% quantiles of the distances between a class's edges, as MONAI has it.

    In the unit of the spacing (positions without one). The border of the image is an edge of what it cuts off. Per
    class the mean over the images that hold it on both sides. An image that holds it on one side only has no
    distance: `hd95_missed` counts such images, and a mean without that count flatters.
    """

    classes: int

    def zeros(self) -> Counts:
        return {"hd95_missed": torch.zeros(self.classes, dtype=torch.int64)}

    def measure(self, image: ScoredImage) -> tuple[Counts, Row]:
        pairs = class_edges(image, border=True)
        missed = torch.tensor([int(bool(predicted.any()) != bool(truth.any())) for predicted, truth in pairs])
        return {"hd95_missed": missed}, {"hd95": [_hd95(masks, image.spacing) for masks in pairs]}

    def summary(self, counts: Counts, rows: list[Row]) -> dict[str, Any]:
        distances = mean_per_class(rows, "hd95", self.classes)
        return {
            "hd95": distances,
            "mean_hd95": mean_of_defined(distances),
            "hd95_missed": counts["hd95_missed"].tolist(),
        }


def _hd95(masks: Masks, spacing: tuple[float, ...] | None) -> float | None:
    if not all(mask.any() for mask in masks):
        return None
    return max(float(np.percentile(distances, 95)) for distances in surface_distances(*masks, spacing))
