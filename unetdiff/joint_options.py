"""Settings of runs that sample and segment. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from unetdiff.typed import check_types


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
