"""Noise schedules (diffusers' DDPMScheduler) and the three things that a network can predict about x_t.

Notation: `x_t = alpha x0 + sigma epsilon` with `alpha² = alpha_bar_t`, `sigma² = 1 - alpha_bar_t` (Ho et al. 2020,
https://arxiv.org/abs/2006.11239) and `SNR = alpha² / sigma²`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from torch import Tensor

from unetdiff.diffusion.options import ScheduleName, TargetName, VarianceName

# What a network was trained with: a table of betas, or the noise levels of EDM.
Schedule = DDPMScheduler | EDMEulerScheduler


@dataclass(frozen=True)
class Target:
    """What a network predicts, as functions of `alpha` and `sigma` that broadcast against x_t.

    Attributes:
        prediction_type: diffusers' name for it.
        value: (x0, noise, alpha, sigma) -> what the network should return.
        x0: (x_t, prediction, alpha, sigma) -> the x0 that the prediction stands for.
        error_ratio: SNR -> squared error of the prediction over squared error of its x0.
    """

    prediction_type: Literal["epsilon", "sample", "v_prediction"]
    value: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    error_ratio: Callable[[Tensor], Tensor]


# v is the velocity of Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, appendix D.
TARGETS: dict[TargetName, Target] = {
    "epsilon": Target(
        prediction_type="epsilon",
        value=lambda x0, noise, alpha, sigma: noise,
        x0=lambda x_t, epsilon, alpha, sigma: (x_t - sigma * epsilon) / alpha,
        error_ratio=lambda snr: snr,
    ),
    "x0": Target(
        prediction_type="sample",
        value=lambda x0, noise, alpha, sigma: x0,
        x0=lambda x_t, x0, alpha, sigma: x0,
        error_ratio=torch.ones_like,
    ),
    "v": Target(
        prediction_type="v_prediction",
        value=lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
        x0=lambda x_t, v, alpha, sigma: alpha * x_t - sigma * v,
        error_ratio=lambda snr: snr + 1,
    ),
}

_VARIANCE_TYPES: dict[VarianceName, Literal["fixed_small", "learned_range"]] = {
    "fixed": "fixed_small",
    "learned": "learned_range",
}


DEP_NOISE = 0.22
"""Standard deviation of the noise that denoising pretraining adds, over the data in [-1, 1] (Brempong et al. 2022)."""


def _schedule_arguments(name: ScheduleName, num_train_timesteps: int, noise_level: float) -> dict[str, Any]:
    # The betas of DDPM are meant for 1000 timesteps; scaled, any number of them ends in the same noise
    # (Nichol & Dhariwal 2021, released code).
    scale = 1000 / num_train_timesteps
    linear = {"beta_start": min(1e-4 * scale, 0.999), "beta_end": min(0.02 * scale, 0.999)}
    table: dict[ScheduleName, dict[str, Any]] = {
        "linear": {"beta_schedule": "linear", **linear},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "zero_terminal_snr": {"beta_schedule": "linear", "rescale_betas_zero_snr": True, **linear},
        "one_level": {"num_train_timesteps": 1, "trained_betas": [noise_level**2 / (1 + noise_level**2)]},
    }
    return table[name]


def make_schedule(
    name: ScheduleName,
    *,
    num_train_timesteps: int = 1000,
    target: TargetName = "epsilon",
    variance: VarianceName = "fixed",
    noise_level: float = DEP_NOISE,
) -> DDPMScheduler:
    """The scheduler to train with and to store beside the network, so that diffusers samples from it rightly.

    `linear` is Ho et al. 2020, `cosine` Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672),
    `zero_terminal_snr` the linear schedule rescaled by Lin et al. 2024 (https://arxiv.org/abs/2305.08891), who
    also give the reason for the "trailing" spacing of all three: sampling starts from pure noise, so its first
    timestep has to be the last one of training, with however few steps.

    `one_level` is no schedule to sample from but the noise of denoising pretraining (DeP, Brempong et al. 2022,
    https://arxiv.org/abs/2205.11423): one timestep, at which x_t = (x0 + s epsilon) / sqrt(1 + s^2) with s =
    `noise_level`, so alpha_bar = 1 / (1 + s^2).

    Raises:
        ValueError: fewer than two timesteps.
    """
    if num_train_timesteps < 2:
        raise ValueError(f"num_train_timesteps is {num_train_timesteps}; a schedule needs at least 2.")
    shared = {"num_train_timesteps": num_train_timesteps, "timestep_spacing": "trailing", "clip_sample": True}
    return DDPMScheduler(
        prediction_type=TARGETS[target].prediction_type,
        variance_type=_VARIANCE_TYPES[variance],
        clip_sample_range=1.0,
        **{**shared, **_schedule_arguments(name, num_train_timesteps, noise_level)},
    )


def draws_samples(scheduler: Any) -> bool:
    """Whether a schedule goes from data to noise; one with a single noise level only says how to denoise there."""
    return scheduler.config["num_train_timesteps"] > 1


def make_edm_schedule() -> EDMEulerScheduler:
    """The noise levels and the preconditioning of EDM and EDM2 (Karras et al. 2022, table 1, last column).

    sigma falls from 80 to 0.002 along equation 5 with rho 7, and data have a standard deviation of 0.5.
    """
    return EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0, prediction_type="epsilon")


def on_device(scheduler: Any, device: torch.device | str) -> Any:
    """A copy of a diffusers scheduler whose table of alpha_bar lies on `device`, so that looking up moves nothing."""
    twin = copy.copy(scheduler)
    if hasattr(twin, "alphas_cumprod"):
        twin.alphas_cumprod = twin.alphas_cumprod.to(device)
    return twin


def target_name(scheduler: Any) -> TargetName:
    """The target whose prediction a diffusers scheduler expects. Raises ValueError for one that is not in TARGETS."""
    for name, target in TARGETS.items():
        if target.prediction_type == scheduler.config.prediction_type:
            return name
    known = ", ".join(target.prediction_type for target in TARGETS.values())
    raise ValueError(f"prediction_type {scheduler.config.prediction_type!r} is not one of {known}.")


def alpha_bars(scheduler: Any, device: torch.device) -> Tensor:
    """A scheduler's alpha_bar of all timesteps on a device, moved there once: a copy makes the host wait."""
    source = scheduler.alphas_cumprod
    if source.device == device:
        return source
    kept = vars(scheduler).get("_kept_table")
    if kept is None or kept[0] is not source or kept[1].device != device:
        kept = scheduler._kept_table = (source, source.to(device))
    return kept[1]


def alpha_bar(scheduler: Any, timesteps: Tensor) -> Tensor:
    """The signal's share of the variance of x_t at timesteps (N,) in 0..T-1: (N,), float32, in [0, 1].

    Between two timesteps (some solvers ask there) the log SNR is interpolated linearly, as diffusers does it.
    """
    table = alpha_bars(scheduler, timesteps.device)
    if not timesteps.is_floating_point():
        return table[timesteps]
    below = timesteps.floor().long()
    weight = timesteps - below
    log_snr = torch.lerp(table[below].logit(), table[timesteps.ceil().long()].logit(), weight)
    return torch.where(weight == 0, table[below], log_snr.sigmoid())  # the logit of a zero alpha_bar is infinite


def snr(scheduler: Any, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) at timesteps (N,): (N,), float32, at least 0."""
    signal = alpha_bar(scheduler, timesteps)
    return signal / (1 - signal)


def alpha_sigma(scheduler: Any, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """The factors of x0 and of the noise in x_t, each (N, 1, ..., 1) with `ndim` dimensions."""
    signal = alpha_bar(scheduler, timesteps).reshape(-1, *[1] * (ndim - 1))
    return signal.sqrt(), (1 - signal).sqrt()


def add_noise(scheduler: Any, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t (N, C, *space) for x0 and noise of that shape and timesteps (N,): equation 4 of Ho et al. 2020."""
    alpha, sigma = alpha_sigma(scheduler, timesteps, x0.ndim)
    return alpha * x0 + sigma * noise


def target_value(scheduler: Any, target: TargetName, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a perfect network of that target would return, (N, C, *space), for x0 and noise of that shape."""
    return TARGETS[target].value(x0, noise, *alpha_sigma(scheduler, timesteps, x0.ndim))


def predicted_x0(scheduler: Any, target: TargetName, x_t: Tensor, timesteps: Tensor, prediction: Tensor) -> Tensor:
    """The x0 (N, C, *space) that a prediction at x_t, both of that shape, stands for."""
    return TARGETS[target].x0(x_t, prediction, *alpha_sigma(scheduler, timesteps, x_t.ndim))


def implied_noise(scheduler: Any, x_t: Tensor, timesteps: Tensor, x0: Tensor) -> Tensor:
    """The noise (N, C, *space) that together with x0 makes x_t; with a predicted x0, the predicted epsilon."""
    alpha, sigma = alpha_sigma(scheduler, timesteps, x_t.ndim)
    return (x_t - alpha * x0) / sigma


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A network's output (N, C or 2C, *space) as the prediction and, of a learned variance, its other half."""
    assert output.shape[1] in (channels, 2 * channels), f"{output.shape[1]} output channels for {channels}"
    prediction, variance = output[:, :channels], output[:, channels:]
    return prediction, variance if variance.shape[1] else None
