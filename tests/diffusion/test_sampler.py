import gc
import math

import pytest
import torch
from analytic import Gaussian, Mixture, as_denoiser
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
from torch.testing import assert_close

from unetdiff.diffusion.sampler import SAMPLERS, make_sampler, sample
from unetdiff.diffusion.schedule import make_schedule

SHAPE = (2, 3000)  # 3000 independent pairs in every sample
SEEDS = [0, 1, 2, 3]
ORDERS = {"ddim": 1, "euler": 1, "dpmpp": 2, "unipc": 2, "heun": 2}
RANDOM = ["ddpm", "dpmpp_sde", "euler_ancestral"]
STEPS = dict.fromkeys(SAMPLERS, 100) | {"ddpm": 500, "euler_ancestral": 500}


def start(shape=SHAPE):
    return torch.stack([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))[0] for seed in SEEDS])


def draw(distribution, name, steps, shape=SHAPE, seeds=SEEDS, **arguments):
    solver = make_sampler(name, distribution.scheduler)
    return sample(as_denoiser(distribution), solver, shape=shape, seeds=seeds, steps=steps, **arguments)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "schedule,target", [("linear", "epsilon"), ("cosine", "v"), ("zero_terminal_snr", "v"), ("cosine", "x0")]
)
def test_every_sampler_recovers_a_gaussian(name, schedule, target):
    found = draw(Gaussian(make_schedule(schedule, target=target)), name, STEPS[name]).transpose(1, 2).flatten(0, 1)
    assert_close(found.mean(0), Gaussian.mean, rtol=0, atol=0.02)
    assert_close(found.T.cov(), Gaussian.covariance, rtol=0, atol=0.015)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_recovers_a_mixture(name):
    found = draw(Mixture(make_schedule("cosine", target="v")), name, STEPS[name], shape=(1, 3000)).flatten()
    low, high = found[found < -0.1], found[found >= -0.1]
    centres, weights = Mixture.centres, Mixture.weights
    assert_close(torch.stack([low.mean(), high.mean()]), centres, rtol=0, atol=0.01)
    assert_close(torch.stack([low.std(), high.std()]), torch.full((2,), Mixture.deviation), rtol=0, atol=0.01)
    assert_close(len(low) / len(found), weights[0].item(), rtol=0, atol=0.02)
    mean = (weights * centres).sum()
    variance = (weights * (centres - mean) ** 2).sum() + Mixture.deviation**2
    assert_close(torch.stack([found.mean(), found.var()]), torch.stack([mean, variance]), rtol=0, atol=0.02)


@pytest.mark.parametrize("schedule,name", [(s, n) for s in ("linear", "cosine", "zero_terminal_snr") for n in ORDERS])
def test_error_falls_at_the_order_of_the_solver(name, schedule):
    distribution = Gaussian(make_schedule(schedule, target="v"))
    shape = (2, 200)
    exact = distribution.flow_end(start(shape))
    few, some, many = (
        (draw(distribution, name, steps, shape) - exact).square().mean().sqrt().item() for steps in (8, 16, 32)
    )
    assert many < some < few
    order = math.log2(few / many) / 2
    assert ORDERS[name] - 0.35 < order < ORDERS[name] + 0.5
    assert many < {1: 0.05, 2: 0.015}[ORDERS[name]]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "zero_terminal_snr"])
@pytest.mark.parametrize("steps", [1, 2, 3, 61, 1000])  # 61: where trailing spacing announces timestep -1
def test_any_number_of_steps(name, schedule, steps):
    seen = []

    def denoise(x_t, timestep, class_labels):
        seen.extend(timestep.tolist())
        return torch.zeros_like(x_t)

    solver = make_sampler(name, make_schedule(schedule, target="v"))
    found = sample(denoise, solver, shape=(1, 2), seeds=[0], steps=steps)
    assert found.isfinite().all()
    assert len(seen) == (2 * steps - 1 if name == "heun" else steps)
    assert min(seen) >= 0
    assert max(seen) == seen[0]
    assert seen[0] > 900  # heun begins where the noise is 80 times the data


def test_ddim_is_that_of_diffusers_where_its_steps_divide():
    distribution = Gaussian(make_schedule("linear"))
    reference = DDIMScheduler.from_config(distribution.scheduler.config, clip_sample=False)
    expected = sample(as_denoiser(distribution), reference, shape=SHAPE, seeds=SEEDS, steps=20)
    assert_close(draw(distribution, "ddim", 20), expected, rtol=1e-3, atol=1e-3)


def test_euler_ancestral_is_that_of_diffusers():
    distribution = Gaussian(make_schedule("linear"))
    reference = EulerAncestralDiscreteScheduler.from_config(distribution.scheduler.config)
    expected = sample(as_denoiser(distribution), reference, shape=SHAPE, seeds=SEEDS, steps=20)
    assert_close(draw(distribution, "euler_ancestral", 20), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [10, 1000])
def test_ancestral_steps_have_the_variance_of_the_posterior(steps):
    """One step from the same x_t with the same x0 many times: mean and variance of q(x_s | x_t, x0)."""
    scheduler = make_schedule("linear", target="x0")
    trace = []
    sample(
        lambda x, t, labels: torch.full_like(x, 0.5),
        make_sampler("ddpm", scheduler),
        shape=(1, 20000),
        seeds=[0],
        steps=steps,
        on_step=lambda i, count, x_t, x0: trace.append(x_t.flatten()) if i in (steps // 2, steps // 2 + 1) else None,
    )
    before, after = trace
    t, s = (1000 - (steps // 2 + k) * (1000 // steps) - 1 for k in (0, 1))
    ab_t, ab_s = (scheduler.alphas_cumprod[k].double() for k in (t, s))
    variance = (1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)
    mean = (ab_s.sqrt() * (1 - ab_t / ab_s) * 0.5 + (ab_t / ab_s).sqrt() * (1 - ab_s) * before.double()) / (1 - ab_t)
    residual = after.double() - mean
    assert_close(residual.var(), variance, rtol=0.05, atol=0)
    assert abs(residual.mean()) < 4 * (variance / 20000).sqrt()


@pytest.mark.parametrize("share", [-1.0, 1.0])
def test_ddpm_uses_a_learned_variance(share):
    scheduler = make_schedule("linear", target="x0", variance="learned")

    def denoise(x_t, timestep, class_labels):
        return torch.cat([torch.zeros_like(x_t), torch.full_like(x_t, share)], dim=1)

    trace = []
    solver = make_sampler("ddpm", scheduler)
    record = {"on_step": lambda i, count, x_t, x0: trace.append(x_t.flatten()) if i in (4, 5) else None}
    sample(denoise, solver, shape=(1, 20000), seeds=[0], steps=10, **record)
    ab_t, ab_s = scheduler.alphas_cumprod[[599, 499]]
    beta = 1 - ab_t / ab_s
    variance = beta if share == 1 else beta * (1 - ab_s) / (1 - ab_t)
    residual = trace[1] - (ab_t / ab_s).sqrt() * (1 - ab_s) / (1 - ab_t) * trace[0]
    assert_close(residual.var(), variance, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ddpm"}))
def test_the_other_samplers_drop_a_learned_variance(name):
    found = []
    for variance in ("fixed", "learned"):
        scheduler = make_schedule("linear", variance=variance)

        def denoise(x_t, timestep, class_labels, copies={"fixed": 1, "learned": 2}[variance]):
            return torch.cat([0.5 * x_t] * copies, dim=1)

        found.append(sample(denoise, make_sampler(name, scheduler), shape=(4, 5), seeds=[0], steps=4))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_seed_alone(name):
    distribution = Gaussian(make_schedule("cosine", target="v"))
    shape = (2, 6)
    together = draw(distribution, name, 5, shape, seeds=range(10, 17))
    alone = draw(distribution, name, 5, shape, seeds=[13])
    assert_close(alone[0], together[3], rtol=0, atol=1e-5)
    assert not torch.allclose(together[3], together[4])


@pytest.mark.parametrize("name", RANDOM)
def test_noise_enters_at_every_step(name):
    """From one start, samplers of the SDE scatter: the start alone does not determine the end."""
    distribution = Gaussian(make_schedule("cosine", target="v"))
    exact = distribution.flow_end(start((2, 50)))
    assert (draw(distribution, name, 50, (2, 50)) - exact).std() > 0.3


def test_a_scheduler_is_not_changed_by_sampling():
    distribution = Gaussian(make_schedule("cosine", target="v"))
    solver = make_sampler("dpmpp", distribution.scheduler)
    arguments = {"shape": (2, 6), "seeds": [0], "steps": 5}
    first = sample(as_denoiser(distribution), solver, **arguments)
    assert solver.num_inference_steps is None
    assert torch.equal(sample(as_denoiser(distribution), solver, **arguments), first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_memory_does_not_grow_with_the_steps(name):
    shape, counts = (2, 37), []

    def count(step, steps, x_t, x0):
        gc.collect()
        counts.append(sum(type(thing) is torch.Tensor and thing.shape == (4, *shape) for thing in gc.get_objects()))

    gc.freeze()  # what was there before need not be counted every time
    draw(Gaussian(make_schedule("cosine", target="v")), name, 12, shape, on_step=count)
    gc.unfreeze()
    assert min(counts) >= 2
    assert max(counts[4:]) <= max(counts[:4])


def test_on_step_sees_the_way_from_noise_to_x0():
    distribution = Gaussian(make_schedule("cosine", target="v"))
    steps = []

    def look(step, count, x_t, x0):
        steps.append((step, count, x_t.std().item()))
        if step == 0:
            assert_close(x0, Gaussian.mean[:, None].expand(4, 2, 3000), rtol=0, atol=0.01)

    draw(distribution, "euler", 10, on_step=look)
    assert [step[:2] for step in steps] == [(i, 10) for i in range(10)]
    assert steps[0][2] == pytest.approx(1, abs=0.02)
    assert steps[-1][2] == pytest.approx(0.6, abs=0.1)


def test_a_name_that_is_not_known():
    with pytest.raises(ValueError, match="sampler 'plms' is not one of ddpm, ddim, "):
        make_sampler("plms", make_schedule("linear"))
