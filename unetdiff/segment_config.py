"""The settings of a segmentation run. No torch, so that `--help` answers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from unetdiff.architecture import TimeEmbedding
from unetdiff.config import DataConfig, DiffusionConfig, SamplingConfig
from unetdiff.data.mask_options import MaskDataConfig, check_read
from unetdiff.joint_options import JointConfig
from unetdiff.noise_options import NOISY, NoiseInputConfig
from unetdiff.run_config import NetworkConfig, RunConfig, parse_settings
from unetdiff.segmentation.options import ClassWeights, LossName
from unetdiff.typed import check_at_least, check_types

TWO_TASKS = ("joint",)
"""The kinds whose network learns the noise in images too."""

READ_BY_KINDS: dict[str, tuple[str, ...]] = {
    "noise_input": ("logits", "joint"),
    "joint": TWO_TASKS,
    "unlabelled": TWO_TASKS,
    "diffusion": TWO_TASKS,
    "sampling": TWO_TASKS,
}
"""The kinds that read a group of settings."""

MOST_WEIGHT = 10_000
"""The largest border weight: they are kept in half precision."""

WEIGHED: tuple[LossName, ...] = ("cross_entropy", "dice_cross_entropy", "focal")
READ_BY: dict[str, tuple[LossName, ...]] = {
    "class_weights": WEIGHED,
    "border_weight": WEIGHED,
    "label_smoothing": ("cross_entropy", "dice_cross_entropy"),
    "gamma": ("focal",),
    "alpha": ("tversky",),
    "beta": ("tversky",),
}
"""The losses that read a setting."""


@dataclass(frozen=True, kw_only=True)
class SegmentModelConfig(NetworkConfig):
    """The network. `preset` names one of the literature; settings given beside it replace its own.

    Args:
        kind: `logits`: the network says a score for every class at every position; `joint`: it does so with one head,
            and with another predicts the noise in images, so that one run samples and segments.
        init_from: a denoiser's run: the network is that denoiser's, with its weights and a new output.
        timestep: with `init_from`, the timestep (noise level) that the network is always told; none: it is left out,
            and with it everything that conditioned the denoiser. With `noise_input`, that of predictions, or a list,
            over which their probabilities are averaged. Of kind `joint`, what it is told with images to segment
            (none: 0).
        time_embedding: as of every network; `none` where nothing conditions it.
    """

    kind: Literal["logits", "joint"] = "logits"
    init_from: str | None = None
    timestep: int | list[int] | None = None
    time_embedding: TimeEmbedding = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind in TWO_TASKS and self.init_from is not None:
            raise ValueError(f"model.init_from is not for kind {self.kind}, which learns both tasks from the start")

    @property
    def told(self) -> list[int]:
        """The timesteps of predictions; none for a network that is told none."""
        held = ([0] if self.kind in TWO_TASKS else []) if self.timestep is None else self.timestep
        return held if isinstance(held, list) else [held]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss.

    Args:
        loss: `dice_cross_entropy` (Isensee et al. 2021), `cross_entropy`, `dice`, `focal` or `tversky`.
        class_weights: in cross-entropy and focal loss: `none`, `inverse_frequency` in the training masks, or one
            number per class.
        label_smoothing: share of the target spread over all classes, in cross-entropy.
        gamma: of the focal loss.
        alpha: weight of false positives in the Tversky loss.
        beta: weight of false negatives in it.
        border_weight: w0 of the weights that keep objects apart that nearly touch (Ronneberger et al. 2015: 10); 0:
            none. Objects are the connected regions of each class but the background.
        border_sigma: their width in pixels (Ronneberger et al. 2015: 5).
        background: the class between objects, by number, for border weights.
    """

    loss: LossName = "dice_cross_entropy"
    class_weights: ClassWeights | list[float] = "none"
    label_smoothing: float = 0.0
    gamma: float = 2.0
    alpha: float = 0.3
    beta: float = 0.7
    border_weight: float = 0.0
    border_sigma: float = 5.0
    background: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 0, "gamma", "alpha", "beta", "border_weight", "background")
        if 0 < self.gamma < 1:
            raise ValueError(f"objective.gamma is {self.gamma}; expected 0, or 1 or more: gradients would be infinite")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective.label_smoothing is {self.label_smoothing}; expected 0 to below 1")
        if self.border_sigma <= 0:
            raise ValueError(f"objective.border_sigma is {self.border_sigma}; expected more than 0")
        if self.border_weight > MOST_WEIGHT:
            raise ValueError(f"objective.border_weight is {self.border_weight}; expected at most {MOST_WEIGHT}")
        given = self.class_weights
        if not isinstance(given, str) and not (all(0 <= one < math.inf for one in given) and any(given)):
            raise ValueError(f"objective.class_weights is {given}; expected finite numbers of at least 0, not all 0")
        self._check_unused()

    def _check_unused(self) -> None:
        """A setting that the loss does not read is a mistake."""
        plain = {entry.name: entry.default for entry in fields(self)}
        for name, losses in READ_BY.items():
            if self.loss not in losses and getattr(self, name) != plain[name]:
                raise ValueError(
                    f"objective.{name} acts in {', '.join(losses)}, not in {self.loss}: expected {plain[name]}"
                )
        for name in ("border_sigma", "background"):
            if not self.border_weight and getattr(self, name) != plain[name]:
                raise ValueError(f"objective.{name} is of border weights: expected objective.border_weight beside it")


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


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(RunConfig):
    """Everything that a segmentation run is made of.

    Args:
        objective: the loss.
        data: where images with masks come from.
        evaluation: how held-out images are predicted and measured.
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
            changed = _changed(getattr(self, name))
            if changed and kind not in kinds:
                raise ValueError(f"{name}.{changed[0]} is of kind {' or '.join(kinds)}; model.kind is {kind}")
        if kind not in TWO_TASKS:
            return
        unread = {"diffusion.label_dropout": _changed(self.diffusion), "sampling.guidance": _changed(self.sampling)}
        for name, changed in unread.items():
            if name.partition(".")[2] in changed:
                raise ValueError(f"{name} is of classes, which condition no network of kind {kind}: leave it out")
        if self.diffusion.levels == 1:
            raise ValueError(f"diffusion.schedule is {self.diffusion.schedule}, from which kind {kind} cannot sample")
        self.sampling.check_steps(self.diffusion)
        if _changed(self.noise_input)[1:]:
            raise ValueError(f"noise_input.{_changed(self.noise_input)[1]}: kind {kind} has the noise of diffusion")

    def _check_timestep(self) -> None:
        """What the network is told, and whether it listens."""
        model, kind = self.model, self.noise_input.kind
        timed = model.init_from is not None or self.noisy or model.kind in TWO_TASKS
        if model.timestep is not None and not timed:
            raise ValueError("model.timestep is what a denoiser's body is told: expected model.init_from beside it")
        if model.time_embedding != "none" and not timed:
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


def _changed(settings: Any) -> list[str]:
    """The settings of a group that differ from their defaults."""
    plain = {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(settings)
    }
    return [name for name, value in plain.items() if getattr(settings, name) != value]


def parse_segment(arguments: Sequence[str], program: str = "train/segment.py") -> SegmentConfig:
    """The settings of a segmentation run from a command line; see `parse_settings`."""
    return parse_settings(SegmentConfig, arguments, program, "Train a segmentation network.")
