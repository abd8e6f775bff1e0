"""Results of several seeds brought together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.normalization.figures import Figure
from benchmarks.skip_study.gradient import STARTS
from benchmarks.skip_study.study import pick

Results = Sequence[dict[str, Any]]

ARM_TITLES = {"unet": "U-Net", "added": "skips added", "autoencoder": "no skips"}


def arms_in(results: Results) -> list[str]:
    """The arms that were measured, in the order of ARM_TITLES."""
    found = {arm for r in results for arm in r.get("gradient_norms", [r.get("arm")])}
    return [arm for arm in ARM_TITLES if arm in found]


def in_order(results: Results) -> Results:
    """Results of gradients in the order of STARTS."""
    return sorted(results, key=lambda result: list(STARTS).index(result["start"]))


def over_seeds(results: Results, name: str) -> Figure:
    """Mean and deviation of a figure."""
    return Figure.of([result[name] for result in results])


def over_depth(result: dict[str, Any], arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Geometric means of the gradient norms at each depth, and their geometric deviations (factors, 1 or more).

    A gradient that is exactly zero, as float32 makes of very small ones, counts as the smallest number above zero.
    """
    logs = np.log(np.maximum(result["gradient_norms"][arm], np.finfo(np.float32).tiny))
    deviations = logs.std(1, ddof=1) if logs.shape[1] > 1 else np.zeros(len(logs))
    return np.exp(logs.mean(1)), np.exp(deviations)


def average_curve(results: Results) -> tuple[list[int], list[float]]:
    """Steps, and the mean over results of what was watched."""
    steps = [step for step, _ in results[0]["curve"]]
    return steps, np.mean([[value for _, value in result["curve"]] for result in results], 0).tolist()


def over_images(results: Results, arm: str, name: str) -> tuple[list[int], list[Figure]]:
    """Numbers of training images, and a figure over the seeds of each."""
    counts = sorted({result["images"] for result in results})
    return counts, [over_seeds(pick(results, arm=arm, images=images), name) for images in counts]


def images_needed(counts: Sequence[int], errors: Sequence[float], error: float) -> float | None:
    """How many images bring `errors`, measured at `counts`, down to `error`; None: more than the most.

    Between two counts the error's logarithm is taken as linear in the count's. At or below the least count: that.
    """
    if errors[0] <= error:
        return float(counts[0])
    for index in range(1, len(counts)):
        if errors[index] <= error:
            (x, after), (y, below) = ([math.log(v) for v in pair[index - 1 : index + 1]] for pair in (counts, errors))
            return math.exp(x + (after - x) * (y - math.log(error)) / (y - below))
    return None


def bottleneck(network: Mapping[str, Any], size: int) -> int:
    """How many numbers a network's coarsest level has for an image of `size` x `size`."""
    return network["channels"][-1] * math.ceil(size / 2 ** (len(network["channels"]) - 1)) ** 2


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
