"""Residual blocks. Each `forward` reads in the order in which things happen."""

from __future__ import annotations

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
        weights = placement.weights
        self.main = make_norm(in_channels, site.main, dims)
        self.norm1 = make_norm(self.first_norm_channels(in_channels, out_channels), site.norm, dims)
        self.conv1 = conv(dims, in_channels, out_channels, weights=weights)
        norm2 = make_norm(out_channels, site.norm, dims)
        self.norm2 = ConditionedNorm(norm2, placement.time, out_channels, embedding_channels)
        self.conv2 = conv(dims, out_channels, out_channels, weights=weights)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.resample = resample or nn.Identity()
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv(dims, in_channels, out_channels, 1, weights=weights)
        if "branch" in placement.zero_init:
            self.zero_branch()

    @staticmethod
    def first_norm_channels(in_channels: int, out_channels: int) -> int:
        """Width that the first norm sees."""
        return in_channels

    def zero_branch(self) -> None:
        """Make the block start as its shortcut."""
        zero_(self.conv2)

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The residual branch of the (already main-normalised) stream `x`."""
        raise NotImplementedError

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        x = self.main(x)
        return merge_residual(self.shortcut(self.resample(x)), self.branch(x, embedding), self.placement)


class PreNormBlock(ResidualBlock):
    """norm, activation, convolution, twice (He et al. 2016, "full pre-activation"); also with no norm at all."""

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.conv1(self.resample(self.activation(self.norm1(x))))
        h = self.activation(self.norm2(h, embedding))
        return self.conv2(self.dropout(h))


class PostNormBlock(ResidualBlock):
    """convolution, norm, activation, then convolution, norm, and the activation after the sum (He et al. 2015).

    The embedding enters the first of the two norms, before the nonlinearity between the convolutions.
    """

    @staticmethod
    def first_norm_channels(in_channels: int, out_channels: int) -> int:
        return out_channels

    def zero_branch(self) -> None:
        last = self.norm1
        zero_(last if any(True for _ in last.parameters()) else self.conv2)

    def branch(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.activation(self.norm2(self.conv1(self.resample(x)), embedding))
        return self.norm1(self.conv2(self.dropout(h)))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self.activation(super().forward(x, embedding))


BLOCKS: dict[str, type[ResidualBlock]] = {"pre": PreNormBlock, "none": PreNormBlock, "post": PostNormBlock}
