"""From a network to class probabilities of whole images, whatever their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unetdiff.segmentation.flips import with_flips
from unetdiff.segmentation.tile_layout import GaussianTiles, MirrorTiles, Tiles, lost_border
from unetdiff.segmentation.tiles import Predict, WindowedImage, predict_tiles

Scores = Callable[[Tensor], Tensor]
"""Images (n, C, *space) float32 in [-1, 1] to scores (n, K, *output)."""

# How many positions tiles of one call hold together, unless it is one tile: an accelerator needs several to be busy,
# a CPU is as fast one by one, in a quarter of the memory (benchmarks/results/speed).
_ON_ACCELERATOR, _ON_CPU = 2**18, 2**16


class Sizes(Protocol):
    """What a network without padding makes of sizes (*space); `unetdiff.models.plan.Plan` is one."""

    def fitting_size(self, size: Sequence[int], /) -> tuple[int, ...]:
        """The smallest size, at least this, that the network takes."""
        ...

    def output_size(self, size: Sequence[int], /) -> tuple[int, ...]:
        """What comes out of a size that it takes."""
        ...


@dataclass(frozen=True)
class Inference:
    """How images are predicted.

    tile: side of tiles, raised to the next that the network's strides divide; None: images are predicted whole.
    overlap: share of a tile that the next one covers as well. blend: `gaussian`, tiles blended where they overlap, or
    `mirror`, the overlap-tile strategy of Ronneberger et al. 2015: every position from one tile, which sees half the
    overlap beyond it. flips: the spatial axes whose mirrorings are averaged, undone; classes or shapes that a flip
    exchanges must not be (see `with_flips`). batch: tiles at a time; None: as many as hold 2^18 positions together
    (2^16 without an accelerator), at least one.
    """

    tile: int | None = None
    overlap: float = 0.25
    blend: str = "gaussian"
    flips: tuple[int, ...] = ()
    batch: int | None = None

    def layout(self, shape: Sequence[int], multiple: tuple[int, ...], sizes: Sizes | None = None) -> Tiles | None:
        """Where the tiles of an image lie, at distances that the network's strides divide; None: it is given whole.

        Args:
            shape: (*space).
            multiple: the product of the network's strides, per axis.
            sizes: of a network without padding, whose tiles are at least so large that it answers for `multiple`
                positions, and see the border that it loses, no more; None: it keeps sizes.
        """
        if sizes is not None:
            return self._unpadded(shape, multiple, sizes)
        if self.tile is None or max(shape) <= self.tile:
            return None
        tile = tuple(ceil(self.tile / factor) * factor for factor in multiple)
        if self.blend == "mirror":
            context = tuple(int(length * self.overlap / 2) for length in tile)
            return MirrorTiles(tile, context, multiple=multiple).fitted(tuple(shape))
        return GaussianTiles(tile, self.overlap, multiple=multiple).fitted(tuple(shape))

    def _unpadded(self, shape: Sequence[int], multiple: tuple[int, ...], sizes: Sizes) -> Tiles:
        """Tiles of a network without padding, or the one tile whose output covers the image."""
        smallest = sizes.fitting_size([1] * len(shape))
        lost = lost_border(smallest, sizes.output_size(smallest))
        whole = [length + 2 * border for length, border in zip(shape, lost, strict=True)]
        least = [factor + 2 * border for factor, border in zip(multiple, lost, strict=True)]
        tile = self.tile
        wanted = whole if tile is None or max(shape) <= tile else [min(tile, length) for length in whole]
        fitting = sizes.fitting_size([max(length, low) for length, low in zip(wanted, least, strict=True)])
        output = sizes.output_size(fitting)
        if self.blend == "mirror":
            return MirrorTiles(fitting, lost, output=output, multiple=multiple)
        return GaussianTiles(fitting, self.overlap, output=output, multiple=multiple)


@dataclass(frozen=True)
class ArrayImage:
    """An image in memory, (C, *space) float32 in [-1, 1], read by windows."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(*space)."""
        return self.values.shape[1:]

    def read(self, window: tuple[slice, ...], /) -> np.ndarray:
        """(C, *window)."""
        return self.values[(slice(None), *window)]


def probabilities_of(scores: Scores, device: torch.device) -> Predict:
    """Class probabilities of images, on whatever device the network is."""
    return lambda images: scores(images.to(device)).float().softmax(1)


def predict_rows(
    predict: Predict,
    image: WindowedImage,
    inference: Inference,
    multiple: tuple[int, ...],
    sizes: Sizes | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Class probabilities (K, n, *rest) of rows of an image's first axis with where they start, in order; no gradients.

    multiple: the product of the network's strides, per axis. sizes: of a network without padding, which sees images
    mirrored at their borders, by tiles as whole; None: it keeps sizes.
    """
    if inference.flips:
        predict = with_flips(predict, inference.flips)
    tiles = inference.layout(image.shape, multiple, sizes)
    if tiles is None:
        values = torch.from_numpy(image.read(tuple(slice(0, length) for length in image.shape)))
        with torch.no_grad():
            found = predict(values[None])[0].cpu()
        yield 0, found  # outside: a generator that waits inside would leave gradients off for everyone
        return
    most = _ON_ACCELERATOR if torch.accelerator.is_available() else _ON_CPU
    batch = inference.batch or max(most // prod(tiles.tile), 1)
    for start, rows in predict_tiles(predict, image, tiles, batch):
        yield start, torch.from_numpy(rows)


def predict_image(
    predict: Predict, image: Tensor, inference: Inference, multiple: tuple[int, ...], sizes: Sizes | None = None
) -> Tensor:
    """Class probabilities (K, *space) of one image (C, *space) in [-1, 1], on the CPU; see `predict_rows`."""
    result = torch.empty(0)
    for start, rows in predict_rows(predict, ArrayImage(image.numpy()), inference, multiple, sizes):
        if rows.shape[1] == image.shape[1]:
            return rows
        if not result.numel():
            result = torch.empty(rows.shape[0], *image.shape[1:])
        result[:, start : start + rows.shape[1]] = rows
    return result
