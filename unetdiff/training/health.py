"""Finding where a network stopped being finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class TrainingStopped(RuntimeError):  # noqa: N818 - it is how training ends, not always an error
    """Training cannot go on; the message says why, and what was saved."""


class Evidence(NamedTuple):
    """What was found in one process. order: how near to the origin it is, 0 the data, 3 nothing at all."""

    order: int
    text: str


def non_finite_samples(batch: dict[str, Tensor]) -> Evidence | None:
    """Which samples of a batch are not finite before any network sees them; None if all are."""
    bad = ~batch["sample"].flatten(1).isfinite().all(1).cpu()
    if not bad.any():
        return None
    places = batch["position"][bad].tolist()
    return Evidence(0, f"the data themselves are not finite, at position(s) {places} of the run")


def _tensors(value: object) -> list[Tensor]:
    """The tensors in a module's output."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for entry in value for tensor in _tensors(entry)] if isinstance(value, (list, tuple)) else []


def first_non_finite(module: nn.Module, rerun: Callable[[], object]) -> Evidence:
    """Which part of `module` first gives a value that is not finite.

    Looks at the parameters, then runs `rerun` (the step's forward pass, without gradients) and looks at the output
    of every submodule in the order in which they finish, then at the gradients.
    """
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            return Evidence(1, f"parameter {name} is not finite")
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not found and not all(tensor.isfinite().all() for tensor in _tensors(output)):
                found.append(f"{name or 'the whole network'} ({type(_module).__name__})")

        return hook

    hooks = [entry.register_forward_hook(look(name)) for name, entry in module.named_modules()]
    try:
        with torch.no_grad():
            rerun()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return Evidence(1, f"first module with a non-finite output: {found[0]}")
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return Evidence(2, f"every output is finite, the gradient of {name} is not")
    return Evidence(3, "every output and gradient is finite, the loss itself is not")
