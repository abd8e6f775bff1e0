"""From a network to class probabilities of whole images, whatever their size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unetdiff.segmentation.flips import with_flips
from unetdiff.segmentation.tile_layout import GaussianTiles, MirrorTiles, Tiles
from unetdiff.segmentation.tiles import Predict, predict_tiles

Scores = Callable[[Tensor], Tensor]
"""Images (n, C, *space) float32 in [-1, 1] to scores (n, K, *output)."""


@dataclass(frozen=True)
class Inference:
    """How images are predicted.

    tile: side of tiles; None: images are predicted whole. overlap: share of a tile that the next one covers as well.
    blend: `gaussian`, tiles blended where they overlap, or `mirror`, the overlap-tile strategy of Ronneberger et al.
    2015. flips: average over all mirrorings, undone. batch: tiles at a time.
    """

    tile: int | None = None
    overlap: float = 0.25
    blend: str = "gaussian"
    flips: bool = False
    batch: int = 4

    def layout(self, dims: int) -> Tiles:
        """Where the tiles of an image lie."""
        assert self.tile is not None
        tile = (self.tile,) * dims
        if self.blend == "mirror":
            return MirrorTiles(tile, context=(int(self.tile * self.overlap / 2),) * dims)
        return GaussianTiles(tile, overlap=self.overlap)


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


def predict_image(scores: Scores, image: Tensor, inference: Inference, device: torch.device) -> Tensor:
    """Class probabilities (K, *space) of one image (C, *space) in [-1, 1], on the CPU; no gradients."""
    predict = probabilities_of(scores, device)
    if inference.flips:
        predict = with_flips(predict)
    with torch.no_grad():
        if inference.tile is None or max(image.shape[1:]) <= inference.tile:
            return predict(image[None])[0].cpu()
        layout = inference.layout(image.ndim - 1)
        rows = [part for _, part in predict_tiles(predict, ArrayImage(image.numpy()), layout, inference.batch)]
    return torch.from_numpy(np.concatenate(rows, axis=1))
