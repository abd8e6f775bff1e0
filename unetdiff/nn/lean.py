"""Norm, modulation, activation, dropout, resampling and a layer as one differentiable function that keeps its input.

Autograd keeps what every operation reads: of norm, activation and convolution in a row, three tensors of one size.
Here only what the norm reads is kept, and the rest is computed again in the backward pass (as Chen et al. 2016 do for
whole blocks, and Rota Bulo et al. 2018 for batch norm and activation). Outputs are those of the layers in a row, and
gradients but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unetdiff.nn.activation import UnitActivation
from unetdiff.nn.layers import CONVS, LINEARS, SeparableConv, used_weight
from unetdiff.nn.norm import GroupNorm

aten = torch.ops.aten


class LinearMap(nn.Module):
    """A linear map without weights, (N, C, *space) in and out, whose adjoint is known."""

    def adjoint(self, gradient: Tensor, size: Sequence[int]) -> Tensor:
        """The gradient of an input of this size (its axes of space), given that of the output."""
        raise NotImplementedError


def join(tensors: Sequence[Tensor]) -> Tensor:
    """(N, C_i, *space) side by side; until `forget`, what is recomputed from the result keeps its parts in its place.

    The parts are there anyway: of a skip, the encoder keeps the same storage.
    """
    both = torch.cat(list(tensors), dim=1)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        both.parts = tuple(part for tensor in tensors for part in _parts(tensor))  # pyright: ignore
    return both


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
    row = _Row(
        groups=groups,
        eps=eps,
        activation=None if isinstance(activation, nn.Identity) else activation,
        dropout=dropout.p if dropout is not None and dropout.training else 0.0,
        resample=resample if isinstance(resample, LinearMap) else None,
        layer=None if layer is None else _LAYERS[type(layer)](layer),
        dtype=dtype,
    )
    return _Recomputed.apply(row, kept, x, gamma, beta, scale, shift, weight, bias, added)  # pyright: ignore


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast has a layer compute in; None where it leaves the types as they are."""
    active = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if active else None


def output_dtype(x: Tensor) -> torch.dtype:
    """The type of what a layer makes of `x`."""
    return _autocast_dtype(x) or x.dtype


@dataclass(frozen=True)
class _Curve:
    """A nonlinearity as (input, module) -> output, and (gradient, input, module) -> gradient of the input."""

    apply: Callable[[Tensor, Any], Tensor]
    backward: Callable[[Tensor, Tensor, Any], Tensor]


def _unit_backward(gradient: Tensor, x: Tensor, layer: UnitActivation) -> Tensor:
    inner = layer.activation
    return _CURVES[type(inner)].backward(gradient / layer.divisor, x, inner)


_CURVES: dict[type[nn.Module], _Curve] = {
    nn.SiLU: _Curve(
        lambda x, layer: aten.silu(x),
        lambda gradient, x, layer: aten.silu_backward(gradient, x),
    ),
    nn.GELU: _Curve(
        lambda x, layer: aten.gelu(x, approximate=layer.approximate),
        lambda gradient, x, layer: aten.gelu_backward(gradient, x, approximate=layer.approximate),
    ),
    nn.ReLU: _Curve(
        lambda x, layer: aten.relu(x),
        lambda gradient, x, layer: aten.threshold_backward(gradient, x, 0),
    ),
    nn.LeakyReLU: _Curve(
        lambda x, layer: aten.leaky_relu(x, layer.negative_slope),
        lambda gradient, x, layer: aten.leaky_relu_backward(gradient, x, layer.negative_slope, False),
    ),
    UnitActivation: _Curve(
        lambda x, layer: _CURVES[type(layer.activation)].apply(x, layer.activation) / layer.divisor,
        _unit_backward,
    ),
}


class _Convolution:
    """A convolution by torch's own operators, in any number of dimensions."""

    def __init__(self, layer: Any):
        padding = [0] * len(layer.stride)
        self.how = (layer.stride, layer.padding, layer.dilation, False, padding, layer.groups)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return aten.convolution(x, weight, bias, *self.how)

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias, where `needs` says so."""
        return aten.convolution_backward(gradient, x, weight, [len(weight)], *self.how, list(needs))


class _TokenLinear:
    """A linear layer at every position: (N, C, *space) in, (N, positions, C') out."""

    def __init__(self, layer: Any):
        pass

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(rearrange(x, "n c ... -> n (...) c"), weight, bias)

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As `_Convolution.backward`."""
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_input = (gradient @ weight).transpose(1, 2).reshape(x.shape) if needs[0] else None
        of_weight = flat.t() @ rearrange(x, "n c ... -> (n ...) c") if needs[1] else None
        return of_input, of_weight, flat.sum(0) if needs[2] else None


_LAYERS: dict[type[nn.Module], Callable[[Any], _Convolution | _TokenLinear]] = {
    **{kind: _Convolution for row in CONVS.values() for kind in row.values()},
    **dict.fromkeys(LINEARS.values(), _TokenLinear),
}

_KNOWN = {GroupNorm, nn.Identity, nn.Dropout, *_CURVES, *_LAYERS}


@dataclass(frozen=True, eq=False)
class _Row:
    """What the function is made of, besides tensors. groups: of the norm, 0 without one; dropout: its probability;
    dtype: what the layer computes in, None: the type of its input."""

    groups: int
    eps: float
    activation: nn.Module | None
    dropout: float
    resample: LinearMap | None
    layer: _Convolution | _TokenLinear | None
    dtype: torch.dtype | None

    def normalize(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, ...]:
        """The norm of `x`, mean and reciprocal standard deviation of each group; `x` itself without a norm."""
        if not self.groups:
            return x, x, x
        x, space = x.contiguous(memory_format=_layout(x)), x[0, 0].numel()
        return aten.native_group_norm(x, gamma, beta, len(x), x.shape[1], space, self.groups, self.eps)

    def denormalize(
        self, gradient: Tensor, x: Tensor, statistics: Sequence[Tensor], gamma: Tensor | None, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of what is normalised and of the norm's weight and bias, where `needs` says so."""
        if not self.groups:
            return gradient, None, None
        layout, sizes = _layout(x), (len(x), x.shape[1], x[0, 0].numel(), self.groups)
        gradient, x = (entry.contiguous(memory_format=layout) for entry in (gradient, x))
        return aten.native_group_norm_backward(gradient, x, *statistics, gamma, *sizes, list(needs))

    def activate(self, x: Tensor) -> Tensor:
        """Behind the nonlinearity."""
        return x if self.activation is None else _CURVES[type(self.activation)].apply(x, self.activation)

    def deactivate(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient before the nonlinearity, which read `x`."""
        return (
            gradient
            if self.activation is None
            else _CURVES[type(self.activation)].backward(gradient, x, self.activation)
        )

    def enter(self, x: Tensor) -> Tensor:
        """What the layer reads of what was activated."""
        x = x if self.resample is None else self.resample(x)
        return x if self.dtype is None else x.to(self.dtype)


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    x = x if scale is None else x * scale
    return x if shift is None else x + shift


def _layout(x: Tensor) -> torch.memory_format:
    """The order of memory in which torch normalises: on a CPU that of `x`, elsewhere channels first."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    own = formats.get(x.ndim, torch.contiguous_format)
    keeps = x.device.type == "cpu" and not x.is_contiguous() and x.is_contiguous(memory_format=own)
    return own if keeps else torch.contiguous_format


class _Recomputed(torch.autograd.Function):
    """The function of `recompute`, which says what its tensors are."""

    @staticmethod
    def forward(
        ctx: Any,
        row: _Row,
        parts: tuple[Tensor, ...],
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        added: Tensor | None,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out = row.activate(_modulate(row.normalize(x, gamma, beta)[0], scale, shift))
            mask = None
            if row.dropout:
                out, mask = torch.native_dropout(out, row.dropout, True)
            out = row.enter(out)
            if row.layer is not None:
                assert weight is not None
                out = row.layer.apply(out, weight, bias)
            if added is not None:
                out.add_(added)
        ctx.row = row
        # By this way only do hooks for saved tensors see them, and changes in place get noticed.
        ctx.save_for_backward(gamma, beta, scale, shift, weight, mask, *(parts or (x,)))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of gradients need what the memory form 'lean' does not keep: call unet.set_memory('plain') "
                "before the forward pass"
            )
        gamma, beta, scale, shift, weight, mask, *parts = ctx.saved_tensors
        row, needs = ctx.row, ctx.needs_input_grad[2:]
        with torch.autocast(gradient.device.type, enabled=False):
            x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            del parts
            of_added = gradient.sum(tuple(range(2, gradient.ndim)), keepdim=True) if needs[7] else None
            normed, *statistics = row.normalize(x, gamma, beta)
            hidden = _modulate(normed, scale, shift)
            gradient, of_weight, of_bias = _through_layer(row, gradient, hidden, weight, mask, needs)
            if gradient is None:
                return None, None, *[None] * 5, of_weight, of_bias, of_added
            gradient = row.deactivate(gradient, hidden)
            of_scale = None if scale is None else (gradient * normed).sum_to_size(scale.shape)
            of_shift = None if shift is None else gradient.sum_to_size(shift.shape)
            del normed, hidden
            gradient = gradient if scale is None else gradient * scale
            of_x, of_gamma, of_beta = row.denormalize(gradient, x, statistics, gamma, needs[:3])
        return None, None, of_x, of_gamma, of_beta, of_scale, of_shift, of_weight, of_bias, of_added


def _through_layer(
    row: _Row, gradient: Tensor, hidden: Tensor, weight: Tensor | None, mask: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of what was activated (None where nothing before needs one), and of the layer's weight and bias."""
    inner, of_weight, of_bias = any(needs[:5]), None, None
    kept = None if mask is None else mask.to(hidden.dtype).div_(1 - row.dropout)
    if row.layer is not None:
        assert weight is not None
        active = row.activate(hidden)
        active = active if kept is None else active * kept
        entered = row.enter(active)
        size = active.shape[2:]
        del active
        gradient, of_weight, of_bias = row.layer.backward(gradient, entered, weight, (inner, *needs[5:7]))
    else:
        size = hidden.shape[2:]
    if not inner:
        return None, of_weight, of_bias
    gradient = gradient.to(hidden.dtype)
    if row.resample is not None:
        gradient = row.resample.adjoint(gradient, size)
    return gradient if kept is None else gradient * kept, of_weight, of_bias
