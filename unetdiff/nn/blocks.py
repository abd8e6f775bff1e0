"""Residual blocks. Each `forward` reads in the order in which things happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from unetdiff.nn.activation import make_activation
from unetdiff.nn.embed import ConditionedNorm
from unetdiff.nn.layers import BLOCK_CONVS, conv, zero_
from unetdiff.nn.lean import Lean, output_dtype, recompute
from unetdiff.nn.norm import make_norm, removes_mean
from unetdiff.nn.residual import merge_residual
from unetdiff.spec import Activation, BlockConvolutions, NormPlacement, Site


class ResidualBlock(Lean, nn.Module):
    """What residual blocks share: two convolutions, a conditioned norm, a shortcut. (N, C, *space) in and out.

    `resample`, where given, changes the resolution of branch and shortcut alike (Dhariwal & Nichol 2021); `stride`
    does it by the first convolution. The shortcut is a 1x1 convolution where the width changes, or where
    `shortcut_conv` asks for one. With `placement.residual` off there is no shortcut: two convolutions in a row.
    `convolutions` names a row of `BLOCK_CONVS`.
    `padded`: whether its convolutions keep the size; without, each takes one position off either end of every axis.
    `first`: no block comes before, whose nonlinearity would have shaped what a post-norm block reads.
    """

    conditioned_norm: ClassVar[Literal[1, 2]]  # which of the two norms the embedding enters

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int | None,
        site: Site,
        placement: NormPlacement,
        dims: int,
        activation: Activation = "silu",
        dropout: float = 0.0,
        resample: nn.Module | None = None,
        stride: Sequence[int] = (),
        shortcut_conv: bool = False,
        first: bool = False,
        padded: bool = True,
        convolutions: BlockConvolutions = "full",
    ):
        super().__init__()
        self.placement = placement
        strides = tuple(stride) or (1,) * dims
        streams = site.main.kind != "none"
        bare = in_channels == out_channels and max(strides) == 1 and not shortcut_conv
        self.resample = resample or nn.Identity()
        project = not bare and (streams or placement.residual != "off")
        how = {"weights": placement.weights, "stride": strides}
        self.shortcut = conv(dims, in_channels, out_channels, 1, **how) if project else nn.Identity()
        self.main = make_norm(out_channels, site.main, dims) if streams else None
        # Where the stream itself is normalised, the branch reads it after shortcut and resampling.
        entry, entry_strides = (out_channels, (1,) * dims) if streams else (in_channels, strides)
        self.resample_branch = nn.Identity() if streams else self.resample

        norm = make_norm(out_channels, site.norm, dims)
        weights = placement.weights
        conditioned = ConditionedNorm(norm, placement.time, out_channels, embedding_channels, weights)
        plain = make_norm(entry if self.conditioned_norm == 2 else out_channels, site.norm, dims)
        self.norm1, self.norm2 = (plain, conditioned) if self.conditioned_norm == 2 else (conditioned, plain)
        # A norm that removes each channel's mean removes a bias before it.
        bias = not (site.pos == "post" and removes_mean(site.norm))
        how = {"weights": weights, "bias": bias, "padding": None if padded else 0}
        reads = None if first and site.pos == "post" else activation
        convolve = BLOCK_CONVS[convolutions]
        self.conv1 = convolve(dims, entry, out_channels, stride=entry_strides, reads=reads, **how)
        self.conv2 = convolve(dims, out_channels, out_channels, reads=activation, **how)
        self.activation = make_activation(activation, weights)
        self.dropout = nn.Dropout(dropout)
        if "branch" in placement.zero_init:
            zero_(self.last_layer())

    def last_layer(self) -> nn.Module:
        """What must return zero for the block to start as its shortcut."""
        raise NotImplementedError

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The residual branch of the stream `x`."""
        raise NotImplementedError

    def recomputes_branch(self) -> bool:
        """Whether the branch's layers are run by `recompute`."""
        norms = [norm.norm if isinstance(norm, ConditionedNorm) else norm for norm in (self.norm1, self.norm2)]
        # A ReLU keeps what it returns, which is what the next convolution reads: without a norm, nothing is to be won.
        worth = not (isinstance(self.activation, nn.ReLU) and isinstance(norms[0], nn.Identity))
        layers = (*norms, self.activation, self.dropout, self.resample_branch, self.conv1, self.conv2)
        return worth and self.recomputes(*layers)

    def shortcut_of(self, x: Tensor) -> Tensor:
        """The stream before the branch joins it."""
        project = not isinstance(self.shortcut, nn.Identity)
        # Beside a branch that keeps the concatenation itself, its parts would be kept in addition.
        if project and self.recomputes_branch() and self.recomputes(self.resample, self.shortcut):
            return recompute(x, resample=self.resample, layer=self.shortcut)
        return self.shortcut(self.resample(x))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        if self.placement.residual == "off" and self.main is None:
            return self.branch(x, embedding)
        stream = self.shortcut_of(x)
        if self.main is not None:
            x = stream = self.main(stream)
        return merge_residual(stream, self.branch(x, embedding), self.placement)


class PreNormBlock(ResidualBlock):
    """norm, activation, convolution, twice (He et al. 2016, "full pre-activation"); also with no norm at all."""

    conditioned_norm = 2

    def last_layer(self) -> nn.Module:
        return self.conv2

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        if self.recomputes_branch():
            return self.lean_branch(x, embedding)
        h = self.conv1(self.resample_branch(self.activation(self.norm1(x))))
        h = self.activation(self.norm2(h, embedding))
        return self.conv2(self.dropout(h))

    def lean_branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """`branch` again, in two functions that keep what their norms read."""
        assert isinstance(self.norm2, ConditionedNorm)
        added, scale, shift = self.norm2.entries(embedding, x.ndim, output_dtype(x))
        first = {"norm": self.norm1, "activation": self.activation, "resample": self.resample_branch}
        h = recompute(x, **first, layer=self.conv1, added=added)
        second = {"activation": self.activation, "dropout": self.dropout, "layer": self.conv2}
        return recompute(h, norm=self.norm2.norm, scale=scale, shift=shift, **second)


class PostNormBlock(ResidualBlock):
    """convolution, norm, activation, then convolution, norm, and the activation after the sum (He et al. 2015).

    The embedding enters the first of the two norms, before the nonlinearity between the convolutions.
    """

    conditioned_norm = 1

    def last_layer(self) -> nn.Module:
        return self.norm2

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return self.norm2(self.convolved(x, embedding))

    def convolved(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The branch without its last norm."""
        if self.recomputes_branch():
            return self.lean_convolved(x, embedding)
        h = self.activation(self.norm1(self.conv1(self.resample_branch(x)), embedding))
        return self.conv2(self.dropout(h))

    def lean_convolved(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """`convolved` again, in functions that keep the input and what the norm reads."""
        assert isinstance(self.norm1, ConditionedNorm)
        added, scale, shift = self.norm1.entries(embedding, x.ndim, output_dtype(x))
        h = recompute(x, resample=self.resample_branch, layer=self.conv1, added=added)
        second = {"activation": self.activation, "dropout": self.dropout, "layer": self.conv2}
        return recompute(h, norm=self.norm1.norm, scale=scale, shift=shift, **second)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        alone = self.placement.residual == "off" and self.main is None
        if alone and not isinstance(self.activation, nn.ReLU) and self.recomputes(self.norm2, self.activation):
            return recompute(self.convolved(x, embedding), norm=self.norm2, activation=self.activation)
        return self.activation(super().forward(x, embedding))


BLOCKS: dict[str, type[ResidualBlock]] = {"pre": PreNormBlock, "none": PreNormBlock, "post": PostNormBlock}
