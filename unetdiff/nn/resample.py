"""Down and up: one table each. Strides are given per axis, so volumes may keep an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdiff.nn.dims import (
    AVERAGE_POOL,
    FUNCTIONAL_CONV,
    FUNCTIONAL_CONV_TRANSPOSE,
    INTERPOLATION,
    MAX_POOL,
    NEAREST_BACKWARD,
)
from unetdiff.nn.layers import conv, transposed_conv
from unetdiff.nn.lean import Lean, recompute
from unetdiff.nn.recomputed import LinearMap
from unetdiff.placement import Weights


class EndPadding(LinearMap):
    """Zeros around (N, C, *space): amounts (before, after) per axis, the last axis first, as `F.pad` takes them."""

    def __init__(self, amounts: Sequence[int]):
        super().__init__()
        self.amounts = tuple(amounts)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts)

    def adjoint(self, gradient: Tensor, size: Sequence[int]) -> Tensor:
        return F.pad(gradient, [-amount for amount in self.amounts])


class AsymmetricStridedConv(Lean, nn.Module):
    """Strided 3-wide convolution padded as TensorFlow's SAME does: at stride 2 after the end only (Ho et al. 2020)."""

    def __init__(self, channels: int, stride: Sequence[int], dims: int, weights: Weights):
        super().__init__()
        self.conv = conv(dims, channels, channels, stride=stride, padding=0, weights=weights)
        totals = [max(3 - factor, 0) for factor in reversed(stride)]
        self.pad = EndPadding([entry for total in totals for entry in (total // 2, total - total // 2)])

    def forward(self, x: Tensor) -> Tensor:
        if self.recomputes(self.pad, self.conv):
            return recompute(x, resample=self.pad, layer=self.conv)
        return self.conv(self.pad(x))


class Nearest(LinearMap):
    """Repeat every position `stride` times along each axis."""

    def __init__(self, stride: Sequence[int]):
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=tuple(float(factor) for factor in self.stride), mode="nearest")

    def adjoint(self, gradient: Tensor, size: Sequence[int]) -> Tensor:
        return NEAREST_BACKWARD[len(size)](gradient, gradient.shape[2:], (*gradient.shape[:2], *size))


class RepeatedConv(Lean, nn.Sequential):
    """Repeat every position, then convolve."""

    def __init__(self, repeat: Nearest, convolution: nn.Module):
        super().__init__(repeat, convolution)

    def forward(self, input: Tensor) -> Tensor:
        repeat, convolution = self
        if self.recomputes(repeat, convolution):
            return recompute(input, resample=repeat, layer=convolution)
        return super().forward(input)


class Linear(nn.Module):
    """Interpolate linearly along each axis (bilinear for images), to `stride` times the size."""

    def __init__(self, stride: Sequence[int]):
        super().__init__()
        self.scale, self.mode = tuple(float(factor) for factor in stride), INTERPOLATION[len(stride)]

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode=self.mode, align_corners=False)


class AveragePool(LinearMap):
    """Mean over blocks of `stride` positions along each axis; what is left over at the end is not read."""

    def __init__(self, stride: Sequence[int]):
        super().__init__()
        self.stride = tuple(stride)
        self.pool = AVERAGE_POOL[len(self.stride)](self.stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)

    def adjoint(self, gradient: Tensor, size: Sequence[int]) -> Tensor:
        spread = F.interpolate(gradient / math.prod(self.stride), scale_factor=tuple(map(float, self.stride)))
        rest = zip(reversed(size), reversed(spread.shape[2:]), strict=True)
        return F.pad(spread, [amount for length, read in rest for amount in (0, length - read)])


class Filter(LinearMap):
    """A separable filter over every channel, with a change of resolution: the mean of the input is kept.

    taps: along one axis; an axis of stride 1 is left alone. up: multiply the size by the strides instead of dividing
    it. padding: positions added at each end; None: what keeps the size but for the stride. (Song et al. 2021.)
    """

    def __init__(self, taps: Sequence[int], stride: Sequence[int], *, up: bool = False, padding: int | None = None):
        super().__init__()
        self.stride, self.up = tuple(stride), up
        # Numbers, not a buffer: a network built without storage has nothing to fill in that its weights do not hold.
        self.taps = tuple(tap / sum(taps) for tap in taps)
        keeps = (len(taps) - 1) // 2 if padding is None else padding
        self.padding = tuple(keeps if factor > 1 else 0 for factor in self.stride)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self.up)

    def adjoint(self, gradient: Tensor, size: Sequence[int]) -> Tensor:
        if self.up:
            return self._run(gradient, up=False)
        # Positions that the filter's last step does not reach any more.
        smallest = [
            (length - 1) * factor - 2 * pad + (len(self.taps) if factor > 1 else 1)
            for length, factor, pad in zip(gradient.shape[2:], self.stride, self.padding, strict=True)
        ]
        rest = [length - least for length, least in zip(size, smallest, strict=True)]
        return self._run(gradient, up=True, output_padding=rest)

    def _run(self, x: Tensor, up: bool, **how: Any) -> Tensor:
        """Every channel filtered: with the change of resolution, or by the adjoint of that."""
        run = (FUNCTIONAL_CONV_TRANSPOSE if up else FUNCTIONAL_CONV)[len(self.stride)]
        kernel = self.kernel(x)
        kernel = kernel.expand(x.shape[1], 1, *kernel.shape)
        return run(x, kernel, stride=self.stride, padding=self.padding, groups=x.shape[1], **how)

    def kernel(self, like: Tensor) -> Tensor:
        """The filter in all dimensions, of the type and on the device of `like`, made there without a copy."""
        row = torch.cat([like.new_full((1,), tap) for tap in self.taps])
        kernel = like.new_full((), math.prod(self.stride) if self.up else 1)
        for factor in self.stride:
            kernel = kernel[..., None] * (row if factor > 1 else like.new_ones(1))
        return kernel


def resample_down(stride: Sequence[int], dims: int, taps: Sequence[int] | None) -> nn.Module:
    """What brings a residual block down: the mean over blocks, or a filter."""
    return AveragePool(stride) if taps is None else Filter(taps, stride)


def resample_up(stride: Sequence[int], taps: Sequence[int] | None) -> nn.Module:
    """What brings a residual block up: repetition, or a filter."""
    return Nearest(stride) if taps is None else Filter(taps, stride, up=True)


class PyramidDown(nn.Module):
    """The input stream of NCSN++ on its way down: a 3-wide convolution, then the filter (Song et al. 2021).

    The convolution is padded by what the filter reads beyond the border, so that the filter adds no zeros of its own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        dims: int,
        taps: Sequence[int] | None,
        weights: Weights,
    ):
        super().__init__()
        beyond = 0 if taps is None else (len(taps) - 1) // 2
        amount = tuple(1 + beyond if factor > 1 else 1 for factor in stride)
        self.conv = conv(dims, in_channels, out_channels, padding=amount, weights=weights)
        self.resample = AveragePool(stride) if taps is None else Filter(taps, stride, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.conv(x))


# One row per way down: (channels, stride, dims, weights) -> module.
DOWN = {
    "strided": lambda channels, stride, dims, weights: conv(
        dims, channels, channels, stride=tuple(stride), weights=weights
    ),
    "strided_asymmetric": AsymmetricStridedConv,
    "max_pool": lambda channels, stride, dims, weights: MAX_POOL[dims](tuple(stride), stride=tuple(stride)),
    "average_pool": lambda channels, stride, dims, weights: AveragePool(stride),
}

# One row per way up: (channels, channels after, stride, dims, weights) -> module.
UP = {
    "nearest": lambda channels, out_channels, stride, dims, weights: RepeatedConv(
        Nearest(stride), conv(dims, channels, out_channels, weights=weights)
    ),
    "repeat": lambda channels, out_channels, stride, dims, weights: Nearest(stride),
    "linear": lambda channels, out_channels, stride, dims, weights: nn.Sequential(
        Linear(stride), conv(dims, channels, out_channels, weights=weights)
    ),
    "transposed": lambda channels, out_channels, stride, dims, weights: transposed_conv(
        dims, channels, out_channels, stride
    ),
}
