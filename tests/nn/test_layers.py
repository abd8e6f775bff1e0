"""Layers by their kinds of weights: what they compute, and that they start with unit variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import inputs, network
from unetdiff.nn.activation import ACTIVATIONS, make_activation
from unetdiff.nn.layers import (
    CONVS,
    Forced,
    ForcedLinear,
    SeparableConv,
    conv,
    force_unit_weights,
    linear,
    standardize_weight,
    transposed_conv,
    unit_rms,
    zero_,
)

# A way to make each layer, and the shape of an input, of so many outputs and entries that the measured variance
# has a standard deviation of about 1%. No padding, which would thin it out, and no entry read twice.
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "conv_1d": (lambda **how: conv(1, 32, 8192, padding=0, stride=3, **how), (64, 32, 63)),
    "conv_2d": (lambda **how: conv(2, 16, 8192, padding=0, stride=3, **how), (56, 16, 12, 12)),
    "linear": (lambda **how: linear(64, 8192, **how), (2048, 64)),
}
FORCED: dict[str, tuple[Callable[[], Forced], tuple[int, ...]]] = {
    "linear": (lambda: linear(12, 48, weights="mp_forced"), (4000, 12)),
    "1d": (lambda: conv(1, 6, 48, padding=0, weights="mp_forced"), (40, 6, 102)),
    "2d": (lambda: conv(2, 4, 48, padding=0, weights="mp_forced"), (10, 4, 22, 22)),
    "3d": (lambda: conv(3, 2, 48, padding=0, weights="mp_forced"), (6, 2, 12, 12, 12)),
}


def magnitude(x: Tensor) -> Tensor:
    """Mean square of all entries."""
    return x.square().mean()


def sizes(layer: Forced) -> Tensor:
    """Root mean square of each stored filter."""
    return layer.stored.detach().flatten(1).square().mean(1).sqrt()


@pytest.mark.parametrize("weights", ["plain", "standardized", "mp_forced"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_start_with_unit_variance_behind_every_activation(kind: str, activation: Any, weights: Any) -> None:
    make, shape = LAYERS[kind]
    x = torch.randn(shape)
    if activation is not None:
        x = make_activation(activation, weights)(x)
    layer = make(weights=weights, reads=activation)
    with torch.no_grad():
        assert_close(magnitude(layer(x)), torch.tensor(1.0), atol=0.03, rtol=0)
    assert getattr(layer, "bias", None) is None or layer.bias.count_nonzero() == 0


@pytest.mark.parametrize("stride", [(2,), (1, 3), (1, 2, 2)])
def test_transposed_convolutions_start_with_unit_variance(stride: tuple[int, ...]) -> None:
    layer = transposed_conv(len(stride), 32, 512, stride)
    x = torch.randn(16, 32, *(4,) * len(stride))
    out = layer(x).detach()
    assert out.shape[2:] == tuple(4 * factor for factor in stride)
    assert_close(magnitude(out), torch.tensor(1.0), atol=0.03, rtol=0)


def test_unit_rms_is_its_formula() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = x / (x.square().mean((0, 2), keepdim=True).sqrt() + 0.1)
    assert_close(unit_rms(x, (0, 2), eps=0.1), expected)
    assert_close(unit_rms(x, (-1,), eps=0), x / x.square().mean(-1, keepdim=True).sqrt())


def test_unit_rms_has_a_finite_gradient_at_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    unit_rms(x, (1,), eps=1e-4).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, torch.full((2, 3), 1e4))


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("kind", FORCED)
def test_forced_layers_keep_unit_variance_whatever_is_stored(kind: str, scale: float) -> None:
    """Karras et al. 2024, Eq. 66."""
    make, shape = FORCED[kind]
    layer = make()
    with torch.no_grad():
        layer.stored.mul_(scale)
    norms = layer.used_weight().detach().flatten(1).norm(dim=1)
    assert_close(norms, sizes(layer) / (sizes(layer) + 1e-4), rtol=1e-5, atol=0)
    assert_close(magnitude(layer(torch.randn(shape)).detach()), torch.tensor(1.0), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", FORCED)
def test_forcing_takes_out_the_norm_once_and_changes_no_output(kind: str) -> None:
    make, shape = FORCED[kind]
    layer, x = make(), torch.randn(2, *shape[1:])
    with torch.no_grad():
        layer.stored.mul_(torch.linspace(1, 9, len(layer.stored)).view(-1, *(1,) * (layer.stored.ndim - 1)))
        before = layer(x)
        force_unit_weights([layer])
        assert_close(sizes(layer), torch.ones(len(layer.stored)))
        assert_close(layer(x), before, rtol=1e-3, atol=1e-3)
        once = layer.stored.clone()
        force_unit_weights([layer])
    assert_close(layer.stored.detach(), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", FORCED)
def test_gradient_of_forced_weights_is_orthogonal_to_them(kind: str) -> None:
    make, shape = FORCED[kind]
    layer = make()
    out = layer(torch.randn(2, *shape[1:]))
    (out * torch.randn_like(out)).sum().backward()
    gradient, weight = layer.stored.grad, layer.stored.detach()
    assert gradient is not None
    gradient, weight = gradient.flatten(1), weight.flatten(1)
    cosine = (gradient * weight).sum(1) / (gradient.norm(dim=1) * weight.norm(dim=1))
    assert gradient.norm(dim=1).min() > 0
    assert cosine.abs().max() < 1e-3


def test_gained_layers_start_at_zero_and_their_gain_is_a_factor() -> None:
    x = torch.randn(5, 6)
    layer = ForcedLinear(6, 4, gained=True)
    assert layer(x).count_nonzero() == 0
    bare = ForcedLinear(6, 4)
    with torch.no_grad():
        bare.weight.copy_(layer.weight)
        layer.gain.fill_(2.5)  # pyright: ignore
    assert_close(layer(x), bare(x) * 2.5)


def test_network_forces_its_weights_in_training_only() -> None:
    unet = network("edm2")  # redrawn, so that no filter has unit size
    forced = [module for module in unet.modules() if isinstance(module, Forced)]
    stored = [layer.stored.clone() for layer in forced]
    unet(**inputs(unet))
    assert all(torch.equal(layer.stored, before) for layer, before in zip(forced, stored, strict=True))
    unet.train()(**inputs(unet))
    for layer in forced:
        assert_close(sizes(layer), torch.ones(len(layer.stored)))


def test_network_with_forced_weights_takes_two_forwards_before_one_backward() -> None:
    unet = network("edm2").train()
    call = inputs(unet)
    (unet(**call).sample.square().mean() + unet(**call).sample.square().mean()).backward()
    twice = {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}
    unet.zero_grad()
    (2 * unet(**call).sample.square().mean()).backward()
    for name, parameter in unet.named_parameters():
        assert_close(twice[name], parameter.grad, rtol=1e-4, atol=1e-4 * float(parameter.grad.abs().max()))


def test_standardized_weights_have_zero_mean_and_unit_gain() -> None:
    weight = standardize_weight(torch.randn(5, 4, 3, 3) * 7 + 2)
    assert_close(weight.mean((1, 2, 3)), torch.zeros(5), atol=1e-6, rtol=0)
    assert_close(weight.square().sum((1, 2, 3)), torch.ones(5))


def test_standardized_convolution_does_not_see_the_size_of_its_weights() -> None:
    x = torch.randn(2, 3, 5, 5)
    layer, plain = conv(2, 3, 4, weights="standardized"), conv(2, 3, 4)
    with torch.no_grad():
        before, plain_before = layer(x), plain(x)
        layer.weight.mul_(3).add_(1)
        plain.weight.mul_(3).add_(1)
        assert_close(layer(x), before, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(plain(x), plain_before)


ZEROED: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: conv(2, 3, 4),
    "standardized": lambda: conv(2, 3, 4, weights="standardized"),
    "mp_forced": lambda: conv(2, 3, 4, weights="mp_forced", gained=True),
}


@pytest.mark.parametrize("weights", ZEROED)
def test_zeroed_layers_return_zero_and_can_learn_without_an_explosion(weights: str) -> None:
    layer = ZEROED[weights]()
    if weights != "plain":
        nn.init.ones_(layer.gain)  # pyright: ignore
    x = torch.randn(2, 3, 5, 5)
    assert layer(x).abs().max() > 0
    assert zero_(layer) is layer
    out = layer(x)
    assert out.count_nonzero() == 0
    (out * torch.randn_like(out)).sum().backward()
    gradients = {name: float(parameter.grad.abs().max()) for name, parameter in layer.named_parameters()}
    learns = "weight" if weights == "plain" else "gain"
    assert all(math.isfinite(value) for value in gradients.values())
    assert 0 < gradients[learns] < 100


@pytest.mark.parametrize("weights", CONVS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_keep_the_size_at_stride_one(dims: int, weights: Any) -> None:
    x = torch.randn(1, 2, *(5, 6, 7)[:dims])
    assert conv(dims, 2, 3, weights=weights)(x).shape == (1, 3, *x.shape[2:])
    assert conv(dims, 2, 3, 1, stride=2, weights=weights)(x).shape[2:] == (3, 3, 4)[:dims]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_is_a_convolution_of_rank_one_per_pair_of_channels(dims: int, stride: int) -> None:
    """One full convolution whose kernel for (out, in) is pointwise[out, in] times depthwise[in]."""
    layer = SeparableConv(dims, 6, 4, stride=stride)
    depthwise, pointwise = layer.depthwise.weight, layer.pointwise.weight
    full = conv(dims, 6, 4, stride=stride)
    with torch.no_grad():
        full.weight.copy_(pointwise * depthwise.transpose(0, 1))
        full.bias.copy_(layer.pointwise.bias.normal_())
    x = torch.randn(2, 6, *(9, 8, 7)[:dims])
    assert_close(layer(x), full(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["plain", "standardized", "mp_forced"])
def test_separable_starts_with_unit_variance(weights: Any) -> None:
    layer = SeparableConv(2, 512, 512, weights=weights, reads="silu" if weights != "mp_forced" else None, padding=0)
    x = torch.randn(16, 512, 6, 6)
    x = x if weights == "mp_forced" else nn.functional.silu(x)
    assert magnitude(layer(x)).item() == pytest.approx(1, rel=0.12)


def test_a_separable_convolution_at_zero_still_learns() -> None:
    layer = zero_(SeparableConv(1, 4, 4))
    x = torch.randn(2, 4, 5)
    out = layer(x)
    assert out.abs().max() == 0
    (out * torch.randn_like(out)).sum().backward()
    assert layer.pointwise.weight.grad.abs().max() > 0
