"""The settings of a segmentation run. No torch, so that `--help` answers at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from unetdiff.architecture import TimeEmbedding
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.feature_options import FeaturesConfig, ProbeOptions
from unetdiff.mask_diffusion_options import MaskDiffusionConfig, check_mask_diffusion
from unetdiff.run_config import NetworkConfig, RunConfig, parse_settings
from unetdiff.segmentation.options import ClassWeights, LossName
from unetdiff.typed import check_at_least, check_types

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

TIMED = ("diffusion",)
"""The kinds whose network is told a timestep without starting from a denoiser."""

READ_BY_KINDS: dict[str, tuple[str, ...]] = {"features": ("features",), "mask_diffusion": ("diffusion",)}
"""The kinds that read a group of settings."""

CHECKS: dict[str, Callable[[Any], None]] = {"diffusion": check_mask_diffusion}
"""By kind: what looks at all the settings of a run."""


@dataclass(frozen=True, kw_only=True)
class SegmentModelConfig(NetworkConfig):
    """The network. `preset` names one of the literature; settings given beside it replace its own.

    Args:
        kind: `logits`: the network says a score for every class at every position; `features`: per-pixel networks
            read what the frozen denoiser of `init_from` computes; `diffusion`: masks are drawn from noise, given the
            image, as `mask_diffusion` says.
        init_from: a denoiser's run: the network is that denoiser's, with its weights and a new output.
        timestep: with `init_from`, the timestep (noise level) that the network is always told; none: it is left out,
            and with it everything that conditioned the denoiser.
        time_embedding: as of every network; `none` where nothing conditions it, and of kind `diffusion` `sinusoidal`.
    """

    kind: Literal["logits", "features", "diffusion"] = "logits"
    init_from: str | None = None
    timestep: int | None = None
    time_embedding: TimeEmbedding = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "timestep")
        if self.timestep is not None and self.init_from is None:
            raise ValueError("model.timestep is what a denoiser's body is told: expected model.init_from beside it")
        if self.init_from is None and self.time_embedding != "none" and self.kind not in TIMED:
            raise ValueError(f"model.time_embedding is {self.time_embedding}; nothing tells this network a timestep")


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
class SegmentConfig(RunConfig):
    """Everything that a segmentation run is made of.

    Args:
        objective: the loss.
        data: where images with masks come from.
        evaluation: how held-out images are predicted and measured.
        features: of kind `features`, how the denoiser is read.
        mask_diffusion: how kind `diffusion` draws masks.
    """

    model: SegmentModelConfig = field(default_factory=SegmentModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: MaskDataConfig = field(default_factory=MaskDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    mask_diffusion: MaskDiffusionConfig = field(default_factory=MaskDiffusionConfig)

    def __post_init__(self) -> None:
        check_types(self)
        self._check_kind()

    def _check_kind(self) -> None:
        """A setting that the kind of run does not read is a mistake."""
        kind = self.model.kind
        for name, kinds in READ_BY_KINDS.items():
            changed = _changed(getattr(self, name))
            if changed and kind not in kinds:
                raise ValueError(f"{name}.{changed[0]} is of kind {' or '.join(kinds)}; model.kind is {kind}")
        if kind in CHECKS:
            CHECKS[kind](self)


def _changed(settings: Any) -> list[str]:
    """The settings of a group that differ from their defaults."""
    plain = {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(settings)
    }
    return [name for name, value in plain.items() if getattr(settings, name) != value]


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
