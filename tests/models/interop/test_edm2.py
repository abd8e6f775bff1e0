"""EDM2's `UNet`: what comes in, what is refused, and the parts against the paper's formulas."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tests.models.interop.make_fixtures import state_dict
from tests.models.interop.reference import small
from unetdiff import UNet


def load(**changes: Any) -> UNet:
    """The network of our reference with other arguments, and random weights for them."""
    config = {**small("edm2").config, **changes}
    return UNet.from_foreign("edm2", config, state_dict("edm2", config))


# Strictness.

WRONG_WEIGHTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "has no 'out_gain'": lambda state: state.pop("out_gain"),
    "has no 'dec.4x4_in0.attn_proj.weight'": lambda state: state.pop("dec.4x4_in0.attn_proj.weight"),
    "does not have: 'logvar_linear.weight'": lambda state: state.update({"logvar_linear.weight": torch.ones(1, 8)}),
    "'emb_label.weight' has shape (8, 5)": lambda state: state.update({"emb_label.weight": torch.ones(8, 5)}),
    "'emb_fourier.phases' has shape (3,)": lambda state: state.update({"emb_fourier.phases": torch.ones(3)}),
    "'enc.8x8_conv.weight' has shape (4, 2, 3, 3)": lambda state: state.update(
        {"enc.8x8_conv.weight": torch.ones(4, 2, 3, 3)}
    ),
}


@pytest.mark.parametrize("message", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_named(message: str) -> None:
    reference = small("edm2")
    WRONG_WEIGHTS[message](reference.weights)
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.ours()


REFUSED: dict[str, dict[str, Any]] = {
    "EDM2's UNet: resample_filter [1, 3, 3, 1] is not supported; expected [1, 1]": {"resample_filter": [1, 3, 3, 1]},
    "EDM2's UNet has no argument 'num_block'": {"num_block": 2},
    "clip is 0": {"clip_act": 0},
    "channels_per_head is 0; expected at least 1": {"channels_per_head": 0},
    "channel_mult is []; expected at least 1": {"channel_mult": []},
    "residual_t is 5": {"res_balance": 5},
    "dropout is 1": {"dropout": 1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_arguments_that_are_not_supported_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        UNet.from_foreign("edm2", {**small("edm2").config, **REFUSED[message]}, {})


@pytest.mark.parametrize("name", ["img_resolution", "img_channels", "label_dim"])
def test_arguments_without_a_default_are_needed(name: str) -> None:
    config = {key: value for key, value in small("edm2").config.items() if key != name}
    with pytest.raises(ValueError, match=f"EDM2's UNet needs the argument '{name}'"):
        UNet.from_foreign("edm2", config, {})


def test_networks_of_edm2_only_come_in() -> None:
    with pytest.raises(ValueError, match="from edm2 they only come in"):
        small("edm2").ours().to_foreign("edm2")


# Other arguments than the reference network's.

VARIATIONS: dict[str, dict[str, Any]] = {
    "three_levels": {"channel_mult": [1, 2, 1], "num_blocks": 2, "attn_resolutions": [8, 2]},
    "no_labels": {"label_dim": 0},
    "one_label": {"label_dim": 1},
    "embedding": {"channel_mult_noise": 2, "channel_mult_emb": 3},
    "wide_heads": {"channels_per_head": 16, "attn_resolutions": [8, 4]},
    "without_clip": {"clip_act": None},
    "tuples": {"channel_mult": (1, 2), "resample_filter": (1, 1), "attn_resolutions": ()},
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_other_arguments_come_in(name: str) -> None:
    unet = load(**VARIATIONS[name])
    output = unet(torch.randn(2, 2, 8, 8), torch.tensor([-0.5, 0.5])).sample
    assert output.shape == (2, 2, 8, 8)
    assert output.isfinite().all()


def test_levels_narrower_than_a_head_do_not_attend() -> None:
    unet = load(channels_per_head=8, attn_resolutions=[8, 4])
    heads = {step.name: step.heads for step in unet.layout.steps if step.kind == "block"}
    assert {count for name, count in heads.items() if name.startswith("level0")} == {0}
    assert {count for name, count in heads.items() if name.startswith("level1")} == {1}
    assert load(channels_per_head=16).spec.middle_heads == 0


def test_the_first_of_the_levels_is_the_stem_and_the_waves() -> None:
    """Their defaults: waves as wide as the first level, an embedding as wide as the widest."""
    spec = load(channel_mult=[2, 3]).spec
    assert (spec.channels, spec.waves, spec.embedding_channels) == ([8, 12], 8, 12)
    spec = load(channel_mult=[2, 3], channel_mult_noise=1, channel_mult_emb=5).spec
    assert (spec.waves, spec.embedding_channels) == (4, 20)


@pytest.mark.parametrize("name", ["res_balance", "attn_balance", "concat_balance", "label_balance", "clip_act"])
def test_balances_and_the_bound_reach_the_network(name: str) -> None:
    reference = small("edm2")
    expected = reference.ours()(**reference.inputs).sample
    reference.config[name] = 0.2
    assert not torch.allclose(reference.ours()(**reference.inputs).sample, expected, atol=1e-3)


# The parts, from the formulas of Karras et al. 2024 (appendix B and Fig. 21).


def forced(weight: Tensor, gain: float | Tensor = 1.0) -> Tensor:
    """Filters over (their root mean square + 1e-4), over the root of their fan-in (Eq. 66 and 47)."""
    fan_in = weight[0].numel()
    rms = weight.flatten(1).square().mean(1).sqrt().reshape(-1, *(1,) * (weight.ndim - 1))
    return weight / (rms + 1e-4) * gain / math.sqrt(fan_in)


def silu(x: Tensor) -> Tensor:
    """Eq. 81."""
    return x * torch.sigmoid(x) / 0.596


def mix(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Eq. 88."""
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def unit(x: Tensor, axis: int) -> Tensor:
    return x / (x.square().mean(axis, keepdim=True).sqrt() + 1e-4)


def conv(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = forced(weights[f"{name}.weight"])
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def branch(weights: dict[str, Tensor], at: str, x: Tensor, e: Tensor) -> Tensor:
    h = conv(weights, f"{at}.conv_res0", silu(x))
    scale = F.linear(e, forced(weights[f"{at}.emb_linear.weight"], weights[f"{at}.emb_gain"])) + 1
    return conv(weights, f"{at}.conv_res1", silu(h * scale[:, :, None, None]))


def attend(weights: dict[str, Tensor], at: str, x: Tensor, heads: int) -> Tensor:
    """Cosine-like attention: queries, keys and values of unit mean square; a head's three lie interleaved."""
    count, channels, height, width = x.shape
    rows = conv(weights, f"{at}.attn_qkv", x).reshape(count, heads, channels // heads, 3, height * width)
    query, key, value = (unit(rows[:, :, :, part], 2) for part in range(3))
    logits = torch.einsum("nhcq,nhck->nhqk", query, key) / math.sqrt(channels // heads)
    mixed = torch.einsum("nhqk,nhck->nhcq", logits.softmax(-1), value).reshape(x.shape)
    return mix(x, conv(weights, f"{at}.attn_proj", mixed), 0.3)


def encoder_block(weights: dict[str, Tensor], at: str, x: Tensor, e: Tensor, heads: int) -> Tensor:
    """Shortcut first, then the pixel norm on the stream, which branch and shortcut both read."""
    if f"{at}.conv_skip.weight" in weights:
        x = conv(weights, f"{at}.conv_skip", x)
    x = unit(x, 1)
    x = mix(x, branch(weights, at, x, e), 0.3)
    return (attend(weights, at, x, heads) if heads else x).clamp(-256, 256)


def decoder_block(weights: dict[str, Tensor], at: str, x: Tensor, e: Tensor, heads: int) -> Tensor:
    h = branch(weights, at, x, e)
    if f"{at}.conv_skip.weight" in weights:
        x = conv(weights, f"{at}.conv_skip", x)
    x = mix(x, h, 0.3)
    return (attend(weights, at, x, heads) if heads else x).clamp(-256, 256)


def activated(e: Tensor) -> Tensor:
    """The blocks here take the embedding before its nonlinearity; theirs take it behind."""
    return silu(e)


def test_a_block_of_the_encoder_with_attention() -> None:
    reference = small("edm2")
    x, e = torch.randn(2, 4, 6, 6), torch.randn(2, 8)
    expected = encoder_block(reference.weights, "enc.4x4_block0", x, activated(e), heads=2)
    assert_close(reference.ours().encoder["level1_block0"](x, e), expected, rtol=1e-5, atol=1e-5)


def test_the_step_down_averages_before_it_is_normalised() -> None:
    reference = small("edm2")
    x, e = torch.randn(2, 4, 6, 6), torch.randn(2, 8)
    halved = x.reshape(2, 4, 3, 2, 3, 2).mean((3, 5))
    expected = encoder_block(reference.weights, "enc.4x4_down", halved, activated(e), heads=0)
    assert_close(reference.ours().encoder["level0_down"](x, e), expected, rtol=1e-5, atol=1e-5)


def test_a_block_of_the_decoder_takes_its_skip_in_balance() -> None:
    """Eq. 103: stream and skip weigh the same whatever their numbers of channels."""
    reference = small("edm2")
    x, skip, e = torch.randn(2, 8, 6, 6), torch.randn(2, 4, 6, 6), torch.randn(2, 8)
    scale = math.sqrt(12 / 0.5) * 0.5
    joined = torch.cat([x * scale / math.sqrt(8), skip * scale / math.sqrt(4)], 1)
    expected = decoder_block(reference.weights, "dec.4x4_block1", joined, activated(e), heads=2)
    assert_close(reference.ours().decoder["level1_block1"](x, e, skip), expected, rtol=1e-5, atol=1e-5)


def test_the_step_up_repeats() -> None:
    reference = small("edm2")
    x, e = torch.randn(2, 8, 3, 3), torch.randn(2, 8)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = decoder_block(reference.weights, "dec.8x8_up", doubled, activated(e), heads=0)
    assert_close(reference.ours().decoder["level1_up"](x, e), expected, rtol=1e-5, atol=1e-5)


def test_values_are_bounded() -> None:
    reference = small("edm2")
    block = reference.ours().decoder["level1_up"]
    e = torch.randn(2, 8)
    assert block(torch.full((2, 8, 3, 3), 1e4), e).abs().max() == 256


def test_stem_and_output() -> None:
    """A constant channel stands in for biases; the output has a learned gain."""
    reference = small("edm2")
    unet, x = reference.ours(), torch.randn(2, 2, 6, 6)
    constant = torch.cat([x, torch.ones(2, 1, 6, 6)], 1)
    assert_close(unet.encoder["stem"](x), conv(reference.weights, "enc.8x8_conv", constant), rtol=1e-5, atol=1e-5)
    finest = torch.randn(2, 4, 6, 6)
    weight = forced(reference.weights["out_conv.weight"], reference.weights["out_gain"])
    assert_close(unet.head["sample"](finest), F.conv2d(finest, weight, padding=1), rtol=1e-5, atol=1e-5)


def test_the_embedding() -> None:
    """Eq. 75 and a sum in balance with the label; without one, a vector of zeros takes its place in the sum."""
    reference = small("edm2")
    weights, noise = reference.weights, torch.tensor([-0.4, 1.1])
    waves = torch.cos(noise[:, None] * weights["emb_fourier.freqs"] + weights["emb_fourier.phases"]) * math.sqrt(2)
    timed = F.linear(waves, forced(weights["emb_noise.weight"]))
    hot = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]) * math.sqrt(3)
    expected = mix(timed, F.linear(hot, forced(weights["emb_label.weight"])), 0.5)
    assert_close(reference.ours().embed(noise, torch.tensor([2, 3]), 2), expected, rtol=1e-5, atol=1e-5)
