"""Perfect denoisers of known distributions, and what an exact solver makes of a starting point."""

from __future__ import annotations

import torch
from torch import Tensor

from unetdiff.diffusion.schedule import alpha_sigma, implied_noise, target_name, target_value


class Gaussian:
    """Independent pairs of channels, each normal with a full covariance; tensors are (N, 2, L)."""

    mean = torch.tensor([0.4, -0.3])
    covariance = torch.tensor([[0.25, 0.12], [0.12, 0.16]])

    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def x0(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """E[x0 | x_t], linear in each direction of the covariance."""
        alpha, sigma = alpha_sigma(self.scheduler, timestep, 3)
        variance = self.values[:, None]
        shrunk = alpha * variance / (alpha**2 * variance + sigma**2) * self._project(x_t - alpha * self.mean[:, None])
        return self.mean[:, None] + self.vectors @ shrunk

    def flow_end(self, x_T: Tensor) -> Tensor:
        """Where the probability-flow ODE leads: along each direction the standardised coordinate stays."""
        alpha, sigma = alpha_sigma(self.scheduler, torch.tensor([len(self.scheduler) - 1]), 3)
        factor = (self.values / (alpha[0, 0] ** 2 * self.values + sigma[0, 0] ** 2)).sqrt()[:, None]
        return self.mean[:, None] + self.vectors @ (factor * self._project(x_T - alpha * self.mean[:, None]))

    def _project(self, x: Tensor) -> Tensor:
        return self.vectors.T @ x


class Mixture:
    """Independent values (N, 1, L), normal around either of two centres; a class label selects one of them."""

    centres = torch.tensor([-0.6, 0.4])
    weights = torch.tensor([0.3, 0.7])
    deviation = 0.1

    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler

    def x0(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = (value[..., None] for value in alpha_sigma(self.scheduler, timestep, 3))
        spread = alpha**2 * self.deviation**2 + sigma**2
        away = x_t[..., None] - alpha * self.centres
        belief = (self.weights.log() - away**2 / (2 * spread)).softmax(-1)
        return (belief * (self.centres + alpha * self.deviation**2 / spread * away)).sum(-1)


def as_denoiser(distribution):
    """(x_t, timestep, labels) -> the prediction of the target that the distribution's scheduler names."""
    scheduler = distribution.scheduler
    target = target_name(scheduler)

    def denoise(x_t: Tensor, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        x0 = distribution.x0(x_t, timestep)
        return target_value(scheduler, target, x0, implied_noise(scheduler, x_t, timestep, x0), timestep)

    return denoise
