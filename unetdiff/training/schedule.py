"""The learning rate as a function of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

from unetdiff.run_config import TrainConfig

# The share of the peak rate, as a function of steps since the warm-up, of all steps after it, and of the warm-up.
DECAYS: dict[str, Callable[[int, int, int], float]] = {
    "constant": lambda since, total, warmup: 1.0,
    "linear": lambda since, total, warmup: max(0.0, 1 - since / total),
    "cosine": lambda since, total, warmup: 0.5 * (1 + math.cos(math.pi * min(1.0, since / total))),
    "inverse_sqrt": lambda since, total, warmup: (max(warmup, 1) / (since + max(warmup, 1))) ** 0.5,
}


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` (counted from 0): a linear rise over `warmup_steps`, then the decay."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    since = step - config.warmup_steps
    total = max(1, config.steps - config.warmup_steps)
    return config.learning_rate * DECAYS[config.decay](since, total, config.warmup_steps)
