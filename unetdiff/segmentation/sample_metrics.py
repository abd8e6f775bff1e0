"""The figures of several masks per image over a data set, added up image by image, in one process or several.

metrics = SampleMetrics(SampleOptions(class_names=("background", "nodule")))
for name, samples, truths in images:
    metrics.update(samples, truths, name=name)
metrics.compute()["ged"]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from unetdiff.segmentation.calibration import Calibration
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.overlap import Overlap
from unetdiff.segmentation.samples import MaskDistances, PairRule, annotator_counts, counted_positions
from unetdiff.segmentation.scoring import Counts, Metric, Row, ScoredImage, mean_of_defined, ratio
from unetdiff.segmentation.uncertainty import decompose_votes

_ENTROPY_BINS = 2**12
"""Entropies are ranked by their share of log K in this many steps; equal ones tie."""

OF_IMAGES = ("ged", "hungarian_iou", "to_truth", "between_samples", "between_truths", "vote_entropy")
"""Values of an image of which `compute` has the mean over images."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is computed.

    Args:
        class_names: one name per class, K of them.
        pairs: those of the means within samples and within truths; see `PairRule`.
        background: the class that distances leave out; None: none.
        ignore: the label of positions that count nowhere in an image as soon as one truth has it there.
        annotators: names of those who drew the truths, who are the same for all images and in this order; their
            frequencies among the samples are counted. Empty: truths have no names.

    Raises:
        ValueError: one of these is outside what is listed here.
    """

    class_names: tuple[str, ...]
    pairs: PairRule = "all"
    background: int | None = 0
    ignore: int = IGNORE
    annotators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pairs not in get_args(PairRule):
            raise ValueError(f"pairs is {self.pairs!r}; expected {' or '.join(get_args(PairRule))}")
        if self.classes < 2:
            raise ValueError(f"class_names are {list(self.class_names)}; expected at least two classes")

    @property
    def classes(self) -> int:
        """K."""
        return len(self.class_names)


class SampleMetrics:
    """Accumulates what several masks per image are worth; plain tensors and lists on the CPU, so that it pickles.

    Several processes each update one with their own images, exchange them, and read
    `SampleMetrics.merged(...).compute()`: the same bits as from one process.
    """

    def __init__(self, options: SampleOptions) -> None:
        self.options = options
        self._families: list[Metric] = [Overlap(options.classes), Calibration()]
        self.counts: Counts = {name: zeros for family in self._families for name, zeros in family.zeros().items()}
        self.counts["entropy"] = torch.zeros(2, _ENTROPY_BINS + 1, dtype=torch.int64)  # positions, errors
        self.counts["annotators"] = torch.zeros(len(options.annotators), dtype=torch.int64)
        self.rows: list[Row] = []
        self.vote_rows: list[Row] = []
        self._names: set[str] = set()

    @torch.no_grad()
    def update(self, samples: Tensor, truths: Tensor, *, name: str, truth_counts: Sequence[int] | None = None) -> None:
        """Add an image.

        Args:
            samples: (S, *space) int64, 0 ... K-1. truths: (T, *space) int64, 0 ... K-1 or the ignored value.
            name: of the image, once only.
            truth_counts: how many annotators drew each truth; None: one each.

        Raises:
            ValueError: a label is unknown, the image came before, or masks do not fit; see `MaskDistances.of`.
        """
        samples, truths = samples.long().cpu(), truths.long().cpu()
        self._check(samples, truths, name)
        self._add_name(name)
        options = self.options
        found = MaskDistances.of(
            samples,
            truths,
            options.classes,
            truth_counts=truth_counts,
            background=options.background,
            ignore=options.ignore,
        )
        counted = counted_positions(truths, options.ignore)
        votes = decompose_votes(samples[:, None], options.classes)
        entropy = votes.vote_entropy[0][counted] / math.log(options.classes)
        values: dict[str, float | None] = dict.fromkeys(OF_IMAGES)
        if counted.any():
            values = {
                "ged": found.energy(options.pairs),
                "hungarian_iou": found.matched_iou(),
                "to_truth": found.to_truth,
                "between_samples": found.between_samples(options.pairs),
                "between_truths": found.between_truths(options.pairs),
                "vote_entropy": float(entropy.mean(dtype=torch.float64)) * math.log(options.classes),
            }
        self.rows.append({"name": name, "samples": len(samples), "truths": int(found.counts.sum()), **values})
        bins = (entropy * _ENTROPY_BINS).round().long()
        for place, (truth, count) in enumerate(zip(truths, found.counts.tolist(), strict=True)):
            image = ScoredImage(votes.probabilities[0], truth, counted)
            self._add_votes(image, bins, count, f"{name} {place}")
        if options.annotators:
            self.counts["annotators"] += annotator_counts(
                samples, truths, options.classes, options.background, options.ignore
            )

    def _add_votes(self, image: ScoredImage, bins: Tensor, count: int, name: str) -> None:
        """Add the shares of the votes as probabilities beside one truth, as often as annotators drew it."""
        row: Row = {"name": name}
        for family in self._families:
            counts, values = family.measure(image)
            row.update(values)
            for key, more in counts.items():
                self.counts[key] = self.counts[key] + count * more
        wrong = (image.prediction != image.labels)[image.counted].long()
        for place, value in enumerate((torch.ones_like(wrong), wrong)):
            self.counts["entropy"][place].index_add_(0, bins, count * value)
        self.vote_rows += [row] * count

    @classmethod
    def merged(cls, parts: Sequence[SampleMetrics]) -> SampleMetrics:
        """What one process would hold after all the images of `parts`, none of which changes.

        Raises:
            ValueError: an image is in two parts.
        """
        total = cls(parts[0].options)
        for part in parts:
            assert part.options == total.options, (part.options, total.options)
            for row in part.rows:
                total._add_name(row["name"])
            total.counts = {name: total.counts[name] + more for name, more in part.counts.items()}
            total.rows += part.rows
            total.vote_rows += part.vote_rows
        for rows in (total.rows, total.vote_rows):
            rows.sort(key=lambda row: row["name"])
        return total

    def compute(self) -> dict[str, Any]:
        """The values of all images so far, ready for JSON; what is not defined is None, never NaN.

        Returns:
            `class_names`, `images` (their number), `samples` and `truths` (the numbers per image that occur), `pairs`;
            the means over images of `ged` (GED^2), `hungarian_iou`, the mean distances `to_truth`, `between_samples`
            (how far samples disagree) and `between_truths`, and of `vote_entropy` (nats);
            `error_auroc`: the chance that a position where the most frequent class is wrong has a higher vote entropy
            than one where it is right (ties count half), over all positions and truths;
            `votes`: the shares of the votes as probabilities, against every truth: what `Overlap` and `Calibration`
            describe, where the confidence is the largest share;
            `frequencies`: for each of `annotators` the share of the samples that are nearest to its mask, and
            `classified`, the number of samples that were counted (of images on which annotators differ);
            and `per_image`.
        """
        votes: dict[str, Any] = {}
        for family in self._families:
            votes.update(family.summary(self.counts, self.vote_rows))
        values = {
            "class_names": list(self.options.class_names),
            "images": len(self.rows),
            "samples": sorted({row["samples"] for row in self.rows}),
            "truths": sorted({row["truths"] for row in self.rows}),
            "pairs": self.options.pairs,
            **{key: mean_of_defined(row[key] for row in self.rows) for key in OF_IMAGES},
            "error_auroc": _auroc(*self.counts["entropy"].tolist()),
            "votes": votes,
        }
        if self.options.annotators:
            counts = self.counts["annotators"].tolist()
            shares = [ratio(count, sum(counts)) for count in counts]
            values["frequencies"] = dict(zip(self.options.annotators, shares, strict=True))
            values["classified"] = sum(counts)
        return {**values, "per_image": [dict(row) for row in self.rows]}

    def _check(self, samples: Tensor, truths: Tensor, name: str) -> None:
        options = self.options
        for what, masks, more in (("samples", samples, []), ("truths", truths, [options.ignore])):
            unknown = [label for label in masks.unique().tolist() if label not in {*range(options.classes), *more}]
            if unknown:
                raise ValueError(f"The {what} of {name} hold {unknown[:10]}; expected 0..{options.classes - 1}.")
        if options.annotators and len(truths) != len(options.annotators):
            raise ValueError(f"{name} has {len(truths)} truths; expected {len(options.annotators)}, one by annotator.")

    def _add_name(self, name: str) -> None:
        if name in self._names:
            raise ValueError(f"The image {name} was counted before; expected each image once.")
        self._names.add(name)


def _auroc(positions: list[int], errors: list[int]) -> float | None:
    """The chance that an error lies in a higher bin than a hit does, ties counting half; None without either."""
    below, area = 0, 0
    for count, wrong in zip(positions, errors, strict=True):
        right = count - wrong
        area += wrong * (2 * below + right)
        below += right
    return ratio(area, 2 * sum(errors) * below)
