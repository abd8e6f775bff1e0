"""What differs between one, two and three dimensions, as tables; and sizes that the strides do not divide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdiff.spec import PaddingMode

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def standardize_weight(weight: Tensor, eps: float = 1e-10) -> Tensor:
    """Each output filter with zero mean and variance 1 / fan-in (weight standardization, Qiao et al. 2019)."""
    axes = tuple(range(1, weight.ndim))
    mean = weight.mean(dim=axes, keepdim=True)
    variance = weight.var(dim=axes, keepdim=True, unbiased=False)
    return (weight - mean) * (variance * weight[0].numel() + eps).rsqrt()


class _Standardized(nn.Module):
    """Mixin of a convolution: filters standardized at every call, times a learned gain (Brock et al. 2021)."""

    def __init__(self, in_channels: int, out_channels: int, *args: Any, **options: Any):
        super().__init__(in_channels, out_channels, *args, **options)
        shape = (out_channels, *(1,) * (self.weight.ndim - 1))  # pyright: ignore
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, input: Tensor) -> Tensor:
        weight = standardize_weight(self.weight) * self.gain  # pyright: ignore
        return self._conv_forward(input, weight, self.bias)  # pyright: ignore


class StandardizedConv1d(_Standardized, nn.Conv1d):
    """`nn.Conv1d` with standardized filters."""


class StandardizedConv2d(_Standardized, nn.Conv2d):
    """`nn.Conv2d` with standardized filters."""


class StandardizedConv3d(_Standardized, nn.Conv3d):
    """`nn.Conv3d` with standardized filters."""


CONVS = {"plain": CONV, "standardized": {1: StandardizedConv1d, 2: StandardizedConv2d, 3: StandardizedConv3d}}


def conv(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: Sequence[int] | int = 1,
    padding: int | None = None,
    weights: str = "plain",
) -> nn.Module:
    """A convolution in `dims` dimensions that keeps the size at stride 1; `weights` names a row of `CONVS`."""
    amount = kernel_size // 2 if padding is None else padding
    return CONVS[weights][dims](in_channels, out_channels, kernel_size, stride=stride, padding=amount)


def zero_(module: nn.Module) -> nn.Module:
    """Have `module` return zero until it learns otherwise; returns it.

    A standardized filter has no size of its own: its gain is what becomes zero.
    """
    for name, parameter in module.named_parameters():
        if not (isinstance(module, _Standardized) and name == "weight"):
            nn.init.zeros_(parameter)
    return module


def pad_to_multiple(x: Tensor, multiple: Sequence[int], mode: PaddingMode) -> Tensor:
    """Pad (N, C, *space) at the end of each axis up to a multiple; `crop` takes it off again.

    `reflect` and `circular` need more input than padding, so an axis too short for them is padded by `replicate`.
    """
    sizes = x.shape[2:]
    missing = [math.ceil(size / factor) * factor - size for size, factor in zip(sizes, multiple, strict=True)]
    if not any(missing):
        return x
    short = any(amount >= size for amount, size in zip(missing, sizes, strict=True))
    torch_mode = {"zeros": "constant"}.get(mode, "replicate" if short else mode)
    amounts = [entry for amount in reversed(missing) for entry in (0, amount)]
    return F.pad(x, amounts, mode=torch_mode)


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The leading `size` positions of each axis of (N, C, *space)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return x[(slice(None), slice(None), *(slice(0, length) for length in size))]
