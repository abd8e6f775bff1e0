"""What reused features cost in quality: samples of a digits run, judged by a classifier and by Frechet distances."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC

from benchmarks.normalization.metrics import frechet, sample_quality
from sample.check_digits import flat, real_digits
from unetdiff.diffusion.options import SamplerName
from unetdiff.diffusion.sampler import sample_images
from unetdiff.runs import Run, load_run

BATCH = 50
COMPONENTS = 32  # of the pixels of real digits, in which the Frechet distance is taken
SEED, OTHER_SEED = 1000, 5000


def measure_price(
    folder: Path, cuts: Sequence[tuple[int, str | None]], *, count: int, sampler: SamplerName, steps: int
) -> list[dict[str, Any]]:
    """A row per way to sample: speed over that without reuse, classifier's share, Frechet distances.

    The ways take turns, batch by batch. The first row is without reuse, the second too, with other seeds: what
    differs between these two is chance. The last row is of as many real test digits.

    Args:
        folder: a run of configs/digits.yaml.
        cuts: intervals with the `cache_step` of each.
        count: images per way, a multiple of 50.
        sampler, steps: see `sample_images`.
    """
    run = load_run(folder)
    ways = [(1, None, SEED), (1, None, OTHER_SEED), *((*cut, SEED) for cut in cuts)]
    drawn: dict[Any, list[torch.Tensor]] = {way: [] for way in ways}
    seconds: dict[Any, list[float]] = {way: [] for way in ways}
    for first in range(0, count, BATCH):
        for way in ways:
            start = time.perf_counter()
            drawn[way].append(_draw(run, way, first, sampler, steps))
            seconds[way].append(time.perf_counter() - start)
    judge, rows = Judge(), []
    for way, parts in drawn.items():
        images = torch.cat(parts)
        ratios = [plain / own for plain, own in zip(seconds[ways[0]], seconds[way], strict=True)]
        change = (images - torch.cat(drawn[ways[0]])).square().mean().sqrt().item()
        rows.append({
            "interval": way[0],
            "cache_step": None if way[0] == 1 else run.unet.divide(way[1]).cut.skip.key,  # pyright: ignore
            "seed": way[2],
            "speed": median(ratios),
            "change": change,
            **judge(run.format.decode(images), np.arange(count) % 10),
        })  # fmt: skip
    return [*rows, {"real": True, **judge.real(count)}]


def _draw(run: Run, way: tuple[int, str | None, int], first: int, sampler: SamplerName, steps: int) -> torch.Tensor:
    """A batch of digits of every class in turn."""
    interval, cache_step, seed = way
    return sample_images(
        run.unet,
        run.scheduler,
        BATCH,
        labels=list(range(10)),
        sampler=sampler,
        steps=steps,
        seed=seed + first,
        batch_size=BATCH,
        cache_interval=interval,
        cache_step=cache_step,
    )


class Judge:
    """A classifier of real training digits, and the distributions of those digits."""

    def __init__(self) -> None:
        self.images, labels = real_digits("train")
        self.classifier = SVC(C=10).fit(self.images, labels)

    def __call__(self, images: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
        """Of images (N, 16, 16, 1) of 0 to 255 that are to be digits `wanted` (N,).

        Returns:
            share: read as the digit that is wanted. pixel_frechet: squared Frechet distance from the training digits
            over the first principal components of their pixels, in [-1, 1]. class_frechet: over the ten values by
            which the classifier decides.
        """
        return self._judge(flat(images), wanted)

    def real(self, count: int) -> dict[str, float]:
        """The same of `count` real digits that the classifier has not seen (all there are, if fewer)."""
        images, labels = real_digits("test")
        return self._judge(images[:count], labels[:count])

    def _judge(self, vectors: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
        samples, reference = (torch.from_numpy(each * 2 - 1).reshape(-1, 1, 16, 16) for each in (vectors, self.images))
        decisions = [self.classifier.decision_function(each) for each in (vectors, self.images)]
        return {
            "share": float((self.classifier.predict(vectors) == wanted).mean()),
            "pixel_frechet": sample_quality(samples, reference, COMPONENTS)["pixel_frechet"],
            "class_frechet": frechet(*decisions),
        }
