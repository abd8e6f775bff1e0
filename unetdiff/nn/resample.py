"""Down and up: one table each. Strides are given per axis, so volumes may keep an axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from unetdiff.nn.dims import AVERAGE_POOL, CONV_TRANSPOSE, MAX_POOL, conv


class AsymmetricStridedConv(nn.Module):
    """Strided 3-wide convolution padded as TensorFlow's SAME does: at stride 2 after the end only (Ho et al. 2020)."""

    def __init__(self, channels: int, stride: Sequence[int], dims: int, weights: str):
        super().__init__()
        self.conv = conv(dims, channels, channels, stride=stride, padding=0, weights=weights)
        totals = [max(3 - factor, 0) for factor in reversed(stride)]
        self.padding = [entry for total in totals for entry in (total // 2, total - total // 2)]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Nearest(nn.Module):
    """Repeat every position `stride` times along each axis."""

    def __init__(self, stride: Sequence[int]):
        super().__init__()
        self.scale = tuple(float(factor) for factor in stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="nearest")


def average_pool(stride: Sequence[int], dims: int) -> nn.Module:
    """Mean over blocks of `stride` positions."""
    return AVERAGE_POOL[dims](tuple(stride), stride=tuple(stride))


DOWN = {
    "strided": lambda channels, stride, dims, weights: conv(
        dims, channels, channels, stride=tuple(stride), weights=weights
    ),
    "strided_asymmetric": AsymmetricStridedConv,
    "max_pool": lambda channels, stride, dims, weights: MAX_POOL[dims](tuple(stride), stride=tuple(stride)),
    "average_pool": lambda channels, stride, dims, weights: average_pool(stride, dims),
}

UP = {
    "nearest": lambda channels, stride, dims, weights: nn.Sequential(
        Nearest(stride), conv(dims, channels, channels, weights=weights)
    ),
    "transposed": lambda channels, stride, dims, weights: CONV_TRANSPOSE[dims](
        channels, channels, tuple(stride), stride=tuple(stride)
    ),
}
