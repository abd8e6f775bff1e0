"""How the encoder's features meet the decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unetdiff.nn.norm import make_norm
from unetdiff.spec import NormPlacement, Site


def mp_weights(channels: int, skip_channels: int, t: float) -> tuple[float, float]:
    """Factors (w, w_skip) of a magnitude-preserving concatenation (Karras et al. 2024, Eq. 103)."""
    scale = math.sqrt((channels + skip_channels) / ((1 - t) ** 2 + t**2))
    return scale * (1 - t) / math.sqrt(channels), scale * t / math.sqrt(skip_channels)


class ConcatSkip(nn.Module):
    """Concatenate: (N, C, *space) and (N, S, *space) in, (N, C + S, *space) out.

    The placement says whether each source, or their concatenation, is normalised on the main path, how the skip
    is scaled, and whether the two keep equal magnitude.
    """

    def __init__(self, channels: int, skip_channels: int, placement: NormPlacement, site: Site, dims: int):
        super().__init__()
        norm = site.norm if placement.skip_norm is None else placement.skip_norm
        before, after = (placement.skip == entry for entry in ("before_concat", "after_concat"))
        self.norm = make_norm(channels, norm, dims) if before else nn.Identity()
        self.norm_skip = make_norm(skip_channels, norm, dims) if before else nn.Identity()
        self.norm_both = make_norm(channels + skip_channels, norm, dims) if after else nn.Identity()
        balanced = placement.concat == "mp"
        self.weights = mp_weights(channels, skip_channels, placement.concat_t) if balanced else (1.0, 1.0)
        learned = placement.skip_scale == "learned"
        self.scale = nn.Parameter(torch.ones(())) if learned else None
        self.fixed_scale = 1.0 if isinstance(placement.skip_scale, str) else placement.skip_scale

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x, skip = self.norm(x), self.norm_skip(skip)
        skip_weight = self.weights[1] * self.fixed_scale
        if self.weights[0] != 1.0:
            x = x * self.weights[0]
        if skip_weight != 1.0:
            skip = skip * skip_weight
        if self.scale is not None:
            skip = skip * self.scale.to(skip.dtype)
        return self.norm_both(torch.cat([x, skip.to(x.dtype)], dim=1))
