"""The settings of masks that a diffusion model draws, kind `diffusion` of a segmentation run. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from unetdiff.diffusion.options import SamplerName, ScheduleName, WeightingName, check_combination
from unetdiff.typed import check_at_least, check_types

ConditioningName = Literal["concat", "encoder"]
CodeName = Literal["one_hot", "bits"]
MaskTargetName = Literal["cross_entropy", "x0", "epsilon", "v"]


@dataclass(frozen=True, kw_only=True)
class MaskDiffusionConfig:
    """How masks are drawn, given the image.

    Args:
        conditioning: `concat`: the image is given to the network beside the noisy mask; `encoder`: a network of its
            own, without timestep, makes features of the image, once per image, and those are given (the idea of
            SegDiff, Amit et al. 2021).
        encoding: of classes as numbers, 1 and -1: `one_hot`, a channel per class, or `bits`, the binary digits of the
            class (analog bits, Chen et al. 2023, https://arxiv.org/abs/2208.04202).
        scale: what those are multiplied by before noise is added: a scale b lowers the signal-to-noise ratio of every
            timestep by b^2. Large masks, whose neighbours repeat each other, take less (Chen et al. 2023: 0.1 for
            panoptic masks); of small ones little is left at 0.1 until the last steps, and the masks that are drawn
            hardly differ. What is drawn is kept within [-b, b], and the network sees the noisy mask brought to unit
            mean square.
        target: what the network says: `cross_entropy`, a score per class, whose softmax is the expected mask; or by
            squared error `x0`, `epsilon` or `v`.
        weighting: of timesteps in the squared error.
        schedule: how noise grows over the timesteps.
        num_train_timesteps: how many timesteps there are.
        sampler: what draws masks, unless told otherwise: those of images.
        steps: in how many steps it draws them.
        masks: how many per image in validation, and where nobody says how many.
        encoder_channels: with `encoder`, the widths of the image's network; none: those of the model.
        feature_channels: with `encoder`, how many features it makes of the image.
    """

    conditioning: ConditioningName = "concat"
    encoding: CodeName = "one_hot"
    scale: float = 1.0
    target: MaskTargetName = "cross_entropy"
    weighting: WeightingName = "uniform"
    schedule: ScheduleName = "cosine"
    num_train_timesteps: int = 1000
    sampler: SamplerName = "ddim"
    steps: int = 20
    masks: int = 1
    encoder_channels: list[int] | None = None
    feature_channels: int = 16

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 2, "num_train_timesteps")
        check_at_least(self, 1, "steps", "masks", "feature_channels")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"mask_diffusion.scale is {self.scale}; expected a number above 0")
        if self.steps > self.num_train_timesteps:
            raise ValueError(
                f"mask_diffusion.steps is {self.steps}; expected at most num_train_timesteps, "
                f"{self.num_train_timesteps}"
            )
        if self.encoder_channels is not None and not (self.encoder_channels and min(self.encoder_channels) >= 1):
            raise ValueError(f"mask_diffusion.encoder_channels is {self.encoder_channels}; expected a width per level")
        self._check_unread()
        target = "x0" if self.by_classes else self.target
        check_combination(target=target, weighting=self.weighting, variance="fixed", schedule=self.schedule)  # pyright: ignore[reportArgumentType]

    @property
    def by_classes(self) -> bool:
        """Whether the network says class scores, and not a mask's numbers."""
        return self.target == "cross_entropy"

    @property
    def encodes(self) -> bool:
        """Whether the image has a network of its own."""
        return self.conditioning == "encoder"

    def _check_unread(self) -> None:
        """A setting that nothing reads is a mistake."""
        plain = MaskDiffusionConfig.__dataclass_fields__
        unread = {} if self.encodes else dict.fromkeys(("encoder_channels", "feature_channels"), "conditioning encoder")
        unread |= {"weighting": "a target of squared error, x0, epsilon or v"} if self.by_classes else {}
        for name, reader in unread.items():
            if getattr(self, name) != plain[name].default:
                raise ValueError(f"mask_diffusion.{name} is read with {reader}: expected both, or neither")


def check_mask_diffusion(config: Any) -> None:
    """Whether the other settings of a run, a `SegmentConfig`, are such that this kind reads them.

    Raises:
        ValueError: one is set that it does not read.
    """
    model, objective, evaluation = config.model, config.objective, config.evaluation
    if model.timestep is not None:
        raise ValueError("model.timestep is set; a mask's network is told the timestep of its noise: leave it out")
    if model.init_from is not None:
        raise ValueError("model.init_from is set; a mask's network starts from random weights: leave it out")
    if model.backbone is not None:
        raise ValueError("model.backbone is set; it takes images alone, not noisy masks beside them: leave it out")
    if model.convolutions != "same":
        raise ValueError("model.convolutions is valid; masks are drawn at the size of the image: expected same")
    if evaluation.tile is not None:
        raise ValueError("evaluation.tile is set; a mask is drawn of a whole image: leave it out")
    plain = type(objective)()
    if config.mask_diffusion.by_classes:
        if objective.loss not in (plain.loss, "cross_entropy"):
            raise ValueError(f"objective.loss is {objective.loss}; mask_diffusion.target says what is learned")
    elif objective != plain:
        raise ValueError("objective is of class scores; mask_diffusion.target says that the error is squared")
