"""How a branch joins the residual stream, and magnitude-preserving sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unetdiff.spec import NormPlacement


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Magnitude-preserving sum ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (Karras et al. 2024, Eq. 88)."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


RESIDUALS = {
    "sum": lambda x, branch, t: x + branch,
    "sqrt_half": lambda x, branch, t: (x + branch) * math.sqrt(0.5),
    "mp": mp_sum,
    "off": lambda x, branch, t: branch,
}


def merge_residual(x: Tensor, branch: Tensor, placement: NormPlacement) -> Tensor:
    """The residual stream `x` after `branch` joined it, both (N, C, *space)."""
    return RESIDUALS[placement.residual](x, branch.to(x.dtype), placement.residual_t)


def merge_attention(x: Tensor, branch: Tensor, placement: NormPlacement) -> Tensor:
    """The residual stream `x` after self-attention joined it: as other branches, but never instead of it."""
    kind = "sum" if placement.residual == "off" else placement.residual
    return RESIDUALS[kind](x, branch.to(x.dtype), placement.attention_balance)
