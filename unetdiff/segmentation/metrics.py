"""The metrics of a segmenter over a data set, added up image by image, in one process or several.

    metrics = SegmentationMetrics(MetricOptions(class_names=("background", "cell")))
    for probabilities, labels in batches:
        metrics.update(probabilities, labels)
    metrics.compute()["mean_iou"]

Memory grows with the number of images by a short row each, and not with the number of their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetdiff.segmentation.boundaries import BoundaryF, HausdorffDistance
from unetdiff.segmentation.calibration import Calibration
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.overlap import Overlap
from unetdiff.segmentation.rand_scores import MembraneScores
from unetdiff.segmentation.scoring import Counts, Metric, Row, ScoredImage

_SUM_TOLERANCE = 0.01  # of the probabilities of a position; a softmax in bfloat16 stays within


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """What is computed.

    Args:
        class_names: one name per class, K of them.
        ignore: the label of positions that count nowhere: not as truth, not as prediction, not as a boundary.
        calibration: ECE, Brier score, NLL, AURC; see `Calibration`.
        boundary_tolerance: positions; see `BoundaryF`. None: no boundary F.
        hd95: the 95% Hausdorff distance; see `HausdorffDistance`.
        membrane: the class that separates cells; V-Rand and V-Info, see `MembraneScores`. None: neither.
        membrane_thresholds: of the membrane's probability, for the two scores at the best threshold.

    Raises:
        ValueError: one of these is outside what is listed here.
    """

    class_names: tuple[str, ...]
    ignore: int = IGNORE
    calibration: bool = True
    boundary_tolerance: float | None = 2.0
    hd95: bool = False
    membrane: int | None = None
    membrane_thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __post_init__(self) -> None:
        if not self.class_names:
            raise ValueError("class_names is empty; expected one name per class.")
        if 0 <= self.ignore < self.classes:
            raise ValueError(
                f"ignore is {self.ignore}, which is a class; expected a value outside 0..{self.classes - 1}."
            )
        if self.boundary_tolerance is not None and self.boundary_tolerance < 0:
            raise ValueError(f"boundary_tolerance is {self.boundary_tolerance}; expected at least 0.")
        if self.membrane is not None and not 0 <= self.membrane < self.classes:
            raise ValueError(f"membrane is {self.membrane}; expected a class, 0..{self.classes - 1}.")
        if not all(0 < cut < 1 for cut in self.membrane_thresholds):
            raise ValueError(f"membrane_thresholds are {self.membrane_thresholds}; expected values between 0 and 1.")

    @property
    def classes(self) -> int:
        """K."""
        return len(self.class_names)

    def metrics(self) -> list[Metric]:
        """One object per family of values that is asked for."""
        wanted: list[Metric | None] = [
            Overlap(self.classes),
            Calibration() if self.calibration else None,
            None if self.boundary_tolerance is None else BoundaryF(self.classes, self.boundary_tolerance),
            HausdorffDistance(self.classes) if self.hd95 else None,
            None if self.membrane is None else MembraneScores(self.membrane, self.membrane_thresholds),
        ]
        return [metric for metric in wanted if metric is not None]


class SegmentationMetrics:
    """Accumulates the metrics of a data set; plain tensors and lists on the CPU, so that it pickles.

    Several processes each update one with their own images, exchange them (`torch.distributed.all_gather_object`)
    and read `SegmentationMetrics.merged(...).compute()`: the same bits as from one process.
    """

    def __init__(self, options: MetricOptions) -> None:
        self.options = options
        self.metrics = options.metrics()
        self.counts: Counts = {name: zeros for metric in self.metrics for name, zeros in metric.zeros().items()}
        self.rows: list[Row] = []
        self._names: set[str] = set()

    @torch.no_grad()
    def update(
        self,
        probabilities: Tensor,
        labels: Tensor,
        spacing: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Add a batch; how images are batched changes nothing.

        An image too large to hold may come as tiles that do not overlap, each an image of its own, with the same
        values over the data set for what is counted by position (`Overlap`, `Calibration`), and no meaning for the
        rest.

        Args:
            probabilities: (N, K, *space), in [0, 1], summing to 1 over classes; any float dtype and device.
            labels: (N, *space) integers, 0..K-1 or the ignored value.
            spacing: the distance between neighbours along each axis, for HD95; None: 1.
            names: of the images; a name counts once. None: nameless, and whoever calls sees to that.

        Raises:
            ValueError: shapes do not fit, labels are unknown, probabilities are none, a name came before.
        """
        assert names is None or len(names) == len(labels), (names, len(labels))
        labels = labels.to(probabilities.device, torch.int64)
        self._check(probabilities, labels, spacing)
        for name, given, truth in zip(names or [None] * len(labels), probabilities, labels, strict=True):
            self._add_name(name)
            steps = None if spacing is None else tuple(spacing)
            image = ScoredImage(given.float(), truth, truth != self.options.ignore, steps)
            row: Row = {"name": name}
            for metric in self.metrics:
                counts, values = metric.measure(image)
                self._add(counts)
                row.update(values)
            self.rows.append(row)

    @classmethod
    def merged(cls, parts: Sequence[SegmentationMetrics]) -> SegmentationMetrics:
        """What one process would hold after all the images of `parts`, none of which changes.

        Rows are in the order of their names, where they have them, and so in the same order for any division.

        Raises:
            ValueError: an image is in two parts.
        """
        total = cls(parts[0].options)
        for part in parts:
            assert part.options == total.options, (part.options, total.options)
            total._add(part.counts)
            for row in part.rows:
                total._add_name(row["name"])
                total.rows.append(row)
        total.rows.sort(key=lambda row: row["name"] or "")
        return total

    def compute(self) -> dict[str, Any]:
        """The values of all images so far, ready for JSON; what is not defined is None, never NaN.

        Returns:
            `class_names`, `images` (their number), the values that `Overlap`, `Calibration`, `BoundaryF`,
            `HausdorffDistance` and `MembraneScores` describe, each as it was asked for, lists being in the order of
            classes; and `per_image`, for each image its name and its own values under the same names.
        """
        values: dict[str, Any] = {"class_names": list(self.options.class_names), "images": len(self.rows)}
        for metric in self.metrics:
            values.update(metric.summary(self.counts, self.rows))
        return {**values, "per_image": [dict(row) for row in self.rows]}

    def _add(self, counts: Counts) -> None:
        for name, more in counts.items():
            self.counts[name] = self.counts[name] + more

    def _add_name(self, name: str | None) -> None:
        if name is None:
            return
        if name in self._names:
            raise ValueError(f"The image {name} was counted before; expected each image once.")
        self._names.add(name)

    def _check(self, probabilities: Tensor, labels: Tensor, spacing: Sequence[float] | None) -> None:
        classes, ignore = self.options.classes, self.options.ignore
        expected = (len(labels), classes, *labels.shape[1:])
        if tuple(probabilities.shape) != expected:
            raise ValueError(f"The probabilities' shape is {tuple(probabilities.shape)}; expected {expected}.")
        if spacing is not None and len(spacing) != labels.ndim - 1:
            raise ValueError(f"spacing is {list(spacing)}; expected {labels.ndim - 1} numbers.")
        unknown = labels[((labels < 0) | (labels >= classes)) & (labels != ignore)].unique().tolist()
        if unknown:
            raise ValueError(f"The labels hold {unknown[:10]}; expected 0..{classes - 1} or {ignore}.")
        if not probabilities.numel():
            return
        sums = probabilities.sum(1, dtype=torch.float32)
        off, low = float((sums - 1).abs().max()), float(probabilities.min())
        if not (off <= _SUM_TOLERANCE and low >= 0):
            raise ValueError(
                f"The values at one position sum to 1 within {off:.3g} and are at least {low:.3g}; "
                f"expected probabilities, at least 0 and within {_SUM_TOLERANCE} of 1."
            )
