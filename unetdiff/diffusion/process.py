"""What a network's input and output say about x0: one small class per family of noise schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from unetdiff.diffusion.schedule import implied_noise, predicted_x0, target_name, target_value


class Process(Protocol):
    """What sampling asks of a noise schedule; x_t is the input of the network, timesteps (N,) its time.

    All tensors are (N, C, *space); a prediction is the network's output without a learned variance.
    """

    def x0(self, x_t: Tensor, timesteps: Tensor, prediction: Tensor) -> Tensor:
        """The x0 that a prediction at x_t stands for."""
        ...

    def prediction(self, x_t: Tensor, timesteps: Tensor, x0: Tensor) -> Tensor:
        """The inverse of `x0`: the prediction at x_t that stands for x0."""
        ...


@dataclass(frozen=True)
class Betas:
    """A table of betas (Ho et al. 2020): x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon.

    scheduler: a diffusers scheduler with betas; its `prediction_type` is the target of the network.
    """

    scheduler: Any

    def x0(self, x_t: Tensor, timesteps: Tensor, prediction: Tensor) -> Tensor:
        return predicted_x0(self.scheduler, target_name(self.scheduler), x_t, timesteps, prediction)

    def prediction(self, x_t: Tensor, timesteps: Tensor, x0: Tensor) -> Tensor:
        noise = implied_noise(self.scheduler, x_t, timesteps, x0)
        return target_value(self.scheduler, target_name(self.scheduler), x0, noise, timesteps)


def process_of(scheduler: Any) -> Process:
    """The process that a diffusers scheduler samples."""
    return Betas(scheduler)
