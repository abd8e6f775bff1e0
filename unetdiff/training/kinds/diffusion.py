"""Kind `diffusion`: masks are drawn from noise, given the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unetdiff.data.loader import Batch, training_loader
from unetdiff.data.order import key, keys
from unetdiff.data.pairs import PairData, open_pairs
from unetdiff.mask_diffusion_options import MaskDiffusionConfig
from unetdiff.models.mask_denoiser import MaskDenoiser
from unetdiff.segment_config import SegmentConfig
from unetdiff.segmentation.mask_diffusion import MaskDiffusion
from unetdiff.segmentation.tiles import Predict
from unetdiff.segmentation.uncertainty import decompose_votes
from unetdiff.spec import Architecture, UNetSpec
from unetdiff.training.kinds.task import MaskTask, companions, make_objective, shared_parts, weighted
from unetdiff.training.start import Workload

FIXED_SEED = 0  # of the noise of held-out images, the same for every run so that runs compare
LEVELS = 8  # timesteps, evenly spaced, at which the loss of a held-out image is measured


@dataclass(frozen=True)
class DiffusionTask(MaskTask):
    """Predicting what was a mask from its noisy numbers and its image.

    sampling: how masks of held-out images are drawn. seed: of the run.
    """

    diffusion: MaskDiffusion
    sampling: MaskDiffusionConfig
    seed: int

    def prepare(self, batch: Batch) -> Batch:
        """The batch with `noise` and `timesteps`, which follow from the samples' positions."""
        drawn = keys(self.seed, "noise", batch["position"].numpy()).tolist()
        draws = self.diffusion.draw(drawn, batch["mask"].shape[1:])
        return {**batch, "noise": draws.noise, "timesteps": draws.timesteps}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a prepared batch; of a deeply supervised network, every output predicts the same."""
        return self._losses(network, batch).mean()

    def _losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """Of each sample, (n,)."""
        labels, noise, timesteps, weight = (batch.get(name) for name in ("mask", "noise", "timesteps", "weight"))
        assert labels is not None
        assert noise is not None
        assert timesteps is not None
        x_t = self.diffusion.noisy(labels, noise, timesteps)
        output = network(self.diffusion.seen(x_t, timesteps), timesteps, batch["sample"])
        return output.supervise(
            lambda one: self.diffusion.loss_per_sample(one, labels, x_t, noise, timesteps, weight)
        )  # fmt: skip

    def predictor(self, network: MaskDenoiser) -> Predict:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The shares of the votes of the masks that are drawn of each image."""
        seeds = [key(FIXED_SEED, "masks", number) for number in range(self.sampling.masks)]
        how: dict[str, Any] = {"seeds": seeds, "steps": self.sampling.steps, "sampler": self.sampling.sampler}

        def shares(images: Tensor) -> Tensor:
            drawn = self.diffusion.masks(network, images, **how)
            return decompose_votes(drawn.movedim(1, 0), self.diffusion.codes.classes).probabilities

        return shares

    def held_out_loss(self, network: Any, index: int, probabilities: Tensor) -> float:
        """The loss of a held-out image as in training, a mean over fixed noise at fixed timesteps."""
        source = self.held_out
        arrays = source.read([index])
        labels = torch.from_numpy(arrays["mask"])
        steps = self.diffusion.objective.scheduler.config["num_train_timesteps"]
        drawn = keys(FIXED_SEED, f"held out {index}", np.arange(LEVELS)).tolist()
        batch = {
            "sample": source.format.encode(arrays["sample"]).expand(LEVELS, *[-1] * (labels.ndim)),
            "mask": labels.expand(LEVELS, *labels.shape[1:]),
            "noise": self.diffusion.draw(drawn, labels.shape[1:]).noise,
            "timesteps": (torch.arange(LEVELS) * 2 + 1) * steps // (2 * LEVELS),
        }
        return float(self._losses(network, {name: value.to(network.device) for name, value in batch.items()}).mean())


@dataclass(frozen=True)
class Networks:
    """The networks of a run: mask, the one that is told the timestep; image, the one of the image, or None."""

    mask: UNetSpec
    image: UNetSpec | None
    image_channels: int

    def build(self, spec: UNetSpec) -> MaskDenoiser:
        """The two with random weights; spec: of the first."""
        image = None if self.image is None else self.image.to_json()
        return MaskDenoiser(spec.to_json(), self.image_channels, image)


def network_specs(config: SegmentConfig, data: PairData, diffusion: MaskDiffusion) -> Networks:
    """What the settings choose, and what the data decide."""
    format, settings = data.train.format, config.mask_diffusion
    chosen = {entry.name: getattr(config.model, entry.name) for entry in fields(Architecture)}
    timed = "sinusoidal" if config.model.time_embedding == "none" else config.model.time_embedding
    size = list(data.train.size) if data.train.size else None
    known = settings.feature_channels if settings.encodes else format.channels
    mask = UNetSpec(**{**chosen, "time_embedding": timed}, dims=format.dims, sample_size=size,
                    in_channels=diffusion.codes.channels + known, out_channels=diffusion.out_channels)  # fmt: skip
    if not settings.encodes:
        return Networks(mask, None, format.channels)
    widths = {"channels": settings.encoder_channels or config.model.channels, "deep_supervision": False}
    own: Mapping[str, Any] = {"time_embedding": "none", "divide_by_timestep": False, "label_entry": "embedding"}
    image = UNetSpec(**{**chosen, **own, **widths}, dims=format.dims, sample_size=size,
                     in_channels=format.channels, out_channels=known)  # fmt: skip
    return Networks(mask, image, format.channels)


def diffusion_workload(config: SegmentConfig, batch_size: int) -> Workload:
    """The data, the networks and the task of a run."""
    data = open_pairs(config.data)
    objective, settings = make_objective(config, data), config.mask_diffusion
    diffusion = MaskDiffusion.of(
        settings, data.train.num_classes, objective.class_weights, objective.label_smoothing
    )  # fmt: skip
    networks = network_specs(config, data, diffusion)
    task = DiffusionTask(
        objective=objective,
        beside=companions(config, data, mask_diffusion=asdict(settings)),
        diffusion=diffusion,
        sampling=settings,
        seed=config.seed,
        **shared_parts(config, data),
    )
    loader = partial(training_loader, weighted(data.train, config.objective), config.data)
    return Workload(networks.mask, task, loader, data.fingerprint(), build=networks.build)  # pyright: ignore[reportArgumentType]
