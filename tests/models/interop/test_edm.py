"""EDM's `SongUNet` and `DhariwalUNet`: what comes in, what is refused, and the parts against the paper's formulas."""

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

NETWORKS = ["edm_ncsnpp", "edm_dhariwal"]


def with_config(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments that differ from one of our reference networks, with random weights for them."""
    config = {**small(name).config, **changes}
    return config, {key: value.float() for key, value in state_dict("edm", config).items()}


def load(name: str, **changes: Any) -> UNet:
    config, state = with_config(name, **changes)
    return UNet.from_foreign("edm", config, state)


# Strictness.

WRONG_WEIGHTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "has no 'map_layer1.bias'": lambda state: state.pop("map_layer1.bias"),
    "has no 'enc.8x8_block0.affine.weight'": lambda state: state.pop("enc.8x8_block0.affine.weight"),
    "does not have: 'map_augment.weight'": lambda state: state.update({"map_augment.weight": torch.ones(8, 9)}),
    "holds 2 weights that this configuration does not have: 'a'": lambda state: state.update(
        {"b": torch.ones(1), "a": torch.ones(1)}
    ),
    "'map_label.weight' has shape (8, 5)": lambda state: state.update({"map_label.weight": torch.ones(8, 5)}),
    "'enc.4x4_down.conv1.bias' has shape (7,)": lambda state: state.update({"enc.4x4_down.conv1.bias": torch.ones(7)}),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("message", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_named(network: str, message: str) -> None:
    reference = small(network)
    WRONG_WEIGHTS[message](reference.weights)
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.ours()


def buffer(*taps: float) -> Tensor:
    """A filter as their state dicts hold it: (1, 1, k, k), of sum 1."""
    row = torch.tensor(taps)
    return (row[:, None] * row[None] / row.sum() ** 2)[None, None]


@pytest.mark.parametrize(
    ("network", "right", "wrong"), [("edm_ncsnpp", (1, 3, 3, 1), (1, 1)), ("edm_dhariwal", (1, 1), (1, 3, 3, 1))]
)
def test_filters_in_the_state_dict_agree_with_the_arguments(network: str, right: Any, wrong: Any) -> None:
    reference = small(network)
    expected = reference.ours()(**reference.inputs).sample
    key = "enc.4x4_down.skip.resample_filter"
    reference.weights[key] = buffer(*right)
    assert_close(reference.ours()(**reference.inputs).sample, expected, rtol=0, atol=0)
    for other in (buffer(*wrong), buffer(*right) * 1.01):
        reference.weights[key] = other
        with pytest.raises(ValueError, match=rf"'{re.escape(key)}' .* another filter than resample_filter"):
            reference.ours()


REFUSED: dict[str, dict[str, Any]] = {
    "SongUNet: encoder_type 'skip' is not supported; expected 'standard' or 'residual'": {"encoder_type": "skip"},
    "SongUNet: decoder_type 'skip' is not supported; expected 'standard'": {"decoder_type": "skip"},
    "SongUNet: embedding_type 'x' is not supported": {"embedding_type": "x"},
    "class_name is None; expected 'SongUNet' or 'DhariwalUNet'": {"class_name": None},
    "class_name is 'EDMPrecond'": {"class_name": "EDMPrecond"},
    "SongUNet has no argument 'num_head'": {"num_head": 1},
    "SongUNet: img_resolution is 0; expected at least 1": {"img_resolution": 0},
    "SongUNet: num_blocks is 0; expected at least 1": {"num_blocks": 0},
    "resample_filter is [0, 0]; expected an even number of taps with a positive sum": {"resample_filter": [0, 0]},
    "DhariwalUNet has no argument 'embedding_type'": {"class_name": "DhariwalUNet", "embedding_type": "fourier"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_arguments_that_are_not_supported_are_named(message: str) -> None:
    sizes = {"img_resolution": 8, "in_channels": 2, "out_channels": 2}
    with pytest.raises(ValueError, match=re.escape(message)):
        UNet.from_foreign("edm", {"class_name": "SongUNet", **sizes, **REFUSED[message]}, {})


@pytest.mark.parametrize("name", ["class_name", "img_resolution", "in_channels", "out_channels"])
def test_arguments_without_a_default_are_needed(name: str) -> None:
    config = {key: value for key, value in small("edm_ncsnpp").config.items() if key != name}
    expected = "class_name is None" if name == "class_name" else f"SongUNet needs the argument '{name}'"
    with pytest.raises(ValueError, match=expected):
        UNet.from_foreign("edm", config, {})


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_edm_only_come_in(network: str) -> None:
    with pytest.raises(ValueError, match="from edm they only come in"):
        small(network).ours().to_foreign("edm")


# Labels.


@pytest.mark.parametrize("network", NETWORKS)
def test_augmentation_weights_are_left_out_aloud(network: str) -> None:
    reference = small(network)
    expected = reference.ours()(**reference.inputs).sample
    reference.config["augment_dim"] = 9
    with pytest.raises(ValueError, match="which augment_dim needs"):
        reference.ours()
    reference.weights["map_augment.weight"] = torch.randn(8, 9)
    with pytest.warns(UserWarning, match="map_augment.weight is left out"):
        unet = reference.ours()
    assert_close(unet(**reference.inputs).sample, expected, rtol=0, atol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_label_vectors_are_those_of_a_linear_layer(network: str) -> None:
    """One-hot labels (times the root of their number in `SongUNet`) through a linear layer; no label: zeros."""
    reference = small(network)
    weight = reference.weights["map_label.weight"]
    bias = reference.weights.get("map_label.bias")
    count = weight.shape[1]
    scale = math.sqrt(count) if network == "edm_ncsnpp" else 1.0
    hot = torch.cat([torch.eye(count), torch.zeros(1, count)])
    unet = reference.ours()
    assert_close(unet.embedding.label(torch.arange(count + 1)), F.linear(hot * scale, weight, bias))
    x, noise = torch.randn(2, 2, 8, 8), torch.tensor([-0.3, 0.2])
    outputs = [unet(x, noise, labels).sample for labels in (None, torch.full((2,), count), torch.tensor([0, 1]))]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)


def test_weights_of_half_precision_lose_nothing_more() -> None:
    reference = small("edm_ncsnpp")
    expected = reference.ours().state_dict()
    half = {name: weight.half() for name, weight in reference.weights.items()}
    for name, weight in UNet.from_foreign("edm", reference.config, half).state_dict().items():
        assert torch.equal(weight, expected[name]), name


# Other arguments than the reference networks'.

VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "three_levels": ("edm_ncsnpp", {"channel_mult": [1, 2, 2], "num_blocks": 2, "attn_resolutions": [8, 2]}),
    "plain_down": ("edm_ncsnpp", {"encoder_type": "standard", "resample_filter": [1, 1], "label_dim": 0}),
    "positional": ("edm_ncsnpp", {"embedding_type": "positional", "channel_mult_noise": 1, "channel_mult_emb": 3}),
    "one_label": ("edm_ncsnpp", {"label_dim": 1}),
    "other_output": ("edm_ncsnpp", {"out_channels": 5, "in_channels": 1}),
    "wide_stem": ("edm_ncsnpp", {"channel_mult": [2, 1]}),
    "narrow": ("edm_dhariwal", {"channel_mult": [1, 2], "label_dim": 0}),
    "many_heads": ("edm_dhariwal", {"channel_mult": [4, 16], "attn_resolutions": [4]}),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_other_arguments_come_in(name: str) -> None:
    network, changes = VARIATIONS[name]
    unet = load(network, **changes)
    x = torch.randn(2, unet.spec.in_channels, 8, 8)
    output = unet(x, torch.tensor([-0.5, 0.5])).sample
    assert output.shape == (2, unet.spec.outputs["sample"], 8, 8)
    assert output.isfinite().all()


def test_the_stem_is_as_wide_as_the_model() -> None:
    """`SongUNet` starts with model_channels, `DhariwalUNet` with the first level's width."""
    assert load("edm_ncsnpp", channel_mult=[2, 1]).encoder["stem"].module.out_channels == 8
    assert load("edm_dhariwal").encoder["stem"].module.out_channels == 64


def test_levels_narrower_than_a_head_do_not_attend() -> None:
    unet = load("edm_dhariwal", channel_mult=[4, 16], attn_resolutions=[8, 4])
    heads = {step.name: step.heads for step in unet.layout.steps if step.kind == "block"}
    assert {count for name, count in heads.items() if name.startswith("level0")} == {0}
    assert {count for name, count in heads.items() if name.startswith("level1")} == {2}
    assert heads["middle_block0"] == 2
    assert load("edm_dhariwal", channel_mult=[1, 2]).spec.middle_heads == 0


def test_song_attends_behind_the_last_block_of_a_level_on_the_way_up() -> None:
    unet = load("edm_ncsnpp", num_blocks=2, attn_resolutions=[8])
    attend = [step.name for step in unet.layout.side("decoder") if step.heads]
    assert attend == ["level0_block2"]
    assert [step.name for step in unet.layout.side("encoder") if step.heads] == ["level0_block0", "level0_block1"]


# The parts, from the formulas of Karras et al. 2022 (table 7, appendix C) and Song et al. 2021.


def filter_matrix(taps: Any, size: int, padding: int) -> Tensor:
    """(size after, size) of a filter of sum 1 at every second position: y[o] = sum over k of f[k] x[2 o + k - p]."""
    kernel = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    rows = (size + 2 * padding - len(taps)) // 2 + 1
    matrix = torch.zeros(rows, size)
    for row in range(rows):
        for tap, value in enumerate(kernel):
            if 0 <= 2 * row + tap - padding < size:
                matrix[row, 2 * row + tap - padding] += value
    return matrix


def along_both(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix applied along height and along width of (N, C, H, W)."""
    return torch.einsum("ph,qw,nchw->ncpq", matrix, matrix, x)


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    groups = min(32, x.shape[1] // 4)
    return F.group_norm(x, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def conv(weights: dict[str, Tensor], name: str, x: Tensor, padding: int | None = None) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2 if padding is None else padding)


def song_block(
    weights: dict[str, Tensor], at: str, x: Tensor, e: Tensor, resample: Callable[[Tensor], Tensor]
) -> Tensor:
    """A block of DDPM++ and NCSN++ without attention: sums are divided by the root of two."""
    h = conv(weights, f"{at}.conv0", resample(F.silu(norm(weights, f"{at}.norm0", x))))
    entry = F.linear(F.silu(e), weights[f"{at}.affine.weight"], weights[f"{at}.affine.bias"])
    h = h + entry[:, :, None, None]
    h = conv(weights, f"{at}.conv1", F.silu(norm(weights, f"{at}.norm1", h)))
    x = resample(x)
    return (h + (conv(weights, f"{at}.skip", x) if f"{at}.skip.weight" in weights else x)) / math.sqrt(2)


TAPS = (1, 3, 3, 1)


def test_a_block_without_resampling() -> None:
    reference = small("edm_ncsnpp")
    x, e = torch.randn(2, 8, 6, 6), torch.randn(2, 8)
    expected = song_block(reference.weights, "enc.8x8_block0", x, e, lambda x: x)
    assert_close(reference.ours().encoder["level0_block0"](x, e), expected, rtol=1e-5, atol=1e-5)


def test_a_block_on_the_way_up_filters_what_it_spreads() -> None:
    """Up is the transpose of down, with the values of a position kept: a factor of two per axis."""
    reference = small("edm_ncsnpp")
    x, e = torch.randn(2, 16, 6, 6), torch.randn(2, 8)
    matrix = 2 * filter_matrix(TAPS, 12, 1).T
    expected = song_block(reference.weights, "dec.8x8_up", x, e, lambda x: along_both(matrix, x))
    assert expected.shape == (2, 16, 12, 12)
    assert_close(reference.ours().decoder["level1_up"](x, e), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [TAPS, (1, 1)])
def test_the_step_down_is_joined_by_the_input_pyramid(taps: tuple[int, ...]) -> None:
    """The stream is convolved with a border that the filter eats up, and joins as a residual branch does."""
    config, weights = with_config("edm_ncsnpp", resample_filter=list(taps))
    x, stream, e = torch.randn(2, 8, 8, 8), torch.randn(2, 2, 8, 8), torch.randn(2, 8)
    border = (len(taps) - 1) // 2
    down = song_block(weights, "enc.4x4_down", x, e, lambda x: along_both(filter_matrix(taps, 8, border), x))
    wide = conv(weights, "enc.4x4_aux_residual", stream, padding=1 + border)
    expected = (down + along_both(filter_matrix(taps, 8 + 2 * border, 0), wide)) / math.sqrt(2)
    step = UNet.from_foreign("edm", config, weights).encoder["level0_down"]
    assert_close(step(x, e, stream), expected, rtol=1e-5, atol=1e-5)


def test_the_embedding_of_ncsnpp() -> None:
    """Random frequencies, sines first; the label joins the waves; two layers, each followed by the SiLU."""
    reference = small("edm_ncsnpp")
    weights = reference.weights
    noise = torch.tensor([-0.4, 1.1])
    angles = 2 * math.pi * noise[:, None] * weights["map_noise.freqs"]
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    hot = torch.eye(3)[[2, 0]] * math.sqrt(3)
    waves = waves + F.linear(hot, weights["map_label.weight"], weights["map_label.bias"])
    e = F.silu(F.linear(waves, weights["map_layer0.weight"], weights["map_layer0.bias"]))
    e = F.linear(e, weights["map_layer1.weight"], weights["map_layer1.bias"])
    assert_close(reference.ours().embed(noise, torch.tensor([2, 0]), 2), e, rtol=1e-5, atol=1e-5)
