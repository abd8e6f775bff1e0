"""Training a segmentation network: the task that the loop runs, and the parts it is made of."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from unetdiff.data.loader import Batch, training_loader
from unetdiff.data.pairs import PairData, PairSource, open_pairs
from unetdiff.mask_figures import image_plane, label_plane, overlay, panels
from unetdiff.models.start_from import body_spec, take_over
from unetdiff.models.unet import UNet
from unetdiff.runs import Companions, load_run
from unetdiff.segment_config import SegmentConfig
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.segmentation.objective import MaskObjective, border_weights, inverse_frequency
from unetdiff.segmentation.predict import Inference, predict_image, probabilities_of
from unetdiff.spec import Architecture, UNetSpec
from unetdiff.training.loop import Trainer
from unetdiff.training.processes import Agreement
from unetdiff.training.start import Workload, make_trainer

SHOWN = (
    *("loss", "class_names", "mean_iou", "mean_dice", "accuracy", "iou", "dice", "ece", "nll"),
    *("mean_boundary_f", "v_rand", "v_info", "mean_hd95"),
)
"""Of the metrics of held-out images, those that go to `metrics.jsonl`."""


@dataclass(frozen=True)
class SegmentTask:
    """Predicting the classes of positions: loss, figures on held-out images, pictures.

    timestep: what the network is always told, None for one without. border: (w0, sigma) of the border weights, or
    None. held_out: whole images, may be empty; shown: what pictures are made of.
    """

    objective: MaskObjective
    options: MetricOptions
    inference: Inference
    beside: Companions
    held_out: PairSource
    shown: PairSource
    timestep: int | None
    border: tuple[float, float] | None
    sample_count: int

    def prepare(self, batch: Batch) -> Batch:
        """The batch with the weight of every position, where there are any."""
        if self.border is None:
            return batch
        w0, sigma = self.border
        weights = [border_weights(mask, w0=w0, sigma=sigma) for mask in batch["mask"].numpy()]
        return {**batch, "weight": torch.from_numpy(np.stack(weights))}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a prepared batch, over all outputs of a network that is deeply supervised."""
        output = network(batch["sample"], self.timestep)
        every = [output.sample, *(next(iter(heads.values())) for heads in output.deep or [])]
        losses = [self.objective.loss_per_sample(one, batch["mask"], batch.get("weight")).mean() for one in every]
        return torch.stack(losses).mean()

    def _predict(self, network: UNet, image: Tensor) -> Tensor:
        """Class probabilities (K, *space) of an image (C, *space)."""
        predict = probabilities_of(lambda images: network(images, self.timestep).sample, network.device)
        return predict_image(predict, image, self.inference, network.multiple)

    def validate(self, network: UNet, accelerator: Accelerator) -> dict[str, Any] | None:
        """The metrics of all held-out images, each predicted whole by one of the processes."""
        if not len(self.held_out):
            return None
        metrics = SegmentationMetrics(self.options)
        losses: dict[str, float] = {}
        for index in range(accelerator.process_index, len(self.held_out), accelerator.num_processes):
            arrays = self.held_out.read([index])
            labels = torch.from_numpy(arrays["mask"])
            image = self.held_out.format.encode(arrays["sample"])[0]
            probabilities = self._predict(network, image)
            name = self.held_out.name(index)
            metrics.update(probabilities[None], labels, names=[name])
            logits = probabilities.clamp(min=1e-12).log()[None]
            losses[name] = float(self.objective.loss_per_sample(logits, labels))
        parts = Agreement().collect((metrics, losses))
        computed = SegmentationMetrics.merged([part for part, _ in parts]).compute()
        every = {name: value for _, part in parts for name, value in part.items()}
        computed["loss"] = sum(every[name] for name in sorted(every)) / len(every)
        return {name: computed[name] for name in SHOWN if name in computed}

    def picture(self, network: UNet) -> Image.Image | None:
        """Images beside their truth and what the network says."""
        rows = []
        colours = self.shown.encoding.colours()
        for index in range(min(self.sample_count, len(self.shown))):
            arrays = self.shown.read([index])
            image = self.shown.format.encode(arrays["sample"])[0]
            found = self._predict(network, image).argmax(0).numpy()
            raw, truth = arrays["sample"][0], arrays["mask"][0]
            rows.append(
                [
                    image_plane(raw, self.shown.format),
                    label_plane(truth, colours),
                    label_plane(found, colours),
                    overlay(raw, found, self.shown.format, colours),
                ]
            )
        return panels(rows, ["image", "truth", "prediction", "overlay"]) if rows else None


def network_spec(config: SegmentConfig, data: PairData, body: UNetSpec | None) -> UNetSpec:
    """The network of a run: what the settings choose (or a denoiser's body), and what the data decide.

    Raises:
        ValueError: the denoiser takes other data, or the settings choose another network than its.
    """
    format, classes = data.train.format, data.train.num_classes
    if body is None:
        chosen = {entry.name: getattr(config.model, entry.name) for entry in fields(Architecture)}
        return UNetSpec(**chosen, dims=format.dims, in_channels=format.channels, out_channels=classes,
                        sample_size=list(data.train.size) if data.train.size else None)  # fmt: skip
    if (body.dims, body.in_channels) != (format.dims, format.channels):
        held = f"model.init_from takes {body.in_channels} channels in {body.dims}-D"
        raise ValueError(f"{held}; the images have {format.channels} in {format.dims}-D")
    plain = Architecture(time_embedding="none")
    for entry in fields(Architecture):
        given, theirs = getattr(config.model, entry.name), getattr(body, entry.name)
        if given not in (getattr(plain, entry.name), theirs) and entry.name != "dropout":
            raise ValueError(f"model.{entry.name} is {given!r}, but model.init_from has {theirs!r}: leave it out")
    return body_spec(body, out_channels=classes, timed=config.model.timestep is not None)


def make_objective(config: SegmentConfig, data: PairData) -> MaskObjective:
    """The loss of a run."""
    chosen = config.objective
    given = chosen.class_weights
    counted = {"none": None, "inverse_frequency": inverse_frequency(data.class_counts())}
    weights = counted[given] if isinstance(given, str) else tuple(given)
    return MaskObjective(
        chosen.loss, weights, chosen.label_smoothing, gamma=chosen.gamma, alpha=chosen.alpha, beta=chosen.beta
    )


def segment_workload(config: SegmentConfig, batch_size: int) -> Workload:
    """The data, the network and the task of a segmentation run."""
    data = open_pairs(config.data)
    denoiser = None if config.model.init_from is None else load_run(config.model.init_from)
    spec = network_spec(config, data, None if denoiser is None else denoiser.unet.spec)  # pyright: ignore
    evaluation = config.evaluation
    options = MetricOptions(
        class_names=data.train.encoding.class_names,
        boundary_tolerance=evaluation.boundary_tolerance,
        hd95=evaluation.hd95,
        membrane=evaluation.membrane,
    )
    border = (config.objective.border_weight, config.objective.border_sigma)
    task = SegmentTask(
        objective=make_objective(config, data),
        options=options,
        inference=Inference(evaluation.tile, evaluation.overlap),
        beside=Companions(data.train.format, masks=data.train.encoding, settings={"timestep": config.model.timestep}),
        held_out=data.validation,
        shown=data.validation if len(data.validation) else data.train,
        timestep=config.model.timestep,
        border=border if border[0] else None,
        sample_count=min(config.train.sample_count, 8),
    )

    def initialise(unet: UNet) -> None:
        assert denoiser is not None
        print(f"from {config.model.init_from}: {take_over(unet, denoiser.unet)}", file=sys.stderr)  # pyright: ignore

    loader = partial(training_loader, data.train, config.data)
    return Workload(spec, task, loader, data.fingerprint(), None if denoiser is None else initialise)


def segmentation_trainer(config: SegmentConfig) -> Trainer:
    """The trainer of a segmentation run; see `make_trainer`."""
    return make_trainer(config, partial(segment_workload, config))
