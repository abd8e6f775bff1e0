"""A vision transformer's layers on feature maps (Dosovitskiy et al. 2021), for the middle of a U (Chen et al. 2021)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdiff.nn.activation import make_activation
from unetdiff.nn.attention import SelfAttention
from unetdiff.nn.dims import INTERPOLATION
from unetdiff.nn.embed import ConditionedNorm
from unetdiff.nn.layers import conv, zero_
from unetdiff.nn.lean import Lean, recompute
from unetdiff.nn.norm import make_norm
from unetdiff.nn.residual import merge_attention
from unetdiff.spec import Norm, NormPlacement, Site

LAYER_NORM = Norm("layer", eps=1e-6)
EXPANSION = 4  # of the feed-forward branch


class PositionEmbedding(nn.Module):
    """Add a learned vector per position, interpolated to the size at hand: (N, C, *space) in and out.

    grid: positions per axis that are learned. At that very size nothing is interpolated.
    """

    def __init__(self, channels: int, grid: int, dims: int):
        super().__init__()
        self.mode = INTERPOLATION[dims]
        self.position = nn.Parameter(torch.randn(1, channels, *(grid,) * dims) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        # Exact at the grid's own size too; asking whether it is that would tie an exported network to one size.
        position = F.interpolate(self.position.float(), size=x.shape[2:], mode=self.mode, align_corners=False)
        return x + position.to(x.dtype)


class TransformerLayer(Lean, nn.Module):
    """Self-attention, then a feed-forward branch at every position, each on a residual stream: (N, C, *space).

    Both read the stream through a layer norm over the channels of each position (none where the placement has no norm
    before attention); the embedding enters the second, as it enters a residual block's.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        placement: NormPlacement,
        site: Site,
        dims: int,
        embedding_channels: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.placement, weights = placement, placement.weights
        norm = LAYER_NORM if placement.attention == "pre" else Norm("none")
        self.attention = SelfAttention(channels, heads, placement, replace(site, attention=norm), dims)
        conditioned = make_norm(channels, norm, dims)
        self.norm = ConditionedNorm(conditioned, placement.time, channels, embedding_channels, weights)
        inner = EXPANSION * channels
        kind = "mp_forced" if weights == "mp_forced" else "plain"  # 1x1 filters are linear layers
        self.widen = conv(dims, channels, inner, 1, weights=kind)
        self.activation = make_activation("gelu", weights)
        self.dropout = nn.Dropout(dropout)
        self.narrow = conv(dims, inner, channels, 1, weights=kind, reads="gelu")
        if "branch" in placement.zero_init:
            zero_(self.narrow)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        x = self.attention(x)
        inner = self.widen(self.norm(x, embedding))
        if self.recomputes(self.activation, self.dropout, self.narrow):
            branch = recompute(inner, activation=self.activation, dropout=self.dropout, layer=self.narrow)
        else:
            branch = self.narrow(self.dropout(self.activation(inner)))
        return merge_attention(x, branch, self.placement)
