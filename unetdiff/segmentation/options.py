"""The words and values of segmentation that settings name. No torch."""

from __future__ import annotations

from typing import Literal

IGNORE = -1
"""The label of positions that count nowhere: not in a loss, not in a figure."""

LossName = Literal["cross_entropy", "dice", "dice_cross_entropy", "focal", "tversky"]
ClassWeights = Literal["none", "inverse_frequency"]
