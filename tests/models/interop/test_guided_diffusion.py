"""guided-diffusion's `UNetModel`: its networks come in, ours go out, and both compute the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.models.interop.adm_formulas import Evaluation
from tests.models.interop.reference import fixtures, read, small
from tests.networks import redraw
from unetdiff import UNet
from unetdiff.models.interop import LIBRARIES
from unetdiff.models.interop.guided_diffusion import _factor
from unetdiff.presets import preset

LIBRARY = "guided-diffusion"
SMALL: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 1,
    "model_channels": 32,
    "out_channels": 1,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "dims": 1,
}
HEADS = {"num_heads": 4, "num_heads_upsample": 2, "attention_resolutions": [1, 2]}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "image": {"dims": 2, "use_scale_shift_norm": True, "num_heads": 2},
    "volume": {"dims": 3, "channel_mult": [1, 1], "attention_resolutions": [1]},
    "volume_residual": {"dims": 3, "channel_mult": [1, 1], "resblock_updown": True, "num_heads": 2},
    "heads_up": HEADS,
    "heads_up_new_order": {**HEADS, "use_new_attention_order": True},
    "head_width": {"num_head_channels": 16, "num_heads": 3, "num_heads_upsample": 5, "attention_resolutions": [1, 2]},
    "fractions": {"model_channels": 64, "channel_mult": [0.5, 1.5]},
    "rounded_down": {"model_channels": 44, "channel_mult": [0.73, 1.46]},
    "three_levels": {"channel_mult": [1, 2, 1], "num_res_blocks": 2, "attention_resolutions": [1, 4]},
    "one_level": {"channel_mult": [1], "attention_resolutions": []},
    "two_narrow_levels": {"channel_mult": [2, 1], "attention_resolutions": [1, 2, 64]},
    "odd_labels": {"num_classes": 7, "use_scale_shift_norm": True},
    "one_label": {"num_classes": 1},
    "pooling": {"conv_resample": False, "channel_mult": [1, 2, 2], "attention_resolutions": [4]},
    "pooling_inside": {"conv_resample": False, "resblock_updown": True},
    "learned_variance": {"in_channels": 3, "out_channels": 6, "dropout": 0.1},
}


def ours(config: dict[str, Any]) -> UNet:
    """Our network for their arguments, all its weights random."""
    found = LIBRARIES[LIBRARY]
    unet = UNet(**found.settings(found.complete(config)))
    redraw(unet, 0.1)
    return unet.eval()


def call(config: dict[str, Any]) -> dict[str, Tensor]:
    given = {"sample": torch.randn(2, config["in_channels"], *(8,) * config["dims"])}
    given["timestep"] = torch.tensor([7, 901])
    classes = config.get("num_classes")
    return given | ({"class_labels": torch.tensor([classes - 1, 0])} if classes else {})


@pytest.mark.parametrize("name", CASES)
def test_computes_what_the_formulas_say(name: str) -> None:
    config = {**SMALL, **CASES[name]}
    unet = ours(config)
    new_order = config.get("use_new_attention_order", False)
    arguments, state = unet.to_foreign(LIBRARY, use_new_attention_order=new_order)
    given = call(config)
    formulas = Evaluation(config, state)
    expected = formulas(**given)
    assert formulas.used == set(state)
    for network in (unet, UNet.from_foreign(LIBRARY, config, state), UNet.from_foreign(LIBRARY, arguments, state)):
        with torch.no_grad():
            output = network(**given).sample
        assert (output - expected).norm() / expected.norm() < 1e-5
    for key, value in UNet.from_foreign(LIBRARY, json.loads(json.dumps(arguments)), state).state_dict().items():
        assert torch.equal(value, unet.state_dict()[key])


@pytest.mark.parametrize("path", fixtures("adm_"))
def test_the_formulas_are_those_of_the_library(path: Path) -> None:
    reference = read(path)
    with torch.no_grad():
        output = Evaluation(reference.config, reference.weights)(**reference.inputs)
    assert (output - reference.output).norm() / reference.output.norm() < 1e-5


@pytest.mark.parametrize("path", fixtures("adm_"))
def test_in_and_out_again_is_bit_equal(path: Path) -> None:
    reference = read(path)
    new_order = reference.config.get("use_new_attention_order", False)
    unet = reference.ours()
    config, state = unet.to_foreign(LIBRARY, use_new_attention_order=new_order)
    assert set(state) == set(reference.weights)
    for name, weight in reference.weights.items():
        assert torch.equal(state[name], weight), name
        assert state[name].dtype == weight.dtype
        assert state[name].is_contiguous()
    for name, value in reference.config.items():
        assert config[name] == value or name in ("num_head_channels", "num_heads", "channel_mult"), name
    again = UNet.from_foreign(LIBRARY, config, state)
    assert again.config == unet.config
    assert_close(again(**reference.inputs).sample, unet(**reference.inputs).sample, rtol=0, atol=0)


def test_the_other_order_of_rows_is_the_same_network() -> None:
    unet = small("adm_scale_shift").ours()
    config, state = unet.to_foreign(LIBRARY)
    _, other = unet.to_foreign(LIBRARY, use_new_attention_order=True)
    changed = [name for name in state if not torch.equal(state[name], other[name])]
    assert changed
    assert all(".qkv." in name for name in changed)
    back = UNet.from_foreign(LIBRARY, {**config, "use_new_attention_order": True}, other)
    for name, value in back.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name])


def test_what_goes_out_shares_nothing_with_the_network() -> None:
    unet = small("adm_additive").ours()
    _, state = unet.to_foreign(LIBRARY)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    for value in state.values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


REFUSED: dict[str, dict[str, Any]] = {
    "has no argument 'num_head'": {"num_head": 2},
    "num_res_blocks is [1, 2]; expected a whole number": {"num_res_blocks": [1, 2]},
    "dims is 4; expected one of 1, 2, 3": {"dims": 4},
    "channel_mult is '1,2'; expected a list": {"channel_mult": "1,2"},
    "attention_resolutions is '16,8'; expected a list": {"attention_resolutions": "16,8"},
    "channel_mult [1, 1.5] give a width of 48; expected a multiple of 32": {"channel_mult": [1, 1.5]},
    "model_channels 16 and": {"model_channels": 16, "channel_mult": [1, 2]},
    "give a width of 0": {"channel_mult": [1, 0]},
    "channels 64 do not divide into attention_heads 3": {"num_heads": 3},
    "channels 64 do not divide into attention_head_channels 48": {"num_head_channels": 48},
    "attention_heads is 0": {"num_heads": 0},
    "num_classes is 0": {"num_classes": 0},
    "dropout is 1": {"dropout": 1},
    "resblock_updown is 'yes'": {"resblock_updown": "yes"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_arguments_that_are_not_supported_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        UNet.from_foreign(LIBRARY, {**SMALL, **REFUSED[message]}, {})


@pytest.mark.parametrize("name", ["image_size", "model_channels", "attention_resolutions"])
def test_arguments_without_a_default_are_needed(name: str) -> None:
    config = {key: value for key, value in SMALL.items() if key != name}
    with pytest.raises(ValueError, match=f"UNetModel needs the argument '{name}'"):
        UNet.from_foreign(LIBRARY, config, {})


def test_arguments_that_change_no_function_are_accepted() -> None:
    reference = small("adm_additive")
    config = {**reference.config, "use_fp16": True, "use_checkpoint": True, "attention_resolutions": {2}}
    unet = UNet.from_foreign(LIBRARY, config, {name: value.half() for name, value in reference.weights.items()})
    assert_close(unet(**reference.inputs).sample, reference.output, rtol=1e-4, atol=1e-5)


WRONG_WEIGHTS: dict[str, Any] = {
    "has no 'middle_block.1.qkv.bias'": lambda state: state.pop("middle_block.1.qkv.bias"),
    "does not have: 'extra.weight'": lambda state: state.update({"extra.weight": torch.ones(1)}),
    "'out.2.weight' has shape (3, 32, 3)": lambda state: state.update({"out.2.weight": torch.ones(3, 32, 3)}),
    "'time_embed.0.bias' has shape (7,)": lambda state: state.update({"time_embed.0.bias": torch.ones(7)}),
    "'middle_block.1.qkv.weight' has shape": lambda state: state.update(
        {"middle_block.1.qkv.weight": torch.ones(97, 32, 1)}
    ),
}


@pytest.mark.parametrize("message", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_named(message: str) -> None:
    reference = small("adm_additive")
    state = dict(reference.weights)
    WRONG_WEIGHTS[message](state)
    with pytest.raises(ValueError, match=re.escape(message)):
        UNet.from_foreign(LIBRARY, reference.config, state)


NORM = {"groups": 32, "min_group_channels": 1}
OURS: dict[str, Any] = {
    "channels": [32, 64],
    "blocks": 1,
    "in_channels": 1,
    "dims": 1,
    "attention": [False, True],
    "norm": {"encoder": {"norm": NORM}, "decoder": {"norm": NORM}, "out": NORM},
}


def norms(**changes: Any) -> dict[str, Any]:
    return {"norm": {**OURS["norm"], **changes}}


# A change of our settings, and the setting that the error names.
BEYOND: dict[str, tuple[str, dict[str, Any]]] = {
    "channels": ("channels 48", {"channels": [32, 48], "norm": "adm"}),
    "stem": ("stem_channels 0", {"stem_channels": 0}),
    "blocks_per_level": ("blocks [1, 2]", {"blocks": [1, 2]}),
    "light_decoder": ("decoder_blocks [1, 1]", {"decoder_blocks": 1}),
    "no_middle": ("middle False", {"middle": False}),
    "middle_that_cannot_attend": (
        "this attention or middle_attention: channels 128 do not divide into attention_heads 3",
        {"channels": [96, 128], "attention": [True, False], "attention_heads": 3, "middle_attention": False},
    ),
    "no_middle_attention": ("middle_attention False", {"middle_attention": False}),
    "attention_per_block": (
        "attention [[False, False], [True, False]]",
        {"blocks": 2, "attention": [False, [True, False]], "decoder_attention": [False, True]},
    ),
    "decoder_attention": ("decoder_attention [[False, False], [False, False]]", {"decoder_attention": False}),
    "heads_per_level": ("attention_heads", {"attention": True, "attention_heads": [4, 2]}),
    "heads_by_width": (
        "attention_head_channels [8, 32], heads",
        {"attention": True, "attention_head_channels": [8, 32]},
    ),
    "decoder_heads": ("decoder_attention_heads", {"attention": True, "decoder_attention_heads": [4, 2]}),
    "strides": ("strides [[3]]", {"strides": 3}),
    "volume_strides": ("strides [[2, 2, 2]]", {"dims": 3}),
    "downsample": ("downsample ['max_pool']", {"downsample": "max_pool"}),
    "mixed": ("upsample ['repeat']", {"upsample": "repeat"}),
    "transposed": ("upsample ['transposed']", {"upsample": "transposed"}),
    "filter": (
        "resample_filter",
        {"downsample": "residual", "upsample": "residual", "resample_filter": [1, 3, 3, 1]},
    ),
    "pyramid": ("input_pyramid True", {"input_pyramid": True}),
    "fourier": ("time_embedding 'fourier'", {"time_embedding": "fourier"}),
    "untimed": ("time_embedding 'none'", {"time_embedding": "none"}),
    "time_input": ("time_input 'log'", {"time_input": "log"}),
    "time_channels": ("time_channels 64", {"time_channels": 64}),
    "frequency_shift": ("frequency_shift 1", {"frequency_shift": 1}),
    "sin_first": ("sin_first True", {"sin_first": True}),
    "null_class": ("null_class True", {"num_classes": 3, "null_class": True}),
    "label_entry": ("label_entry 'waves'", {"num_classes": 3, "label_entry": "waves"}),
    "two_outputs": ("heads ['noise', 'mask']", {"heads": {"noise": 1, "mask": 2}}),
    "head_kernel": ("head_kernel 1", {"head_kernel": 1}),
    "activation": ("activation 'gelu'", {"activation": "gelu"}),
    "eps": ("norm.decoder.norm.eps 1e-06", norms(decoder={"norm": {**NORM, "eps": 1e-6}})),
    "groups": ("norm.encoder.norm.groups {32: 8", norms(encoder={"norm": {}})),
    "out": ("norm.out.kind 'none'", norms(out="none")),
    "residual": ("norm.residual 'sqrt_half'", norms(residual="sqrt_half")),
    "qk": ("norm.qk 'rms'", norms(qk="rms")),
    "time": ("norm.time 'scale'", norms(time="scale")),
    "preset": ("norm.residual 'mp'", {"norm": "edm2"}),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_it_does_not_have_is_named(name: str) -> None:
    setting, change = BEYOND[name]
    with torch.device("meta"):
        unet = UNet(**{**OURS, **change})
    with pytest.raises(ValueError, match=rf"UNetModel does not have {re.escape(setting)}"):
        unet.to_foreign(LIBRARY)


SAYABLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {"num_heads": 1, "num_head_channels": -1, "model_channels": 32, "channel_mult": [1, 2]}),
    "waves": ({"wave_channels": 64, "time_channels": 256}, {"model_channels": 64, "channel_mult": [0.5, 1]}),
    "same_width_of_heads": ({"attention": True, "attention_heads": [1, 2]}, {"num_head_channels": 32}),
    "one_width_listed": ({"attention_head_channels": [16, 16]}, {"num_head_channels": 16}),
    "same_number_by_width": ({"attention_head_channels": [16, 32], "attention": True}, {"num_heads": 2}),
    "decoder_heads": (
        {"attention_heads": 2, "decoder_attention_heads": 4},
        {"num_heads": 2, "num_heads_upsample": 4},
    ),
    "pooling": ({"downsample": "average_pool", "upsample": "repeat"}, {"conv_resample": False}),
    "sample_size": ({"sample_size": 24}, {"image_size": 24}),
}


@pytest.mark.parametrize("name", SAYABLE)
def test_what_it_has_goes_out(name: str) -> None:
    change, expected = SAYABLE[name]
    unet = UNet(**{**OURS, **change})
    redraw(unet, 0.1)
    config, state = unet.to_foreign(LIBRARY)
    assert {key: config[key] for key in expected} == expected
    given = call({"in_channels": 1, "dims": 1})
    expected_output = Evaluation(config, state)(**given)
    assert_close(unet.eval()(**given).sample, expected_output, rtol=1e-4, atol=1e-5)


def test_the_factor_of_a_width_survives_rounding_down() -> None:
    """The library rounds factor times base down, which in floating point may fall just short of the width."""
    pairs = [(width, base) for width in range(32, 1025, 32) for base in range(2, 513, 2)]
    assert any(int(width / base * base) != width for width, base in pairs)
    assert all(int(_factor(width, base) * base) == width for width, base in pairs)


def test_choices() -> None:
    unet = small("adm_additive").ours()
    config, _ = unet.to_foreign(LIBRARY, image_size=32, use_fp16=True, use_checkpoint=True)
    assert (config["image_size"], config["use_fp16"], config["use_checkpoint"]) == (32, True, True)
    with pytest.raises(ValueError, match="'num_heads' is not left open by a network of ours; open are image_size"):
        unet.to_foreign(LIBRARY, num_heads=2)
    with pytest.raises(ValueError, match="use_fp16 is 1; expected true or false"):
        unet.to_foreign(LIBRARY, use_fp16=1)


def test_adm_of_imagenet_64_goes_out() -> None:
    """Names, shapes and the 296M parameters of the published network (Dhariwal & Nichol 2021, table 4)."""
    with torch.device("meta"):
        unet = UNet.from_preset("adm_64")
        config, state = unet.to_foreign(LIBRARY)
        again = UNet.from_foreign(LIBRARY, config, state)
    assert config["channel_mult"] == [1, 2, 3, 4]
    assert config["attention_resolutions"] == [2, 4, 8]
    assert (config["num_head_channels"], config["resblock_updown"], config["image_size"]) == (64, True, 64)
    assert round(sum(weight.numel() for weight in state.values()) / 1e6) == 296
    assert {name: tuple(state[name].shape) for name in PUBLISHED} == PUBLISHED
    assert {name.split(".")[1] for name in state if name.startswith("input_blocks.")} == set(map(str, range(16)))
    assert {name.split(".")[1] for name in state if name.startswith("output_blocks.")} == set(map(str, range(16)))
    assert again.spec.levels("decoder", 2) == unet.spec.levels("decoder", 2)


PUBLISHED = {
    "time_embed.0.weight": (768, 192),
    "label_emb.weight": (1000, 768),
    "input_blocks.0.0.weight": (192, 3, 3, 3),
    "input_blocks.4.0.in_layers.2.weight": (192, 192, 3, 3),
    "input_blocks.5.0.skip_connection.weight": (384, 192, 1, 1),
    "input_blocks.5.1.qkv.weight": (1152, 384, 1),
    "middle_block.1.proj_out.weight": (768, 768, 1),
    "middle_block.2.emb_layers.1.weight": (1536, 768),
    "output_blocks.3.2.out_layers.3.weight": (768, 768, 3, 3),
    "output_blocks.15.0.skip_connection.weight": (192, 384, 1, 1),
    "out.0.weight": (192,),
    "out.2.weight": (6, 192, 3, 3),
}


def test_a_narrow_adm_comes_back_bit_equal() -> None:
    narrow = {"channels": [128, 128], "attention": [False, True], "blocks": 1, "dims": 1, "num_classes": 5}
    unet = UNet(**{**preset("adm_64"), **narrow})
    redraw(unet)
    config, state = unet.to_foreign(LIBRARY)
    again = UNet.from_foreign(LIBRARY, config, state)
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_network_of_ddpm_is_another() -> None:
    with torch.device("meta"):
        unet = UNet.from_preset("ddpm_cifar10")
    with pytest.raises(ValueError, match=r"does not have downsample \['strided_asymmetric'"):
        unet.to_foreign(LIBRARY)
