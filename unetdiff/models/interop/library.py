"""What a library's file provides, in one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from unetdiff.models.interop.weights import Weight
from unetdiff.models.plan import Plan
from unetdiff.spec import UNetSpec

Arguments = Mapping[str, Any]


def _as_it_is(arguments: Arguments, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state


@dataclass(frozen=True)
class Library:
    """One foreign library.

    complete: constructor arguments as given -> with the library's defaults; refuses unsupported ones by name.
    settings: complete arguments -> the fields of `UNetSpec`.
    weights: (our plan, complete arguments) -> the tensors under both names. Tensors that this network of ours does
        not have (a shortcut where no width changes) may be listed too.
    prepare: (complete arguments, their state dict) -> the same without what carries no weights.
    export: (our settings, choices) -> complete arguments; None where networks only come in.
    noise: what its networks take as time: the number of a timestep of betas, or EDM's log(sigma) / 4.
    """

    complete: Callable[[Arguments], dict[str, Any]]
    settings: Callable[[Arguments], dict[str, Any]]
    weights: Callable[[Plan, Arguments], list[Weight]]
    prepare: Callable[[Arguments, Mapping[str, Tensor]], Mapping[str, Tensor]] = _as_it_is
    export: Callable[[UNetSpec, Arguments], dict[str, Any]] | None = None
    noise: Literal["betas", "edm"] = "betas"
