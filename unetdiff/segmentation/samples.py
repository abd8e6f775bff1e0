"""Several masks of one image beside several truths of it: how alike the two sets are, and who drew like whom.

Everything rests on one distance of two masks, 1 - IoU, the mean over classes; see `iou_distances` for its rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.uncertainty import decompose_votes

PairRule = Literal["all", "distinct"]
"""Which pairs a mean within one set is over: `all`, those of a mask with itself too (what is usually reported; low by a
share of 1/n), or `distinct` masks (unbiased; at least two are needed)."""


def iou_distances(left: Tensor, right: Tensor, classes: int, background: int | None = 0) -> Tensor:
    """1 - IoU of every mask of one set and every mask of another, the mean over classes.

    A class that neither mask holds has distance 0, and counts: so two empty masks are alike, and as the mean of Jaccard
    distances over the same classes for every pair, this is a metric, whose energy distance is never negative.

    Args:
        left: (S, *space) int64, 0 ... K-1. right: (T, *space).
        classes: K.
        background: the class that is left out of the mean; None: none is.

    Returns:
        (S, T) float64 on the CPU, in [0, 1]; 0 where there are no positions.
    """
    left, right = left.flatten(1), right.flatten(1)
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    counted = [label for label in range(classes) if label != background]
    for label in counted:
        ours, theirs = (left == label).double(), (right == label).double()
        both = ours @ theirs.T
        either = ours.sum(1)[:, None] + theirs.sum(1) - both
        total += (1 - torch.where(either > 0, both / either, 1.0)).cpu()
    return total / len(counted)


@dataclass(frozen=True)
class MaskDistances:
    """All distances between the masks of an image, and what follows from them.

    Attributes:
        across: (S, T) float64, from samples to truths. samples: (S, S). truths: (T, T).
        counts: (T,) int64, how many annotators drew each truth.
    """

    across: Tensor
    samples: Tensor
    truths: Tensor
    counts: Tensor

    @classmethod
    def of(
        cls,
        samples: Tensor,
        truths: Tensor,
        classes: int,
        *,
        truth_counts: Sequence[int] | None = None,
        background: int | None = 0,
        ignore: int = IGNORE,
    ) -> MaskDistances:
        """The distances of samples (S, *space) and truths (T, *space); see `generalized_energy_distance`."""
        counts = torch.ones(len(truths), dtype=torch.int64) if truth_counts is None else torch.tensor(truth_counts)
        if not len(samples) or samples.shape[1:] != truths.shape[1:] or len(counts) != len(truths) or not counts.sum():
            raise ValueError(
                f"samples are {list(samples.shape)}, truths {list(truths.shape)} and their counts {counts.tolist()}; "
                "expected at least one of each, masks of one size, and a count for each truth"
            )
        kept = counted_positions(truths, ignore) & counted_positions(samples, ignore)
        ours, theirs = samples[:, kept], truths[:, kept]
        return cls(
            across=iou_distances(ours, theirs, classes, background),
            samples=iou_distances(ours, ours, classes, background),
            truths=iou_distances(theirs, theirs, classes, background),
            counts=counts,
        )

    @property
    def to_truth(self) -> float:
        """E d(S, Y): of a sample and a truth, on average."""
        return float((self.across.mean(0) @ self.counts.double()) / self.counts.sum())

    def between_samples(self, pairs: PairRule = "all") -> float:
        """E d(S, S')."""
        return _mean_pair(self.samples, torch.ones(len(self.samples), dtype=torch.int64), pairs)

    def between_truths(self, pairs: PairRule = "all") -> float:
        """E d(Y, Y')."""
        return _mean_pair(self.truths, self.counts, pairs)

    def energy(self, pairs: PairRule = "all") -> float:
        """GED^2; see `generalized_energy_distance`."""
        return 2 * self.to_truth - self.between_samples(pairs) - self.between_truths(pairs)

    def matched_iou(self) -> float:
        """The mean IoU of the best matching; see `hungarian_iou`."""
        from scipy.optimize import linear_sum_assignment

        count, annotators = len(self.across), int(self.counts.sum())
        size = math.lcm(count, annotators)
        repeated = self.across.repeat_interleave(size // count, dim=0)
        repeated = repeated.repeat_interleave(self.counts * (size // annotators), dim=1).numpy()
        return float(1 - repeated[linear_sum_assignment(repeated)].mean())


def _mean_pair(distances: Tensor, counts: Tensor, pairs: PairRule) -> float:
    """The mean distance within one set of n masks; a mask has distance 0 to itself, so that only the number differs."""
    n = int(counts.sum())
    if pairs == "distinct" and n < 2:
        raise ValueError("there is one mask, and no pair of distinct ones; expected at least two, or all pairs")
    sums = counts.double() @ distances @ counts.double()
    return float(sums / {"all": n**2, "distinct": n * (n - 1)}[pairs])


def counted_positions(masks: Tensor, ignore: int = IGNORE) -> Tensor:
    """Where no mask of (M, *space) is ignored: bool (*space)."""
    return (masks != ignore).all(0)


def generalized_energy_distance(
    samples: Tensor,
    truths: Tensor,
    classes: int,
    *,
    truth_counts: Sequence[int] | None = None,
    pairs: PairRule = "all",
    background: int | None = 0,
    ignore: int = IGNORE,
) -> float:
    """GED^2 = 2 E d(S, Y) - E d(S, S') - E d(Y, Y') of an image: 0 where samples are distributed as truths are.

    Szekely & Rizzo 2013; as a figure of ambiguous masks Kohl et al. 2018, https://arxiv.org/abs/1806.05034, eq. 5.
    It depends on the number of samples, which must be stated beside it.

    Args:
        samples: (S, *space) int64, 0 ... K-1. truths: (T, *space).
        classes: K. d is 1 - IoU, the mean over the classes but `background`, 0 for one that neither holds.
        truth_counts: how many annotators drew each truth; None: one each.
        pairs: those of the means within either set, S with S' and Y with Y'.
        ignore: positions where any of the masks has this label are left out of all of them.

    Raises:
        ValueError: there is no sample or truth, sizes differ, or there is no pair of distinct masks.
    """
    found = MaskDistances.of(samples, truths, classes, truth_counts=truth_counts, background=background, ignore=ignore)
    return found.energy(pairs)


def hungarian_iou(
    samples: Tensor,
    truths: Tensor,
    classes: int,
    *,
    truth_counts: Sequence[int] | None = None,
    background: int | None = 0,
    ignore: int = IGNORE,
) -> float:
    """The mean IoU over the one-to-one matching of samples and truths that makes it largest (Hungarian algorithm).

    Both sets are repeated to the least common multiple of their sizes first, as in Kohl et al. 2019,
    https://arxiv.org/abs/1905.13077; arguments and errors as of `generalized_energy_distance`.
    """
    found = MaskDistances.of(samples, truths, classes, truth_counts=truth_counts, background=background, ignore=ignore)
    return found.matched_iou()


def vote_entropy(samples: Tensor, classes: int) -> Tensor:
    """The entropy (*space) in nats of the shares of the samples' (S, *space) classes at each position."""
    return decompose_votes(samples[:, None], classes).vote_entropy[0]


def classify_annotator(
    samples: Tensor, variants: Tensor, classes: int, background: int | None = 0, ignore: int = IGNORE
) -> Tensor:
    """For each sample (S, *space) the variant (A, *space) that it is nearest to by IoU: int64 (S,).

    Among variants that are equally near it is the first.
    """
    kept = counted_positions(variants, ignore)
    return iou_distances(samples[:, kept], variants[:, kept], classes, background).argmin(1)


def annotator_counts(
    samples: Tensor, variants: Tensor, classes: int, background: int | None = 0, ignore: int = IGNORE
) -> Tensor:
    """How many of the samples are nearest to each variant: int64 (A,), all 0 where two variants are one mask.

    Such an image says nothing of how often either was drawn.
    """
    kept = variants[:, counted_positions(variants, ignore)]
    if len(kept.unique(dim=0)) < len(variants):
        return torch.zeros(len(variants), dtype=torch.int64)
    nearest = classify_annotator(samples, variants, classes, background, ignore)
    return torch.bincount(nearest, minlength=len(variants))


def spread_note(samples: int, networks: int = 1) -> str:
    """What the spread of masks speaks of, in a sentence to be printed with its figures.

    Args:
        samples: of each network. networks: how many were trained.
    """
    if networks == 1 and samples == 1:
        return "One mask of one network: it says nothing of how far another could differ."
    if networks == 1:
        return (
            f"{samples} samples of one mask model: their spread speaks of the data (aleatoric), not of the model; "
            "for that, train several networks."
        )
    if samples == 1:
        return f"{networks} trained networks: their spread speaks of the model (epistemic)."
    return (
        f"{samples} samples of each of {networks} trained networks: the spread of one network's samples speaks of the "
        "data (aleatoric), the spread between networks of the model (epistemic)."
    )
