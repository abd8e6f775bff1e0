import math
from itertools import product
from typing import get_args

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from unetdiff.diffusion.objective import DiffusionObjective, drop_labels
from unetdiff.diffusion.options import ScheduleName, VarianceName, WeightingName, check_combination
from unetdiff.diffusion.schedule import TARGETS, add_noise, make_schedule, snr, target_value

TIMESTEPS = torch.tensor([1, 50, 200, 500, 800])
ERROR = 0.1  # of x0, everywhere
GAMMA = 3.0


def pair(timesteps=TIMESTEPS):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(len(timesteps), 2, 6, generator=generator) * 2 - 1
    return x0, torch.randn(len(timesteps), 2, 6, generator=generator)


def off_by(scheduler, target, x0, noise, error, variance=None):
    """A denoiser whose x0 is wrong by `error`, with the noise that then explains x_t."""

    def denoise(x_t, timesteps, class_labels):
        alpha_bar = scheduler.alphas_cumprod[timesteps][:, None, None]
        implied = noise - (alpha_bar / (1 - alpha_bar)).sqrt() * error
        prediction = target_value(scheduler, target, x0 + error, implied, timesteps)
        return prediction if variance is None else torch.cat([prediction, variance.expand_as(x_t)], dim=1)

    return denoise


# Weight of |x0 error|² by the papers: Hang et al. 2023, section 3.4; Salimans & Ho 2022, section 4.
X0_WEIGHTS = {
    ("epsilon", "uniform"): lambda r: r,
    ("x0", "uniform"): torch.ones_like,
    ("v", "uniform"): lambda r: r + 1,
    **{(target, "min_snr"): lambda r: r.clamp(max=GAMMA) for target in TARGETS},
    **{(target, "truncated_snr"): lambda r: r.clamp(min=1) for target in TARGETS},
}
# The same as factors of the error of the prediction itself.
WEIGHTS = {
    ("epsilon", "min_snr"): lambda r: r.clamp(max=GAMMA) / r,
    ("x0", "min_snr"): lambda r: r.clamp(max=GAMMA),
    ("v", "min_snr"): lambda r: r.clamp(max=GAMMA) / (r + 1),
    ("epsilon", "truncated_snr"): lambda r: (1 / r).clamp(min=1),
    ("x0", "truncated_snr"): lambda r: r.clamp(min=1),
    ("v", "truncated_snr"): lambda r: r.clamp(min=1) / (r + 1),
}


def objective(schedule="linear", **choices):
    scheduler = make_schedule(
        schedule, target=choices.get("target", "epsilon"), variance=choices.get("variance", "fixed")
    )
    return DiffusionObjective(scheduler, min_snr_gamma=GAMMA, **choices)


def _has_meaning(target, weighting, variance, schedule):
    try:
        check_combination(target=target, weighting=weighting, variance=variance, schedule=schedule)
    except ValueError:
        return False
    return True


WEIGHTINGS, VARIANCES, SCHEDULES = (get_args(names) for names in (WeightingName, VarianceName, ScheduleName))
MATRIX = [row for row in product(TARGETS, WEIGHTINGS, VARIANCES, SCHEDULES) if _has_meaning(*row)]


@pytest.mark.parametrize("target,weighting,variance,schedule", MATRIX)
def test_matrix_of_targets_weights_variances_and_schedules(target, weighting, variance, schedule):
    loss = objective(schedule, target=target, weighting=weighting, variance=variance)
    x0, noise = pair()
    timesteps = TIMESTEPS.clamp(max=loss.scheduler.config["num_train_timesteps"] - 1)
    half = torch.zeros(1) if variance == "learned" else None
    denoise = off_by(loss.scheduler, target, x0, noise, ERROR, half)
    losses = loss.loss_per_sample(denoise, x0, noise, timesteps, None)
    ratio = snr(loss.scheduler, timesteps)
    expected = X0_WEIGHTS[target, weighting](ratio) * ERROR**2
    if variance == "learned":
        x_t = add_noise(loss.scheduler, x0, noise, timesteps)
        expected = expected + loss.variational_bound(x0, x_t, timesteps, x0 + ERROR, torch.zeros_like(x0))
    assert_close(losses.loss, expected, rtol=2e-3, atol=1e-6)
    assert_close(losses.unweighted, X0_WEIGHTS[target, "uniform"](ratio) * ERROR**2, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("target,weighting", WEIGHTS)
def test_weights_of_the_prediction(target, weighting):
    loss = objective(target=target, weighting=weighting)
    assert_close(loss.weight(TIMESTEPS), WEIGHTS[target, weighting](snr(loss.scheduler, TIMESTEPS)))


def test_last_timestep_of_zero_terminal_snr_is_trained():
    loss = objective("zero_terminal_snr", target="v", weighting="truncated_snr")
    assert_close(loss.weight(torch.tensor([999])), torch.ones(1))


def test_loss_is_float32_under_autocast_and_reaches_the_network():
    loss, (x0, noise) = objective(target="v"), pair()
    network = torch.nn.Conv1d(2, 2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = loss.loss_per_sample(lambda x, t, labels: network(x), x0.double(), noise, TIMESTEPS, None)
    assert losses.loss.dtype == torch.float32
    losses.loss.mean().backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs().min() > 0


def test_wrong_number_of_channels():
    x0, noise = pair()
    with pytest.raises(ValueError, match="returns 2 channels; variance 'learned' of data with 2 channels needs 4"):
        objective(variance="learned").loss_per_sample(lambda x, t, labels: x, x0, noise, TIMESTEPS, None)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("share", [-1.0, -0.3, 1.0])
def test_bound_is_the_divergence_of_what_diffusers_samples_from(schedule, share):
    loss = objective(schedule, variance="learned")
    scheduler, (x0, noise) = loss.scheduler, pair()
    x_t = add_noise(scheduler, x0, noise, TIMESTEPS)
    bound = loss.variational_bound(x0, x_t, TIMESTEPS, x0 + ERROR, torch.full_like(x0, share))
    fixed = make_schedule(schedule, target="x0")
    fixed.register_to_config(clip_sample=False)
    for row, t in enumerate(TIMESTEPS.tolist()):
        true_deviation = scheduler._get_variance(t, variance_type="fixed_small").sqrt()
        deviation = (0.5 * scheduler._get_variance(t, torch.tensor(share))).exp()
        sample = x_t[row : row + 1]
        mean, wrong_mean = (
            fixed.step(x, t, sample, generator=torch.Generator().manual_seed(0)).prev_sample
            for x in (x0[row : row + 1], x0[row : row + 1] + ERROR)
        )  # the same noise in both, so it cancels in the difference
        expected = kl_divergence(Normal(mean, true_deviation), Normal(wrong_mean, deviation)).mean() / math.log(2)
        assert_close(bound[row], expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("share", [-1.0, 1.0])
def test_first_timestep_is_the_likelihood_of_the_bins(share):
    loss = objective(variance="learned")
    x0 = (torch.tensor([0, 1, 100, 254, 255]) / 127.5 - 1).reshape(1, 1, -1)
    timesteps, noise = torch.zeros(1, dtype=torch.int64), torch.full_like(x0, 0.5)
    x_t = add_noise(loss.scheduler, x0, noise, timesteps)
    bound = loss.variational_bound(x0, x_t, timesteps, x0 + 0.004, torch.full_like(x0, share))
    # The mean at timestep 0 is x0 alone; its variance is beta, or the posterior's at timestep 1, the smallest there is.
    deviation = {1.0: 1e-4, -1.0: loss.scheduler._get_variance(1, variance_type="fixed_small").item()}[share] ** 0.5
    values, edge = x0.double().flatten(), 1 / 255
    upper, lower = ((values + sign * edge - values - 0.004) / deviation for sign in (1, -1))
    probability = norm.cdf(upper) - norm.cdf(lower)
    probability[0], probability[-1] = norm.cdf(upper[0]), norm.sf(lower[-1])
    assert_close(bound.double(), -torch.tensor(probability).log2().mean()[None], rtol=2e-3, atol=1e-4)


def test_bins_hold_all_probability():
    loss = objective(variance="learned")
    x0 = (torch.arange(256) / 127.5 - 1).reshape(-1, 1, 1)
    timesteps = torch.zeros(256, dtype=torch.int64)
    mean_x0 = torch.full_like(x0, 0.3)
    bits = loss.variational_bound(x0, x0, timesteps, mean_x0, torch.zeros_like(x0))
    assert_close((-bits * math.log(2)).exp().sum(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_bound_trains_the_variance_alone():
    loss, (x0, noise) = objective(variance="learned"), pair()
    prediction, variance = torch.zeros_like(x0, requires_grad=True), torch.zeros_like(x0, requires_grad=True)
    output = torch.cat([prediction, variance], dim=1)
    losses = loss.loss_per_sample(lambda x, t, labels: output, x0, noise, TIMESTEPS, None)
    losses.loss.sum().backward()
    simple = (2 * (prediction - noise) / noise[0].numel()).detach()
    assert_close(prediction.grad, simple)
    assert variance.grad.abs().min() > 0


def test_draws_depend_on_the_key_alone():
    loss = objective()
    keys = [3, 2**40 + 3, -5, 2**63 - 1]
    together = loss.draw(keys, (2, 4, 4))
    for row, key in enumerate(keys):
        alone = loss.draw([key], (2, 4, 4))
        for one, many in zip(alone, together, strict=True):
            assert torch.equal(one[0], many[row])
    assert len({noise.sum().item() for noise in together.noise}) == 4  # keys that share their low bits differ too


def test_draws_have_their_distributions():
    draws = objective().draw(range(4000), (4,))
    assert draws.noise.shape == (4000, 4)
    assert draws.timesteps.dtype == torch.int64
    assert (draws.timesteps.min(), draws.timesteps.max()) == (0, 999)
    assert_close(draws.timesteps.float().mean(), torch.tensor(499.5), rtol=0, atol=15)
    assert_close(draws.noise.mean(), torch.tensor(0.0), rtol=0, atol=0.03)
    assert_close(draws.noise.std(), torch.tensor(1.0), rtol=0, atol=0.02)
    assert_close(draws.label_uniform.mean(), torch.tensor(0.5), rtol=0, atol=0.02)
    correlation = torch.corrcoef(torch.stack([draws.timesteps.float(), draws.label_uniform, draws.noise[:, 0]]))
    assert_close(correlation, torch.eye(3), rtol=0, atol=0.06)


def test_labels_are_dropped_below_the_probability():
    labels, uniform = torch.tensor([4, 5, 6]), torch.tensor([0.0, 0.1, 0.9])
    assert drop_labels(labels, uniform, 0.1, 10).tolist() == [10, 5, 6]
    assert drop_labels(labels, uniform, 0.0, 10).tolist() == [4, 5, 6]
    assert drop_labels(labels, uniform, 1.0, 10).tolist() == [10, 10, 10]
