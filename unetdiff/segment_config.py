"""The settings of a segmentation run. No torch, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unetdiff.architecture import TimeEmbedding
from unetdiff.config import DiffusionConfig, SamplingConfig
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.feature_options import FeaturesConfig, ProbeOptions
from unetdiff.joint_options import TWO_TASKS, JointConfig, UnlabelledConfig, check_joint
from unetdiff.mask_diffusion_options import MaskDiffusionConfig, check_mask_diffusion
from unetdiff.noise_options import NOISY, NoiseInputConfig
from unetdiff.objective_options import ObjectiveConfig
from unetdiff.run_config import NetworkConfig, RunConfig, parse_settings
from unetdiff.typed import changed_fields, check_at_least, check_types

Frozen = Literal["none", "encoder", "body"]

READ_BY_KINDS: dict[str, tuple[str, ...]] = {
    "features": ("features",),
    "mask_diffusion": ("diffusion",),
    "noise_input": ("logits", "joint"),
    "joint": TWO_TASKS,
    "unlabelled": TWO_TASKS,
    "diffusion": TWO_TASKS,
    "sampling": TWO_TASKS,
}
"""The kinds that read a group of settings."""

TIMED = ("diffusion",)
"""The kinds whose network is told a timestep, and another at every call."""

CHECKS: dict[str, Callable[[Any], None]] = {
    "diffusion": check_mask_diffusion,
    **dict.fromkeys(TWO_TASKS, check_joint),
}
"""By kind: what looks at all the settings of a run."""


@dataclass(frozen=True, kw_only=True)
class SegmentModelConfig(NetworkConfig):
    """The network. `preset` names one of the literature; settings given beside it replace its own.

    Args:
        kind: `logits`: the network says a score for every class at every position; `features`: per-pixel networks
            read what the frozen denoiser of `init_from` computes; `diffusion`: masks are drawn from noise, given the
            image, as `mask_diffusion` says; `joint`: one head says scores, another predicts the noise in images, so
            that one run samples and segments.
        init_from: a denoiser's run: the network is that denoiser's, with its weights and a new output.
        timestep: with `init_from`, the timestep (noise level) that the network is always told; none: it is left out,
            and with it everything that conditioned the denoiser. With `noise_input`, that of predictions, or a list,
            over which their probabilities are averaged. Of kind `joint`, what it is told with images to segment
            (none: 0).
        freeze: with `init_from` and kind `logits`, the part of the network whose weights the first `freeze_steps` steps
            leave as they are: `encoder`, with the embedding of the timestep, up to the middle, or `body`, all but the
            output (first probing, then fine-tuning: Kumar et al. 2022, https://arxiv.org/abs/2202.10054). Their
            gradients are computed all the same.
        freeze_steps: how many.
        time_embedding: as of every network; `none` where nothing conditions it, and of kind `diffusion` `sinusoidal`.
    """

    kind: Literal["logits", "features", "diffusion", "joint"] = "logits"
    init_from: str | None = None
    timestep: int | list[int] | None = None
    freeze: Frozen = "none"
    freeze_steps: int = 0
    time_embedding: TimeEmbedding = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind in TWO_TASKS and self.init_from is not None:
            raise ValueError(f"model.init_from is not for kind {self.kind}, which learns both tasks from the start")
        check_at_least(self, 0, "freeze_steps")
        if (self.freeze == "none") != (self.freeze_steps == 0):
            held = f"model.freeze is {self.freeze} and model.freeze_steps {self.freeze_steps}"
            raise ValueError(f"{held}; expected a part and how many steps, or neither")
        if self.freeze != "none" and (self.init_from is None or self.kind != "logits"):
            raise ValueError(f"model.freeze is {self.freeze}; it is for kind logits with model.init_from")

    @property
    def told(self) -> list[int]:
        """The timesteps of predictions; none for a network that is told none."""
        held = ([0] if self.kind in TWO_TASKS else []) if self.timestep is None else self.timestep
        return held if isinstance(held, list) else [held]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How held-out images are predicted and measured.

    Args:
        tile: side of the tiles in which larger images are predicted; none: images are predicted whole.
        overlap: share of a tile that the next one covers as well.
        boundary_tolerance: positions by which a boundary may be off in boundary F; none: not measured.
        hd95: measure the 95% Hausdorff distance.
        membrane: class (number) that separates cells, for V-Rand and V-Info; none: not measured.
    """

    tile: int | None = None
    overlap: float = 0.25
    boundary_tolerance: float | None = 2.0
    hd95: bool = False
    membrane: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "tile")
        check_at_least(self, 0, "boundary_tolerance", "membrane")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"evaluation.overlap is {self.overlap}; expected 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(RunConfig):
    """Everything that a segmentation run is made of.

    Args:
        objective: the loss.
        data: where images with masks come from.
        evaluation: how held-out images are predicted and measured.
        features: of kind `features`, how the denoiser is read.
        mask_diffusion: how kind `diffusion` draws masks.
        noise_input: noise in the images that are segmented.
        joint: of kind `joint`, how its two tasks share a step.
        unlabelled: of kind `joint`, where its unlabelled images come from.
        diffusion: of kind `joint`, the noise.
        sampling: of kind `joint`, how its grids are sampled.
    """

    model: SegmentModelConfig = field(default_factory=SegmentModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: MaskDataConfig = field(default_factory=MaskDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    mask_diffusion: MaskDiffusionConfig = field(default_factory=MaskDiffusionConfig)
    noise_input: NoiseInputConfig = field(default_factory=NoiseInputConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    unlabelled: UnlabelledConfig = field(default_factory=UnlabelledConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_types(self)
        self._check_kind()
        self._check_timestep()

    @property
    def noisy(self) -> bool:
        """Whether the images that are segmented have noise in them."""
        return self.noise_input.kind in NOISY

    def _check_kind(self) -> None:
        """A setting that the kind of run does not read is a mistake."""
        kind = self.model.kind
        for name, kinds in READ_BY_KINDS.items():
            changed = changed_fields(getattr(self, name))
            if changed and kind not in kinds:
                raise ValueError(f"{name}.{changed[0]} is of kind {' or '.join(kinds)}; model.kind is {kind}")
        if kind in CHECKS:
            CHECKS[kind](self)

    def _check_timestep(self) -> None:
        """What the network is told, and whether it listens."""
        model, kind = self.model, self.noise_input.kind
        timed = model.init_from is not None or self.noisy or model.kind in TWO_TASKS
        if model.timestep is not None and not timed:
            raise ValueError("model.timestep is what a denoiser's body is told: expected model.init_from beside it")
        if model.time_embedding != "none" and not timed and model.kind not in TIMED:
            raise ValueError(f"model.time_embedding is {model.time_embedding}; nothing tells this network a timestep")
        if model.time_embedding == "none" and timed and model.init_from is None:
            raise ValueError("model.time_embedding is none; a network that is told how noisy images are needs "
                             "sinusoidal or fourier")  # fmt: skip
        if self.noisy and not model.told:
            raise ValueError(f"noise_input.kind is {kind}; expected model.timestep beside it, that of predictions")
        if isinstance(model.timestep, list) and not (self.noisy and model.timestep):
            raise ValueError(f"model.timestep is {model.timestep}; expected one number, or noise_input beside several")
        count = self.diffusion.levels if model.kind in TWO_TASKS else self.noise_input.num_train_timesteps
        for timestep in model.told:
            if timestep < 0 or (timestep >= count and model.init_from is None):
                raise ValueError(f"model.timestep is {model.timestep}; expected from 0 to {count - 1}")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(SegmentConfig):
    """The settings of a segmentation run, of which its data and `model.init_from` are read, and what is tried.

    Args:
        probe: what is tried, and how it is measured.
    """

    probe: ProbeOptions = field(default_factory=ProbeOptions)


def parse_probe(arguments: Sequence[str], program: str = "train/probe.py") -> ProbeConfig:
    """The settings of a probe from a command line; see `parse_settings`."""
    return parse_settings(ProbeConfig, arguments, program, "Rank what a denoiser computes by how well it segments.")


def parse_segment(arguments: Sequence[str], program: str = "train/segment.py") -> SegmentConfig:
    """The settings of a segmentation run from a command line; see `parse_settings`."""
    return parse_settings(SegmentConfig, arguments, program, "Train a segmentation network.")
