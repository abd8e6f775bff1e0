"""Whether probabilities mean what they say: calibration error, proper scores, and the risk at each coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdiff.segmentation.scoring import Counts, Row, ScoredImage, ratio

CALIBRATION_BINS = 15
"""Of equal width over [0, 1], each open below and closed above (Guo et al. 2017)."""

SMALLEST_PROBABILITY = 1e-7
"""What logarithms see at least, so that one position costs at most 16.1 nats."""

# Confidences are added up as integers in this unit, so that no order of adding changes a bit. The float32 values
# of 1/2 to 1 are multiples of it; below, rounding moves one by at most 3e-8.
_UNIT = 2.0**-24

# Confidences are ranked by bins of 1 - confidence with equal ratios, because those of a trained network crowd at 1;
# the first holds what lies within 2^-24 of 1.
_OCTAVES, _BINS_PER_OCTAVE = 24, 128
_RISK_BINS = _OCTAVES * _BINS_PER_OCTAVE + 1

CURVE_POINTS = 100


@dataclass(frozen=True)
class Calibration:
    """ECE, Brier score, negative log-likelihood, risk against coverage; the confidence is the largest probability.

    - `ece` = sum_b n_b / n |accuracy_b - confidence_b| over 15 bins (Guo et al. 2017,
      https://arxiv.org/abs/1706.04599), over all positions; `reliability` holds the bins.
    - `brier` = mean over positions of sum_c (p_c - y_c)^2, in [0, 2]. `nll` = mean of -log p of the true class, nats,
      p clamped to at least 1e-7.
    - `aurc`, the area under the risk-coverage curve (Geifman et al. 2019, https://arxiv.org/abs/1805.08206): the mean
      over k of the share of errors among the k most confident positions. Ranked by a histogram of 3,073 bins, within
      which, as among ties, any order is equally likely; the value of the exact ranking is at most `aurc_error` away.
      `excess_aurc` subtracts that of the best ranking, all errors last.
    - `image_aurc`: the same over images, risk 1 - mean Dice (the rows' `mean_dice`, of `Overlap`), confidence the mean
      over the image's positions.
    - `risk_coverage`, `image_risk_coverage`: the curves, as lists of `coverage` and `risk`.
    """

    def zeros(self) -> Counts:
        return {
            "reliability": torch.zeros(3, CALIBRATION_BINS, dtype=torch.int64),  # positions, hits, units of confidence
            "risk": torch.zeros(2, _RISK_BINS, dtype=torch.int64),  # positions, errors; most confident first
        }

    def measure(self, image: ScoredImage) -> tuple[Counts, Row]:
        probabilities, truth = image.probabilities[:, image.counted], image.labels[image.counted]
        if not truth.numel():
            return self.zeros(), dict.fromkeys(("nll", "brier", "confidence"))
        confidence = probabilities.amax(0)
        hits = (image.prediction[image.counted] == truth).long()
        of_truth = probabilities.gather(0, truth[None])[0]
        residual = probabilities.scatter_add(0, truth[None], -torch.ones_like(probabilities[:1]))
        bins, ranks = _calibration_bin(confidence), _risk_bin(confidence)
        units = (confidence.double() / _UNIT).round().long()
        columns = [(bins, torch.ones_like(hits)), (bins, hits), (bins, units)]
        reliability = torch.stack([_tally(place, value, CALIBRATION_BINS) for place, value in columns])
        risk = torch.stack([_tally(ranks, value, _RISK_BINS) for value in (torch.ones_like(hits), 1 - hits)])
        return {"reliability": reliability.cpu(), "risk": risk.cpu()}, {
            "nll": _mean(-of_truth.clamp(min=SMALLEST_PROBABILITY).log()),
            "brier": _mean(residual.square().sum(0)),
            "confidence": _mean(confidence),
        }

    def summary(self, counts: Counts, rows: list[Row]) -> dict[str, Any]:
        image_counts, image_risks = _by_confidence(rows)
        return {
            **_reliability(counts["reliability"]),
            "nll": _mean_over_positions(rows, "nll"),
            "brier": _mean_over_positions(rows, "brier"),
            **_selective(*counts["risk"].double().numpy()),
            "image_aurc": _aurc(image_counts, image_risks),
            "image_risk_coverage": _curve(image_counts, image_risks),
        }


def _calibration_bin(confidence: Tensor) -> Tensor:
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, device=confidence.device)
    return torch.bucketize(confidence, edges[1:-1])


def _risk_bin(confidence: Tensor) -> Tensor:
    """0 for a confidence of nearly 1, then upwards with 1 - confidence."""
    octaves = -(1 - confidence).clamp(min=0).log2()
    return ((_OCTAVES - octaves).clamp(min=0) * _BINS_PER_OCTAVE).ceil().long().clamp(max=_RISK_BINS - 1)


def _tally(places: Tensor, values: Tensor, size: int) -> Tensor:
    """(size,) int64: the sums of the values at each place."""
    return torch.zeros(size, dtype=torch.int64, device=places.device).index_add_(0, places, values)


def _mean(values: Tensor) -> float:
    return float(values.mean(dtype=torch.float64))


def _mean_over_positions(rows: list[Row], key: str) -> float | None:
    """The mean over all positions from the images' means; the same bits in any order."""
    sums = [row[key] * row["positions"] for row in rows if row["positions"]]
    return ratio(math.fsum(sums), sum(row["positions"] for row in rows))


def _reliability(counts: Tensor) -> dict[str, Any]:
    """ECE, and for each bin its edges, positions, accuracy and mean confidence (None where it is empty)."""
    positions, hits, confidences = counts[0].tolist(), counts[1].tolist(), (counts[2].double() * _UNIT).tolist()
    gap = sum(abs(hit - confidence) for hit, confidence in zip(hits, confidences, strict=True))
    bins = [
        {
            "low": place / CALIBRATION_BINS,
            "high": (place + 1) / CALIBRATION_BINS,
            "positions": positions[place],
            "accuracy": ratio(hits[place], positions[place]),
            "confidence": ratio(confidences[place], positions[place]),
        }
        for place in range(CALIBRATION_BINS)
    ]
    return {"ece": ratio(gap, sum(positions)), "reliability": bins}


def _selective(counts: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    """AURC, its distance at most from the exact ranking's, its excess over the best ranking, and the curve."""
    area = _aurc(counts, errors)
    if area is None:
        return {**dict.fromkeys(("aurc", "aurc_error", "excess_aurc")), "risk_coverage": _curve(counts, errors)}
    low, high = _aurc_range(counts, errors)
    best, _ = _aurc_range(counts.sum(keepdims=True), errors.sum(keepdims=True))
    return {
        "aurc": area,
        "aurc_error": max(high - area, area - low),
        "excess_aurc": area - best,
        "risk_coverage": _curve(counts, errors),
    }


def _run_area(before: np.ndarray, errors_before: np.ndarray, count: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """sum over k = 1..count of (errors_before + k errors / count) / (before + k), in closed form.

    With r = errors / count it is r count + (errors_before - r before) (H(before + count) - H(before)), and the
    harmonic number H(n) is digamma(n + 1) plus a constant.
    """
    from scipy.special import digamma

    rate = errors / np.maximum(count, 1)
    return rate * count + (errors_before - rate * before) * (digamma(before + count + 1) - digamma(before + 1))


def _before(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values) - values


def _aurc(counts: np.ndarray, errors: np.ndarray) -> float | None:
    """The area from counts and (sums of) risks by falling confidence, errors spread evenly within each bin.

    That is the mean over all orders within the bins. Both (bins,) float64.
    """
    return ratio(float(_run_area(_before(counts), _before(errors), counts, errors).sum()), float(counts.sum()))


def _aurc_range(counts: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest area of any order within the bins, errors last and errors first; some data."""
    start, wrong, none, hits = _before(counts), _before(errors), np.zeros_like(counts), counts - errors
    last = _run_area(start, wrong, hits, none) + _run_area(start + hits, wrong, errors, errors)
    first = _run_area(start, wrong, errors, errors) + _run_area(start + errors, wrong + errors, hits, none)
    return float(last.sum() / counts.sum()), float(first.sum() / counts.sum())


def _curve(counts: np.ndarray, errors: np.ndarray) -> dict[str, list[float]]:
    """The risk at 100 even coverages, errors spread evenly within each bin; empty lists without data."""
    total = counts.sum()
    if not total:
        return {"coverage": [], "risk": []}
    coverage = np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS
    reached = np.concatenate([[0.0], np.cumsum(counts)])
    wrong = np.interp(coverage * total, reached, np.concatenate([[0.0], np.cumsum(errors)]))
    return {"coverage": coverage.tolist(), "risk": (wrong / (coverage * total)).tolist()}


def _by_confidence(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """How many images have each confidence, and the sum of their risks 1 - mean Dice, by falling confidence."""
    pairs = sorted((-row["confidence"], 1 - row["mean_dice"]) for row in rows if row["confidence"] is not None)
    if not pairs:
        return np.zeros(0), np.zeros(0)
    confidences, risks = np.array(pairs).T
    _, places, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    return counts.astype(np.float64), np.bincount(places, weights=risks)
