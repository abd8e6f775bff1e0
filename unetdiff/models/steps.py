"""The module of each kind of step: one table. Every module takes (x, embedding, skip) and returns (N, C, *space).

(The backbone alone returns a list of them, which only `feature` steps read.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unetdiff.models.step import Step
from unetdiff.nn.activation import make_activation
from unetdiff.nn.attention import SelfAttention
from unetdiff.nn.backbone import PretrainedBackbone
from unetdiff.nn.blocks import BLOCKS, ResidualBlock
from unetdiff.nn.layers import conv, zero_
from unetdiff.nn.lean import Lean, forget, recompute
from unetdiff.nn.norm import make_norm
from unetdiff.nn.resample import DOWN, UP, PyramidDown, resample_down, resample_up
from unetdiff.nn.residual import merge_attention
from unetdiff.nn.skips import Merge
from unetdiff.nn.transformer import PositionEmbedding, TransformerLayer
from unetdiff.spec import Site, UNetSpec


def _site(spec: UNetSpec, step: Step) -> Site:
    assert step.side != "head"
    return spec.placement.site(step.side)


def _residual_block(spec: UNetSpec, step: Step, resample: nn.Module | None) -> ResidualBlock:
    site = _site(spec, step)
    return BLOCKS[site.pos](
        step.reads,
        step.out_channels,
        embedding_channels=spec.embedding_channels,
        site=site,
        placement=spec.placement,
        dims=spec.dims,
        activation=spec.activation,
        dropout=spec.dropout,
        resample=resample,
        stride=step.stride if step.resampling == "block" else (),
        shortcut_conv=resample is not None and spec.resample_shortcut == "conv",
        first=step.first,
        padded=not step.shrinks,
        convolutions=spec.block_convolutions,
    )


def _merge(spec: UNetSpec, step: Step) -> Merge:
    how = (spec.placement, _site(spec, step), spec.dims, spec.skip_fusion)
    return Merge(step.in_channels, step.skip, *how)


class BlockStep(nn.Module):
    """Take a skip, a residual block (which may change the resolution), self-attention: each where the plan has it."""

    def __init__(self, spec: UNetSpec, step: Step, resample: nn.Module | None = None):
        super().__init__()
        site, placement = _site(spec, step), spec.placement
        self.merge = _merge(spec, step) if step.skip else None
        self.residual = _residual_block(spec, step, resample)
        attends = step.heads > 0
        self.attention = SelfAttention(step.out_channels, step.heads, placement, site, spec.dims) if attends else None
        self.clip = placement.clip

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if self.merge is not None:
            x = self.merge(x, skip)
        joined, x = x, self.residual(x, embedding)
        forget(joined)
        x = x if self.attention is None else self.attention(x)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class PlainStep(nn.Module):
    """A step that neither the embedding nor a skip reaches, such as the stem or a pooling."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        return self.module(x)


class ConstantChannel(nn.Module):
    """Append a channel of ones, which stands in for the biases of layers that have none (Karras et al. 2024)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


class PyramidStep(nn.Module):
    """A step down after which the input pyramid joins the stream (NCSN++, Song et al. 2021); it is the skip here."""

    def __init__(self, spec: UNetSpec, step: Step, down: nn.Module):
        super().__init__()
        self.down, self.placement = down, spec.placement
        how = (step.stride, spec.dims, spec.resample_filter, spec.placement.weights)
        self.stream = PyramidDown(step.stream, step.out_channels, *how)

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        # Summed as attention is: the stream never replaces what it joins.
        return merge_attention(self.down(x, embedding), self.stream(skip), self.placement)


class TransformerStep(nn.Module):
    """A layer of a transformer."""

    def __init__(self, spec: UNetSpec, step: Step):
        super().__init__()
        how = (spec.placement, _site(spec, step), spec.dims, spec.embedding_channels, spec.dropout)
        self.layer, self.clip = TransformerLayer(step.out_channels, step.heads, *how), spec.placement.clip

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        x = self.layer(x, embedding)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class Feature(nn.Module):
    """One of a list of features."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[self.number]


def _backbone(spec: UNetSpec, step: Step) -> nn.Module:
    foreign = spec.foreign
    assert foreign is not None
    assert foreign.config is not None
    how = {"frozen": foreign.frozen, "mean": foreign.mean, "std": foreign.std}
    backbone = PretrainedBackbone(foreign.config, spec.in_channels, **how)
    if (list(backbone.channels), list(backbone.strides)) != (list(foreign.channels or ()), list(foreign.strides or ())):
        held = f"channels {foreign.channels} and strides {foreign.strides}"
        raise ValueError(f"backbone has {held}; its config makes {backbone.channels} and {backbone.strides}")
    return PlainStep(backbone)


class Head(Lean, nn.Sequential):
    """norm, activation, convolution, and what comes behind."""

    def forward(self, input: Tensor) -> Tensor:
        norm, activation, out, *behind = self
        if not self.recomputes(norm, activation, out):
            return super().forward(input)
        output = recompute(input, norm=norm, activation=activation, layer=out)
        for module in behind:
            output = module(output)
        return output


def _head(spec: UNetSpec, step: Step) -> Head:
    """norm and activation, convolution: from the decoder's features (N, C, *space) to one output of full size.

    Without a norm there is no activation either: what comes last in the decoder is read as it is.
    """
    placement = spec.placement
    bare = placement.out.kind == "none"
    reads = None if bare and placement.decoder.pos != "post" else spec.activation  # post: blocks end in one
    weights = "mp_forced" if placement.weights == "mp_forced" else "plain"
    out = conv(
        spec.dims, step.in_channels, step.out_channels, spec.head_kernel, weights=weights, reads=reads, gained=True
    )
    if "out" in placement.zero_init:
        zero_(out)
    norm = make_norm(step.in_channels, placement.out, spec.dims)
    activation = nn.Identity() if bare else make_activation(spec.activation, placement.weights)
    widths = (step.out_channels, step.out_channels)
    up = [UP[step.resampling](*widths, step.stride, spec.dims, weights)] if step.resampling else []
    return Head(norm, activation, out, *up)


def _stem(spec: UNetSpec, step: Step) -> nn.Module:
    if spec.placement.weights != "mp_forced":
        return PlainStep(conv(spec.dims, step.in_channels, step.out_channels))
    constant = conv(spec.dims, step.in_channels + 1, step.out_channels, weights="mp_forced")
    return PlainStep(nn.Sequential(ConstantChannel(), constant))


def _down(spec: UNetSpec, step: Step) -> nn.Module:
    if step.resampling == "residual":
        down = BlockStep(spec, step, resample_down(step.stride, spec.dims, spec.resample_filter))
    else:
        down = PlainStep(DOWN[step.resampling](step.out_channels, step.stride, spec.dims, spec.placement.weights))
    return PyramidStep(spec, step, down) if step.stream else down


def _up(spec: UNetSpec, step: Step) -> nn.Module:
    if step.resampling == "residual":
        return BlockStep(spec, step, resample_up(step.stride, spec.resample_filter))
    widths = (step.in_channels, step.out_channels)
    return PlainStep(UP[step.resampling](*widths, step.stride, spec.dims, spec.placement.weights))


STEPS = {
    "stem": _stem,
    "block": BlockStep,
    "down": _down,
    "up": _up,
    "head": _head,
    "position": lambda spec, step: PlainStep(PositionEmbedding(step.out_channels, spec.position_grid, spec.dims)),
    "transformer": TransformerStep,
    "backbone": _backbone,
    "feature": lambda spec, step: PlainStep(Feature(step.number)),
}


def build_step(spec: UNetSpec, step: Step) -> nn.Module:
    """The module of one step of the plan."""
    return STEPS[step.kind](spec, step)
