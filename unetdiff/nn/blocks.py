"""Residual blocks. Each `forward` reads in the order in which things happen."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from unetdiff.nn.dims import conv, zero_
from unetdiff.nn.embed import ConditionedNorm
from unetdiff.nn.norm import make_norm
from unetdiff.nn.residual import merge_residual
from unetdiff.spec import Activation, NormPlacement, Site

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}


class ResidualBlock(nn.Module):
    """What residual blocks share: two convolutions, a conditioned second norm, a shortcut. (N, C, *space) in and out.

    `resample`, where given, changes the resolution of branch and shortcut alike (Dhariwal & Nichol 2021).
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
    ):
        super().__init__()
        self.placement = placement
        streams = site.main.kind != "none"
        same = in_channels == out_channels
        self.resample = resample or nn.Identity()
        self.shortcut = nn.Identity() if same else conv(dims, in_channels, out_channels, 1, weights=placement.weights)
        self.main = make_norm(out_channels, site.main, dims) if streams else None
        # Where the stream itself is normalised, the branch reads it after shortcut and resampling.
        entry = out_channels if streams else in_channels
        self.resample_branch = nn.Identity() if streams else self.resample

        norm = make_norm(out_channels, site.norm, dims)
        conditioned = ConditionedNorm(norm, placement.time, out_channels, embedding_channels)
        plain = make_norm(entry if self.conditioned_norm == 2 else out_channels, site.norm, dims)
        self.norm1, self.norm2 = (plain, conditioned) if self.conditioned_norm == 2 else (conditioned, plain)
        self.conv1 = conv(dims, entry, out_channels, weights=placement.weights)
        self.conv2 = conv(dims, out_channels, out_channels, weights=placement.weights)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        if "branch" in placement.zero_init:
            zero_(self.last_layer())

    def last_layer(self) -> nn.Module:
        """What must return zero for the block to start as its shortcut."""
        raise NotImplementedError

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The residual branch of the stream `x`."""
        raise NotImplementedError

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        stream = self.shortcut(self.resample(x))
        if self.main is not None:
            x = stream = self.main(stream)
        return merge_residual(stream, self.branch(x, embedding), self.placement)


class PreNormBlock(ResidualBlock):
    """norm, activation, convolution, twice (He et al. 2016, "full pre-activation"); also with no norm at all."""

    conditioned_norm = 2

    def last_layer(self) -> nn.Module:
        return self.conv2

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.conv1(self.resample_branch(self.activation(self.norm1(x))))
        h = self.activation(self.norm2(h, embedding))
        return self.conv2(self.dropout(h))


class PostNormBlock(ResidualBlock):
    """convolution, norm, activation, then convolution, norm, and the activation after the sum (He et al. 2015).

    The embedding enters the first of the two norms, before the nonlinearity between the convolutions.
    """

    conditioned_norm = 1

    def last_layer(self) -> nn.Module:
        return self.norm2

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.activation(self.norm1(self.conv1(self.resample_branch(x)), embedding))
        return self.norm2(self.conv2(self.dropout(h)))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self.activation(super().forward(x, embedding))


BLOCKS: dict[str, type[ResidualBlock]] = {"pre": PreNormBlock, "none": PreNormBlock, "post": PostNormBlock}
