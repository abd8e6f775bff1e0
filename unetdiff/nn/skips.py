"""How the encoder's features meet the decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unetdiff.nn.dims import crop_centre
from unetdiff.nn.layers import conv
from unetdiff.nn.lean import Lean, forget, join, recompute
from unetdiff.nn.norm import make_norm
from unetdiff.spec import FUSED_CHANNELS, NormPlacement, Site, SkipFusion


def mp_weights(channels: int, skip_channels: int, t: float) -> tuple[float, float]:
    """Factors (w, w_skip) of a magnitude-preserving concatenation (Karras et al. 2024, Eq. 103)."""
    scale = math.sqrt((channels + skip_channels) / ((1 - t) ** 2 + t**2))
    return scale * (1 - t) / math.sqrt(channels), scale * t / math.sqrt(skip_channels)


class Concat(Lean, nn.Module):
    """Side by side: (N, C, *space) and (N, S, *space) in, (N, C + S, *space) out."""

    def __init__(self, channels: int, skip_channels: int, dims: int):
        super().__init__()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return join([x, skip]) if self.recomputes() else torch.cat([x, skip], dim=1)


class PointwiseConcat(Concat):
    """Side by side, then a 1x1 convolution back to the decoder's width: (N, C, *space) out."""

    def __init__(self, channels: int, skip_channels: int, dims: int):
        super().__init__(channels, skip_channels, dims)
        self.project = conv(dims, channels + skip_channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        both = super().forward(x, skip)
        out = recompute(both, layer=self.project) if self.recomputes(self.project) else self.project(both)
        forget(both)
        return out


class Add(nn.Module):
    """A sum, behind a 1x1 convolution of the skip where widths differ: (N, C, *space) out."""

    def __init__(self, channels: int, skip_channels: int, dims: int):
        super().__init__()
        same = channels == skip_channels
        self.project = nn.Identity() if same else conv(dims, skip_channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return x + self.project(skip)


class GatedConcat(Concat):
    """The skip times a gate in (0, 1) per position, then side by side: (N, C + S, *space) out.

    gate = sigmoid(psi(ReLU(W_g x + W_s skip))), additive attention (Oktay et al. 2018, Eq. 1 and 2), where x is what
    the decoder has at this resolution. Between, half the skip's channels, as there.
    """

    def __init__(self, channels: int, skip_channels: int, dims: int):
        super().__init__(channels, skip_channels, dims)
        inner = max(skip_channels // 2, 1)
        self.from_decoder = conv(dims, channels, inner, 1)
        self.from_skip = conv(dims, skip_channels, inner, 1)
        self.psi = conv(dims, inner, 1, 1, reads="relu")

    def gate(self, x: Tensor, skip: Tensor) -> Tensor:
        """The weight of every position of the skip, (N, 1, *space)."""
        return self.psi((self.from_decoder(x) + self.from_skip(skip)).relu()).sigmoid()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(x, skip * self.gate(x, skip))


FUSIONS = {"concat": Concat, "concat_1x1": PointwiseConcat, "add": Add, "gate": GatedConcat}


class Merge(nn.Module):
    """A saved feature joins the decoder: (N, C, *space) and (N, S, *space) in, FUSED_CHANNELS of `fusion` out.

    The placement says whether each source, or what they became, is normalised on the main path, how the skip is
    scaled, and whether the two keep equal magnitude in a concatenation. A skip that is larger, since convolutions
    without padding made the decoder's features smaller, is cropped to their size about its centre.
    """

    def __init__(
        self,
        channels: int,
        skip_channels: int,
        placement: NormPlacement,
        site: Site,
        dims: int,
        fusion: SkipFusion = "concat",
    ):
        super().__init__()
        norm = site.norm if placement.skip_norm is None else placement.skip_norm
        before, after = (placement.skip == entry for entry in ("before_concat", "after_concat"))
        self.norm = make_norm(channels, norm, dims) if before else nn.Identity()
        self.norm_skip = make_norm(skip_channels, norm, dims) if before else nn.Identity()
        self.fuse = FUSIONS[fusion](channels, skip_channels, dims)
        fused = FUSED_CHANNELS[fusion](channels, skip_channels)
        self.norm_both = make_norm(fused, norm, dims) if after else nn.Identity()
        balanced = placement.concat == "mp"
        self.weights = mp_weights(channels, skip_channels, placement.concat_t) if balanced else (1.0, 1.0)
        learned = placement.skip_scale == "learned"
        self.scale = nn.Parameter(torch.ones(())) if learned else None
        self.fixed_scale = 1.0 if isinstance(placement.skip_scale, str) else placement.skip_scale

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x, skip = self.norm(x), self.norm_skip(crop_centre(skip, x.shape[2:]))
        skip_weight = self.weights[1] * self.fixed_scale
        if self.weights[0] != 1.0:
            x = x * self.weights[0]
        if skip_weight != 1.0:
            skip = skip * skip_weight
        if self.scale is not None:
            skip = skip * self.scale.to(skip.dtype)
        return self.norm_both(self.fuse(x, skip.to(x.dtype)))
