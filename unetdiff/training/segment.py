"""Training a segmentation network: from the settings to the trainer, by the kind of run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from unetdiff.segment_config import SegmentConfig
from unetdiff.training.kinds.diffusion import diffusion_workload
from unetdiff.training.kinds.features import features_workload
from unetdiff.training.kinds.joint import joint_workload
from unetdiff.training.kinds.logits import logits_workload
from unetdiff.training.loop import Trainer
from unetdiff.training.start import Workload, make_trainer

KINDS: dict[str, Callable[[SegmentConfig, int], Workload]] = {
    "logits": logits_workload,
    "features": features_workload,
    "diffusion": diffusion_workload,
    "joint": joint_workload,
}
"""By `model.kind`: (settings, samples per process and batch) -> the workload."""


def segment_workload(config: SegmentConfig, batch_size: int) -> Workload:
    """The data, the network and the task of a segmentation run."""
    return KINDS[config.model.kind](config, batch_size)


def segmentation_trainer(config: SegmentConfig) -> Trainer:
    """The trainer of a segmentation run; see `make_trainer`."""
    return make_trainer(config, partial(segment_workload, config))
