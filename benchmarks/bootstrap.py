"""How sure a difference between two arms is: a paired bootstrap over fits and over test images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean difference and the ends of its 95% interval."""

    mean: float
    low: float
    high: float


def paired_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Interval:
    """The mean of `ours - theirs`, with a percentile interval (Efron & Tibshirani 1993, section 13.3).

    Fits (a draw of labelled images with a seed, the same for both arms) and test images are drawn with replacement,
    independently of each other, so that both what a network was trained on and what it is tested on count as chance.

    Args:
        ours, theirs: (fits, images), the same fit and image at the same place; NaN where a value is not defined, which
            takes the place out of both.
        seed: of the resampling.
    """
    difference = ours - theirs
    generator = np.random.Generator(np.random.PCG64(seed))
    fits, images = difference.shape
    rows = generator.integers(fits, size=(RESAMPLES, fits))
    columns = generator.integers(images, size=(RESAMPLES, images))
    means = np.nanmean(difference[rows[:, :, None], columns[:, None, :]], axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(np.nanmean(difference)), float(low), float(high))
