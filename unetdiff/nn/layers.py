"""Convolutions and linear layers: their kinds of weights, and a start that keeps unit variance.

Every layer starts with normal weights of variance 1 / (fan-in E[x^2]) and no bias, so that an input entry of mean
square E[x^2] leaves with unit variance (He et al. 2015). `reads` names the activation that the input just left; without
one the input is taken to have unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unetdiff.nn.activation import ACTIVATIONS
from unetdiff.nn.dims import CONV, CONV_TRANSPOSE
from unetdiff.placement import Weights
from unetdiff.spec import Activation


def standardize_weight(weight: Tensor, eps: float = 1e-10) -> Tensor:
    """Each output filter with zero mean and variance 1 / fan-in (weight standardization, Qiao et al. 2019)."""
    axes = tuple(range(1, weight.ndim))
    mean = weight.mean(dim=axes, keepdim=True)
    variance = weight.var(dim=axes, keepdim=True, unbiased=False)
    return (weight - mean) * (variance * weight[0].numel() + eps).rsqrt()


class Standardized(nn.Module):
    """Mixin of a convolution: filters standardized at every call, times a learned gain (Brock et al. 2021)."""

    def __init__(self, in_channels: int, out_channels: int, *args: Any, **options: Any):
        super().__init__(in_channels, out_channels, *args, **options)
        shape = (out_channels, *(1,) * (self.weight.ndim - 1))  # pyright: ignore
        self.gain = nn.Parameter(torch.ones(shape))

    def used_weight(self) -> Tensor:
        """The standardized filters, times the gain."""
        return standardize_weight(self.weight) * self.gain  # pyright: ignore

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.used_weight(), self.bias)  # pyright: ignore


class StandardizedConv1d(Standardized, nn.Conv1d):
    """`nn.Conv1d` with standardized filters."""


class StandardizedConv2d(Standardized, nn.Conv2d):
    """`nn.Conv2d` with standardized filters."""


class StandardizedConv3d(Standardized, nn.Conv3d):
    """`nn.Conv3d` with standardized filters."""


def unit_rms(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """`x` over (its root mean square along `axes` + eps): (Karras et al. 2024, Eq. 66), in the type of `x`."""
    # A norm, not a root of a mean of squares: its gradient at zero is zero, not infinite.
    norm = torch.linalg.vector_norm(x, dim=tuple(axes), keepdim=True)
    return x / (norm / math.sqrt(x.numel() / norm.numel()) + eps)


class Forced(nn.Module):
    """Mixin of a layer without bias whose filters have unit norm (Karras et al. 2024, Eq. 66 and algorithm 1).

    The norm is taken out at every call, and `force_unit_weights` takes it out of what is stored while training, so
    that the weights cannot grow and the learning rate keeps its meaning. `gained`: a learned scalar, first zero.
    """

    def __init__(self, *args: Any, gained: bool = False, **options: Any):
        super().__init__(*args, bias=False, **options)
        self.gain = nn.Parameter(torch.zeros(())) if gained else None

    @property
    def stored(self) -> Tensor:
        """The weights as they are stored, of unit root mean square per filter once forced."""
        return self.weight  # pyright: ignore

    def used_weight(self) -> Tensor:
        """The weights with unit norm per filter, times the gain."""
        weight = unit_rms(self.stored.float(), range(1, self.stored.ndim), eps=1e-4)
        scale = 1 / math.sqrt(self.stored[0].numel())
        weight = weight * (scale if self.gain is None else self.gain.float() * scale)
        return weight.to(self.stored.dtype)


class _ForcedConv(Forced):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.used_weight(), None)  # pyright: ignore


class ForcedConv1d(_ForcedConv, nn.Conv1d):
    """`nn.Conv1d` with unit filters."""


class ForcedConv2d(_ForcedConv, nn.Conv2d):
    """`nn.Conv2d` with unit filters."""


class ForcedConv3d(_ForcedConv, nn.Conv3d):
    """`nn.Conv3d` with unit filters."""


class ForcedLinear(Forced, nn.Linear):
    """`nn.Linear` with unit rows."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.used_weight())


def used_weight(layer: Any) -> Tensor:
    """The weights that a layer multiplies its input with."""
    return layer.used_weight() if isinstance(layer, (Standardized, Forced)) else layer.weight


def force_unit_weights(layers: Iterable[Forced]) -> None:
    """Take the norm out of the stored weights of forced layers; between two steps of the optimizer only."""
    with torch.no_grad():
        for layer in layers:
            # Through `data`: a second call before `backward` changes nothing that autograd would have to refuse.
            stored = layer.stored.data
            # With next to no eps, so that a second call finds next to nothing left to do.
            stored.copy_(unit_rms(stored.float(), range(1, stored.ndim), eps=1e-20))


CONVS = {
    "plain": CONV,
    "standardized": {1: StandardizedConv1d, 2: StandardizedConv2d, 3: StandardizedConv3d},
    "mp_forced": {1: ForcedConv1d, 2: ForcedConv2d, 3: ForcedConv3d},
}
LINEARS = {"plain": nn.Linear, "standardized": nn.Linear, "mp_forced": ForcedLinear}


Reads = Activation | Literal["waves"] | None


# Root mean square of what a layer reads; the mean square of sine and cosine of one angle is 1/2.
_INPUT_RMS: dict[Reads, float] = {
    None: 1.0,
    "waves": math.sqrt(0.5),
    **{name: response.rms for name, response in ACTIVATIONS.items()},
}


def _start(layer: nn.Module, fan_in: int, reads: Reads) -> nn.Module:
    """First weights that keep unit variance; no bias."""
    with torch.no_grad():
        weight: Tensor = layer.weight  # pyright: ignore
        if isinstance(layer, Forced):
            nn.init.normal_(weight)
            force_unit_weights([layer])
            return layer
        nn.init.normal_(weight, std=1 / (_INPUT_RMS[reads] * math.sqrt(fan_in)))
        if isinstance(layer, Standardized) and reads in ACTIVATIONS:
            layer.gain.fill_(1 / ACTIVATIONS[reads].std)  # a filter of zero mean does not see the input's mean
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)  # pyright: ignore
    return layer


def conv(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: Sequence[int] | int = 1,
    padding: int | tuple[int, ...] | None = None,
    weights: Weights = "plain",
    reads: Reads = None,
    bias: bool = True,
    gained: bool = False,
    groups: int = 1,
) -> nn.Module:
    """A convolution in `dims` dimensions that keeps the size at stride 1; `weights` names a row of `CONVS`.

    `gained` gives forced weights a learned gain; they never have a bias. groups: of channels, each of which is
    convolved by itself.
    """
    amount = kernel_size // 2 if padding is None else padding
    extra: dict[str, Any] = {"gained": gained} if weights == "mp_forced" else {"bias": bias}
    how: dict[str, Any] = {"stride": stride, "padding": amount, "groups": groups, **extra}
    layer = CONVS[weights][dims](in_channels, out_channels, kernel_size, **how)
    return _start(layer, in_channels // groups * kernel_size**dims, reads)


class SeparableConv(nn.Module):
    """Each channel convolved by itself, then a 1x1 convolution of all (Chollet 2017, Howard et al. 2017).

    Takes what `conv` takes; nothing stands between the two, and only the second has a bias. Only the second is
    standardized: a single channel's filter of zero mean would erase the mean of that channel.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: Sequence[int] | int = 1,
        padding: int | tuple[int, ...] | None = None,
        weights: Weights = "plain",
        reads: Reads = None,
        bias: bool = True,
    ):
        super().__init__()
        how: dict[str, Any] = {"stride": stride, "padding": padding, "groups": in_channels, "bias": False}
        each = "plain" if weights == "standardized" else weights
        self.depthwise = conv(dims, in_channels, in_channels, weights=each, reads=reads, **how)
        self.pointwise = conv(dims, in_channels, out_channels, 1, weights=weights, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


# The convolutions of blocks: (dims, channels, channels after, ...) -> module.
BLOCK_CONVS = {"full": conv, "separable": SeparableConv}


def transposed_conv(dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
    """A transposed convolution whose windows do not overlap: the size is multiplied by `stride`."""
    layer = CONV_TRANSPOSE[dims](in_channels, out_channels, tuple(stride), stride=tuple(stride))
    return _start(layer, in_channels, None)


def linear(
    in_features: int,
    out_features: int,
    *,
    weights: Weights = "plain",
    reads: Reads = None,
    gained: bool = False,
) -> nn.Module:
    """A linear layer; `weights` names a row of `LINEARS`."""
    extra = {"gained": gained} if weights == "mp_forced" else {}
    return _start(LINEARS[weights](in_features, out_features, **extra), in_features, reads)


def zero_(module: nn.Module) -> nn.Module:
    """Have `module` return zero until it learns otherwise; returns it.

    A standardized or forced filter has no size of its own: its gain is what becomes zero.
    """
    if isinstance(module, SeparableConv):
        zero_(module.pointwise)  # with both at zero, neither would learn
        return module
    assert not isinstance(module, Forced) or module.gain is not None, "forced weights without a gain cannot be zero"
    for name, parameter in module.named_parameters():
        if not (isinstance(module, (Standardized, Forced)) and name == "weight"):
            nn.init.zeros_(parameter)
    return module
