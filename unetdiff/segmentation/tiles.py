"""Prediction of images of any size, tile by tile, in memory that does not grow with the image's first axis.

    for start, rows in predict_tiles(predict, image, GaussianTiles((512, 512))):
        result[:, start : start + rows.shape[1]] = rows  # a memory-mapped file, say

The network sees a tile and nothing beyond it. Convolutions, pooling and norms over the channels of one position
(`pixel`, `layer`), and batch norm with its running statistics, are local: where a tile's context covers the receptive
field, `MirrorTiles` gives what the whole image gives. Group and instance norm, and attention, read all positions at
once, so they differ between a tile and the whole image; the more of the image a tile holds, the less. The setting that
keeps this small is `tile`: as large as memory allows, and no smaller than the crops of training, whose statistics the
network knows. More overlap does little about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from math import prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unetdiff.segmentation.tile_layout import Span, Tiles

Predict = Callable[[Tensor], Tensor]
"""Tiles (n, C, *tile) float32 in [-1, 1] to class probabilities (n, K, *output), on any device."""

_POSITIONS_AT_ONCE = 2**18  # of finished rows, so that handing over a strip does not double it


class WindowedImage(Protocol):
    """An image that is read in parts, so that it need not be in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(*space), without channels."""
        ...

    def read(self, window: tuple[slice, ...], /) -> np.ndarray:
        """(C, *window) float32 in [-1, 1]; every slice has a start and a stop inside the image."""
        ...


def predict_tiles(
    predict: Predict, image: WindowedImage, tiles: Tiles, batch: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """The class probabilities of an image, rows of its first axis at a time, in order.

    Beyond the image it is mirrored, its border positions not repeated, again and again where it is too short; an axis
    of length 1 is replicated. So an image smaller than a tile is padded to it, and the result cropped.

    Memory, besides the network's for one batch: with S the positions of one row (the product of all axes but the
    first), one strip of tiles, 4 * S * output[0] * (K + 1) bytes at most, whatever the length of the first axis; and
    twice the rows handed over, which are one row or 2^18 positions at a time.

    Args:
        predict: called without gradients on at most `batch` tiles.
        image: what is read, each tile's window once.
        tiles: where tiles lie and how they are joined.
        batch: tiles per call; the last call may have fewer.

    Yields:
        (start, rows): rows (K, n, *rest) float32 that belong at start, start + 1, ... of the first axis; each
        position of the image once. The array is the receiver's.

    Raises:
        ValueError: the image has another number of axes than the tiles or is empty, or `predict` returns another size
            than the tiles expect.
    """
    shape = tuple(image.shape)
    if len(shape) != len(tiles.tile) or 0 in shape:
        raise ValueError(f"The image has shape {shape}; expected {len(tiles.tile)} axes, as tile {tiles.tile}.")
    weights = tiles.weights()
    spans = [tiles.spans(axis, size) for axis, size in enumerate(shape)]
    strip = _Strip(height=max(span.stop - span.first for span in spans[0]), rest=shape[1:])
    order = product(*spans)
    while places := list(islice(order, batch)):
        windows = np.stack([_read_mirrored(image, place, tiles.tile) for place in places])
        with torch.no_grad():
            values = predict(torch.from_numpy(windows)).float().cpu()
        if tuple(values.shape[2:]) != tuple(weights.shape):
            returned, expected = tuple(values.shape[2:]), tuple(weights.shape)
            raise ValueError(f"Tiles of {tiles.tile} were predicted as {returned}; expected output {expected}.")
        for place, value in zip(places, values, strict=True):
            yield from strip.finish(place[0].first)  # later tiles begin no earlier
            strip.add(place, value, weights)
    yield from strip.finish(shape[0])


class _Strip:
    """Weighted sums of the rows that are not finished: `height` rows from `start`."""

    def __init__(self, height: int, rest: tuple[int, ...]) -> None:
        self.start = 0
        self._weights = torch.zeros(height, *rest)
        self._sums: Tensor | None = None  # (K, height, *rest), once K is known

    def add(self, place: Sequence[Span], value: Tensor, weights: Tensor) -> None:
        """Add what one tile (K, *output) says where it is asked."""
        if self._sums is None:
            self._sums = torch.zeros(value.shape[0], *self._weights.shape)
        inside = tuple(slice(span.first - span.origin, span.stop - span.origin) for span in place)
        starts = (self.start, *[0] * (len(place) - 1))
        there = tuple(slice(span.first - at, span.stop - at) for span, at in zip(place, starts, strict=True))
        self._sums[:, *there].addcmul_(value[:, *inside], weights[inside])
        self._weights[there] += weights[inside]

    def finish(self, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """The rows before `stop`, a few at a time, if there are any; the strip moves on to `stop`."""
        count = stop - self.start
        if self._sums is None or not count:
            return
        step = max(_POSITIONS_AT_ONCE // prod(self._weights.shape[1:]), 1)
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            yield self.start + first, (self._sums[:, rows] / self._weights[rows]).numpy()
        _move_up(self._sums, 1, count)
        _move_up(self._weights, 0, count)
        self.start = stop


def _move_up(rows: Tensor, axis: int, count: int) -> None:
    """Drop the first `count` rows of an axis in place, without a copy of the others; zeros come in at the end."""
    kept = rows.shape[axis] - count
    for at in range(0, kept, count):  # pieces that do not overlap what they replace
        length = min(count, kept - at)
        rows.narrow(axis, at, length).copy_(rows.narrow(axis, at + count, length))
    rows.narrow(axis, kept, count).zero_()


def _read_mirrored(image: WindowedImage, place: Sequence[Span], tile: Sequence[int]) -> np.ndarray:
    """(C, *tile), mirrored where it reaches beyond the image; only what is needed is read."""
    indices = [
        mirrored(np.arange(span.start, span.start + length), size)
        for span, length, size in zip(place, tile, image.shape, strict=True)
    ]
    lowest = [int(index.min()) for index in indices]
    window = tuple(slice(low, int(index.max()) + 1) for low, index in zip(lowest, indices, strict=True))
    values = np.asarray(image.read(window), np.float32)
    for axis, (low, index, held) in enumerate(zip(lowest, indices, values.shape[1:], strict=True), start=1):
        if held != len(index) or index[0] != low or index[-1] != low + held - 1:
            values = values.take(index - low, axis=axis)
    return values


def mirrored(positions: np.ndarray, size: int) -> np.ndarray:
    """Positions (n,) int on an endless axis to those of an axis of `size` that is mirrored at both its ends.

    The positions at the ends are not repeated (`reflect` in NumPy and PyTorch): -1 is 1, and `size` is size - 2.
    """
    period = max(2 * (size - 1), 1)
    phase = positions % period
    return np.minimum(phase, period - phase) if size > 1 else np.zeros_like(positions)
