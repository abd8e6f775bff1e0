"""Norm, modulation, activation, dropout, resampling and a layer as one differentiable function that keeps its input.

Autograd keeps what every operation reads: of norm, activation and convolution in a row, three tensors of one size.
Here only what the norm reads is kept, and the rest is computed again in the backward pass (as Chen et al. 2016 do for
whole blocks, and Rota Bulo et al. 2018 for batch norm and activation). Outputs are those of the layers in a row, and
gradients but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from unetdiff.nn.activation import UnitActivation
from unetdiff.nn.layers import SeparableConv, used_weight
from unetdiff.nn.norm import GroupNorm
from unetdiff.nn.recomputed import CURVES, LAYERS, Curve, Joined, LinearMap, Recomputed, Row

_KNOWN = {GroupNorm, nn.Identity, nn.Dropout, UnitActivation, *CURVES, *LAYERS}


def join(tensors: Sequence[Tensor]) -> Tensor:
    """(N, C_i, *space) side by side; until `forget`, what is recomputed from the result keeps its parts in its place.

    The parts are there anyway: of a skip, the encoder keeps the same storage.
    """
    both = Joined.apply(*tensors)
    both.parts = tuple(part for tensor in tensors for part in _parts(tensor))  # pyright: ignore
    return both  # pyright: ignore


def forget(both: Tensor | None) -> None:
    """To be called once a joined tensor was read: where autograd keeps it, it would keep its parts alive besides."""
    if both is not None and not torch.compiler.is_compiling():
        vars(both).pop("parts", None)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """What `x` was joined from, without history: itself, where it was not joined."""
    return getattr(x, "parts", None) or (x.detach(),)


class Lean:
    """Mixin of a module that has `recompute` run its layers in training, where that can be.

    lean: whether it is to; off, every layer runs by itself.
    """

    lean: bool = True
    training: bool

    def recomputes(self, *layers: nn.Module) -> bool:
        """Whether `recompute` is to run these layers now.

        Not while compiling: compilers choose what they keep by themselves. Nor where someone watches one of the layers
        or transforms the function, which takes the layers one by one.
        """
        return (
            not torch.compiler.is_compiling()
            and self.lean
            and self.training
            and torch.is_grad_enabled()
            and not torch._C._are_functorch_transforms_active()
            and all(_known(layer) for layer in layers)
        )


def _known(layer: nn.Module) -> bool:
    """Whether `recompute` knows what this layer does, and nothing else happens when it runs."""
    if type(layer) is SeparableConv:
        known = _known(layer.depthwise) and _known(layer.pointwise)
    else:
        known = type(layer) in _KNOWN or isinstance(layer, LinearMap)
    weight = getattr(layer, "weight", None)
    if weight is not None and weight.is_meta:
        return (
            False  # a copy without storage, in which operations are counted one by one; autocast knows no meta device
        )
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return known and not any(hooks)


def recompute(
    x: Tensor,
    *,
    norm: nn.Module | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: nn.Module | None = None,
    dropout: nn.Dropout | None = None,
    resample: nn.Module | None = None,
    layer: nn.Module | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """The layers in this order, each where it is given: (N, C, *space) in, what `layer` makes of it out.

    norm(x) * scale + shift -> activation -> dropout -> resampling -> layer -> + added. Keeps `x` (or what it was joined
    from) and dropout's mask, a byte per element.

    Args:
        scale, shift: (N, C, 1, ...). added: (N, layer's channels, 1, ...).
        layer: a convolution, or a linear layer, which reads (N, positions, C) tokens and returns such.

    Raises:
        ValueError: from the norm, for an input of which it would leave nothing.
        RuntimeError: in a backward pass that is itself to be differentiated.
    """
    if isinstance(layer, SeparableConv):
        before = {"norm": norm, "scale": scale, "shift": shift, "activation": activation}
        inner = recompute(x, **before, dropout=dropout, resample=resample, layer=layer.depthwise)
        return recompute(inner, layer=layer.pointwise, added=added)
    gamma, beta, groups, eps = None, None, 0, 0.0
    if isinstance(norm, GroupNorm):
        norm.check(x)
        # As the norm itself does it.
        x, kept = (x, getattr(x, "parts", ())) if x.requires_grad else (x.contiguous(), ())
        gamma, beta = (None if entry is None else entry.to(x.dtype) for entry in (norm.weight, norm.bias))
        groups, eps = norm.groups, norm.eps
    else:
        kept = getattr(x, "parts", ())
    weight = bias = dtype = None
    if layer is not None:
        weight, bias = used_weight(layer), layer.bias
        dtype = _autocast_dtype(x)
        if dtype is not None:
            weight, bias = (None if entry is None else entry.to(dtype) for entry in (weight, bias))
    row = Row(
        groups=groups,
        eps=eps,
        curve=_curve(activation),
        dropout=dropout.p if dropout is not None and dropout.training else 0.0,
        resample=resample if isinstance(resample, LinearMap) else None,
        layer=None if layer is None else LAYERS[type(layer)](layer),
        dtype=dtype,
    )
    return Recomputed.apply(row, kept, x, gamma, beta, scale, shift, weight, bias, added)  # pyright: ignore


def _curve(activation: nn.Module | None) -> Curve | None:
    if isinstance(activation, UnitActivation):
        inner = activation.activation
        return replace(CURVES[type(inner)](inner), divisor=activation.divisor)
    return None if activation is None or isinstance(activation, nn.Identity) else CURVES[type(activation)](activation)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast has a layer compute in; None where it leaves the types as they are."""
    active = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if active else None


def output_dtype(x: Tensor) -> torch.dtype:
    """The type of what a layer makes of `x`."""
    return _autocast_dtype(x) or x.dtype
