"""What a network's input and output say about x0: one small class per family of noise schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor

from unetdiff.diffusion.schedule import implied_noise, predicted_x0, target_name, target_value


class Process(Protocol):
    """What sampling asks of a noise schedule: x_t is the input of the network, timesteps (N,) its time.

    All tensors are (N, C, *space); a prediction is the network's output without a learned variance.
    """

    def set_timesteps(self, steps: int) -> None:
        """Have the scheduler choose `steps` timesteps."""
        ...

    def x0(self, x_t: Tensor, timesteps: Tensor, prediction: Tensor) -> Tensor:
        """The x0 that a prediction at x_t stands for."""
        ...

    def prediction(self, x_t: Tensor, timesteps: Tensor, x0: Tensor) -> Tensor:
        """The inverse of `x0`: the prediction at x_t that stands for x0."""
        ...

    def picture(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """x_t at the scale where x0 and unit noise have factors alpha, sigma with alpha² + sigma² = 1, to be seen."""
        ...


@dataclass(frozen=True)
class Betas:
    """A table of betas (Ho et al. 2020): x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon.

    scheduler: a diffusers scheduler with betas; its `prediction_type` is the target of the network.
    """

    scheduler: Any

    def set_timesteps(self, steps: int) -> None:
        solver = self.scheduler
        solver.set_timesteps(steps)
        if solver.timesteps[-1] < 0:
            # diffusers' trailing spacing ends, by rounding, in a surplus timestep -1 for some counts (61 of 1000).
            solver.timesteps = solver.timesteps[:-1]
            if hasattr(solver, "sigmas"):
                solver.sigmas = torch.cat([solver.sigmas[:-2], solver.sigmas[-1:]])

    def x0(self, x_t: Tensor, timesteps: Tensor, prediction: Tensor) -> Tensor:
        return predicted_x0(self.scheduler, target_name(self.scheduler), x_t, timesteps, prediction)

    def prediction(self, x_t: Tensor, timesteps: Tensor, x0: Tensor) -> Tensor:
        noise = implied_noise(self.scheduler, x_t, timesteps, x0)
        return target_value(self.scheduler, target_name(self.scheduler), x0, noise, timesteps)

    def picture(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return x_t


@dataclass(frozen=True)
class Preconditioned:
    """EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1 and equation 7).

    With x = x0 + sigma epsilon the network F sees c_in x at c_noise = log(sigma) / 4, its `x_t` and timestep, and
    D = c_skip x + c_out F is the denoised x0.

    scheduler: a diffusers scheduler of EDM. Its prediction type `epsilon` is the F of the paper, `v_prediction` its
        negative.
    """

    scheduler: Any

    def set_timesteps(self, steps: int) -> None:
        self.scheduler.set_timesteps(steps)

    def x0(self, x_t: Tensor, timesteps: Tensor, prediction: Tensor) -> Tensor:
        skip, out = self._skip_out(timesteps, x_t.ndim)
        return skip * x_t + out * prediction

    def prediction(self, x_t: Tensor, timesteps: Tensor, x0: Tensor) -> Tensor:
        skip, out = self._skip_out(timesteps, x_t.ndim)
        return (x0 - skip * x_t) / out

    def picture(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        sigma, deviation = self._levels(timesteps, x_t.ndim)
        return x_t * deviation / (1 + sigma**2).sqrt()

    def _levels(self, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """sigma, and the standard deviation of x, 1 / c_in; each (N, 1, ..., 1) with `ndim` dimensions."""
        sigma = (4 * timesteps).exp().reshape(-1, *[1] * (ndim - 1))
        return sigma, (sigma**2 + self.scheduler.config["sigma_data"] ** 2).sqrt()

    def _skip_out(self, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """The factors of x_t = c_in x and of the prediction in D: c_skip / c_in and c_out."""
        sigma, deviation = self._levels(timesteps, ndim)
        data: float = self.scheduler.config["sigma_data"]
        return data**2 / deviation, self._sign() * sigma * data / deviation

    def _sign(self) -> int:
        signs, given = {"epsilon": 1, "v_prediction": -1}, self.scheduler.config["prediction_type"]
        if given not in signs:
            raise ValueError(f"prediction_type {given!r} of an EDM schedule is not one of {', '.join(signs)}.")
        return signs[given]


_PRECONDITIONED = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)


def process_of(scheduler: Any) -> Process:
    """The process that a diffusers scheduler samples.

    Raises:
        ValueError: it describes noise neither by betas nor as EDM.
    """
    if isinstance(scheduler, _PRECONDITIONED):
        return Preconditioned(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        return Betas(scheduler)
    raise ValueError(f"{type(scheduler).__name__} describes noise neither by betas nor as EDM, the two known here.")
