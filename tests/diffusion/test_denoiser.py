"""Faster ways to call a network in sampling, beside the plain one."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.exc import InternalTorchDynamoError
from torch.testing import assert_close

from tests.networks import network, small_diffusers
from unetdiff.diffusion.denoiser import choose_sampling_precision
from unetdiff.diffusion.guidance import clip_x0
from unetdiff.diffusion.sampler import make_sampler, sample, sample_images
from unetdiff.diffusion.schedule import make_edm_schedule, make_schedule

SCHEDULER = make_schedule("cosine", target="v")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def images(name="2d", num=3, *, scheduler=SCHEDULER, unet=None, **how):
    how = {"steps": 5, "size": 8, "labels": [0, 2, 1] if name == "2d" else None, **how}
    return sample_images(unet or network(name), scheduler, num, **how)


def test_every_call_recomputed_is_plain_sampling_bit_for_bit():
    plain = images()
    assert_close(images(cache_interval=1), plain, rtol=0, atol=0)
    assert_close(images(steps=1, cache_interval=4), images(steps=1), rtol=0, atol=0)
    assert not torch.equal(images(cache_interval=2), plain)


@pytest.mark.parametrize("cache_step", [None, "encoder.level0_down"])
def test_deep_features_are_those_of_every_third_call(cache_step):
    """The same sampler around the network itself, in which a hook keeps or replaces what enters the decoder's step."""
    unet, calls, kept = network("2d"), [], []
    entry = unet.divide(cache_step).cut.entry.key

    def hook(module, args):
        if len(calls) % 3 == 1:
            kept[:] = [args[0]]
        return (kept[0], *args[1:])

    def denoise(x, timestep, labels):
        calls.append(len(x))
        return unet(x, timestep, class_labels=labels).sample

    labels = torch.tensor([0, 2, 1])
    handle = unet.step_modules()[entry].register_forward_pre_hook(hook)
    solver, how = make_sampler("dpmpp", SCHEDULER), {"shape": (2, 8, 8), "seeds": [0, 1, 2], "steps": 5}
    expected = sample(clip_x0(denoise, SCHEDULER), solver, labels=labels, **how).clamp(-1, 1)
    handle.remove()
    found = images(unet=unet, cache_interval=3, cache_step=cache_step)
    assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("sampler", "calls"), [("dpmpp", 7), ("heun", 13)])
def test_the_deep_part_runs_in_every_third_call(sampler, calls):
    unet, counted = network("2d"), Counter()
    for key, module in unet.step_modules().items():
        module.register_forward_hook(lambda _, args, out, key=key: counted.update([(key, len(out))]))
    images(unet=unet, steps=7, sampler=sampler, cache_interval=3, guidance=1.5)
    shallow = {"encoder.stem", "encoder.level0_block0", "decoder.level0_block0", "decoder.level0_block1", "head.sample"}
    assert {key: n for (key, _), n in counted.items() if key in shallow} == dict.fromkeys(shallow, calls)
    assert {n for (key, _), n in counted.items() if key not in shallow} == {-(-calls // 3)}
    assert {size for _, size in counted} == {6}  # both halves of guidance in one call


@pytest.mark.parametrize("sampler", ["dpmpp", "ddpm"])
def test_with_reuse_an_image_is_the_same_alone_and_in_any_batch(sampler):
    how = {"sampler": sampler, "cache_interval": 3, "guidance": 1.5, "steps": 7}
    together = images(num=7, **how)
    assert_close(images(num=7, batch_size=3, **how), together, rtol=0, atol=1e-4)
    assert_close(
        images(num=1, seed=4, **{**how, "labels": [2]})[0], images(num=5, labels=[2], **how)[4], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("name", "scheduler"), [("1d", SCHEDULER), ("3d", SCHEDULER), ("edm2", make_edm_schedule())])
def test_signals_volumes_and_preconditioned_networks_reuse_too(name, scheduler):
    labels = [0] if name == "3d" else None
    found = images(name, 2, scheduler=scheduler, cache_interval=2, labels=labels)
    assert found.isfinite().all()
    assert not torch.equal(found, images(name, 2, scheduler=scheduler, labels=labels))


def test_bf16_follows_float32():
    plain, low = images(), images(precision="bf16", cache_interval=1)
    assert low.dtype == torch.float32
    assert 0 < (low - plain).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"cache_interval": 0}, r"cache_interval is 0; it must be at least 1\."),
        ({"cache_step": "level0_block0"}, "'level0_block0' needs a cache_interval above 1"),
        ({"cache_interval": 2, "cache_step": "head.sample"}, "cache_step is 'head.sample'; expected a step"),
        ({"cache_interval": 2, "unet": small_diffusers()}, "needs a UNet of unetdiff, this is UNet2DModel"),
    ],
)
def test_what_cannot_be_reused_is_refused_in_one_sentence(how, message):
    with pytest.raises(ValueError, match=message):
        images(**{"name": "1d" if "unet" in how else "2d", **how})


def test_a_network_that_does_not_compile_runs_as_it_is(monkeypatch):
    def broken(function, mode):
        def call(*arguments):
            raise InternalTorchDynamoError("no C++ compiler was found\nand more")

        return call

    expected = images(cache_interval=2)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="the network was not compiled, and runs as it is: no C\\+\\+ compiler"):
        found = images(cache_interval=2, compiled=True)
    assert_close(found, expected, rtol=0, atol=0)


def test_compiled_is_equal(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: real(function, backend="aot_eager", fullgraph=True))
    how = {"name": "1d", "num": 2, "steps": 2, "cache_interval": 2}
    assert_close(images(compiled=True, **how), images(**how), rtol=0, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiles_for_real():
    how = {"name": "1d", "num": 2, "steps": 3, "cache_interval": 2}
    assert_close(images(compiled=True, **how), images(**how), rtol=0, atol=1e-4)


class Slow(nn.Module):
    """Takes longer in one precision."""

    def __init__(self, seconds):
        super().__init__()
        self.config, self.seconds = {"in_channels": 1, "sample_size": 4}, seconds
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, sample, timestep, class_labels=None):
        time.sleep(self.seconds[torch.is_autocast_enabled("cpu")])
        return SimpleNamespace(sample=self.weight * sample)


@pytest.mark.parametrize(("low", "full", "chosen"), [(0.01, 0.03, "bf16"), (0.03, 0.01, "float32")])
def test_precision_is_what_pays(low, full, chosen):
    choice = choose_sampling_precision(Slow({True: low, False: full}), batch_size=2)
    assert choice.precision == chosen
    assert "a call of the network takes" in choice.reason


@cuda
@pytest.mark.parametrize("cache_interval", [1, 2])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "euler", "heun"])
def test_no_step_waits_for_the_gpu(sampler, cache_interval):
    def watch(step, steps, x_t, x0):
        torch.cuda.set_sync_debug_mode("error" if step < steps - 1 else "default")

    unet = nn.Module.cuda(network("2d"))
    try:
        images(unet=unet, sampler=sampler, cache_interval=cache_interval, guidance=1.5, on_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.parametrize("cache_interval", [1, 2])
def test_cuda_graphs_make_the_same_images(cache_interval):
    unet = nn.Module.cuda(network("2d"))
    expected = images(unet=unet, cache_interval=cache_interval)
    assert_close(images(unet=unet, cache_interval=cache_interval, compiled=True), expected, rtol=0, atol=1e-3)
