"""A frozen denoiser that segments: its features against plain interpolation, its answer against its members'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import FeatureNetwork, UNet
from unetdiff.models.frozen_features import FrozenFeatures, at_full_size, at_positions, blocks_of, shared_noise
from unetdiff.nn.dims import INTERPOLATION
from unetdiff.presets import preset

SPACES = {1: (21,), 2: (11, 14), 3: (5, 6, 7)}
VALID = {**preset("unet2015"), "decoder_blocks": [1, 0]}
SIGNALS = [float(DDPMScheduler().alphas_cumprod[timestep]) for timestep in (20, 300)]


def make(dims: int = 2, members: int = 3, **denoiser: Any) -> FeatureNetwork:
    """A small network whose weights are all random."""
    torch.manual_seed(0)
    spec = {"channels": [4, 8], "blocks": 1, "dims": dims, "in_channels": 2, **denoiser}
    body = UNet(**spec)
    blocks = blocks_of(body.layout, "decoder")
    network = FeatureNetwork(body.spec.to_json(), blocks, [20, 300], SIGNALS, 3, members, [6, 5])
    redraw(network)
    return network


def images(dims: int, count: int = 2) -> Tensor:
    return torch.randn(count, 2, *SPACES[dims], generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def every_place(dims: int, count: int, members: int) -> Tensor:
    size = torch.Size(SPACES[dims]).numel()
    return torch.arange(size).expand(count, members, size)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_single_positions_are_what_interpolation_has_there(dims: int) -> None:
    """Against torch's own interpolation of the padded image, which is cut to the image."""
    padded = tuple(-(-length // 4) * 4 for length in SPACES[dims])
    maps = torch.randn(2, 3, *(length // 4 for length in padded))
    whole = F.interpolate(maps, size=padded, mode=INTERPOLATION[dims], align_corners=False)
    whole = whole[(..., *(slice(length) for length in SPACES[dims]))]
    assert_close(at_full_size(maps, padded, SPACES[dims]), whole)
    places = every_place(dims, 2, 1)[:, 0]
    assert_close(at_positions(maps, places, padded, SPACES[dims]), whole.flatten(2).movedim(1, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_answer_is_the_mean_of_the_members(dims: int) -> None:
    """Every position read on its own, features first and layers after, is what is said of the whole image."""
    network, given = make(dims).eval(), images(dims)
    found = network(given).sample
    assert found.shape == (2, 3, *SPACES[dims])
    single = network(given, every_place(dims, 2, 3)).sample.softmax(2)
    assert_close(found.softmax(1).flatten(2), single.mean(1))
    assert_close(found.exp(), found.softmax(1))
    assert single.std(1).max() > 1e-3  # members that are alike would hide an error
    apart = every_place(dims, 2, 3).clone()
    apart[:, 1] = apart[:, 1].flip(-1)
    assert_close(network(given, apart).sample.softmax(2)[:, 1], single[:, 1].flip(-1))
    each = torch.stack([one.exp() for one in network.answers(given)], dim=1)
    assert_close(each.flatten(3), single)


def test_a_step_sees_the_image_under_noise_of_its_level() -> None:
    """x_t of Ho et al. 2020, by diffusers' scheduler, and the first convolution applied to it."""
    denoiser = make().features.denoiser
    reader, given = FrozenFeatures(denoiser, ["encoder.stem"], [20, 300], SIGNALS), images(2)
    noise = shared_noise(given).expand_as(given)
    scheduler = DDPMScheduler()
    levels = [torch.IntTensor([timestep]) for timestep in (20, 300)]
    noisy = [scheduler.add_noise(given, noise, level) for level in levels]  # pyright: ignore[reportArgumentType]
    padded = [F.pad(one, (0, 0, 0, 1), mode="reflect") for one in noisy]
    stem = denoiser.step_modules()["encoder.stem"]
    assert_close(reader(given)[0], torch.cat([stem(one, None, None) for one in padded], dim=1))
    assert abs(float(noise.std()) - 1) < 0.1


def test_noise_is_the_same_for_every_image_and_call() -> None:
    network = make().eval()
    given = images(2, 3)
    torch.manual_seed(5)
    together = network.features(given)
    torch.manual_seed(6)
    for alone, whole in zip(network.features(given[1:2]), together, strict=True):
        assert_close(alone, whole[1:2])
    assert_close(shared_noise(given), shared_noise(given[:1]))


def test_the_denoiser_is_frozen_in_every_mode() -> None:
    """No gradients, no dropout, and the statistics of batch norm do not drift."""
    batch = {"pos": "pre", "norm": {"kind": "batch"}}
    network = make(dropout=0.5, norm={"encoder": batch, "decoder": batch, "time": "add"}).train()
    assert not network.features.denoiser.training
    assert not any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())
    before = {name: value.clone() for name, value in network.features.state_dict().items()}
    first, second = (network(images(2), every_place(2, 2, 3)).sample for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)
    first.sum().backward()
    assert_close(network.features.state_dict(), before, rtol=0, atol=0)
    with_gradient = {name.split(".")[0] for name, value in network.named_parameters() if value.grad is not None}
    assert with_gradient == {"ensemble"}
    assert all(value.requires_grad == name.startswith("ensemble") for name, value in network.named_parameters())


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    network, given = make(), images(2, 8)
    network.set_statistics(given)
    levels = torch.cat([level.transpose(0, 1).flatten(1).mean(1) for level in network._levels(given)])
    assert_close(levels, torch.zeros_like(levels), atol=1e-4, rtol=0)
    spread = torch.cat([level.transpose(0, 1).flatten(1).std(1, correction=0) for level in network._levels(given)])
    assert_close(spread, torch.ones_like(spread), atol=1e-3, rtol=0)


def test_blocks_in_any_order_and_of_any_side_are_read() -> None:
    """Levels that are named apart are put together; the answer is that of every position on its own."""
    body = make().features.denoiser
    blocks = ["decoder.level0_block0", "middle.middle_block0", "encoder.level0_block0", "encoder.stem"]
    network = FeatureNetwork(body.spec.to_json(), blocks, [20], SIGNALS[:1], 3, 2, [6])
    redraw(network).eval()
    network.set_statistics(images(2))
    for level in network._levels(images(2)):
        assert_close(level.mean((0, 2, 3)), torch.zeros(level.shape[1]), atol=1e-4, rtol=0)
    single = network(images(2), every_place(2, 2, 2)).sample.softmax(2).mean(1)
    assert_close(network(images(2)).sample.softmax(1).flatten(2), single)
    assert len(network.mean) == sum(step.out_channels for step in network.features.steps)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    network, given = make().eval(), images(2)
    network.set_statistics(given)
    network.save_pretrained(tmp_path)
    assert_close(FeatureNetwork.from_pretrained(tmp_path)(given).sample, network(given).sample)
    assert "5 per position" not in network.plan
    assert "networks 48 -> 6 -> 5 -> 3 per position" in network.plan
    assert "decoder.level1_block0" in network.plan


@pytest.mark.parametrize(
    ("denoiser", "blocks", "said"),
    [
        ({}, ["decoder.level7"], r"no step 'decoder.level7' .* it has: encoder.stem,"),
        (VALID, ["encoder.level0_block0"], "keeps sizes"),
    ],
)
def test_wrong_settings_are_named(denoiser: dict[str, Any], blocks: list[str], said: str) -> None:
    body = UNet(**{**denoiser, "channels": [4, 8], "blocks": 1, "in_channels": 2})
    with pytest.raises(ValueError, match=said):
        FrozenFeatures(body, blocks, [20], SIGNALS[:1])
