"""The mathematics of noise: schedules, objectives, guidance and sampling.

Nothing here knows a network: a denoiser is any callable `(x_t, timestep, class_labels) -> prediction`. The names
below are loaded when first used, so that `unetdiff.diffusion.options` can be read without importing torch.
"""

from __future__ import annotations

from unetdiff.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "make_schedule": ".schedule",
        "DiffusionObjective": ".objective",
        "drop_labels": ".objective",
        "clip_x0": ".guidance",
        "classifier_free": ".guidance",
        "SAMPLERS": ".sampler",
        "make_sampler": ".sampler",
        "sample": ".sampler",
        "sample_images": ".sampler",
        "check_combination": ".options",
    },
)
