import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from unetdiff.diffusion.schedule import (
    TARGETS,
    add_noise,
    alpha_bar,
    implied_noise,
    make_schedule,
    predicted_x0,
    snr,
    split_variance,
    target_name,
    target_value,
)

SCHEDULES = ["linear", "cosine", "zero_terminal_snr"]
TIMESTEPS = torch.tensor([0, 1, 10, 250, 500, 900, 999])


def pair(timesteps=TIMESTEPS):
    generator = torch.Generator().manual_seed(0)
    shape = (len(timesteps), 3, 4, 5)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_linear_schedule_is_that_of_ddpm():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = torch.cumprod(1 - betas, 0)[TIMESTEPS].float()
    assert_close(alpha_bar(make_schedule("linear"), TIMESTEPS), expected, rtol=1e-4, atol=0)


def test_cosine_schedule_is_that_of_the_paper():
    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = torch.tensor([f(t + 1) / f(0) for t in TIMESTEPS[:-1].tolist()])  # beta is capped at the last
    assert_close(alpha_bar(make_schedule("cosine"), TIMESTEPS[:-1]), expected, rtol=1e-3, atol=1e-6)


def test_zero_terminal_snr_is_zero_and_starts_like_linear():
    zero, linear = make_schedule("zero_terminal_snr", target="v"), make_schedule("linear")
    assert snr(zero, TIMESTEPS)[-1] == 0
    assert_close(alpha_bar(zero, TIMESTEPS[:1]), alpha_bar(linear, TIMESTEPS[:1]))


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("count", [10, 100, 4000])
def test_any_number_of_timesteps_ends_in_noise(name, count):
    assert alpha_bar(make_schedule(name, num_train_timesteps=count), torch.tensor([count - 1])) < 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_stored_schedule_loads_in_diffusers(name, tmp_path):
    scheduler = make_schedule(name, target="v", variance="learned")
    scheduler.save_pretrained(tmp_path)
    loaded = DDPMScheduler.from_pretrained(tmp_path)
    assert_close(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    assert (loaded.config.prediction_type, loaded.variance_type) == ("v_prediction", "learned_range")
    loaded.set_timesteps(10)
    assert loaded.timesteps[0] == 999  # sampling from pure noise starts where training saw it


def test_too_few_timesteps():
    with pytest.raises(ValueError, match="num_train_timesteps is 1"):
        make_schedule("linear", num_train_timesteps=1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_and_velocity_equal_those_of_diffusers(name):
    scheduler, (x0, noise) = make_schedule(name), pair()
    assert_close(add_noise(scheduler, x0, noise, TIMESTEPS), scheduler.add_noise(x0, noise, TIMESTEPS))
    assert_close(target_value(scheduler, "v", x0, noise, TIMESTEPS), scheduler.get_velocity(x0, noise, TIMESTEPS))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_perfect_prediction_gives_back_x0_and_noise(name, target):
    timesteps = TIMESTEPS[1:-1]  # at either end one of the two has left x_t
    scheduler, (x0, noise) = make_schedule(name, target=target), pair(timesteps)
    x_t = add_noise(scheduler, x0, noise, timesteps)
    value = target_value(scheduler, target, x0, noise, timesteps)
    found = predicted_x0(scheduler, target, x_t, timesteps, value)
    assert_close(found, x0, rtol=1e-4, atol=1e-4)
    assert_close(implied_noise(scheduler, x_t, timesteps, found), noise, rtol=1e-3, atol=1e-3)
    assert target_name(scheduler) == target


@pytest.mark.parametrize("target", TARGETS)
def test_predicted_x0_is_that_of_the_diffusers_step(target):
    scheduler = make_schedule("linear", target=target)
    x_t, prediction = pair(TIMESTEPS[:1])
    expected = scheduler.step(prediction, 400, x_t).pred_original_sample
    assert_close(predicted_x0(scheduler, target, x_t, torch.tensor([400]), prediction).clamp(-1, 1), expected)


def test_between_timesteps_the_log_snr_is_interpolated():
    scheduler = make_schedule("zero_terminal_snr", target="v")
    at = snr(scheduler, torch.tensor([300, 301]))
    assert_close(snr(scheduler, torch.tensor([300.5])), at.log().mean().exp()[None])
    assert_close(alpha_bar(scheduler, TIMESTEPS.float()), alpha_bar(scheduler, TIMESTEPS))


def test_target_that_is_not_known():
    scheduler = make_schedule("linear")
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="'flow' is not one of epsilon, sample, v_prediction"):
        target_name(scheduler)


def test_split_variance():
    output = torch.arange(6.0).reshape(1, 6, 1)
    prediction, variance = split_variance(output, 3)
    assert_close(prediction.flatten(), torch.tensor([0.0, 1, 2]))
    assert_close(variance.flatten(), torch.tensor([3.0, 4, 5]))
    assert split_variance(output, 6)[1] is None
