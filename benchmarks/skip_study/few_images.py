"""The autoencoder control: denoisers with and without skips, trained on the same few digits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.skip_study.fitting import Batch, build, count, fit
from benchmarks.skip_study.images import pack
from benchmarks.skip_study.study import Measurement
from unetdiff.config import DataConfig
from unetdiff.data.generated import digits
from unetdiff.diffusion.options import ScheduleName, TargetName
from unetdiff.diffusion.schedule import add_noise, make_schedule, predicted_x0, target_value
from unetdiff.models.unet import UNet

NOISE_SEED = 1234  # of the noise on held-out digits: the same for every network

_COMMON: dict[str, Any] = {
    "blocks": 1,
    "decoder_blocks": 1,
    "middle_attention": False,
    "in_channels": 1,
    "sample_size": 16,
    "time_channels": 64,
    "wave_channels": 16,
}


@dataclass(frozen=True, kw_only=True)
class FewImages:
    """Settings: all that decides the results.

    Args:
        networks: for each arm its settings; widths differ so that both learn nearly as many numbers.
        experiment: what the results are filed under.
        counts: of training images; a seed's smaller sets are parts of its larger ones.
        seeds: of the choice of images, weights, order and noise; the same for both networks.
        steps, batch_size, learning_rate: of training, for every count.
        longer: how many times these steps the network without skips is trained once more, on the most images; 0: it
            is not.
        held_out: how many digits of the test split are measured on.
        timesteps: at which these are denoised.
        watched: how often, at even distances while training.
        shown_timestep, shown, shown_counts: the timestep of the denoised digits that the results of the first seed
            keep, how many they are, and for which counts of training images.
    """

    networks: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "unet": {**_COMMON, "channels": [16, 32, 32]},
            "autoencoder": {**_COMMON, "channels": [16, 32, 36]},
        }
    )
    experiment: str = "few_images"
    counts: Sequence[int] = (8, 32, 128, 512, 1347)
    seeds: Sequence[int] = (0, 1, 2)
    target: TargetName = "v"
    schedule: ScheduleName = "cosine"
    steps: int = 600
    longer: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-3
    timesteps: Sequence[int] = (62, 187, 312, 437, 562, 687, 812, 937)
    held_out: int = 256
    watched: int = 3
    shown_timestep: int = 562
    shown: int = 8
    shown_counts: Sequence[int] = (8, 32, 128)

    def measurements(self) -> Iterator[Measurement]:
        """Every network: both arms and all counts of a seed before the next seed; then the longer training."""
        for seed in self.seeds:
            for images in self.counts:
                for arm in self.networks:
                    name = f"{self.experiment}-{arm}-n{images}-seed{seed}"
                    run = partial(self.run, arm, images, seed)
                    yield Measurement(self.experiment, name, self.conditions(arm), run)
        if self.longer:
            more = replace(self, steps=self.longer * self.steps)
            run = partial(more.run, "autoencoder", max(self.counts), self.seeds[0])
            yield Measurement("longer", f"{self.experiment}-autoencoder-longer", more.conditions("autoencoder"), run)

    def conditions(self, arm: str) -> dict[str, Any]:
        """What all networks of an arm have in common, as JSON."""
        varied = {"experiment", "networks", "counts", "seeds", "longer", "shown", "shown_counts"}
        fixed = {name: value for name, value in asdict(self).items() if name not in varied}
        return {**fixed, "timesteps": list(self.timesteps), "network": dict(self.networks[arm])}

    def run(self, arm: str, images: int, seed: int) -> dict[str, Any]:
        """Train one network on `images` digits and measure it on held-out ones."""
        chosen, held_out = training_digits(images, seed), load_digits("test")[: self.held_out]
        network = build(self.networks[arm], arm, seed)
        scheduler = make_schedule(self.schedule, target=self.target)

        levels: list[list[float]] = []

        def watch() -> float:
            levels.append(self.errors(network, scheduler, held_out))
            return float(np.mean(levels[-1]))

        draw = partial(self.draw, chosen, scheduler, torch.Generator().manual_seed(seed))
        how = {"steps": self.steps, "learning_rate": self.learning_rate, "watched": self.watched}
        curve = fit(network, draw, watch=watch, **how)
        result = {
            "arm": arm,
            "images": images,
            "seed": seed,
            "parameters": count(network),
            "error": curve[-1][1],
            "held_out_images": len(held_out),
            "curve": curve,
            "errors": levels[-1],
            "training_error": float(np.mean(self.errors(network, scheduler, chosen[:128]))),
        }
        if seed == self.seeds[0] and images in self.shown_counts:
            result |= self.pictures(network, scheduler, held_out)
        return result

    def draw(self, images: Tensor, scheduler: DDPMScheduler, generator: torch.Generator) -> Batch:
        """A batch from images (n, 1, H, W): noisy digits, their timesteps, and what should be predicted."""
        x0 = images[torch.randint(len(images), (self.batch_size,), generator=generator)]
        noise = torch.randn(x0.shape, generator=generator)
        timesteps = torch.randint(1000, (self.batch_size,), generator=generator)
        target = target_value(scheduler, self.target, x0, noise, timesteps)
        return add_noise(scheduler, x0, noise, timesteps), timesteps, target

    @torch.no_grad()
    def errors(self, network: UNet, scheduler: DDPMScheduler, images: Tensor) -> list[float]:
        """Mean squared error of the prediction on images (n, 1, H, W), at each of `timesteps`."""
        generator = torch.Generator().manual_seed(NOISE_SEED)
        found = []
        for level in self.timesteps:
            noise = torch.randn(images.shape, generator=generator)
            timesteps = torch.full((len(images),), level)
            target = target_value(scheduler, self.target, images, noise, timesteps)
            prediction = network(add_noise(scheduler, images, noise, timesteps), timesteps).sample
            found.append(mse_loss(prediction, target).item())
        return found

    @torch.no_grad()
    def pictures(self, network: UNet, scheduler: DDPMScheduler, held_out: Tensor) -> dict[str, Any]:
        """The first held-out digits, with noise, and the digits that the network's predictions stand for."""
        x0 = held_out[: self.shown]
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        timesteps = torch.full((len(x0),), self.shown_timestep)
        noisy = add_noise(scheduler, x0, noise, timesteps)
        found = predicted_x0(scheduler, self.target, noisy, timesteps, network(noisy, timesteps).sample)
        rows = {"clean": x0, "noisy": noisy, "denoised": found}
        return {"pictures": {name: [pack(image[0]) for image in images] for name, images in rows.items()}}


def load_digits(split: str) -> Tensor:
    """The embedded digits of a split, (n, 1, 16, 16) in [-1, 1]."""
    table = digits(DataConfig(source="digits"))[split]()
    arrays = np.stack(list(table.load(np.arange(len(table)))))
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_digits(images: int, seed: int) -> Tensor:
    """The first `images` training digits (n, 1, 16, 16) in the order of `seed`.

    Raises:
        ValueError: there are fewer.
    """
    known = load_digits("train")
    if images > len(known):
        raise ValueError(f"counts asks for {images} training digits; there are {len(known)}")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    return known[order[:images]]
