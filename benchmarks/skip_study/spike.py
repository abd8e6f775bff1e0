"""A single spike through networks that have learned to return their input, with and without skips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.skip_study.fitting import ARMS, NARROW, build, count, fit
from benchmarks.skip_study.images import pack
from benchmarks.skip_study.study import Measurement

HEIGHT = 4.0  # of a spike; textures have unit variance

_BARE: dict[str, Any] = {"pos": "none"}

PLACEMENTS: dict[str, dict[str, Any]] = {
    "bare": {"encoder": _BARE, "decoder": _BARE, "out": {"kind": "none"}, "time": "none"},
    "ddpm": {"preset": "ddpm", "time": "none"},
}
"""Without norms, and with group norm, whose statistics one spike in an otherwise empty image decides for all pixels."""


class Response(NamedTuple):
    """How a network answers a spike, each (N,): see `measure`."""

    returned: Tensor
    share: Tensor
    width: Tensor


def measure(response: Tensor, rows: Tensor, columns: Tensor, height: float = HEIGHT) -> Response:
    """What comes back of spikes of `height` at `rows` and `columns` (N,) in responses (N, H, W).

    A response is the network's output for an image with that spike and nothing else.

    returned: its energy at the spike's pixel over the spike's, response(p)^2 / height^2: 1 if all comes back.
    share: the part of the response's energy at that pixel, response(p)^2 / sum response^2: 1 if nothing is elsewhere.
    width: the root mean square distance from the pixel, weighted by energy, in pixels: 0 for a spike.
    """
    energy = response.square()
    total = energy.sum((1, 2))
    at = energy[torch.arange(len(energy)), rows, columns]
    y, x = torch.arange(response.shape[1]), torch.arange(response.shape[2])
    distance = (y[:, None] - rows[:, None, None]).square() + (x - columns[:, None, None]).square()
    return Response(at / height**2, at / total, ((distance * energy).sum((1, 2)) / total).sqrt())


def training_images(count: int, size: int, most: int, generator: torch.Generator) -> Tensor:
    """Images (count, 1, size, size) in turn of white noise of unit variance, and of 1 to `most` spikes on nothing.

    How many spikes is drawn log-uniformly, so that few are seen as often as many; they are up or down by HEIGHT.
    """
    texture = torch.randn(count, 1, size, size, generator=generator)
    spikes = (most ** torch.rand(count, generator=generator)).round()
    order = torch.rand(count, size * size, generator=generator).argsort(1).argsort(1)
    present = (order < spikes[:, None]).reshape(count, 1, size, size)
    sign = torch.randint(0, 2, texture.shape, generator=generator) * 2 - 1
    return torch.where(torch.arange(count)[:, None, None, None] % 2 == 0, texture, HEIGHT * sign * present)


@dataclass(frozen=True, kw_only=True)
class Spike:
    """Settings: all that decides the results.

    Args:
        network: settings of `UNet`, without the placement.
        placements: which of PLACEMENTS.
        arms: which of ARMS.
        seeds: of weights and images; the same for all arms.
        size, most: of the images, and the largest number of spikes in a training image.
        steps, batch_size, learning_rate: of training.
        every: distance of the pixels at which a single spike is measured, from a quarter to three quarters of the side.
    """

    network: Mapping[str, Any] = field(
        default_factory=lambda: {
            **NARROW,
            "in_channels": 1,
        }
    )
    placements: Sequence[str] = tuple(PLACEMENTS)
    arms: Sequence[str] = tuple(ARMS)
    seeds: Sequence[int] = (0, 1, 2)
    size: int = 32
    most: int = 32
    steps: int = 200
    batch_size: int = 16
    learning_rate: float = 2e-3
    every: int = 3

    def measurements(self) -> Iterator[Measurement]:
        """One network per placement, seed and arm."""
        for placement in self.placements:
            for seed in self.seeds:
                for arm in self.arms:
                    name = f"spike-{placement}-{arm}-seed{seed}"
                    run = partial(self.run, placement, arm, seed)
                    yield Measurement("spike", name, self.conditions(placement), run)

    def conditions(self, placement: str) -> dict[str, Any]:
        """What the networks of a placement have in common, as JSON."""
        varied = {"placements", "arms", "seeds"}
        fixed = {name: value for name, value in asdict(self).items() if name not in varied}
        return {**fixed, "network": {**self.network, "norm": PLACEMENTS[placement]}}

    def run(self, placement: str, arm: str, seed: int) -> dict[str, Any]:
        """Train one network to return its input, and send single spikes through it."""
        network = build(self.conditions(placement)["network"], arm, seed)
        generator = torch.Generator().manual_seed(seed)

        def draw() -> tuple[Tensor, None, Tensor]:
            images = training_images(self.batch_size, self.size, self.most, generator)
            return images, None, images

        fit(network, draw, steps=self.steps, learning_rate=self.learning_rate)
        inputs, rows, columns = self.spikes()
        with torch.no_grad():
            outputs = network(inputs).sample[:, 0]
        found = measure(outputs, rows, columns)
        result = {
            "placement": placement,
            "arm": arm,
            "seed": seed,
            "parameters": count(network),
            "positions": len(inputs),
            **{name: float(np.median(values)) for name, values in found._asdict().items()},
        }
        if seed != self.seeds[0]:
            return result
        middle = len(inputs) // 2
        images = {"input": inputs[middle, 0], "output": outputs[middle]}
        return {**result, "pictures": {name: pack(image, -HEIGHT, HEIGHT) for name, image in images.items()}}

    def spikes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 1, size, size) with one spike each, and the row and column (N,) of it."""
        along = torch.arange(self.size // 4, self.size - self.size // 4, self.every)
        rows, columns = torch.cartesian_prod(along, along).T
        images = torch.zeros(len(rows), 1, self.size, self.size)
        images[torch.arange(len(rows)), 0, rows, columns] = HEIGHT
        return images, rows, columns
