"""The differentiable function behind `nn.lean`: a row of layers that keeps its input, by torch's explicit operators.

What autograd would do for each layer is written out, so that nothing is differentiated inside the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unetdiff.nn.layers import CONVS, LINEARS

aten = torch.ops.aten


class LinearMap(nn.Module):
    """A linear map without weights, (N, C, *space) in and out, whose adjoint is known."""

    def adjoint(self, gradient: Tensor, size: Sequence[int]) -> Tensor:
        """The gradient of an input of this size (its axes of space), given that of the output."""
        raise NotImplementedError


@dataclass(frozen=True)
class Curve:
    """A nonlinearity by its operators, also in place, with what they take besides tensors, then divided."""

    apply: Any
    apply_: Any
    gradient: Any
    options: dict[str, Any] = field(default_factory=dict)
    gradient_options: dict[str, Any] = field(default_factory=dict)
    divisor: float = 1.0

    def forward(self, x: Tensor, in_place: bool) -> Tensor:
        """The nonlinearity of `x`, which it overwrites where it may."""
        out = (self.apply_ if in_place else self.apply)(x, **self.options)
        return out if self.divisor == 1 else out.div_(self.divisor)

    def backward(self, gradient: Tensor, x: Tensor, in_place: bool) -> Tensor:
        """The gradient of what it reads, `x`, given that of the result, which it overwrites where it may."""
        if not in_place:
            return self.gradient(gradient / self.divisor, x, **self.gradient_options)
        gradient = gradient if self.divisor == 1 else gradient.div_(self.divisor)
        return self.gradient.grad_input(gradient, x, **self.gradient_options, grad_input=gradient)


def _gelu(layer: nn.GELU) -> Curve:
    how = {"approximate": layer.approximate}
    return Curve(aten.gelu, aten.gelu_, aten.gelu_backward, how, how)


def _leaky_relu(layer: nn.LeakyReLU) -> Curve:
    how = {"negative_slope": layer.negative_slope}
    return Curve(aten.leaky_relu, aten.leaky_relu_, aten.leaky_relu_backward, how, {**how, "self_is_result": False})


CURVES: dict[type[nn.Module], Callable[[Any], Curve]] = {
    nn.SiLU: lambda layer: Curve(aten.silu, aten.silu_, aten.silu_backward),
    nn.ReLU: lambda layer: Curve(aten.relu, aten.relu_, aten.threshold_backward, {}, {"threshold": 0}),
    nn.GELU: _gelu,
    nn.LeakyReLU: _leaky_relu,
}


class _Convolution:
    """A convolution in any number of dimensions."""

    def __init__(self, layer: Any):
        padding = [0] * len(layer.stride)
        self.how = (layer.stride, layer.padding, layer.dilation, False, padding, layer.groups)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return aten.convolution(x, weight, bias, *self.how)

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias, where `needs` says so; that of the input reads the shape of `x` only."""
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


LAYERS: dict[type[nn.Module], Callable[[Any], _Convolution | _TokenLinear]] = {
    **{kind: _Convolution for row in CONVS.values() for kind in row.values()},
    **dict.fromkeys(LINEARS.values(), _TokenLinear),
}


@dataclass(frozen=True, eq=False)
class Row:
    """What the function is made of, besides tensors.

    groups: of the norm, 0 without one. eps: of the norm. dropout: its probability. dtype: what the layer computes in;
    None: the type of what it reads.
    """

    groups: int
    eps: float
    curve: Curve | None
    dropout: float
    resample: LinearMap | None
    layer: _Convolution | _TokenLinear | None
    dtype: torch.dtype | None

    def normalize(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, ...]:
        """The norm of `x`, mean and reciprocal standard deviation of each group; `x` itself without a norm."""
        if not self.groups:
            return (x,)
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

    def activate(self, x: Tensor, in_place: bool) -> Tensor:
        """Behind the nonlinearity."""
        return x if self.curve is None else self.curve.forward(x, in_place)

    def enter(self, x: Tensor) -> Tensor:
        """What the layer reads of what was activated."""
        x = x if self.resample is None else self.resample(x)
        return x if self.dtype is None else x.to(self.dtype)

    def drop(self, x: Tensor, mask: Tensor | None, in_place: bool) -> Tensor:
        """`x`, or its gradient, where the mask keeps it, scaled."""
        if mask is None:
            return x
        factor = mask.to(x.dtype).div_(1 - self.dropout)
        return x.mul_(factor) if in_place else factor.mul_(x)

    def through_layer(
        self, gradient: Tensor, hidden: Tensor, weight: Tensor, mask: Tensor | None, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of what was activated, of weight and bias, where `needs` says so; `hidden` is before activation."""
        assert self.layer is not None
        active = self.activate(hidden, in_place=False)
        entered = self.enter(self.drop(active, mask, in_place=active is not hidden))
        size = active.shape[2:]
        del active
        of_weight = of_bias = None
        if needs[1] or needs[2]:
            _, of_weight, of_bias = self.layer.backward(gradient, entered, weight, (False, *needs[1:]))
        if not needs[0]:
            return None, of_weight, of_bias
        if entered.shape == hidden.shape and entered.dtype == hidden.dtype:
            entered = hidden  # the shape is what counts now
        of_input = self.layer.backward(gradient, entered, weight, (True, False, False))[0]
        assert of_input is not None
        del entered
        of_input = of_input.to(hidden.dtype)
        of_input = of_input if self.resample is None else self.resample.adjoint(of_input, size)
        return self.drop(of_input, mask, in_place=True), of_weight, of_bias


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None, in_place: bool) -> Tensor:
    if scale is not None:
        x, in_place = x.mul_(scale) if in_place else x * scale, True
    if shift is not None:
        x = x.add_(shift) if in_place else x + shift
    return x


def _sum_over_space(x: Tensor) -> Tensor:
    """(N, C, 1, ...), never the memory of `x` itself."""
    return x.sum(tuple(range(2, x.ndim)), keepdim=True)


def _layout(x: Tensor) -> torch.memory_format:
    """The order of memory in which torch normalises: on a CPU that of `x`, elsewhere channels first."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    own = formats.get(x.ndim, torch.contiguous_format)
    keeps = x.device.type == "cpu" and not x.is_contiguous() and x.is_contiguous(memory_format=own)
    return own if keeps else torch.contiguous_format


REFUSED = (
    "gradients of gradients need what memory 'lean' does not keep: call unet.set_memory('plain') before the forward "
    "pass, or take these gradients in evaluation mode"
)


class Joined(torch.autograd.Function):
    """Tensors (N, C_i, *space) side by side, whose gradients do not keep one another's memory."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.channels = [tensor.shape[1] for tensor in tensors]
        return torch.cat(tensors, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Views would keep the gradient of all until the last of them was used: that of a skip much later.
        return tuple(part.contiguous() for part in gradient.split(ctx.channels, dim=1))


class Recomputed(torch.autograd.Function):
    """The function of `nn.lean.recompute`, which says what its tensors are."""

    @staticmethod
    def forward(
        ctx: Any,
        row: Row,
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
            out = row.normalize(x, gamma, beta)[0]
            out = _modulate(out, scale, shift, in_place=row.groups > 0)
            out = row.activate(out, in_place=out is not x)
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
            raise RuntimeError(REFUSED)
        gamma, beta, scale, shift, weight, mask, *parts = ctx.saved_tensors
        row, needs = ctx.row, ctx.needs_input_grad[2:]
        own = False  # whether the gradient is ours to overwrite
        of_weight = of_bias = of_added = of_scale = of_shift = None
        with torch.autocast(gradient.device.type, enabled=False):
            x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            if needs[7]:
                of_added = _sum_over_space(gradient)
            hidden, *statistics = row.normalize(x, gamma, beta)
            hidden = _modulate(hidden, scale, shift, in_place=row.groups > 0)
            if row.layer is not None:
                wanted = (any(needs[:5]), *needs[5:7])
                gradient, of_weight, of_bias = row.through_layer(gradient, hidden, weight, mask, wanted)
                own = True
                if gradient is None:
                    return None, None, *[None] * 5, of_weight, of_bias, of_added
            if row.curve is not None:
                gradient, own = row.curve.backward(gradient, hidden, in_place=own), True
            del hidden
            of_shift = None if shift is None else _sum_over_space(gradient)
            if scale is not None:
                normed = row.normalize(x, gamma, beta)[0]  # again, rather than beside what it became
                of_scale = _sum_over_space(normed.mul_(gradient) if row.groups else normed * gradient)
                del normed
                gradient = gradient.mul_(scale) if own else gradient * scale
            of_x, of_gamma, of_beta = row.denormalize(gradient, x, statistics, gamma, needs[:3])
        return None, None, of_x, of_gamma, of_beta, of_scale, of_shift, of_weight, of_bias, of_added
