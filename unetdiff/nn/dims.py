"""What differs between one, two and three dimensions, as tables; and sizes that the strides do not divide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdiff.spec import PaddingMode

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
FUNCTIONAL_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
FUNCTIONAL_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}
NEAREST_BACKWARD = {
    1: torch.ops.aten.upsample_nearest1d_backward,
    2: torch.ops.aten.upsample_nearest2d_backward,
    3: torch.ops.aten.upsample_nearest3d_backward,
}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def pad_to_multiple(x: Tensor, multiple: Sequence[int], mode: PaddingMode) -> Tensor:
    """Pad (N, C, *space) at the end of each axis up to a multiple; `crop` takes it off again.

    `reflect` and `circular` need more input than padding, so an axis too short for them is padded by `replicate`.
    """
    sizes = x.shape[2:]
    missing = [-size % factor for size, factor in zip(sizes, multiple, strict=True)]
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


def crop_centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle `size` positions of each axis of (N, C, *space)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    starts = [(held - length) // 2 for held, length in zip(x.shape[2:], size, strict=True)]
    return x[(slice(None), slice(None), *(slice(at, at + length) for at, length in zip(starts, size, strict=True)))]
