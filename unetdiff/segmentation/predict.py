"""From a network to class probabilities of whole images, whatever their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unetdiff.segmentation.flips import with_flips
from unetdiff.segmentation.tile_layout import GaussianTiles, MirrorTiles, Tiles
from unetdiff.segmentation.tiles import Predict, WindowedImage, predict_tiles

Scores = Callable[[Tensor], Tensor]
"""Images (n, C, *space) float32 in [-1, 1] to scores (n, K, *output)."""


@dataclass(frozen=True)
class Inference:
    """How images are predicted.

    tile: side of tiles; None: images are predicted whole. overlap: share of a tile that the next one covers as well.
    blend: `gaussian`, tiles blended where they overlap, or `mirror`, the overlap-tile strategy of Ronneberger et al.
    2015: every position from one tile, which sees half the overlap beyond it. flips: average over all mirrorings,
    undone. batch: tiles at a time.
    """

    tile: int | None = None
    overlap: float = 0.25
    blend: str = "gaussian"
    flips: bool = False
    batch: int = 4

    def layout(self, shape: Sequence[int], multiple: tuple[int, ...]) -> Tiles:
        """Where the tiles of an image lie, at distances that the network's strides divide."""
        assert self.tile is not None
        tile = (self.tile,) * len(shape)
        if self.blend == "mirror":
            context = (int(self.tile * self.overlap / 2),) * len(shape)
            return MirrorTiles(tile, context, multiple=multiple).fitted(tuple(shape))
        return GaussianTiles(tile, self.overlap, multiple=multiple).fitted(tuple(shape))


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
    predict: Predict, image: WindowedImage, inference: Inference, multiple: tuple[int, ...]
) -> Iterator[tuple[int, Tensor]]:
    """Class probabilities (K, n, *rest) of rows of an image's first axis with where they start, in order; no gradients.

    multiple: the product of the network's strides, per axis.
    """
    if inference.flips:
        predict = with_flips(predict)
    if inference.tile is None or max(image.shape) <= inference.tile:
        whole = torch.from_numpy(image.read(tuple(slice(0, length) for length in image.shape)))
        with torch.no_grad():
            found = predict(whole[None])[0].cpu()
        yield 0, found  # outside: a generator that waits inside would leave gradients off for everyone
        return
    for start, rows in predict_tiles(predict, image, inference.layout(image.shape, multiple), inference.batch):
        yield start, torch.from_numpy(rows)


def predict_image(predict: Predict, image: Tensor, inference: Inference, multiple: tuple[int, ...]) -> Tensor:
    """Class probabilities (K, *space) of one image (C, *space) in [-1, 1], on the CPU; see `predict_rows`."""
    rows = [part for _, part in predict_rows(predict, ArrayImage(image.numpy()), inference, multiple)]
    return torch.cat(rows, dim=1)
