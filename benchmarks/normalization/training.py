"""One network of the study: built, trained, measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.normalization.metrics import calibration, in_batches, sample_quality, transmission
from benchmarks.normalization.placements import network_settings
from benchmarks.normalization.regimes import REGIMES, SCHEDULE, Regime
from benchmarks.normalization.settings import Job, StudyConfig
from unetdiff.diffusion.sampler import sample_images
from unetdiff.models.unet import UNet
from unetdiff.run_config import EmaConfig
from unetdiff.training.ema import WeightAverages

MEASURED_BATCH = 128
NOISE_SEED = 1234  # of the noise in measurements and of samples: the same for every network
LOGGED = 20  # points of the training curve that a result keeps


@dataclass(frozen=True)
class Images:
    """Images in [-1, 1], float32 (N, C, H, W): to train on, to choose a learning rate on, to measure on."""

    train: Tensor
    validation: Tensor
    test: Tensor


def build(job: Job, config: StudyConfig) -> UNet:
    """The network of a job, with weights from the job's seed."""
    torch.manual_seed(job.seed)
    decided = network_settings(job.placement, config.groups, REGIMES[job.regime].conditioned)
    return UNet(**{**config.network, **decided, "sample_size": config.size})


def train(network: UNet, job: Job, config: StudyConfig, images: Tensor) -> tuple[WeightAverages, list[float]]:
    """Train on images (N, C, H, W); the averages of the weights, and the training loss, averaged over 20 spans.

    Order of images, noise and noise levels follow from the seed alone and are drawn on the CPU, so that every
    placement sees the same on every device.
    """
    device, regime = images.device, REGIMES[job.regime]
    generator = torch.Generator().manual_seed(job.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=job.learning_rate, weight_decay=0.0)
    decay = EmaConfig(kind="decay", decay=config.ema_decay) if config.ema_decay else EmaConfig(kind="none")
    averages = WeightAverages(network, decay)
    losses = []
    network.train()
    for step in range(config.steps):
        # To zero: at a constant rate the last steps alone move the amplitude of the output by a percent or so.
        optimizer.param_groups[0]["lr"] = job.learning_rate * (1 - step / config.steps)
        chosen = torch.randint(len(images), (config.batch_size,), generator=generator)
        x0 = images[chosen.to(device)]
        noise = torch.randn(x0.shape, generator=generator).to(device)
        u = torch.rand(config.batch_size, generator=generator).to(device)
        x, target = regime.corrupt(x0, noise, u)
        loss = mse_loss(network(x, regime.time(u)).sample, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averages.update(step + 1)
        losses.append(loss.detach())
    return averages, [span.mean().item() for span in torch.stack(losses).tensor_split(min(LOGGED, config.steps))]


@torch.no_grad()
def measure(network: UNet, regime: Regime, images: Tensor, levels: int) -> list[dict[str, float]]:
    """The metrics of `calibration` and H at each of `levels` noise levels, on images (N, C, H, W)."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    rows = []
    for position in regime.positions(levels):
        u = torch.full((len(images),), position, device=images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        x, target = regime.corrupt(images, noise, u)
        told = regime.time(u)

        def predict(x: Tensor, told: Tensor | None = told) -> Tensor:
            return in_batches(lambda *inputs: network(*inputs).sample, MEASURED_BATCH, x, told)

        rows.append({"level": regime.level(position), **calibration(target, predict(x)), "H": transmission(predict, x)})
    return rows


def draw(network: UNet, config: StudyConfig) -> Tensor:
    """Samples of a network of regime A, (samples, C, H, W); predictions are not clipped, which would hide errors."""
    return sample_images(
        network,
        SCHEDULE,
        config.samples,
        sampler="dpmpp",
        steps=config.sample_steps,
        seed=NOISE_SEED,
        batch_size=MEASURED_BATCH,
        clip=False,
    )


def mean_nmse(levels: list[dict[str, float]]) -> float:
    """The error over noise levels, each of the same weight."""
    return sum(row["nmse"] for row in levels) / len(levels)


def run_job(job: Job, config: StudyConfig, images: Images) -> dict[str, Any]:
    """Train and measure one network; the result as JSON."""
    regime = REGIMES[job.regime]
    start = time.perf_counter()
    network = build(job, config).to(images.train.device)  # pyright: ignore[reportArgumentType]
    averages, losses = train(network, job, config, images.train)
    seconds = time.perf_counter() - start
    network.eval()
    with averages.swapped():
        levels = measure(network, regime, images.test[: config.measured_images], config.levels)
        validation = measure(network, regime, images.validation, config.levels)
        sampled = {}
        if job.regime == "A":
            sampled = sample_quality(draw(network, config), images.test.cpu(), config.components)
    return {
        "placement": job.placement,
        "regime": job.regime,
        "seed": job.seed,
        "learning_rate": job.learning_rate,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "nmse": mean_nmse(levels),
        "validation_nmse": mean_nmse(validation),
        "levels": levels,
        "samples": sampled,
        "training_loss": losses,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if images.train.is_cuda else "CPU",
        "torch": torch.__version__,
        "conditions": config.conditions,
    }
