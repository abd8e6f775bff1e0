"""The typed values of a network: what they refuse, and that JSON keeps them."""

from __future__ import annotations

import json
import re

import pytest
import torch

from unetdiff import UNet
from unetdiff.nn.norm import FloatStatistics
from unetdiff.spec import PLACEMENTS, Norm, NormPlacement, Site, UNetSpec
from unetdiff.typed import from_json


@pytest.mark.parametrize("name", PLACEMENTS)
def test_placements_survive_json(name: str) -> None:
    placement = PLACEMENTS[name]
    assert NormPlacement.of(json.loads(json.dumps(placement.to_json()))) == placement
    assert NormPlacement.of(name) is placement


def test_placement_starts_from_a_preset() -> None:
    changed = NormPlacement.of({"preset": "ddpm", "out": {"kind": "none"}})
    assert changed.out == Norm("none")
    assert changed.encoder == PLACEMENTS["ddpm"].encoder
    assert changed.time == "add"


def test_the_middle_follows_the_encoder_unless_it_has_its_own() -> None:
    post = Site("post")
    assert NormPlacement(encoder=post).site("middle") == post
    assert NormPlacement(encoder=post, middle=Site("none")).site("middle").pos == "none"
    assert NormPlacement(encoder=post).site("decoder").pos == "pre"


def test_spec_survives_json() -> None:
    spec = UNetSpec(channels=[8, 16], heads={"z": 1, "a": 2}, norm={"preset": "adm"}, strides=[[1, 2]])
    again = from_json(UNetSpec, json.loads(json.dumps(spec.to_json(), sort_keys=True)))
    assert list(again.outputs) == ["z", "a"]
    assert again.levels("encoder", 2) == spec.levels("encoder", 2)


def test_words_stand_for_norms_and_sites() -> None:
    placement = NormPlacement.of({"out": "none", "encoder": "post", "input": "pixel"})
    assert placement.out == Norm("none")
    assert placement.encoder == Site("post")
    assert placement.input == Norm("pixel")


def test_side_without_norms_has_none_whatever_else_is_said() -> None:
    assert Site("none", Norm("group")).norm.kind == "none"
    unet = UNet(channels=[8, 16], attention=True, norm={"encoder": "none", "decoder": "none", "out": "none"})
    norms = (FloatStatistics, torch.nn.GroupNorm)
    assert not [module for module in unet.modules() if isinstance(module, norms)]


def test_attention_is_per_level_or_per_block() -> None:
    spec = UNetSpec(channels=[8, 16], blocks=1, attention=True, decoder_attention=[False, [False, True]])
    assert [level.heads for level in spec.levels("decoder", 2)] == [(0, 0), (0, 1)]


def test_decoder_has_one_block_more_unless_told() -> None:
    spec = UNetSpec(channels=[8, 16], blocks=[1, 3])
    assert [len(level.heads) for level in spec.levels("decoder", 2)] == [2, 4]
    spec = UNetSpec(channels=[8, 16], blocks=[1, 3], decoder_blocks=1, decoder_attention=[True, False])
    assert [level.heads for level in spec.levels("decoder", 2)] == [(1,), (0,)]


def test_heads_and_resampling_are_per_level_and_side() -> None:
    spec = UNetSpec(
        channels=[8, 16, 32],
        attention=True,
        blocks=1,
        attention_head_channels=[8, 4, 16],
        decoder_attention_heads=[1, 1, 4],
        downsample=["strided", "residual"],
        upsample="repeat",
    )
    assert [level.heads for level in spec.levels("encoder", 2)] == [(1,), (4,), (2,)]
    assert [level.heads for level in spec.levels("decoder", 2)] == [(1, 1), (1, 1), (4, 4)]
    assert [level.resampling for level in spec.levels("encoder", 2)] == ["strided", "residual", ""]
    assert [level.resampling for level in spec.levels("decoder", 2)] == ["repeat", "repeat", ""]
    assert spec.middle_heads == 2


def test_a_network_without_middle_needs_no_middle_heads() -> None:
    assert UNetSpec(channels=[8, 9], attention_heads=2, middle=False).middle_heads == 0


REFUSED = {
    "channels is": {"channels": []},
    "attention has 1 entries": {"channels": [8, 16], "attention": [True]},
    "blocks has 3 entries": {"channels": [8, 16], "blocks": [1, 1, 1]},
    "do not divide": {"channels": [8, 12], "attention_heads": 8},
    "attention_head_channels": {"channels": [8, 12], "attention_head_channels": 8},
    "strides has 2 entries": {"channels": [8, 12], "strides": [2, 2]},
    "the data has 3 dimensions": {"channels": [8, 12], "strides": [[2, 2]], "dims": 3},
    "expected factors": {"channels": [8, 12], "strides": [0]},
    "dropout is 1.0": {"dropout": 1.0},
    "decoder_channels is [0, 8]": {"channels": [8, 16], "decoder_channels": [0, 8]},
    "decoder_channels is []": {"channels": [8, 16], "decoder_channels": []},
    "decoder_channels has 1 entries [8]": {"channels": [8, 16], "decoder_channels": [8]},
    "do not divide into attention_heads 5": {
        "channels": [8, 12],
        "attention_heads": 5,
        "middle": False,
        "transformer_layers": 1,
    },
    "input_pyramid keeps the input's size": {
        "channels": [4, 4],
        "convolutions": "valid",
        "norm": "nnunet",
        "input_pyramid": True,
    },
    "dims is 4": {"dims": 4},
    "downsample is 'stride'": {"downsample": "stride"},
    "null_class needs num_classes": {"null_class": True},
    "num_classes is 0": {"num_classes": 0},
    "needs time_channels": {"num_classes": 2, "time_embedding": "none"},
    "no norm placement is called 'ddpn'": {"norm": "ddpn"},
    "kind is 'grp'": {"norm": {"out": {"kind": "grp"}}},
    "Norm has no setting 'kin'": {"norm": {"out": {"kin": "group"}}},
    "zero_init is": {"norm": {"zero_init": ["all"]}},
    "skip_scale is 'big'": {"norm": {"skip_scale": "big"}},
    "heads is {}": {"heads": {}},
    "names an output 'keys'": {"heads": {"keys": 1}},
    "gives 'a' 0 channels": {"heads": {"a": 0}},
    "names an output twice": {"heads": [["a", 1], ["a", 2]]},
    "channels is 64; expected a list": {"channels": 64},
    "blocks is 1.5; expected a whole number or a list": {"blocks": 1.5},
    "strides is 2.0": {"strides": 2.0},
    "norm is None": {"norm": None},
    "groups is 'four'; expected a whole number": {"norm": {"out": {"groups": "four"}}},
    "attention_head_channels is 0": {"attention_head_channels": 0},
    "frequency_shift is 4": {"channels": [8], "frequency_shift": 4},
    "out_channels is 0": {"out_channels": 0},
    "time_channels is 0": {"time_channels": 0},
    "sample_size is [4]": {"sample_size": [4]},
    "norm.time is none": {"norm": {"time": "none"}},
    "attention lists 1 blocks": {"channels": [8], "attention": [[True]]},
    "it needs affine": {"norm": {"encoder": {"pos": "post", "norm": {"affine": False}}}},
    "in_channels is 0": {"in_channels": 0},
    "attention_heads has 1 entries": {"channels": [8, 16], "attention_heads": [1]},
    "attention_heads is [1, 0]": {"channels": [8, 16], "attention_heads": [1, 0]},
    "do not divide into attention_heads 3": {
        "channels": [8, 9],
        "decoder_attention_heads": [3, 3],
        "decoder_attention": True,
    },
    "downsample has 2 entries": {"channels": [8, 16], "downsample": ["strided", "max_pool"]},
    "encoder blocks are [0, 1]": {"channels": [8, 16], "blocks": [0, 1]},
    "decoder blocks are [-1, 1]": {"channels": [8, 16], "decoder_blocks": [-1, 1]},
    "resample_filter is [1, 2, 1]": {"resample_filter": [1, 2, 1]},
    "resample_filter needs strides of 1 or 2": {"channels": [8, 16], "resample_filter": [1, 1], "strides": [3]},
    "input_pyramid joins after a step down": {"input_pyramid": True, "downsample": "block"},
    "upsample 'repeat' learns nothing": {"up_channels": "next", "upsample": "repeat"},
    "stem_channels is -1": {"stem_channels": -1},
    "stem_channels is 0": {"norm": "edm2", "stem_channels": 0},
    "norm.time is 'add'": {"norm": {"preset": "edm2", "time": "add"}},
    "weights 'mp_forced' add labels": {"norm": "edm2", "label_entry": "waves"},
    "label_balance is 2": {"label_balance": 2},
    "divide_by_timestep needs a time embedding": {"divide_by_timestep": True, "time_embedding": "none"},
    "label_entry 'waves' needs a time embedding": {"label_entry": "waves", "time_embedding": "none"},
    "expected zero_init []": {"norm": {"weights": "mp_forced", "time": "scale"}},
    "would silence the network": {"norm": {"residual": "off"}},
    "norm.concat 'mp' balances a plain concatenation": {"norm": "edm2", "skip_fusion": "gate"},
    "convolutions are 'valid', but shortcuts": {"convolutions": "valid"},
    "no blocks themselves": {"convolutions": "valid", "norm": "unet2015", "downsample": "block"},
    "clip is 0": {"norm": {"clip": 0}},
    "concat_t is 1": {"norm": {"concat_t": 1}},
    "attention_t is -0.1": {"norm": {"attention_t": -0.1}},
    "zero_init is 'branch'; expected a list": {"norm": {"zero_init": "branch"}},
    "less than the 1 frequencies": {"channels": [2, 4], "frequency_shift": 1},
    "upsample 'transposed' has no": {"norm": "edm2", "upsample": "transposed"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_settings_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        UNetSpec(**REFUSED[message])
