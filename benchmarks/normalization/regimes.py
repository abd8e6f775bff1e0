"""The three ways to add noise and to say how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.normalization.settings import RegimeName
from unetdiff.diffusion.schedule import add_noise, make_schedule

TIMES = 1000
SCHEDULE = make_schedule("linear", num_train_timesteps=TIMES)
LEAST_SIGMA, MOST_SIGMA = 0.05, 2.0


@dataclass(frozen=True)
class Regime:
    """Noise levels are positions u in [0, 1], uniform in training; all tensors are (N, C, H, W), positions (N,).

    corrupt: (x0, unit noise, u) -> the network's input and its target. conditioned: whether the network is told u.
    level: u -> the noise level that plots and tables show. ends: whether the levels measured include u = 0 and 1.
    """

    corrupt: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    conditioned: bool
    level: Callable[[float], float]
    ends: bool

    def positions(self, count: int) -> list[float]:
        """Where to measure: `count` evenly spaced positions."""
        spaced = np.linspace(0, 1, count) if self.ends else (np.arange(count) + 0.5) / count
        return spaced.tolist()

    def time(self, u: Tensor) -> Tensor | None:
        """What the network is told: the timestep 0 .. 999 that u stands for, or nothing."""
        return timestep(u) if self.conditioned else None


def timestep(u: Tensor) -> Tensor:
    """The timestep of positions, int64 in 0 .. 999."""
    return (u * TIMES).long().clamp(max=TIMES - 1)


def _sigma(u: Tensor) -> Tensor:
    return LEAST_SIGMA * (MOST_SIGMA / LEAST_SIGMA) ** u


def variance_preserving(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """DDPM's x_t, whose variance hardly depends on t, and the unit noise in it (Ho et al. 2020)."""
    return add_noise(SCHEDULE, x0, noise, timestep(u)), noise


def raw(x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """x0 + sigma n and sigma n, with sigma log-uniform: input and target vary in amplitude, 40-fold the target."""
    added = _sigma(u).reshape(-1, 1, 1, 1) * noise
    return x0 + added, added


def _timestep_level(u: float) -> float:
    return float(timestep(torch.tensor(u)))


def _sigma_level(u: float) -> float:
    return float(_sigma(torch.tensor(u, dtype=torch.float64)))


REGIMES: dict[RegimeName, Regime] = {
    "A": Regime(variance_preserving, conditioned=True, level=_timestep_level, ends=False),
    "B": Regime(raw, conditioned=False, level=_sigma_level, ends=True),
    "C": Regime(raw, conditioned=True, level=_sigma_level, ends=True),
}
