"""Weights under two names: how a state dict of another library becomes one of ours, and back.

A library's file lists its weights as `Weight` entries, one per tensor of ours. Translation is strict in both
directions: what is left over or missing is a `ValueError` that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from unetdiff.models.step import Step

Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Form:
    """How tensors change between the two: `ours(theirs)` and `theirs(ours)`, which undo each other."""

    ours: Callable[[Tensors], Tensor]
    theirs: Callable[[Tensor], Tensors]


def one_to_one(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> Form:
    """A form for one tensor on either side."""
    return Form(lambda given: ours(given[0]), lambda given: [theirs(given)])


SAME = one_to_one(lambda tensor: tensor, lambda tensor: tensor)


def _stack(tensors: Tensors) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError("parts of different shapes")
    return torch.cat(tensors)


# Queries, keys and values apart there, stacked here.
STACKED = Form(_stack, lambda tensor: tensor.chunk(3))


def pointwise(dims: int) -> Form:
    """A linear layer here that is a convolution of width 1 there; biases stay as they are."""
    shape = (1,) * dims
    return one_to_one(
        lambda tensor: tensor.reshape(tensor.shape[:2]),
        lambda tensor: tensor.reshape(*tensor.shape, *shape) if tensor.ndim == 2 else tensor,
    )


def projection(order: str, heads: int, dims: int) -> Form:
    """The layer of queries, keys and values, whose rows are ordered `(q h c)` here and, say, `(h q c)` there.

    There it is a convolution of width 1 in `dims` dimensions; q counts query, key and value, h heads, c channels.
    """
    plain = pointwise(dims)
    sizes = {"q": 3, "h": heads}
    return one_to_one(
        lambda tensor: rearrange(plain.ours([tensor]), f"({order}) ... -> (q h c) ...", **sizes),
        lambda tensor: plain.theirs(rearrange(tensor, f"(q h c) ... -> ({order}) ...", **sizes))[0],
    )


@dataclass(frozen=True)
class Weight:
    """One tensor of our state dict and the tensors that hold it there."""

    ours: str
    theirs: tuple[str, ...]
    form: Form = SAME


def layer(ours: str, theirs: str | Sequence[str], form: Form = SAME, *, bias: bool = True) -> list[Weight]:
    """Weight and bias of one layer under both names."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    parts = ("weight", "bias") if bias else ("weight",)
    return [Weight(f"{ours}.{part}", tuple(f"{name}.{part}" for name in names), form) for part in parts]


def layers(names: Mapping[str, str], theirs: str, ours: str, *, bias: bool = True) -> list[Weight]:
    """The layers of one module under both names; `names` maps theirs to ours."""
    pairs = ((f"{ours}.{here}", f"{theirs}.{there}") for there, here in names.items())
    return [weight for pair in pairs for weight in layer(*pair, bias=bias)]


def translate(weights: Iterable[Weight], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from theirs. Raises `ValueError` for a key of theirs that is missing or left over."""
    rest = dict(state)
    ours = {}
    for weight in weights:
        for name in weight.theirs:
            if name not in rest:
                raise ValueError(f"the state dict has no {name!r}, which this configuration needs")
        tensors = [rest.pop(name) for name in weight.theirs]
        try:
            ours[weight.ours] = weight.form.ours(tensors)
        except (RuntimeError, ValueError) as error:  # einops and torch say only what did not divide
            raise misfit(weight, state) from error
    if rest:
        held = f"{len(rest)} weights" if len(rest) > 1 else "a weight"
        raise ValueError(f"the state dict holds {held} that this configuration does not have: {sorted(rest)[0]!r}")
    return ours


def misfit(weight: Weight, state: Mapping[str, Tensor]) -> ValueError:
    """The error for a weight whose tensors in their state dict have other shapes than the configuration says."""
    held = " and ".join(f"{name!r} has shape {tuple(state[name].shape)}" for name in weight.theirs)
    return ValueError(f"{held}, which does not fit this configuration")


def translate_back(weights: Iterable[Weight], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict from ours; contiguous copies."""
    theirs: dict[str, Tensor] = {}
    for weight in weights:
        parts = weight.form.theirs(state[weight.ours])
        theirs.update({name: part.clone().contiguous() for name, part in zip(weight.theirs, parts, strict=True)})
    return theirs


def address(step: Step) -> str:
    """The name of a step's module in our state dict."""
    side = {"encoder": "encoder", "middle": "decoder", "decoder": "decoder", "head": "head"}[step.side]
    return f"{side}.{step.name}"
