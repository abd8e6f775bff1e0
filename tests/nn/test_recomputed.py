"""Layers run as one function that keeps its input, against the same layers one by one under autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff.nn.activation import ACTIVATIONS, make_activation
from unetdiff.nn.layers import SeparableConv, conv, linear
from unetdiff.nn.lean import Lean, forget, join, recompute
from unetdiff.nn.norm import make_norm
from unetdiff.nn.resample import AveragePool, EndPadding, Filter, Nearest
from unetdiff.spec import Norm

CHANNELS = 8
SIZES = {1: (7,), 2: (7, 5), 3: (3, 4, 5)}
Layers = dict[str, Any]


def norm(dims: int, kind: str = "group", **options: Any) -> nn.Module:
    return make_norm(CHANNELS, Norm(kind, groups=4, **options), dims)  # pyright: ignore


CASES: dict[str, Any] = {
    "norm, activation, convolution": lambda dims: {
        "norm": norm(dims),
        "activation": nn.SiLU(),
        "layer": conv(dims, CHANNELS, 6),
    },
    "without weights of the norm": lambda dims: {
        "norm": norm(dims, affine=False),
        "activation": nn.SiLU(),
        "layer": conv(dims, CHANNELS, 6, bias=False),
    },
    "instance norm, stride, groups": lambda dims: {
        "norm": norm(dims, "instance"),
        "activation": nn.LeakyReLU(0.1),
        "layer": conv(dims, CHANNELS, 4, stride=2, groups=2),
    },
    "dropout": lambda dims: {
        "norm": norm(dims),
        "activation": nn.GELU(),
        "dropout": nn.Dropout(0.3),
        "layer": conv(dims, CHANNELS, 6),
    },
    "standardized": lambda dims: {"activation": nn.SiLU(), "layer": conv(dims, CHANNELS, 6, weights="standardized")},
    "magnitude-preserving": lambda dims: {
        "activation": make_activation("silu", "mp_forced"),
        "dropout": nn.Dropout(0.5),
        "layer": conv(dims, CHANNELS, 6, weights="mp_forced", gained=True),
    },
    "separable": lambda dims: {
        "norm": norm(dims),
        "activation": nn.ReLU(),
        "layer": SeparableConv(dims, CHANNELS, 6, stride=2),
    },
    "norm and activation alone": lambda dims: {"norm": norm(dims), "activation": nn.LeakyReLU()},
    "tokens": lambda dims: {"norm": norm(dims), "layer": linear(CHANNELS, 5)},
    "repeated": lambda dims: {"resample": Nearest((2, 3, 1)[:dims]), "layer": conv(dims, CHANNELS, 6)},
    "pooled": lambda dims: {
        "norm": norm(dims),
        "activation": nn.SiLU(),
        "resample": AveragePool((2, 3, 1)[:dims]),
        "layer": conv(dims, CHANNELS, 6, 1),
    },
    "filtered down": lambda dims: {
        "activation": nn.SiLU(),
        "resample": Filter([1, 3, 3, 1], (2, 1, 2)[:dims]),
        "layer": conv(dims, CHANNELS, 6),
    },
    "filtered up": lambda dims: {
        "norm": norm(dims),
        "resample": Filter([1, 3, 3, 1], (2, 1, 2)[:dims], up=True),
        "layer": conv(dims, CHANNELS, 6),
    },
    "padded": lambda dims: {
        "resample": EndPadding([0, 1] * dims),
        "layer": conv(dims, CHANNELS, 6, padding=0, stride=2),
    },
}
MODULATED = ("norm, activation, convolution", "dropout", "tokens", "magnitude-preserving")


def entries(dims: int, modulated: bool, layers: Layers) -> dict[str, Tensor]:
    """Scale, shift and what is added, per sample and channel, where a case is modulated."""
    ones = (1,) * dims
    draw = {"scale": (2, CHANNELS, *ones), "shift": (2, CHANNELS, *ones)} if modulated else {}
    if modulated and not isinstance(layers["layer"], nn.Linear):
        draw["added"] = (2, 6, *ones)
    return {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in draw.items()}


def one_by_one(x: Tensor, layers: Layers, given: dict[str, Tensor]) -> Tensor:
    """The same, each layer by itself."""
    if "norm" in layers:
        x = layers["norm"](x)
    if "scale" in given:
        x = x * given["scale"] + given["shift"]
    for name in ("activation", "dropout", "resample"):
        x = layers[name](x) if name in layers else x
    if isinstance(layers.get("layer"), nn.Linear):
        x = x.flatten(2).transpose(1, 2)
    x = layers["layer"](x) if "layer" in layers else x
    return x + given["added"] if "added" in given else x


def gradients(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return torch.autograd.grad((out * weight).sum(), leaves)


def compare(x: Tensor, layers: Layers, given: dict[str, Tensor], **tolerance: float) -> None:
    """Outputs and the gradients of everything, by both ways, with the same dropout."""
    leaves = [x, *given.values(), *(weight for layer in layers.values() for weight in layer.parameters())]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    torch.manual_seed(0)
    expected = one_by_one(x, layers, given)
    torch.manual_seed(0)
    out = recompute(x, **layers, **given)
    assert_close(out, expected, rtol=0, atol=1e-12)
    assert_close(gradients(out, leaves), gradients(expected, leaves), **tolerance)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_as_the_layers_one_by_one(name: str, dims: int) -> None:
    layers: Layers = {key: redraw(layer).double() for key, layer in CASES[name](dims).items()}
    x = torch.randn(2, CHANNELS, *SIZES[dims], dtype=torch.float64, requires_grad=True)
    compare(x, layers, entries(dims, name in MODULATED, layers), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("weights", ["plain", "mp_forced"])
def test_every_activation(name: Any, weights: Any) -> None:
    x = torch.randn(2, CHANNELS, 6, dtype=torch.float64, requires_grad=True)
    compare(x, {"activation": make_activation(name, weights)}, {}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_single_position(dims: int) -> None:
    """Where a sum over space sums nothing, its result must not be the memory that goes on being written to."""
    layers = {key: layer.double() for key, layer in CASES["norm, activation, convolution"](dims).items()}
    x = torch.randn(2, CHANNELS, *(1,) * dims, dtype=torch.float64, requires_grad=True)
    compare(x, layers, entries(dims, True, layers), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("needs", [True, False])
def test_channels_last(needs: bool) -> None:
    layers = CASES["norm, activation, convolution"](2)
    x = torch.randn(2, CHANNELS, 7, 5).to(memory_format=torch.channels_last).requires_grad_(needs)
    compare(x, layers, {}, rtol=1e-5, atol=1e-5)


def test_nothing_is_computed_for_frozen_weights() -> None:
    layers: Layers = {key: layer.double() for key, layer in CASES["norm, activation, convolution"](2).items()}
    for weight in (*layers["norm"].parameters(), layers["layer"].weight):
        weight.requires_grad_(False)
    x = torch.randn(2, CHANNELS, 4, 4, dtype=torch.float64)
    compare(x, layers, {}, rtol=1e-12, atol=1e-12)  # the bias alone learns
    compare(x.requires_grad_(), layers, {}, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("entry", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dropout", "tokens", "pooled", "standardized"])
def test_autocast_computes_in_the_same_types(name: str, entry: torch.dtype) -> None:
    layers: Layers = {key: redraw(layer) for key, layer in CASES[name](2).items()}
    x = torch.randn(2, CHANNELS, 7, 5, dtype=entry, requires_grad=True)
    results = []
    for run in (lambda: one_by_one(x, layers, {}), lambda: recompute(x, **layers)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            out = run()
        assert out.dtype == torch.bfloat16
        leaves = [x, *(weight for layer in layers.values() for weight in layer.parameters())]
        results.append((out, *gradients(out, leaves)))
    assert_close(results[1], results[0], rtol=0, atol=0)


def test_joined_tensors_are_kept_by_their_parts() -> None:
    first, second, third = (torch.randn(2, channels, 5, requires_grad=True) for channels in (3, 1, 4))
    layers = CASES["norm, activation, convolution"](1)
    both = join([join([first, second]), third])
    kept: list[int] = []

    def save(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        out = recompute(both, **layers)
    assert {part.untyped_storage().data_ptr() for part in (first, second, third)} < set(kept)
    assert both.untyped_storage().data_ptr() not in kept
    expected = one_by_one(torch.cat([first, second, third], 1), layers, {})
    leaves = [first, second, third, *layers["layer"].parameters()]
    assert_close(gradients(out, leaves), gradients(expected, leaves))
    forget(both)
    assert not vars(both)


def test_what_is_changed_in_place_is_noticed() -> None:
    layers = CASES["norm, activation, convolution"](1)
    x = torch.randn(2, CHANNELS, 5, requires_grad=True)
    inner = x * 1
    out = recompute(inner, **layers)
    inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gradients_of_gradients_are_refused_in_one_sentence() -> None:
    x = torch.randn(2, CHANNELS, 5, requires_grad=True)
    out = recompute(x, **CASES["norm, activation, convolution"](1))
    with pytest.raises(RuntimeError, match=r"set_memory\('plain'\)"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


class Owner(Lean, nn.Module):
    """A module that may have its layers recomputed."""


def test_only_known_layers_in_training_are_recomputed() -> None:
    owner, layer, norm_of_rows = Owner(), conv(2, 4, 4), make_norm(4, Norm("layer"), 2)
    assert owner.recomputes(layer, SeparableConv(2, 4, 4), AveragePool((2, 2)))
    assert not owner.recomputes(layer, norm_of_rows)
    assert not owner.recomputes(SeparableConv(2, 4, 4), nn.Softmax())
    with torch.no_grad():
        assert not owner.recomputes(layer)
    handle = layer.register_forward_hook(lambda *_: None)  # would not be called
    assert not owner.recomputes(layer)
    handle.remove()
    assert not owner.eval().recomputes(layer)
    owner.train().lean = False
    assert not owner.recomputes(layer)
