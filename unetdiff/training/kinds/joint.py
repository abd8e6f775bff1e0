"""Kind `joint`: one trunk whose heads say the noise in images and their masks; one run that samples and segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from unetdiff.data.loader import Batch, Readable
from unetdiff.data.order import keys
from unetdiff.data.pairs import PairData, open_pairs
from unetdiff.data.unlabelled import WithoutMasks, joint_loader, open_unlabelled, unlabelled_count
from unetdiff.figures import stacked
from unetdiff.models.unet import UNet
from unetdiff.segment_config import SegmentConfig
from unetdiff.segmentation.noise_input import NoiseInput, probabilities_at
from unetdiff.segmentation.tiles import Predict
from unetdiff.spec import Architecture, UNetSpec
from unetdiff.training import denoise
from unetdiff.training.denoise import DenoiseTask
from unetdiff.training.kinds.task import MaskTask, companions, make_objective, shared_parts, weighted
from unetdiff.training.run_folder import data_fingerprint
from unetdiff.training.start import Workload

NOISE, MASK = "noise", "mask"
"""The heads; the first is what samplers see as `.sample`."""


@dataclass(frozen=True)
class JointTask(MaskTask):
    """Predicting the noise in unlabelled samples and the classes of labelled ones, in one forward pass.

    denoising: the task of the unlabelled samples. mask_weight: what the loss of the masks counts. timesteps: what the
    network is told with images to segment, in predictions; the only one in training too, unless they are noisy.
    noise: what is mixed into images to segment, or None. seed: of the run.
    """

    denoising: DenoiseTask
    mask_weight: float
    timesteps: Sequence[int]
    noise: NoiseInput | None
    seed: int

    def prepare(self, batch: Batch) -> Batch:
        """A part of a batch, unlabelled or with masks, with `timesteps` and, where it is noisy, `noise`."""
        if "mask" not in batch:
            return self.denoising.prepare(batch)
        if self.noise is None:
            return {**batch, "timesteps": torch.full(batch["position"].shape, self.timesteps[0])}
        drawn = keys(self.seed, "mask noise", batch["position"].numpy()).tolist()
        draws = self.noise.draw(drawn, batch["sample"].shape[1:])
        return {**batch, "noise": draws.noise, "timesteps": draws.timesteps}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of the noise in the unlabelled samples, plus the weighted mean loss of the others' masks."""
        labels, weight, noise = batch["mask"], batch.get("weight"), batch["noise"]
        count = len(batch["sample"]) - len(labels)
        (x0, images), (timesteps, mask_timesteps) = (
            (batch[name][:count], batch[name][count:]) for name in ("sample", "timesteps")
        )
        objective = self.denoising.objective
        x_t = objective.noisy(x0, noise[:count], timesteps)
        if self.noise is not None:
            images = self.noise.mixed(images, noise[count:], mask_timesteps)
        output = network(torch.cat([x_t, images]), batch["timesteps"])
        of_noise = output.supervise(
            lambda one: objective.score(one[:count], x0, x_t, noise[:count], timesteps).loss.mean(), NOISE
        )
        of_masks = output.supervise(
            lambda one: self.objective.loss_per_sample(one[count:], labels, weight).mean(), MASK
        )
        return of_noise + self.mask_weight * of_masks

    def predictor(self, network: UNet) -> Predict:
        """The softmax of the masks' head."""
        scores = lambda images, t: network(images, t).heads[MASK]  # noqa: E731
        return probabilities_at(scores, self.timesteps, network.device, self.noise)

    def validate(self, network: UNet, accelerator: Accelerator) -> dict[str, Any] | None:
        """The metrics of held-out masks, and the error of the noise as `denoising_loss` and by noise level."""
        masks = super().validate(network, accelerator)
        noise = self.denoising.validate(network, accelerator)
        found = None if noise is None else {"denoising_loss": noise["loss"], "bins": noise["bins"]}
        return {**(masks or {}), **(found or {})} or None

    def picture(self, network: UNet) -> Image.Image | None:
        """Held-out images with their masks, above a grid of samples."""
        pictures = super().picture(network), self.denoising.picture(network)
        return stacked([one for one in pictures if one is not None])


def network_spec(config: SegmentConfig, data: PairData) -> UNetSpec:
    """The network of a run: what the settings choose, with a head for either task."""
    format = data.train.format
    chosen = {entry.name: getattr(config.model, entry.name) for entry in fields(Architecture)}
    noise = format.channels * (2 if config.diffusion.variance == "learned" else 1)
    return UNetSpec(**chosen, dims=format.dims, in_channels=format.channels,
                    heads={NOISE: noise, MASK: data.train.num_classes},
                    sample_size=list(data.train.size) if data.train.size else None)  # fmt: skip


@dataclass(frozen=True)
class _Unlabelled:
    """Where unlabelled samples come from: what to draw from, with its settings; what to validate on; and what it is."""

    drawn: tuple[Any, Any]
    held_out: Readable
    fingerprint: dict[str, Any]


def _labelled_images(config: SegmentConfig, data: PairData) -> _Unlabelled:
    """The labelled images themselves."""
    held_out = WithoutMasks(replace(data.validation, size=data.train.size))
    return _Unlabelled((WithoutMasks(data.train), config.data), held_out, {})


def _other_images(config: SegmentConfig, data: PairData) -> _Unlabelled:
    """Images of a source of their own."""
    assert data.train.size is not None
    training, held_out = open_unlabelled(config.unlabelled, data.train.format, data.train.size)
    return _Unlabelled((training, config.unlabelled), held_out, {"unlabelled": data_fingerprint(training, held_out)})


_SOURCES = {"labelled": _labelled_images}
"""By `unlabelled.source`, where it is none of train/denoise.py."""


def _check_share(share: float, batch: int) -> None:
    """Whether a process's micro-batch has whole numbers of both kinds of samples, the same in each."""
    wanted = share * batch
    if batch < 2 or abs(wanted - unlabelled_count(batch, share)) > 1e-6:
        raise ValueError(
            f"joint.unlabelled {share:g} of {batch} samples, those of a process and micro-batch, is {wanted:g}: "
            "expected a whole number of at least 1, and at least 1 left with masks"
        )


def joint_workload(config: SegmentConfig, batch_size: int) -> Workload:
    """The data, the network and the task of a run."""
    _check_share(config.joint.unlabelled, batch_size)
    data = open_pairs(config.data)
    unlabelled = _SOURCES.get(config.unlabelled.source, _other_images)(config, data)
    spec = network_spec(config, data)
    format = replace(data.train.format, size=data.train.size)
    denoising = DenoiseTask(
        objective=denoise.make_objective(config.diffusion, format),
        format=format,
        spec=spec,
        validation=unlabelled.held_out,
        shown=unlabelled.held_out,
        sampling=config.sampling,
        label_dropout=0,
        seed=config.seed,
        validation_size=config.train.validation_size,
        sample_count=config.train.sample_count,
        batch_size=batch_size,
    )
    noise = NoiseInput(config.noise_input.kind, denoising.objective) if config.noisy else None
    task = JointTask(
        objective=make_objective(config, data),
        beside=replace(companions(config, data, **_stored(config)), scheduler=denoising.scheduler),
        denoising=denoising,
        mask_weight=config.joint.mask_weight,
        timesteps=config.model.told,
        noise=noise,
        seed=config.seed,
        **shared_parts(config, data),
    )
    labelled = weighted(data.train, config.objective), config.data
    loader = partial(joint_loader, labelled, unlabelled.drawn, config.joint.unlabelled)
    return Workload(spec, task, loader, {**data.fingerprint(), **unlabelled.fingerprint})


def _stored(config: SegmentConfig) -> dict[str, Any]:
    """What predictions need to know, as JSON."""
    noise = {
        "kind": config.noise_input.kind,
        "schedule": config.diffusion.schedule,
        "num_train_timesteps": config.diffusion.num_train_timesteps,
    }
    return {"timestep": config.model.told, "head": MASK, **({"noise_input": noise} if config.noisy else {})}
