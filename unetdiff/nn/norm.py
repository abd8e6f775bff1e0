"""The layers that `Norm` describes; statistics in float32 whatever the autocast."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unetdiff.nn.dims import BATCH_NORM
from unetdiff.nn.layers import unit_rms
from unetdiff.spec import Norm


def group_count(channels: int, groups: int, min_group_channels: int) -> int:
    """The largest divisor of `channels` that is at most `groups` and leaves `min_group_channels` in each group."""
    limit = _most_groups(channels, groups, min_group_channels)
    return max(divisor for divisor in range(1, limit + 1) if channels % divisor == 0)


def _most_groups(channels: int, groups: int, min_group_channels: int) -> int:
    """How many groups are asked for: fewer where each would have too few channels (as min(32, C / 4) in EDM)."""
    return max(1, min(groups, channels // min_group_channels))


def _counted_groups(channels: int, norm: Norm) -> int:
    """`group_count` for a layer; it warns where another number is taken than the one that is asked for."""
    asked = _most_groups(channels, norm.groups, norm.min_group_channels)
    taken = group_count(channels, norm.groups, norm.min_group_channels)
    if taken != asked:
        # Python shows a warning once per text: once for each width and number of groups.
        warnings.warn(
            f"a norm of {channels} channels cannot have {asked} groups: it has {taken}, the largest number below that "
            "divides them; choose widths that the groups divide, or another number of groups",
            stacklevel=2,
        )
    return taken


class FloatStatistics(nn.Module):
    """Base of the norms here: (N, C, *space) in and out, in the input's own type, statistics in float32 if asked."""

    widens = True  # whether float32 statistics need a float32 copy of the input

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.eps = norm.eps
        self.fp32_stats = norm.fp32_stats
        self.weight = nn.Parameter(torch.ones(channels)) if norm.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if norm.affine and norm.center else None

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return self.normalize(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.normalize(x.float()).to(x.dtype) if self.widens and self.fp32_stats else self.normalize(x)

    def normalize(self, x: Tensor) -> Tensor:
        """The norm itself, in the type of `x`."""
        raise NotImplementedError

    def _affine(self, x: Tensor) -> Tensor:
        """Scale and shift per channel."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        if self.weight is not None:
            x = x * self.weight.view(shape).to(x.dtype)
        return x if self.bias is None else x + self.bias.view(shape).to(x.dtype)


class GroupNorm(FloatStatistics):
    """Group normalization (Wu & He 2018): zero mean, unit variance over a group's channels and all of space."""

    widens = False  # torch's kernels accumulate in float32 by themselves

    def __init__(self, channels: int, norm: Norm, groups: int | None = None):
        super().__init__(channels, norm)
        self.groups = _counted_groups(channels, norm) if groups is None else groups

    def check(self, x: Tensor) -> None:
        """Refuse groups of a single value, of which nothing (without the mean: the sign alone) would be left."""
        if math.prod(x.shape[1:]) == self.groups:
            raise ValueError(
                f"a norm over single values erases them: {x.shape[1]} channels in {self.groups} groups at size "
                f"{list(x.shape[2:])}; give larger inputs, fewer levels or fewer groups"
            )

    def normalize(self, x: Tensor) -> Tensor:
        self.check(x)
        # torch 2.13 on a CPU: the backward pass crashes for a channels-last input that needs no gradient itself.
        x = x if x.requires_grad else x.contiguous()
        weight, bias = (None if entry is None else entry.to(x.dtype) for entry in (self.weight, self.bias))
        return F.group_norm(x, self.groups, weight, bias, self.eps)


class GroupRMSNorm(GroupNorm):
    """Group normalization without the mean: x / sqrt(mean(x^2) + eps) over a group's channels and all of space."""

    widens = True

    def normalize(self, x: Tensor) -> Tensor:
        self.check(x)
        grouped = rearrange(x, "n (g c) ... -> n g (c ...)", g=self.groups)
        scaled = grouped * (grouped.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return self._affine(scaled.reshape(x.shape))


class LayerNorm(FloatStatistics):
    """Zero mean and unit variance over the channels of each position (Ba et al. 2016, channels first)."""

    def normalize(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return self._affine(centred * (centred.square().mean(1, keepdim=True) + self.eps).rsqrt())


class PixelNorm(FloatStatistics):
    """Unit mean square over the channels of each position (Karras et al. 2018; the eps as Karras et al. 2024)."""

    def normalize(self, x: Tensor) -> Tensor:
        return self._affine(unit_rms(x, (1,), self.eps))


def _batch_norm(channels: int, norm: Norm, dims: int) -> nn.Module:
    warnings.warn(
        "batch norm mixes the samples and timesteps of a batch: outputs depend on the batch in training, and "
        "denoisers suffer from it; group norm is the usual choice",
        stacklevel=3,
    )
    return BATCH_NORM[dims](channels, eps=norm.eps, affine=norm.affine)


NORMS = {
    "none": lambda channels, norm, dims: nn.Identity(),
    "group": lambda channels, norm, dims: GroupNorm(channels, norm),
    "layer": lambda channels, norm, dims: LayerNorm(channels, norm),
    "rms": lambda channels, norm, dims: GroupRMSNorm(channels, _uncentred(norm)),
    "pixel": lambda channels, norm, dims: PixelNorm(channels, _uncentred(norm)),
    "instance": lambda channels, norm, dims: GroupNorm(channels, norm, groups=channels),
    "batch": _batch_norm,
}


def _uncentred(norm: Norm) -> Norm:
    return Norm(norm.kind, norm.groups, norm.min_group_channels, norm.eps, norm.affine, False, norm.fp32_stats)


def make_norm(channels: int, norm: Norm, dims: int) -> nn.Module:
    """The layer that `norm` describes for (N, channels, *space) in `dims` dimensions.

    Raises:
        ValueError: for a norm over the channels of each position where there is only one.
    """
    if channels == 1 and norm.kind in ("layer", "pixel"):
        raise ValueError(f"a {norm.kind} norm over 1 channel erases it: expected more channels, or another norm")
    return NORMS[norm.kind](channels, norm, dims)


def removes_mean(norm: Norm) -> bool:
    """Whether a norm subtracts the mean of every single channel, so that a bias before it has no effect."""
    return norm.kind in ("instance", "batch")
