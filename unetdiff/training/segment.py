"""Training a segmentation network: the task that the loop runs, and the parts it is made of."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from unetdiff.data.loader import Batch, training_loader
from unetdiff.data.pairs import PairData, PairSource, open_pairs
from unetdiff.mask_figures import case_captions, case_planes, panels
from unetdiff.models.start_from import body_spec, take_over
from unetdiff.models.unet import UNet
from unetdiff.runs import Companions, checkpoints, load_run
from unetdiff.segment_config import ObjectiveConfig, SegmentConfig
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmentation.objective import MaskObjective, border_weights, inverse_frequency
from unetdiff.segmentation.predict import Inference, predict_image, probabilities_of
from unetdiff.spec import Architecture, UNetSpec
from unetdiff.training.evaluation import Evaluation, merged, write_evaluation
from unetdiff.training.loop import Trainer
from unetdiff.training.processes import Agreement, first_alone
from unetdiff.training.start import Workload, make_trainer

SHOWN = (
    *("loss", "images", "class_names", "mean_iou", "mean_dice", "accuracy", "iou", "dice", "ece", "nll"),
    *("mean_boundary_f", "v_rand", "v_info", "mean_hd95"),
)
"""Of the metrics of held-out images, those that go to `metrics.jsonl`."""

OWN = ("dropout", "deep_supervision")
"""Settings of the network that may differ from those of the denoiser it starts from."""


@dataclass(frozen=True)
class SegmentTask:
    """Predicting the classes of positions: loss, figures on held-out images, pictures.

    timestep: what the network is always told, None for one without. held_out: whole images, may be empty; shown: what
    pictures are made of. folder: of the run.
    """

    objective: MaskObjective
    options: MetricOptions
    inference: Inference
    beside: Companions
    held_out: PairSource
    shown: PairSource
    timestep: int | None
    sample_count: int
    folder: Path

    def prepare(self, batch: Batch) -> Batch:
        """The batch as it is: nothing is drawn for it."""
        return batch

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a prepared batch; of a deeply supervised network, every output predicts the same masks."""
        labels, weight = batch["mask"], batch.get("weight")
        output = network(batch["sample"], self.timestep)
        return output.supervise(lambda logits: self.objective.loss_per_sample(logits, labels, weight).mean())

    def _predict(self, network: UNet, image: Tensor) -> Tensor:
        """Class probabilities (K, *space) of an image (C, *space)."""
        predict = probabilities_of(lambda images: network(images, self.timestep).sample, network.device)
        return predict_image(predict, image, self.inference, network.multiple)

    def _look(self, network: UNet, source: PairSource, index: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """An image (*space, C), its labels (*space), and the class probabilities (K, *space) that are predicted."""
        arrays = source.read([index])
        encoded = source.format.encode(arrays["sample"])[0]
        return arrays["sample"][0], arrays["mask"][0], self._predict(network, encoded)

    def validate(self, network: UNet, accelerator: Accelerator) -> dict[str, Any] | None:
        """The metrics of all held-out images, each predicted whole by one of the processes.

        The first process leaves what is too long for a line, and the worst images, in `evaluation/` of the run folder.
        """
        source = self.held_out
        if not len(source):
            return None
        own, colours = Evaluation.start(self.options), source.encoding.colours()
        for index in range(accelerator.process_index, len(source), accelerator.num_processes):
            image, labels, probabilities = self._look(network, source, index)
            logits = probabilities.clamp(min=1e-12).log()[None]
            loss = float(self.objective.loss_per_sample(logits, torch.from_numpy(labels)[None]))
            own.add(source.name(index), image, labels, probabilities, loss, source.format, colours)
        figures, cases = merged(Agreement().collect(own.parts()))
        first_alone(lambda: write_evaluation(self.folder, figures, cases, colours))
        return {name: figures[name] for name in SHOWN if name in figures}

    def picture(self, network: UNet) -> Image.Image | None:
        """Images beside their truth, what the network says, where that is wrong, and where it is unsure."""
        source, rows = self.shown, []
        for index in range(min(self.sample_count, len(source))):
            image, labels, probabilities = self._look(network, source, index)
            rows.append(case_planes(image, labels, probabilities.numpy(), source.format, source.encoding.colours()))
        return panels(rows, case_captions(source.num_classes)) if rows else None


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
        if given not in (getattr(plain, entry.name), theirs) and entry.name not in OWN:
            raise ValueError(f"model.{entry.name} is {given!r}, but model.init_from has {theirs!r}: leave it out")
    own = {name: given for name in OWN if (given := getattr(config.model, name)) != getattr(plain, name)}
    return body_spec(body, out_channels=classes, timed=config.model.timestep is not None, **own)


def make_objective(config: SegmentConfig, data: PairData) -> MaskObjective:
    """The loss of a run."""
    chosen = config.objective
    given = chosen.class_weights
    if not isinstance(given, str) and len(given) != data.train.num_classes:
        held = f"objective.class_weights has {len(given)} entries"
        raise ValueError(f"{held}; expected {data.train.num_classes}, one per class")
    counted = {"none": None, "inverse_frequency": inverse_frequency(data.class_counts())}
    weights = counted[given] if isinstance(given, str) else tuple(given)
    return MaskObjective(
        chosen.loss, weights, chosen.label_smoothing, gamma=chosen.gamma, alpha=chosen.alpha, beta=chosen.beta
    )


def _weighted(source: PairSource, objective: ObjectiveConfig) -> PairSource:
    """Training images with border weights, where the loss has any; a warning where they are 1 everywhere."""
    if not objective.border_weight:
        return source
    weigh = partial(
        border_weights, w0=objective.border_weight, sigma=objective.border_sigma, background=objective.background
    )
    weighted = source.weighted(weigh)
    if all(weights.max() <= 1 for weights in weighted.weights or []):
        warnings.warn(
            f"objective.border_weight acts between objects, and no training mask has two with class "
            f"{objective.background} between them: objective.background is the class that lies there",
            stacklevel=2,
        )
    return weighted


def _beginning(config: SegmentConfig, data: PairData) -> tuple[UNetSpec, Callable[[UNet], None] | None]:
    """The network, and what fills a new one where that starts from a denoiser; a run that goes on needs it no more."""
    chosen = config.model.init_from
    if chosen is None:
        return network_spec(config, data, None), None
    if checkpoints(config.folder):
        return load_run(config.folder).unet.spec, None
    denoiser: UNet = load_run(chosen).unet  # pyright: ignore[reportAssignmentType]
    spec = network_spec(config, data, denoiser.spec)

    def initialise(unet: UNet) -> None:
        body = f"channels {list(spec.channels)}, dropout {spec.dropout:g}"
        print(f"from {chosen} ({body}): {take_over(unet, denoiser)}", file=sys.stderr)

    return spec, initialise


def segment_workload(config: SegmentConfig, batch_size: int) -> Workload:
    """The data, the network and the task of a segmentation run."""
    data = open_pairs(config.data)
    spec, initialise = _beginning(config, data)
    evaluation = config.evaluation
    options = MetricOptions(
        class_names=data.train.encoding.class_names,
        boundary_tolerance=evaluation.boundary_tolerance,
        hd95=evaluation.hd95,
        membrane=evaluation.membrane,
    )
    task = SegmentTask(
        objective=make_objective(config, data),
        options=options,
        inference=Inference(evaluation.tile, evaluation.overlap),
        beside=Companions(data.train.format, masks=data.train.encoding, settings={"timestep": config.model.timestep}),
        held_out=data.validation,
        shown=data.validation if len(data.validation) else data.train,
        timestep=config.model.timestep,
        sample_count=min(config.train.sample_count, 8),
        folder=config.folder,
    )

    loader = partial(training_loader, _weighted(data.train, config.objective), config.data)
    return Workload(spec, task, loader, data.fingerprint(), initialise)


def segmentation_trainer(config: SegmentConfig) -> Trainer:
    """The trainer of a segmentation run; see `make_trainer`."""
    return make_trainer(config, partial(segment_workload, config))
