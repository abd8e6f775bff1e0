"""Settings of the loss of class scores. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

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
