"""The mathematics of noise: schedules, objectives, guidance and sampling.

Nothing here knows a network: a denoiser is any callable `(x_t, timestep, class_labels) -> prediction`. The names
below are loaded when first used, so that `unetdiff.diffusion.options` can be read without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "make_schedule": "schedule",
    "DiffusionObjective": "objective",
    "drop_labels": "objective",
    "clip_x0": "guidance",
    "classifier_free": "guidance",
    "SAMPLERS": "sampler",
    "make_sampler": "sampler",
    "sample": "sampler",
    "sample_images": "sampler",
    "check_combination": "options",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
