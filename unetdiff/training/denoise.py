"""Training a denoiser: the task that the loop runs, and the parts it is made of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from unetdiff.config import DenoiseConfig, DiffusionConfig, SamplingConfig
from unetdiff.data.check import check_source
from unetdiff.data.formats import DataFormat
from unetdiff.data.loader import Batch, Readable, fixed_batches, training_loader
from unetdiff.data.order import keys
from unetdiff.diffusion.guidance import Denoiser
from unetdiff.diffusion.objective import DiffusionObjective, drop_labels
from unetdiff.diffusion.sampler import sample_images
from unetdiff.diffusion.schedule import draws_samples, make_schedule, predicted_x0
from unetdiff.figures import grid
from unetdiff.models.unet import UNet
from unetdiff.runs import Companions
from unetdiff.spec import Architecture, UNetSpec
from unetdiff.training.loop import Trainer
from unetdiff.training.run_folder import data_fingerprint
from unetdiff.training.start import Workload, make_trainer

BINS = 10  # noise levels of the validation loss
GOLDEN_RATIO = 0.6180339887498949  # its multiples modulo 1 fill the unit interval evenly at any count
DENOISED, DENOISED_ROWS = ("noisy", "denoised", "clean"), 8  # columns and most rows of a picture of one noise level
FIXED_SEED = 0  # of the validation noise, the same for every run so that runs compare


def network_spec(config: DenoiseConfig, format: DataFormat) -> UNetSpec:
    """The network of a run: what the settings choose, and what the data decide."""
    classes = format.num_classes if config.model.class_conditional else 0
    if classes and config.model.time_embedding == "none" and config.model.time_channels is None:
        held = f"the data have {classes} classes and model.time_embedding is none"
        raise ValueError(f"{held}: expected model.class_conditional false, or model.time_channels, the classes' width")
    chosen = {entry.name: getattr(config.model, entry.name) for entry in fields(Architecture)}
    return UNetSpec(
        **chosen,
        dims=format.dims,
        in_channels=format.channels,
        out_channels=format.channels * (2 if config.diffusion.variance == "learned" else 1),
        num_classes=classes or None,
        null_class=bool(classes) and config.diffusion.label_dropout > 0,
        sample_size=list(format.size) if format.size else None,
    )


def make_objective(diffusion: DiffusionConfig, format: DataFormat) -> DiffusionObjective:
    """The loss of a run, with its noise schedule."""
    scheduler = make_schedule(
        diffusion.schedule,
        num_train_timesteps=diffusion.num_train_timesteps,
        target=diffusion.target,
        variance=diffusion.variance,
        noise_level=diffusion.noise_level,
    )
    levels = 65536 if format.dtype == "uint16" else 256
    return DiffusionObjective(
        scheduler, diffusion.target, diffusion.weighting, diffusion.variance, diffusion.min_snr_gamma, levels
    )


@dataclass(frozen=True)
class DenoiseTask:
    """Predicting the noise in samples: loss, validation by noise level, a grid of samples.

    validation: held-out data, or None. shown: what is denoised in pictures of one noise level. label_dropout: share of
    labels replaced by the null class.
    """

    objective: DiffusionObjective
    format: DataFormat
    spec: UNetSpec
    validation: Readable | None
    shown: Readable
    sampling: SamplingConfig
    label_dropout: float
    seed: int
    validation_size: int
    sample_count: int
    batch_size: int

    @property
    def scheduler(self) -> DDPMScheduler:
        """The noise schedule."""
        return self.objective.scheduler

    @property
    def beside(self) -> Companions:
        """Format and schedule, stored with the network."""
        return Companions(self.format, self.scheduler)

    def prepare(self, batch: Batch) -> Batch:
        """The batch with `noise`, `timesteps` and dropped labels, which follow from the samples' positions."""
        draws = self.objective.draw(
            keys(self.seed, "noise", batch["position"].numpy()).tolist(), batch["sample"].shape[1:]
        )
        prepared = {**batch, "noise": draws.noise, "timesteps": draws.timesteps}
        labels = self._labels(batch)
        if labels is not None and self.spec.null_class:
            assert self.spec.num_classes is not None
            prepared["label"] = drop_labels(labels, draws.label_uniform, self.label_dropout, self.spec.num_classes)
        return prepared

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a prepared batch; of a deeply supervised network, every output predicts the same target."""
        x0, noise, timesteps = (batch[name] for name in ("sample", "noise", "timesteps"))
        x_t = self.objective.noisy(x0, noise, timesteps)
        output = network(x_t, self._told(timesteps), self._labels(batch))
        return output.supervise(lambda one: self.objective.score(one, x0, x_t, noise, timesteps).loss.mean())

    def held(self, network: UNet, step: int) -> tuple[()]:
        """Every step changes all weights."""
        return ()

    def _labels(self, batch: Batch) -> Tensor | None:
        return batch.get("label") if self.spec.num_classes else None

    def _told(self, timesteps: Tensor) -> Tensor | None:
        """What the network is told of the noise; nothing, where it was built without a time embedding."""
        return None if self.spec.time_embedding == "none" else timesteps

    def _denoiser(self, network: nn.Module) -> Denoiser:
        """The network as the objective calls it."""
        return lambda x_t, timesteps, labels: network(x_t, self._told(timesteps), labels, return_dict=False)[0]

    def validate(self, network: UNet, accelerator: Accelerator) -> dict[str, Any] | None:
        """The unweighted error on fixed samples, noise and timesteps, in all and by noise level."""
        if self.validation is None or not len(self.validation):
            return None
        count = min(self.validation_size, len(self.validation))
        own = np.arange(accelerator.process_index, count, accelerator.num_processes)
        sums = torch.zeros(2, BINS, dtype=torch.float64)
        steps = self.scheduler.config["num_train_timesteps"]
        for batch in fixed_batches(self.validation, own.tolist(), self.batch_size):
            places = own[batch["position"].numpy()]
            timesteps = torch.from_numpy((places * GOLDEN_RATIO % 1 * steps).astype(np.int64))
            x0 = batch["sample"]
            noise = self.objective.draw(keys(FIXED_SEED, "validation", places).tolist(), x0.shape[1:]).noise
            labels = self._labels(batch)
            x0, noise, where = (entry.to(accelerator.device) for entry in (x0, noise, timesteps))
            labels = None if labels is None else labels.to(accelerator.device)
            losses = self.objective.loss_per_sample(self._denoiser(network), x0, noise, where, labels)
            errors = losses.unweighted.double().cpu()
            bins = timesteps * BINS // steps
            sums[0].index_add_(0, bins, errors)
            sums[1].index_add_(0, bins, torch.ones_like(errors))
        total = accelerator.reduce(sums.float().to(accelerator.device), "sum")
        assert isinstance(total, Tensor)
        return _by_noise_level(total.cpu(), steps)

    def picture(self, network: UNet) -> Image.Image | None:
        """A grid of samples from fixed seeds, a row per class (up to ten) where there are classes.

        Of a network of one noise level: samples of the data, noisy, denoised, and as they are.
        """
        if not draws_samples(self.scheduler):
            return self._denoised(network)
        classes = min(self.spec.num_classes or 0, 10)
        columns = max(1, self.sample_count // classes) if classes else None
        count = classes * columns if columns else self.sample_count
        labels = [i // columns for i in range(count)] if columns else None
        samples = sample_images(
            network,
            self.scheduler,
            count,
            labels=labels,
            guidance=self.sampling.guidance if self.spec.null_class else 1.0,
            sampler=self.sampling.sampler,
            steps=self.sampling.steps,
            batch_size=self.batch_size,
        )
        return grid(self.format.decode(samples), self.format, columns=columns, labels=labels)

    def _denoised(self, network: UNet) -> Image.Image:
        """A row per sample: with noise, without what the network takes for noise, and clean; see `DENOISED`."""
        places = np.arange(min(self.sample_count, DENOISED_ROWS, len(self.shown)))
        batch = next(fixed_batches(self.shown, places.tolist(), len(places)))
        x0, labels = batch["sample"], self._labels(batch)
        noise = self.objective.draw(keys(FIXED_SEED, "validation", places).tolist(), x0.shape[1:]).noise
        timesteps = torch.zeros(len(places), dtype=torch.int64)
        x_t = self.objective.noisy(x0, noise, timesteps)
        labels = None if labels is None else labels.to(network.device)
        answer = self._denoiser(network)(x_t.to(network.device), timesteps.to(network.device), labels)
        found = predicted_x0(self.scheduler, self.objective.target, x_t, timesteps, answer.float().cpu())
        planes = torch.stack([x_t, found, x0], dim=1).flatten(0, 1).clamp(-1, 1)
        names = [*DENOISED] * len(places)
        return grid(self.format.decode(planes), self.format, columns=len(DENOISED), labels=names)


def _by_noise_level(total: Tensor, steps: int) -> dict[str, Any]:
    """Sums and counts (2, BINS) as means, in all and per bin of timesteps."""
    edges = [-(-steps * number // BINS) for number in range(BINS + 1)]
    bins = [
        {"from": edges[number], "to": edges[number + 1] - 1, "loss": float(total[0, number] / total[1, number])}
        for number in range(BINS)
        if total[1, number] > 0
    ]
    return {"loss": float(total[0].sum() / total[1].sum()), "bins": bins}


def denoise_workload(config: DenoiseConfig, batch_size: int) -> Workload:
    """The data, the network and the task of a denoising run."""
    training, validation = check_source(config.data, config.train.batch_size)
    spec = network_spec(config, training.format)
    task = DenoiseTask(
        objective=make_objective(config.diffusion, training.format),
        format=training.format,
        spec=spec,
        validation=validation,
        shown=validation if len(validation) else training,
        sampling=config.sampling,
        label_dropout=config.diffusion.label_dropout,
        seed=config.seed,
        validation_size=config.train.validation_size,
        sample_count=config.train.sample_count,
        batch_size=batch_size,
    )
    loader = partial(training_loader, training, config.data)
    return Workload(spec, task, loader, data_fingerprint(training, validation))


def denoising_trainer(config: DenoiseConfig) -> Trainer:
    """The trainer of a denoising run; see `make_trainer`."""
    return make_trainer(config, partial(denoise_workload, config))
