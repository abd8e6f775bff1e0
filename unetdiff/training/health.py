"""Finding where a network stopped being finite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class TrainingStopped(RuntimeError):  # noqa: N818 - it is how training ends, not always an error
    """Training cannot go on; the message says why, and what was saved."""


def non_finite_samples(batch: dict[str, Tensor]) -> str | None:
    """Which samples of a batch are not finite before any network sees them, in one phrase; None if all are."""
    bad = ~batch["sample"].flatten(1).isfinite().all(1)
    if not bad.any():
        return None
    return f"the data themselves are not finite, at position(s) {batch['position'][bad].tolist()} of the run"


def _tensors(value: object) -> list[Tensor]:
    """The tensors in a module's output."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for entry in value for tensor in _tensors(entry)] if isinstance(value, (list, tuple)) else []


def first_non_finite(module: nn.Module, rerun: Callable[[], object]) -> str:
    """Which part of `module` first gives a value that is not finite, in one phrase.

    Looks at the parameters, then runs `rerun` (the step's forward pass, without gradients) and looks at the output
    of every submodule in the order in which they finish, then at the gradients.
    """
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name} is not finite"
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
        return f"first module with a non-finite output: {found[0]}"
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"every output is finite, the gradient of {name} is not"
    return "every output and gradient of this process is finite: another process, or the loss itself, is not"
