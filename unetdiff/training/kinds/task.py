"""What every kind of segmentation run shares: figures on held-out images, pictures, and the parts they take."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import Parameter

from unetdiff.data.loader import Batch
from unetdiff.data.pairs import PairData, PairSource
from unetdiff.mask_figures import case_captions, case_planes, panels
from unetdiff.models.unet import UNet
from unetdiff.objective_options import ObjectiveConfig
from unetdiff.runs import Companions
from unetdiff.segment_config import SegmentConfig
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmentation.objective import MaskObjective, border_weights, inverse_frequency
from unetdiff.segmentation.predict import Inference, predict_image
from unetdiff.segmentation.tiles import Predict
from unetdiff.training.evaluation import Evaluation, merged, write_evaluation
from unetdiff.training.processes import Agreement, first_alone

SHOWN = (
    *("loss", "images", "class_names", "mean_iou", "mean_dice", "accuracy", "iou", "dice", "ece", "nll"),
    *("mean_boundary_f", "v_rand", "v_info", "mean_hd95"),
)
"""Of the metrics of held-out images, those that go to `metrics.jsonl`."""


@dataclass(frozen=True)
class MaskTask:
    """A task of masks, whatever its kind: a kind says its loss, and how its network is asked.

    objective: the loss of class scores. held_out: whole images, may be empty; shown: what pictures are made of.
    folder: of the run.
    """

    objective: MaskObjective
    options: MetricOptions
    inference: Inference
    beside: Companions
    held_out: PairSource
    shown: PairSource
    sample_count: int
    folder: Path

    def prepare(self, batch: Batch) -> Batch:
        """The batch as it is: nothing is drawn for it."""
        return batch

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a prepared batch, a scalar."""
        raise NotImplementedError

    def held(self, network: UNet, step: int) -> Iterable[Parameter]:
        """Weights that a step, counted from 0, leaves as they are: none."""
        return ()

    def predictor(self, network: UNet) -> Predict:
        """The network as a function of images (n, C, *space) in [-1, 1] to class probabilities (n, K, *space)."""
        raise NotImplementedError

    def _look(self, network: UNet, source: PairSource, index: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """An image (*space, C), its labels (*space), and the class probabilities (K, *space) that are predicted."""
        arrays = source.read([index])
        encoded = source.format.encode(arrays["sample"])[0]
        found = predict_image(self.predictor(network), encoded, self.inference, network.multiple)
        return arrays["sample"][0], arrays["mask"][0], found

    def held_out_loss(self, network: UNet, index: int, probabilities: Tensor) -> float:
        """The loss of a held-out image, of which the probabilities (K, *space) were predicted."""
        labels = torch.from_numpy(self.held_out.read([index])["mask"])
        return float(self.objective.loss_per_sample(probabilities.clamp(min=1e-12).log()[None], labels))

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
            loss = self.held_out_loss(network, index, probabilities)
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


def shared_parts(config: SegmentConfig, data: PairData) -> dict[str, Any]:
    """The fields of `MaskTask` that every kind fills alike."""
    evaluation = config.evaluation
    return {
        "options": MetricOptions(
            class_names=data.train.encoding.class_names,
            boundary_tolerance=evaluation.boundary_tolerance,
            hd95=evaluation.hd95,
            membrane=evaluation.membrane,
        ),
        "inference": Inference(evaluation.tile, evaluation.overlap),
        "held_out": data.validation,
        "shown": data.validation if len(data.validation) else data.train,
        "sample_count": min(config.train.sample_count, 8),
        "folder": config.folder,
    }


def companions(config: SegmentConfig, data: PairData, **settings: Any) -> Companions:
    """What is stored beside a network that makes masks; settings: what its use needs, as JSON."""
    return Companions(data.train.format, masks=data.train.encoding, settings={"kind": config.model.kind, **settings})


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


def weighted(source: PairSource, objective: ObjectiveConfig) -> PairSource:
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
