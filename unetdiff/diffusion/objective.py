"""What a denoiser is trained on: targets, loss weights, learned variance, and the draws of every sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from unetdiff.diffusion.guidance import Denoiser
from unetdiff.diffusion.options import TargetName, VarianceName, WeightingName
from unetdiff.diffusion.schedule import TARGETS, add_noise, alpha_bars, predicted_x0, snr, split_variance, target_value

# Weight of the squared error of x0 at a signal-to-noise ratio, (SNR, gamma) -> weight; `uniform` is the one that
# weighs the error of the prediction itself, so its weight of x0 is the target's own.
_X0_WEIGHTS: dict[WeightingName, Callable[[Tensor, float], Tensor]] = {
    "min_snr": lambda ratio, gamma: ratio.clamp(max=gamma),  # Hang et al. 2023, https://arxiv.org/abs/2303.09556
    "truncated_snr": lambda ratio, gamma: ratio.clamp(min=1),  # Salimans & Ho 2022, section 4
}

_VLB_SHARE = 0.001  # lambda of Nichol & Dhariwal 2021, section 3.1


class SampleLosses(NamedTuple):
    """Per-sample results (N,), float32: the loss to minimise, and the plain squared error of the prediction."""

    loss: Tensor
    unweighted: Tensor


class Draws(NamedTuple):
    """Everything random that a batch's loss takes: noise (N, C, *space), timesteps (N,), label_uniform (N,)."""

    noise: Tensor
    timesteps: Tensor
    label_uniform: Tensor


@dataclass(frozen=True)
class DiffusionObjective:
    """The loss of a denoiser at given noise and timesteps.

    Attributes:
        scheduler: the noise schedule, see `make_schedule`.
        target: what the network predicts.
        weighting: how the squared errors of different timesteps count.
        variance: "learned" takes 2C output channels and adds the variational bound that trains the second half:
            the hybrid objective of Nichol & Dhariwal 2021, equation 16, https://arxiv.org/abs/2102.09672.
        min_snr_gamma: gamma of the min_snr weighting.
        levels: the number of values that data take in [-1, 1], for the likelihood of the last step.
    """

    scheduler: DDPMScheduler
    target: TargetName = "epsilon"
    weighting: WeightingName = "uniform"
    variance: VarianceName = "fixed"
    min_snr_gamma: float = 5.0
    levels: int = 256

    def __post_init__(self) -> None:
        expected = TARGETS[self.target].prediction_type
        assert self.scheduler.config["prediction_type"] == expected, "the scheduler is of another target"

    def loss_per_sample(
        self, denoise: Denoiser, x0: Tensor, noise: Tensor, timesteps: Tensor, class_labels: Tensor | None
    ) -> SampleLosses:
        """Losses (N,), means over channels and space in float32 whatever the precision of the network.

        Args:
            denoise: called once, with x_t.
            x0, noise: (N, C, *space), x0 in [-1, 1].
            timesteps: (N,) int64 in 0..T-1.
            class_labels: (N,) int64, or None.

        Raises:
            ValueError: the number of output channels is not what the variance setting asks for.
        """
        x_t = self.noisy(x0, noise, timesteps)
        return self.score(denoise(x_t, timesteps, class_labels), x0, x_t, noise, timesteps)

    def noisy(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (N, C, *space) of x0 and noise at timesteps (N,), in float32."""
        return add_noise(self.scheduler, x0.float(), noise.float(), timesteps)

    def score(self, output: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, timesteps: Tensor) -> SampleLosses:
        """The losses of what a network returned for x_t; arguments and errors as of `loss_per_sample`."""
        x0, noise, output = x0.float(), noise.float(), output.float()
        expected = x0.shape[1] * (2 if self.variance == "learned" else 1)
        if output.shape[1] != expected:
            raise ValueError(
                f"The network returns {output.shape[1]} channels; variance {self.variance!r} of data with "
                f"{x0.shape[1]} channels needs {expected}."
            )
        prediction, variance = split_variance(output, x0.shape[1])
        truth = target_value(self.scheduler, self.target, x0, noise, timesteps)
        unweighted = (prediction - truth).square().flatten(1).mean(1)
        loss = self.weight(timesteps) * unweighted
        if variance is not None:
            # The bound trains the variance alone: the mean is learned from the simple loss, section 3.1.
            mean_x0 = predicted_x0(self.scheduler, self.target, x_t, timesteps, prediction.detach())
            bound = self.variational_bound(x0, x_t, timesteps, mean_x0, variance)
            loss = loss + _VLB_SHARE * self.scheduler.config["num_train_timesteps"] * bound
        return SampleLosses(loss, unweighted)

    def weight(self, timesteps: Tensor) -> Tensor:
        """The factor (N,) of the squared error of the prediction at timesteps (N,).

        min_snr and truncated_snr weigh the error of x0; divided by the target's `error_ratio` they are the same
        loss for every target.
        """
        if self.weighting == "uniform":
            return torch.ones(timesteps.shape, device=timesteps.device)
        ratio = snr(self.scheduler, timesteps)
        return _X0_WEIGHTS[self.weighting](ratio, self.min_snr_gamma) / TARGETS[self.target].error_ratio(ratio)

    def variational_bound(
        self, x0: Tensor, x_t: Tensor, timesteps: Tensor, mean_x0: Tensor, variance: Tensor
    ) -> Tensor:
        """The term of the variational bound at each sample's timestep, (N,), in bits per dimension.

        KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)), and at timestep 0 the negative log-likelihood of x0 under the
        discretised p: equations 4 to 7 of Nichol & Dhariwal 2021.

        Args:
            x0, x_t: (N, C, *space).
            timesteps: (N,) int64.
            mean_x0: the x0 that the network predicts, (N, C, *space).
            variance: the second half of the network's output, (N, C, *space): -1 stands for the variance of the
                posterior, 1 for beta, in between their logarithms are interpolated.
        """
        posterior = _posterior(self.scheduler, timesteps, x_t.ndim)
        true_mean, model_mean = posterior.mean(x_t, x0), posterior.mean(x_t, mean_x0)
        share = (variance + 1) / 2
        log_variance = share * posterior.log_beta + (1 - share) * posterior.log_variance
        divergence = _normal_kl(true_mean, posterior.log_variance, model_mean, log_variance)
        likelihood = _discretised_log_likelihood(x0, model_mean, log_variance, self.levels)
        first = (timesteps == 0).reshape(-1, *[1] * (x0.ndim - 1))
        return torch.where(first, -likelihood, divergence).flatten(1).mean(1) / math.log(2)

    def draw(self, keys: Sequence[int], shape: Sequence[int]) -> Draws:
        """Noise, timesteps and a uniform number for label dropout, each sample's a function of its key alone.

        Args:
            keys: one integer per sample, of up to 64 bits; equal keys give equal draws in any batch.
            shape: (C, *space) of one sample.

        Returns:
            CPU tensors: normal noise (N, C, *space), timesteps (N,) int64 uniform over 0..T-1, label_uniform (N,)
            in [0, 1).
        """
        generator = torch.Generator()
        count = self.scheduler.config["num_train_timesteps"]
        noise = torch.empty(len(keys), *shape)
        timesteps = torch.empty(len(keys), dtype=torch.int64)
        label_uniform = torch.empty(len(keys))
        for row, key in enumerate(keys):
            generator.manual_seed(_seed(key))
            timesteps[row] = torch.randint(count, (), generator=generator)
            label_uniform[row] = torch.rand((), generator=generator)
            noise[row].normal_(generator=generator)
        return Draws(noise, timesteps, label_uniform)


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, null_class: int) -> Tensor:
    """Labels (N,) with those whose `uniform` (N,), in [0, 1), is below `probability` replaced by `null_class`.

    Trains the unconditional denoiser of classifier-free guidance beside the conditional one (Ho & Salimans 2022).
    """
    return torch.where(uniform.to(labels.device) < probability, null_class, labels)


def _seed(key: int) -> int:
    # torch's CPU generator reads only the low 32 bits of a seed; this mixes all 64 of the key into them.
    return int(np.random.SeedSequence(key % 2**64).generate_state(1)[0])


class _Posterior(NamedTuple):
    """q(x_{t-1} | x_t, x0) of Ho et al. 2020, equations 6 and 7; every field (N, 1, ..., 1)."""

    x0_factor: Tensor
    x_t_factor: Tensor
    log_variance: Tensor
    log_beta: Tensor

    def mean(self, x_t: Tensor, x0: Tensor) -> Tensor:
        return self.x0_factor * x0 + self.x_t_factor * x_t


def _posterior(scheduler: DDPMScheduler, timesteps: Tensor, ndim: int) -> _Posterior:
    signal = alpha_bars(scheduler, timesteps.device)
    before = torch.cat([torch.ones_like(signal[:1]), signal[:-1]])
    beta = 1 - signal / before
    variance = (1 - before) / (1 - signal) * beta
    variance[0] = variance[1]  # it is zero at timestep 0 and has no logarithm; the released code of the paper
    fields = (
        before.sqrt() * beta / (1 - signal),
        (1 - beta).sqrt() * (1 - before) / (1 - signal),
        variance.log(),
        beta.log(),
    )
    return _Posterior(*(field[timesteps].reshape(-1, *[1] * (ndim - 1)) for field in fields))


def _normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence, in nats, of a normal distribution from another, elementwise."""
    difference = log_variance - other_log_variance
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (difference.exp() - 1 - difference + distance)


def _discretised_log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor, levels: int) -> Tensor:
    """Log-probability, in nats, that a normal variable falls into the bin of x0, elementwise.

    The bins are `levels` equal intervals around values from -1 to 1, the first and the last open outwards
    (Ho et al. 2020, equation 13).
    """
    half = 1 / (levels - 1)
    inverse_deviation = (-0.5 * log_variance).exp()
    upper = (x0 + half - mean) * inverse_deviation
    lower = (x0 - half - mean) * inverse_deviation
    inside = (torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12).log()
    above = torch.where(x0 >= 1 - half, torch.special.log_ndtr(-lower), inside)
    return torch.where(x0 <= -1 + half, torch.special.log_ndtr(upper), above)
