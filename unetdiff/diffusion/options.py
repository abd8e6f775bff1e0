"""The choices that describe a diffusion process, by name, and which of them go together. Free of torch."""

from __future__ import annotations

from typing import Literal

TargetName = Literal["epsilon", "x0", "v"]
WeightingName = Literal["uniform", "min_snr", "truncated_snr"]
VarianceName = Literal["fixed", "learned"]
ScheduleName = Literal["linear", "cosine", "zero_terminal_snr", "one_level"]
SamplingPrecision = Literal["float32", "bf16"]
SamplerName = Literal["ddpm", "ddim", "dpmpp", "dpmpp_sde", "unipc", "euler", "euler_ancestral", "heun"]

# Each row: the choices that do not go together, and why.
_MEANINGLESS: tuple[tuple[dict[str, str], str], ...] = (
    (
        {"target": "epsilon", "schedule": "zero_terminal_snr"},
        "at zero terminal SNR the input is the noise itself and says nothing about x0; use target x0 or v",
    ),
    (
        {"weighting": "min_snr", "schedule": "zero_terminal_snr"},
        "min(SNR, gamma) is zero at the last timestep, from which sampling starts; use uniform or truncated_snr",
    ),
    (
        {"target": "epsilon", "weighting": "truncated_snr", "schedule": "cosine"},
        "the weight of the noise error, 1/SNR, reaches 4e8 at the last timestep; use target x0 or v",
    ),
    (
        {"weighting": "min_snr", "schedule": "one_level"},
        "one noise level has one weight; use uniform",
    ),
    (
        {"weighting": "truncated_snr", "schedule": "one_level"},
        "one noise level has one weight; use uniform",
    ),
    (
        {"variance": "learned", "schedule": "one_level"},
        "a variance is that of a sampling step, and one noise level cannot be sampled from; use fixed",
    ),
)


def check_combination(
    *, target: TargetName, weighting: WeightingName, variance: VarianceName, schedule: ScheduleName
) -> None:
    """Raise ValueError, in one sentence that names the choices, where a combination has no meaning."""
    chosen = {"target": target, "weighting": weighting, "variance": variance, "schedule": schedule}
    for refused, reason in _MEANINGLESS:
        if refused.items() <= chosen.items():
            names = " with ".join(f"{key} {value!r}" for key, value in refused.items())
            raise ValueError(f"{names} has no meaning: {reason}.")
