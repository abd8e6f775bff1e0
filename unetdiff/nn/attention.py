"""Self-attention over flattened space, through torch's fused `scaled_dot_product_attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unetdiff.nn.layers import linear, unit_rms, zero_
from unetdiff.nn.lean import Lean, recompute
from unetdiff.nn.norm import make_norm
from unetdiff.nn.residual import merge_attention
from unetdiff.spec import NormPlacement, Site

START_TEMPERATURE = 10.0  # of cosine attention, as in Crowson et al. 2024 (HDiT)


def normalize_heads(x: Tensor, kind: str) -> Tensor:
    """Queries or keys (N, heads, positions, width): unit mean square (`rms`), unit length (`l2`), or as they are."""
    if kind == "none":
        return x
    if kind == "l2":
        # With an eps of 1e-6 the gradient at zeros would be more than float16 holds.
        return F.normalize(x.float(), dim=-1, eps=1e-4).to(x.dtype)
    return unit_rms(x.float(), (-1,), eps=1e-4).to(x.dtype)


class SelfAttention(Lean, nn.Module):
    """Multi-head self-attention on the residual stream: (N, C, *space) in and out.

    norm -> queries, keys, values -> softmax(q k^T / sqrt(width)) v -> output, merged as `placement.residual` says.
    With `qk` l2 the logits are cosines times a learned temperature per head.
    """

    def __init__(self, channels: int, heads: int, placement: NormPlacement, site: Site, dims: int):
        super().__init__()
        self.heads, self.placement = heads, placement
        self.norm = make_norm(channels, site.before_attention, dims) if placement.attention == "pre" else nn.Identity()
        cosine = placement.qk == "l2"
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), START_TEMPERATURE)) if cosine else None
        self.query_key_value = linear(channels, 3 * channels, weights=placement.weights)
        self.out = linear(channels, channels, weights=placement.weights)
        if "attention" in placement.zero_init:
            zero_(self.out)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of every position, side by side: (N, positions, 3 C)."""
        if self.recomputes(self.norm, self.query_key_value):
            return recompute(x, norm=self.norm, layer=self.query_key_value)
        return self.query_key_value(rearrange(self.norm(x), "n c ... -> n (...) c"))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(self.project(x), "n l (three h c) -> three n h l c", three=3, h=self.heads)
        query, key = (normalize_heads(entry, self.placement.qk) for entry in (query, key))
        if self.placement.qk == "rms_values":
            value = normalize_heads(value, "rms")
        if self.temperature is None:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            query = query * self.temperature.to(query.dtype)
            mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        out = self.out(rearrange(mixed, "n h l c -> n l (h c)"))
        branch = rearrange(out, "n l c -> n c l").reshape(x.shape)
        return merge_attention(x, branch, self.placement)
