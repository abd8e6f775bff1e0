"""The settings of a denoising run. No torch, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from unetdiff.data.mask_options import check_read
from unetdiff.diffusion.options import (
    SamplerName,
    ScheduleName,
    TargetName,
    VarianceName,
    WeightingName,
    check_combination,
)
from unetdiff.run_config import NetworkConfig, RunConfig, parse_settings
from unetdiff.typed import check_at_least, check_types

SAMPLER_NAMES: tuple[str, ...] = get_args(SamplerName)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(NetworkConfig):
    """The network. `preset` names one of the literature; settings given beside it replace its own.

    Args:
        class_conditional: condition on the labels where the data has them.
    """

    class_conditional: bool = True


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise.

    Args:
        target: what the network predicts: `epsilon`, `x0` or `v`.
        schedule: `linear` (Ho et al. 2020), `cosine` (Nichol & Dhariwal 2021), `zero_terminal_snr` (Lin et al. 2024);
            `one_level` for denoising pretraining (DeP, Brempong et al. 2022), which draws no samples.
        weighting: of the loss over noise levels: `uniform`, `min_snr` (Hang et al. 2023), `truncated_snr`.
        variance: `fixed`, or `learned` (Nichol & Dhariwal 2021).
        min_snr_gamma: where `min_snr` clips the signal-to-noise ratio.
        num_train_timesteps: number of noise levels.
        noise_level: of `one_level`: its noise over the data in [-1, 1], s in (x + s epsilon) / sqrt(1 + s^2).
        label_dropout: share of labels replaced by the null class in training, for classifier-free guidance.
    """

    target: TargetName = "v"
    schedule: ScheduleName = "cosine"
    weighting: WeightingName = "uniform"
    variance: VarianceName = "fixed"
    min_snr_gamma: float = 5.0
    num_train_timesteps: int = 1000
    noise_level: float = 0.22
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_types(self)
        check_combination(target=self.target, weighting=self.weighting, variance=self.variance, schedule=self.schedule)
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"diffusion.label_dropout is {self.label_dropout}; expected 0 <= label_dropout < 1")
        check_at_least(self, 2, "num_train_timesteps")
        check_at_least(self, 0, "min_snr_gamma")
        if self.noise_level <= 0:
            raise ValueError(f"diffusion.noise_level is {self.noise_level}; expected more than 0")
        check_read(self, "diffusion", READ_BY_SCHEDULES)

    @property
    def levels(self) -> int:
        """How many noise levels there are."""
        return {"one_level": 1}.get(self.schedule, self.num_train_timesteps)


READ_BY_SCHEDULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "noise_level": (("schedule",), ("one_level",)),
    "num_train_timesteps": (("schedule",), ("linear", "cosine", "zero_terminal_snr")),
}
"""The schedules that read a setting; see `check_read`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from.

    Args:
        source: `digits` (embedded real digits), `waveforms` (generated signals), `blobs` (generated volumes),
            `digit_scenes` (embedded digits on clutter; `train/segment.py` has their masks),
            `folder` (images, flat or one subfolder per class), `dataset` (parquet files or a hub name), `npy`.
        path: the folder, file or hub name (owner/name, or owner/name:configuration).
        more_paths: further folders of a `folder`.
        exclude: files of a `folder` that are left out: globs on their paths below it, such as masks/*.
        image_column: column of a `dataset` with the samples.
        label_column: column of a `dataset` with the labels; none: without labels.
        dims: spatial axes of `npy` data and array columns where the shape leaves it open.
        size: resize so that the short side fits and crop; none: all samples must have one size.
        resize: whether images are resized to `size`; false: it is cut from them as they are, in training at random
            places.
        validation_fraction: held out where the source has no split of its own.
        random_flip: mirror half of the training samples along the last axis, or along each of the spatial axes that
            are listed, counted from 0.
        random_crop: shift training samples by up to this many positions (reflected at the border).
        workers: loader processes per training process.
    """

    source: Literal["digits", "waveforms", "blobs", "digit_scenes", "folder", "dataset", "npy"] = "digits"
    path: str | None = None
    more_paths: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    image_column: str = "image"
    label_column: str | None = "label"
    dims: Literal[1, 2, 3] | None = None
    size: int | list[int] | None = None
    resize: bool = True
    validation_fraction: float = 0.02
    random_flip: bool | list[int] = False
    random_crop: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction is {self.validation_fraction}; expected 0 <= fraction < 1")
        check_at_least(self, 0, "workers", "random_crop")
        check_read(self, "data", READERS)


READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "more_paths": (("source",), ("folder",)),
    "exclude": (("source",), ("folder",)),
    "resize": (("size",), ()),
}
"""What must be set for each of these to be read; see `check_read`."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the grids of a run are sampled.

    Args:
        sampler: by name.
        steps: sampling steps.
        guidance: scale of classifier-free guidance, 1 for none.
    """

    sampler: SamplerName = "dpmpp"
    steps: int = 20
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "steps")

    def check_steps(self, diffusion: DiffusionConfig) -> None:
        """Raise `ValueError` where there are more steps than noise levels."""
        if self.steps > diffusion.num_train_timesteps:
            raise ValueError(
                f"sampling.steps is {self.steps}; expected at most diffusion.num_train_timesteps, "
                f"{diffusion.num_train_timesteps}"
            )


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig(RunConfig):
    """Everything that a denoising run is made of.

    Args:
        diffusion: the noise.
        data: where samples come from.
        sampling: how the grids of a run are sampled.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_types(self)
        self.sampling.check_steps(self.diffusion)
        if self.diffusion.levels == 1:
            return  # nothing that the network would have to be told
        if self.model.time_embedding == "none":
            raise ValueError("model.time_embedding is none; a denoiser needs sinusoidal or fourier")
        if self.model.placement.time == "none":
            raise ValueError("model.norm.time is none; a denoiser needs add, scale_shift or scale")


def parse_denoise(arguments: Sequence[str], program: str = "train/denoise.py") -> DenoiseConfig:
    """The settings of a denoising run from a command line; see `parse_settings`."""
    return parse_settings(DenoiseConfig, arguments, program, "Train a denoiser.")
