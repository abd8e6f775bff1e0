"""A weight for every position of the training masks: computed once, from whole masks, before training starts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from unetdiff.data.sources import MEMORY_LIMIT


def position_weights(
    labels: Callable[[int], np.ndarray], spaces: Sequence[tuple[int, ...]], weigh: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """The weights of all positions of all images, to three digits.

    All at once: loader processes are forked later and share them, where each of them would compute every mask's for
    itself if weights were made as crops are drawn. They are held in memory up to `MEMORY_LIMIT`, beyond that in a
    temporary file without a name, which processes share as well.

    Args:
        labels: the whole labels (*space) of an image.
        spaces: the spatial shape of each image.
        weigh: the weights (*space) of whole labels, up to 65504.

    Returns:
        float16 (*space) for each image.
    """
    sizes = [math.prod(space) for space in spaces]
    starts = np.cumsum([0, *sizes])
    room = _room(int(starts[-1]))
    weights = [
        room[start : start + size].reshape(space) for start, size, space in zip(starts, sizes, spaces, strict=False)
    ]
    for index, out in enumerate(tqdm(weights, desc="weighing positions", unit="image", delay=2, disable=None)):
        out[...] = weigh(labels(index))
    return weights


def _room(count: int) -> np.ndarray:
    """`count` numbers of float16, (count,), that take no more memory than `MEMORY_LIMIT`."""
    if 2 * count < MEMORY_LIMIT:
        return np.empty(count, np.float16)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float16, mode="w+", shape=(count,))  # pyright: ignore[reportArgumentType]
