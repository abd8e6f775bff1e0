"""The module of each kind of step: one table. Every module takes (x, embedding, skip) and returns (N, C, *space)."""

from __future__ import annotations

from torch import Tensor, nn

from unetdiff.models.plan import Step
from unetdiff.nn.attention import SelfAttention
from unetdiff.nn.blocks import ACTIVATIONS, BLOCKS, ResidualBlock
from unetdiff.nn.dims import conv, zero_
from unetdiff.nn.norm import make_norm
from unetdiff.nn.resample import DOWN, UP, Nearest, average_pool
from unetdiff.nn.skips import ConcatSkip
from unetdiff.spec import Site, UNetSpec


def _residual_block(spec: UNetSpec, step: Step, resample: nn.Module | None = None) -> ResidualBlock:
    site = _site(spec, step)
    return BLOCKS[site.pos](
        step.in_channels + step.skip,
        step.out_channels,
        embedding_channels=spec.embedding_channels,
        site=site,
        placement=spec.placement,
        dims=spec.dims,
        activation=spec.activation,
        dropout=spec.dropout,
        resample=resample,
    )


def _site(spec: UNetSpec, step: Step) -> Site:
    assert step.side != "head"
    return spec.placement.site(step.side)


class BlockStep(nn.Module):
    """Take a skip, a residual block, self-attention: each where the plan has it."""

    def __init__(self, spec: UNetSpec, step: Step):
        super().__init__()
        site, placement = _site(spec, step), spec.placement
        self.merge = ConcatSkip(step.in_channels, step.skip, placement, site, spec.dims) if step.skip else None
        self.residual = _residual_block(spec, step)
        attends = step.heads > 0
        self.attention = SelfAttention(step.out_channels, step.heads, placement, site, spec.dims) if attends else None

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if self.merge is not None:
            x = self.merge(x, skip)
        x = self.residual(x, embedding)
        return x if self.attention is None else self.attention(x)


class PlainStep(nn.Module):
    """A step that neither the embedding nor a skip reaches, such as the stem or a pooling."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        return self.module(x)


class ResidualResampling(nn.Module):
    """A residual block that changes the resolution inside (Dhariwal & Nichol 2021)."""

    def __init__(self, spec: UNetSpec, step: Step, resample: nn.Module):
        super().__init__()
        self.residual = _residual_block(spec, step, resample)

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        return self.residual(x, embedding)


class Head(nn.Sequential):
    """norm, activation, convolution: from the decoder's finest features (N, C, *space) to one output."""

    def __init__(self, spec: UNetSpec, step: Step):
        out = conv(spec.dims, step.in_channels, step.out_channels)
        if "out" in spec.placement.zero_init:
            zero_(out)
        norm = make_norm(step.in_channels, spec.placement.out, spec.dims)
        super().__init__(norm, ACTIVATIONS[spec.activation](), out)


def _stem(spec: UNetSpec, step: Step) -> nn.Module:
    return PlainStep(conv(spec.dims, step.in_channels, step.out_channels))


def _down(spec: UNetSpec, step: Step) -> nn.Module:
    if step.resampling == "residual":
        return ResidualResampling(spec, step, average_pool(step.stride, spec.dims))
    return PlainStep(DOWN[step.resampling](step.out_channels, step.stride, spec.dims, spec.placement.weights))


def _up(spec: UNetSpec, step: Step) -> nn.Module:
    if step.resampling == "residual":
        return ResidualResampling(spec, step, Nearest(step.stride))
    return PlainStep(UP[step.resampling](step.out_channels, step.stride, spec.dims, spec.placement.weights))


STEPS = {"stem": _stem, "block": BlockStep, "down": _down, "up": _up, "head": Head}


def build_step(spec: UNetSpec, step: Step) -> nn.Module:
    """The module of one step of the plan."""
    return STEPS[step.kind](spec, step)
