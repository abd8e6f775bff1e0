"""Sampling with EDM's preconditioning, against perfect denoisers put through table 1 of Karras et al. 2022."""

import math
from types import SimpleNamespace

import pytest
import torch
from analytic import Gaussian
from diffusers import EDMEulerScheduler
from torch import nn
from torch.testing import assert_close

from unetdiff.diffusion.guidance import clip_x0
from unetdiff.diffusion.process import process_of
from unetdiff.diffusion.sampler import EDM_SAMPLERS, make_sampler, sample, sample_images
from unetdiff.diffusion.schedule import make_edm_schedule

DATA = 0.5  # sigma_data
SHAPE = (2, 3000)  # 3000 independent pairs in every sample
SEEDS = [0, 1, 2, 3]


def table_1(sigma):
    """c_skip, c_out, c_in, c_noise, as the last column of the table has them."""
    total = sigma**2 + DATA**2
    return DATA**2 / total, sigma * DATA / total**0.5, 1 / total**0.5, math.log(sigma) / 4


def perfect(x, sigma):
    """E[x0 | x] for the pairs of `Gaussian`; x is (N, 2, L)."""
    values, vectors = torch.linalg.eigh(Gaussian.covariance)
    mean = Gaussian.mean[:, None]
    return mean + vectors @ ((values / (values + sigma**2))[:, None] * (vectors.T @ (x - mean)))


def network(x_t, timestep, class_labels):
    """F of that denoiser, from the network's side: its input is c_in x, its timestep c_noise."""
    sigma = math.exp(4 * timestep[0].item())
    c_skip, c_out, c_in, _ = table_1(sigma)
    x = x_t / c_in
    return (perfect(x, sigma) - c_skip * x) / c_out


def draw(name, steps, shape=SHAPE, seeds=SEEDS, **arguments):
    solver = make_sampler(name, make_edm_schedule())
    return sample(network, solver, shape=shape, seeds=seeds, steps=steps, **arguments)


@pytest.mark.parametrize("name", EDM_SAMPLERS)
def test_every_sampler_recovers_a_gaussian(name):
    found = draw(name, {"euler": 200}.get(name, 60)).transpose(1, 2).flatten(0, 1)
    assert_close(found.mean(0), Gaussian.mean, rtol=0, atol=0.02)
    assert_close(found.T.cov(), Gaussian.covariance, rtol=0, atol=0.015)


@pytest.mark.parametrize("name,order", [("euler", 1), ("dpmpp", 2)])
def test_error_falls_at_the_order_of_the_solver(name, order):
    """The probability-flow ODE keeps the standardised coordinate along each direction of the covariance."""
    shape = (2, 200)
    start = torch.stack([torch.randn(1, *shape, generator=torch.Generator().manual_seed(s))[0] for s in SEEDS])
    values, vectors = torch.linalg.eigh(Gaussian.covariance)
    mean = Gaussian.mean[:, None]
    shrink = (values / (values + 80.0**2)).sqrt()[:, None]
    exact = mean + vectors @ (shrink * (vectors.T @ (80 * start - mean)))
    errors = [(draw(name, steps, shape) - exact).square().mean().sqrt().item() for steps in (16, 32, 64)]
    assert errors[2] < errors[1] < errors[0]
    assert order - 0.35 < math.log2(errors[0] / errors[2]) / 2 < order + 0.5


def test_noise_enters_at_every_step():
    assert (draw("dpmpp_sde", 50) - draw("dpmpp", 50)).std() > 0.3


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
def test_predictions_and_x0_turn_into_each_other_as_in_table_1(sigma):
    x, output = torch.randn(2, 3, 4) * sigma, torch.randn(2, 3, 4)
    c_skip, c_out, c_in, c_noise = table_1(sigma)
    process, times = process_of(make_edm_schedule()), torch.full((2,), c_noise)
    denoised = c_skip * x + c_out * output
    assert_close(process.x0(c_in * x, times, output), denoised)
    assert_close(process.prediction(c_in * x, times, denoised), output, rtol=1e-4, atol=1e-3)
    assert_close(make_edm_schedule().precondition_outputs(x, output, sigma), denoised)
    assert_close(process.picture(c_in * x, times), x / (1 + sigma**2) ** 0.5)


def test_a_prediction_of_v_is_the_negative():
    edm = make_edm_schedule()
    negative = EDMEulerScheduler.from_config(edm.config, prediction_type="v_prediction")
    x_t, times, output = torch.randn(2, 3, 4), torch.tensor([0.1, 0.9]), torch.randn(2, 3, 4)
    assert_close(process_of(negative).x0(x_t, times, -output), process_of(edm).x0(x_t, times, output))
    x0 = torch.randn(2, 3, 4)
    assert_close(process_of(negative).prediction(x_t, times, x0), -process_of(edm).prediction(x_t, times, x0))


def test_clipping_bounds_the_denoised_sample():
    edm = make_edm_schedule()
    clipped, times = clip_x0(network, edm, bound=0.3), torch.full((2,), math.log(0.7) / 4)
    x_t = torch.randn(2, 2, 50)
    denoised = process_of(edm).x0(x_t, times, network(x_t, times, None))
    assert denoised.abs().max() > 0.4
    found = process_of(edm).x0(x_t, times, clipped(x_t, times, None))
    assert_close(found, denoised.clamp(-0.3, 0.3))


@pytest.mark.parametrize("name", EDM_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 61, 1000])
def test_any_number_of_steps_from_the_largest_noise_to_the_smallest(name, steps):
    seen = []

    def denoise(x_t, timestep, class_labels):
        seen.append(timestep[0].item())
        return torch.zeros_like(x_t)

    found = sample(denoise, make_sampler(name, make_edm_schedule()), shape=(1, 2), seeds=[0], steps=steps)
    assert found.isfinite().all()
    assert len(seen) == steps
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == pytest.approx(math.log(80) / 4)
    assert steps == 1 or seen[-1] == pytest.approx(math.log(0.002) / 4, rel=1e-5)


def test_what_is_shown_ends_in_the_sample():
    trace = []
    found = draw("dpmpp", 20, on_step=lambda step, count, x_t, x0: trace.append((x_t, x0)))
    assert trace[0][0].std().item() == pytest.approx(1, abs=0.02)
    assert_close(trace[0][1], Gaussian.mean[:, None].expand(4, 2, 3000), rtol=0, atol=0.02)
    assert_close(trace[-1][0], found, rtol=0, atol=0.02)
    assert_close(trace[-1][1], found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "unipc", "euler_ancestral", "heun"])
def test_samplers_of_betas_are_refused(name):
    with pytest.raises(ValueError, match=f"sampler '{name}' is not one of dpmpp, dpmpp_sde, euler, those of EDM's"):
        make_sampler(name, make_edm_schedule())


def test_an_unknown_prediction_is_refused():
    edm = make_edm_schedule()
    edm.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type 'sample' of an EDM schedule is not one of epsilon, v_predi"):
        process_of(edm).x0(torch.zeros(1, 1, 1), torch.zeros(1), torch.zeros(1, 1, 1))


class Small(nn.Module):
    """A network with classes that looks at its input, its noise label and its class."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = {"in_channels": 2, "sample_size": 6, "num_classes": 3, "null_class": True}
        self.embedding = nn.Embedding(4, 2)
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, sample, timestep, class_labels=None):
        assert timestep.shape == (len(sample),)
        assert timestep.is_floating_point()
        shift = (self.embedding(class_labels) + timestep[:, None])[..., None, None]
        return SimpleNamespace(sample=self.layer(sample + shift))


def images(num, **arguments):
    return sample_images(Small(), make_edm_schedule(), num, labels=[0, 2, 1], guidance=1.5, steps=4, **arguments)


@pytest.mark.parametrize("name", EDM_SAMPLERS)
def test_an_image_is_the_same_alone_and_in_any_batch(name):
    together = images(7, sampler=name, seed=5)
    assert together.shape == (7, 2, 6, 6)
    assert (together.abs() <= 1).all()
    assert_close(images(7, sampler=name, seed=5, batch_size=3), together, rtol=0, atol=1e-4)
    assert_close(images(1, sampler=name, seed=8), together[3:4], rtol=0, atol=1e-4)


def test_another_sampler_is_refused_by_name():
    with pytest.raises(ValueError, match="sampler 'heun' is not one of dpmpp, dpmpp_sde, euler"):
        images(1, sampler="heun")
