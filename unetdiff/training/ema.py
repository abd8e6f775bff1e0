"""Averages of the weights over training, owned by the trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from unetdiff.run_config import EmaConfig


def power_exponent(width: float) -> float:
    """The exponent gamma of the profile t^gamma with relative standard deviation `width`.

    Solves width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, appendix C.1).
    """
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def decays(config: EmaConfig, step: int) -> list[float]:
    """The factor of each average's past after optimizer step `step` (counted from 1).

    Power-function profiles: (1 - 1/t)^(gamma + 1) (Karras et al. 2024, Eq. 127); plain: with a warm-up.
    """
    if config.kind == "power":
        return [(1 - 1 / step) ** (power_exponent(width) + 1) for width in config.widths]
    if config.kind == "decay":
        return [min(config.decay, (1 + step) / (10 + step))]
    return []


class WeightAverages:
    """Averages of a module's parameters, one list of tensors per profile; buffers are the module's own."""

    def __init__(self, module: nn.Module, config: EmaConfig):
        self.config = config
        self.parameters: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        count = len(decays(config, 1))
        self.averages = [[parameter.detach().clone() for parameter in self.parameters] for _ in range(count)]

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor | None = None) -> None:
        """Take in the weights after optimizer step `step` (counted from 1).

        skipped: (), 1 where the step was left out, which leaves the averages as they are, else 0; on the device, so
        that nobody waits for it. None: it was not.
        """
        for average, decay in zip(self.averages, decays(self.config, step), strict=True):
            if skipped is None:
                torch._foreach_lerp_(average, self.parameters, 1 - decay)
            else:
                change = torch._foreach_sub(self.parameters, average)
                torch._foreach_mul_(change, (1 - skipped) * (1 - decay))
                torch._foreach_add_(average, change)

    @contextmanager
    def swapped(self, profile: int = 0) -> Iterator[None]:
        """Within, the module has the averaged weights; afterwards its own again, whatever happened.

        A module without averages keeps its weights. Tensors change places, so nothing is copied.
        """
        if not self.averages:
            yield
            return
        self._exchange(self.averages[profile])
        try:
            yield
        finally:
            self._exchange(self.averages[profile])

    def _exchange(self, average: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, average, strict=True):
            parameter.data, tensor.data = tensor.data, parameter.data

    def state(self, profile: int) -> dict[str, Tensor]:
        """One average by parameter name."""
        return dict(zip(self.names, self.averages[profile], strict=True))

    @torch.no_grad()
    def load(self, profile: int, state: dict[str, Tensor]) -> None:
        """Set one average from `state`."""
        for name, tensor in zip(self.names, self.averages[profile], strict=True):
            tensor.copy_(state[name])
