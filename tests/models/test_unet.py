"""The U-Net as a diffusers model, its named networks, its plan and its errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from torch.testing import assert_close

from tests.networks import NETWORKS, inputs, network, redraw
from unetdiff import UNet
from unetdiff.models.plan import make_plan
from unetdiff.spec import UNetSpec


def test_operations_of_a_step_are_those_of_its_convolutions() -> None:
    unet = UNet(channels=[8], blocks=1, in_channels=3, middle_attention=False)
    steps = {step.name: step for step in unet.plan_at((4, 5)).steps if step.side == "encoder"}
    assert steps["stem"].operations == 2 * 4 * 5 * 3 * 8 * 9
    embedding = 2 * 32 * 8
    assert steps["level0_block0"].operations == 2 * (2 * 4 * 5 * 8 * 8 * 9) + embedding


def test_plan_pairs_every_feature_with_its_taker() -> None:
    plan = make_plan(UNetSpec(channels=[8, 16], blocks=2))
    saved = [step.out_channels for step in plan.features]
    taken = [step.skip for step in plan.side("decoder") if step.skip]
    assert saved == [8, 8, 8, 8, 16, 16]
    assert taken == saved[::-1]
    light = make_plan(UNetSpec(channels=[8, 16], blocks=2, decoder_blocks=1))
    assert [step.name for step in light.features] == ["level0_block1", "level1_block1"]


def test_encoder_says_what_its_features_will_be() -> None:
    unet = network("three_levels")
    embedding = unet.embed(torch.tensor([3.0]), None, 1)
    features = unet.encoder(torch.randn(1, 2, 12, 12), embedding)
    assert [feature.shape[1] for feature in features] == unet.encoder.channels
    sizes = {0: 12, 1: 6, 2: 2}
    assert [feature.shape[-1] for feature in features] == [sizes[level] for level in unet.encoder.levels]
    outputs = unet.decoder(features, embedding)
    assert [tuple(output.shape) for output in outputs] == [(1, 8, 12, 12)]


def test_first_head_is_the_sample_after_loading_too(tmp_path) -> None:
    unet = UNet(channels=[8], heads={"noise": 3, "mask": 2})
    unet.save_pretrained(tmp_path)
    for model in (unet, UNet.from_pretrained(tmp_path)):
        output = model(torch.randn(1, 3, 4, 4), 1)
        assert list(output.heads) == ["noise", "mask"]
        assert output.sample is output.heads["noise"]


def test_outputs_without_dictionary() -> None:
    unet = network("2d")
    call = inputs(unet)
    assert_close(unet(**call, return_dict=False)[0], unet(**call).sample)


def test_timestep_may_be_a_number_for_the_whole_batch() -> None:
    unet = network("fourier")
    x = torch.randn(3, 2, 8, 8)
    assert_close(unet(x, 7).sample, unet(x, torch.full((3,), 7)).sample)
    assert not torch.equal(unet(x, 7).sample, unet(x, 700).sample)


REFUSED_CALLS = {
    "this network takes": lambda: network("2d")(torch.randn(1, 3, 8, 8), 1),
    "depth, height, width": lambda: network("3d")(torch.randn(1, 2, 8, 8), 1),
    "without an embedding": lambda: network("unconditioned")(torch.randn(1, 2, 8, 8), 1),
    "conditioned on the timestep": lambda: network("max_pool")(torch.randn(1, 2, 8, 8)),
    "call it with class_labels, 0 to 1": lambda: network("3d")(torch.randn(1, 2, 4, 4, 4), 1),
    "has no setting 'chanels'": lambda: UNet(chanels=[8]),
    "no preset is called 'ddpn'": lambda: UNet.from_preset("ddpn"),
}


@pytest.mark.parametrize("message", REFUSED_CALLS)
def test_wrong_calls_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED_CALLS[message]()


def test_dropout_is_active_in_training_only() -> None:
    unet = network("three_levels")
    call = inputs(unet)
    assert_close(unet(**call).sample, unet(**call).sample, rtol=0, atol=0)
    unet.train()
    assert not torch.equal(unet(**call).sample, unet(**call).sample)


@pytest.mark.parametrize("pipeline", [(DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler)])
def test_works_as_unet_of_diffusers_pipelines(pipeline) -> None:
    kind, scheduler = pipeline
    unet = UNet(**{**NETWORKS["2d"], "in_channels": 3, "sample_size": [6, 10]})
    redraw(unet, 0.05)
    images = kind(unet, scheduler(num_train_timesteps=20))(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 6, 10, 3)


def test_saved_pipeline_loads_in_a_new_process(tmp_path) -> None:
    unet = UNet(channels=[8], in_channels=3, sample_size=8)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).save_pretrained(tmp_path)
    program = f"""
import unetdiff
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained({str(tmp_path)!r})
print(type(pipeline.unet).__name__, pipeline(num_inference_steps=2).images[0].size)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "UNet (8, 8)"


@pytest.mark.slow
def test_compiles_for_real() -> None:
    """One network through the real compiler; the contract suite uses its front end only."""
    unet = UNet(channels=[8], blocks=1, in_channels=1, middle_attention=False).eval()
    redraw(unet)
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert_close(torch.compile(unet)(x, torch.tensor([3.0])).sample, unet(x, 3).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["type", "training", "forward"])
def test_heads_that_torch_could_not_hold_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"names an output '{name}'"):
        UNet(channels=[8], heads={name: 3})


@pytest.mark.parametrize(("size", "out"), [((572, 572), (388, 388)), ((188, 204), (4, 20))])
def test_the_network_of_2015_says_and_makes_a_smaller_output(size: tuple[int, int], out: tuple[int, int]) -> None:
    """Ronneberger et al. 2015, figure 1: 572 to 388."""
    with torch.device("meta"):
        unet = UNet.from_preset("unet2015")
        assert unet(torch.empty(1, 1, *size)).sample.shape == (1, 2, *out)
    assert unet.layout.output_size(size) == out


def test_sizes_that_unpadded_convolutions_cannot_take_are_named() -> None:
    with torch.device("meta"):
        unet = UNet.from_preset("unet2015")
        with pytest.raises(ValueError, match=r"size \[570, 572\] does not fit .* the next is \[572, 572\]"):
            unet(torch.empty(1, 1, 570, 572))
        with pytest.raises(ValueError, match=r"the next is \[188, 188\]"):
            unet(torch.empty(1, 1, 16, 16))


def test_an_output_without_padding_is_the_middle_of_a_larger_one() -> None:
    """What the borders do not reach: the same pixels come out of a larger crop of the same image."""
    small = {"channels": [4, 8], "decoder_blocks": [1, 0], "in_channels": 1, "sample_size": None}
    unet = redraw(UNet.from_preset("unet2015", **small))
    image = torch.randn(1, 1, 32, 32)
    whole, part = unet(image).sample, unet(image[:, :, 4:28, 4:28]).sample
    assert part.shape[-1] == whole.shape[-1] - 8
    assert_close(part, whole[:, :, 4:-4, 4:-4], rtol=1e-4, atol=1e-4)
