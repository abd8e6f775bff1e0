"""Segmentation from noisy images: what the network is given and told, in training and in prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetdiff.diffusion.objective import DiffusionObjective, Draws
from unetdiff.diffusion.schedule import make_schedule
from unetdiff.segmentation.tiles import Predict

TimedScores = Callable[[Tensor, int | None], Tensor]
"""Images (n, C, *space) and the timestep that the network is told to scores (n, K, *output)."""

NOISES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian": lambda images, noise: noise,
    "self": lambda images, noise: images,
}
"""By kind: what is mixed into images, from them and Gaussian noise of their shape."""

SEED = 0
"""Of the noise of predictions."""


@dataclass(frozen=True)
class NoiseInput:
    """x_t of images: kind, a key of `NOISES`; objective: with the noise schedule, whose draws training takes."""

    kind: str
    objective: DiffusionObjective

    def draw(self, keys: Sequence[int], shape: Sequence[int]) -> Draws:
        """Noise and timesteps of training samples of shape (C, *space), a function of their keys."""
        return self.objective.draw(keys, shape)

    def mixed(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (n, C, *space) of images in [-1, 1] and noise of that shape at timesteps (n,)."""
        return self.objective.noisy(images, NOISES[self.kind](images, noise), timesteps)

    def fixed(self, images: Tensor, timestep: int) -> Tensor:
        """x_t of images as predictions see them: the noise depends on their size alone, so that they repeat."""
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn(images.shape[1:], generator=generator).to(images.device).expand_as(images)
        return self.mixed(images, noise, torch.full(images.shape[:1], timestep, device=images.device))


def make_noise_input(settings: Mapping[str, Any] | None) -> NoiseInput | None:
    """What the settings of `NoiseInputConfig` say, as JSON; None where images stay as they are."""
    if settings is None or settings["kind"] not in NOISES:
        return None
    scheduler = make_schedule(settings["schedule"], num_train_timesteps=settings["num_train_timesteps"])
    return NoiseInput(settings["kind"], DiffusionObjective(scheduler))


def timesteps_of(given: int | Sequence[int] | None) -> tuple[int | None, ...]:
    """The timesteps of predictions as settings give them: one, several, or none to tell."""
    return tuple(given) if isinstance(given, Sequence) else (given,)


def probabilities_at(
    scores: TimedScores, timesteps: Sequence[int | None], device: torch.device, noise: NoiseInput | None = None
) -> Predict:
    """Class probabilities of images: the mean over timesteps, at each of which the images are as noisy as it says."""

    def predict(images: Tensor) -> Tensor:
        images = images.to(device)
        total = 0
        for timestep in timesteps:
            seen = images if noise is None or timestep is None else noise.fixed(images, timestep)
            total = total + scores(seen, timestep).float().softmax(1)
        assert isinstance(total, Tensor)
        return total / len(timesteps)

    return predict
