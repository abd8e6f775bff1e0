"""Settings of runs that sample and segment. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from unetdiff.config import DataConfig
from unetdiff.data.mask_options import check_read
from unetdiff.typed import changed_fields, check_types

TWO_TASKS = ("joint",)
"""The kinds whose network learns the noise in images too."""


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Two tasks on one trunk: the loss is that of the noise, plus `mask_weight` times that of the masks.

    Args:
        unlabelled: share of the samples of a step that are unlabelled, which learn the noise; the others have masks.
        mask_weight: what the loss of the masks counts, the loss of the noise counting 1.
    """

    unlabelled: float = 0.5
    mask_weight: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.unlabelled < 1:
            raise ValueError(f"joint.unlabelled is {self.unlabelled}; expected a share above 0 and below 1")
        if self.mask_weight <= 0:
            raise ValueError(f"joint.mask_weight is {self.mask_weight}; expected more than 0")


@dataclass(frozen=True, kw_only=True)
class UnlabelledConfig(DataConfig):
    """Where the unlabelled images of kind `joint` come from: as in a denoising run, or the labelled ones.

    Args:
        source: `labelled`: the images of `data`, as these are cut and augmented; or a source of train/denoise.py.
        size: none: images are cut as those of `data` are, at their own resolution; else as in train/denoise.py, to the
            size of these cuts.
    """

    source: Literal["labelled", "digits", "waveforms", "blobs", "digit_scenes", "folder", "dataset", "npy"] = "labelled"  # pyright: ignore[reportIncompatibleVariableOverride]
    label_column: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        own = ("digits", "waveforms", "blobs", "digit_scenes", "folder", "dataset", "npy")
        unread = [entry.name for entry in fields(self) if entry.name != "source"]
        check_read(self, "unlabelled", dict.fromkeys(unread, (("source",), own)))


def check_joint(config: Any) -> None:
    """Whether the other settings of a run, a `SegmentConfig`, are such that this kind reads them.

    Raises:
        ValueError: one is set that it does not read, or from whose noise it could not sample.
    """
    kind = config.model.kind
    unread = {
        "diffusion.label_dropout": changed_fields(config.diffusion),
        "sampling.guidance": changed_fields(config.sampling),
    }
    for name, changed in unread.items():
        if name.partition(".")[2] in changed:
            raise ValueError(f"{name} is of classes, which condition no network of kind {kind}: leave it out")
    if config.diffusion.levels == 1:
        raise ValueError(f"diffusion.schedule is {config.diffusion.schedule}, from which kind {kind} cannot sample")
    config.sampling.check_steps(config.diffusion)
    noisy = changed_fields(config.noise_input)
    if noisy[1:]:
        raise ValueError(f"noise_input.{noisy[1]}: kind {kind} has the noise of diffusion")
