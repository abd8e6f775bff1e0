"""The arguments and weights of diffusers' `UNet2DModel`: every one is known, and what does not fit is named."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from tests.models.interop.test_diffusers import PLAIN, SMALL, foreign, renamed
from unetdiff import UNet
from unetdiff.models.interop.diffusers import DIFFUSERS
from unetdiff.spec import UNetSpec

# What every argument may be changed to: it is then refused by name, or changes our settings.
CHANGED: dict[str, Any] = {
    "sample_size": 24,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "time_embedding_dim": 20,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": PLAIN["down_block_types"],
    "mid_block_type": None,
    "up_block_types": PLAIN["up_block_types"],
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "mid_block_scale_factor": 2,
    "downsample_padding": 0,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "dropout": 0.1,
    "act_fn": "mish",
    "attention_head_dim": 4,
    "norm_num_groups": 2,
    "attn_norm_num_groups": 2,
    "norm_eps": 1e-3,
    "resnet_time_scale_shift": "scale_shift",
    "add_attention": False,
    "class_embed_type": "timestep",
    "num_class_embeds": 5,
}
REFUSED_ALWAYS = {"center_input_sample", "mid_block_scale_factor", "act_fn", "class_embed_type"}
WITHOUT_EFFECT = {"num_train_timesteps"}  # of the learned time embedding, which is refused


def test_every_argument_of_the_installed_library_is_known() -> None:
    parameters = dict(inspect.signature(UNet2DModel.__init__).parameters)
    del parameters["self"]
    defaults = {name: list(p.default) if isinstance(p.default, tuple) else p.default for name, p in parameters.items()}
    assert DIFFUSERS.complete({}) == defaults
    assert set(defaults) == set(CHANGED) | WITHOUT_EFFECT


@pytest.mark.parametrize("name", CHANGED)
def test_no_argument_is_ignored(name: str) -> None:
    changed = {**SMALL, name: CHANGED[name]}
    if name in REFUSED_ALWAYS:
        with pytest.raises(ValueError, match=f"{name} {CHANGED[name]!r} is not supported"):
            DIFFUSERS.complete(changed)
    else:
        before, after = (UNetSpec(**DIFFUSERS.settings(DIFFUSERS.complete(entry))) for entry in (SMALL, changed))
        assert after != before


REFUSED: list[tuple[str, Any]] = [
    ("center_input_sample", True),
    ("time_embedding_type", "learned"),
    ("time_embedding_dim", -1),
    ("freq_shift", 0.5),
    ("freq_shift", -1),
    ("flip_sin_to_cos", None),
    ("mid_block_type", "UNetMidBlock2DCrossAttn"),
    ("mid_block_scale_factor", 2**0.5),
    ("downsample_padding", 2),
    ("downsample_type", "fir"),
    ("upsample_type", None),
    ("act_fn", "gelu"),
    ("attention_head_dim", 0),
    ("attention_head_dim", "8"),
    ("norm_num_groups", None),
    ("attn_norm_num_groups", 0),
    ("resnet_time_scale_shift", "spatial"),
    ("add_attention", None),
    ("class_embed_type", "identity"),
    ("num_class_embeds", 0),
    ("layers_per_block", 0),
    ("layers_per_block", [1, 2, 1]),
    ("in_channels", None),
    ("out_channels", 0),
    ("down_block_types", "DownBlock2D"),
    ("block_out_channels", 64),
    ("block_out_channels", []),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_not_supported_is_refused_by_name_and_value(name: str, value: Any) -> None:
    said = rf"UNet2DModel: {name} (is )?{re.escape(repr(value))}( is not supported)?; expected "
    with pytest.raises(ValueError, match=said):
        DIFFUSERS.complete({**SMALL, name: value})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("down_block_types", kind) for kind in ("SkipDownBlock2D", "AttnSkipDownBlock2D", "KDownBlock2D", "UpBlock2D")]
    + [("down_block_types", "CrossAttnDownBlock2D"), ("up_block_types", "CrossAttnUpBlock2D")]
    + [("up_block_types", kind) for kind in ("SkipUpBlock2D", "AttnSkipUpBlock2D", "KUpBlock2D", "AttnDownBlock2D")],
)
def test_other_blocks_are_refused_by_name(name: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"{name} '{kind}' is not supported"):
        DIFFUSERS.complete({**SMALL, name: (*SMALL[name][:2], kind)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_num_groups": 6}, "norm_num_groups 6 does not divide the 8 channels"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups 5 does not divide the 24 channels"),
        ({"attention_head_dim": 16}, "attention_head_dim 16 does not divide the 24 channels"),
        ({"attention_head_dim": 5, "add_attention": False}, "attention_head_dim 5 does not divide the 16 channels"),
        ({**PLAIN, "block_out_channels": (5, 10, 8), "norm_num_groups": 1}, r"block_out_channels \[5, 10, 8\].* even"),
        ({"block_out_channels": (8, 16)}, "down_block_types has 3 entries, block_out_channels 2"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types has 1 entries, block_out_channels 3"),
        ({"conv_in_kernel": 3}, "UNet2DModel has no argument 'conv_in_kernel'"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"freq_shift": 4}, "frequency_shift is 4"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet.from_foreign("diffusers", {**SMALL, **changes}, {})


KEYS = (
    "conv_in.weight",
    "time_embedding.linear_2.bias",
    "class_embedding.weight",
    "down_blocks.1.resnets.0.conv_shortcut.weight",
    "down_blocks.0.downsamplers.0.conv.bias",
    "mid_block.attentions.0.to_k.weight",
    "up_blocks.1.attentions.1.group_norm.bias",
    "conv_norm_out.weight",
)


@pytest.mark.parametrize("key", KEYS)
def test_weights_are_taken_strictly(key: str) -> None:
    config = {**SMALL, "num_class_embeds": 3}
    state = dict(foreign(num_class_embeds=3).state_dict())
    with pytest.raises(ValueError, match=f"has no '{key}'"):
        UNet.from_foreign("diffusers", config, {name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(ValueError, match=f"does not have: '{key}.more'"):
        UNet.from_foreign("diffusers", config, {**state, f"{key}.more": torch.zeros(1)})
    for other in (torch.zeros(7, 7), torch.cat([state[key], state[key][:1]])):
        with pytest.raises(ValueError, match=rf"'{key}' has shape {re.escape(str(tuple(other.shape)))}"):
            UNet.from_foreign("diffusers", config, {**state, key: other})


def test_parts_of_one_layer_do_not_make_up_for_each_other() -> None:
    state = dict(foreign().state_dict())
    query, key = (f"mid_block.attentions.0.to_{part}.weight" for part in "qk")
    state[query], state[key] = torch.cat([state[query], state[key][:1]]), state[key][1:]
    with pytest.raises(ValueError, match=rf"'{query}' has shape \(25, 24\) and '{key}' has shape \(23, 24\)"):
        UNet.from_foreign("diffusers", SMALL, state)


def test_old_and_new_names_at_once_are_refused() -> None:
    state = dict(foreign().state_dict())
    state["mid_block.attentions.0.query.weight"] = state["mid_block.attentions.0.to_q.weight"]
    with pytest.raises(ValueError, match=r"holds 'mid_block\.attentions\.0\.to_q\.weight' twice"):
        UNet.from_foreign("diffusers", SMALL, state)


def test_an_old_name_of_another_shape_is_named() -> None:
    state = renamed(foreign().state_dict())
    state["mid_block.attentions.0.proj_attn.weight"] = torch.zeros(24, 25)
    with pytest.raises(ValueError, match=r"'mid_block\.attentions\.0\.to_out\.0\.weight' has shape \(24, 25\)"):
        UNet.from_foreign("diffusers", SMALL, state)
