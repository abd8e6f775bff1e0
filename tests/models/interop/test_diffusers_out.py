"""Networks of ours that leave for diffusers' `UNet2DModel`, and what it cannot express."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from tests.networks import inputs, redraw
from unetdiff import UNet

NORM = {"kind": "group", "groups": 4, "min_group_channels": 1}
SITE = {"norm": NORM}
PLACEMENT: dict[str, Any] = {"encoder": SITE, "decoder": SITE, "out": NORM, "time": "add"}
SMALL: dict[str, Any] = {"channels": [8, 16, 16], "blocks": 1, "attention": [False, True, False], "norm": PLACEMENT}
ATTENDING = {**SMALL, "attention": True, "attention_head_channels": 8}

EXPRESSIBLE: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "null_class": {**SMALL, "num_classes": 4, "null_class": True},
    "labels": {**SMALL, "num_classes": 1, "time_channels": 10},
    "heads": {**SMALL, "channels": [8, 16, 12], "attention": [True, True, False], "attention_heads": [1, 2, 1]}
    | {"attention_heads": [2, 4, 3]},
    "head_counts_of_levels_without_attention": {**SMALL, "attention_heads": [3, 2, 2]},
    "one_head_by_width": {**SMALL, "channels": [8, 16, 16], "attention_head_channels": [8, 16, 16]},
    "sides_apart": {**SMALL, "decoder_attention": [True, False, False], "decoder_blocks": 2},
    "unused_decoder_heads": {**SMALL, "decoder_attention": False, "decoder_attention_heads": 8},
    "written_out": {**SMALL, "blocks": [1, 1, 1], "decoder_blocks": [2, 2, 2], "strides": [[2, 2], 2]}
    | {"stem_channels": 8, "wave_channels": 8, "time_input": "timestep", "up_channels": "same", "out_channels": 5},
    "resampling": {**SMALL, "downsample": ["residual", "strided"], "upsample": ["nearest", "residual"]},
    "box_filter": {**SMALL, "downsample": "residual", "upsample": "residual", "resample_filter": [1, 1]},
    "attention_resamples": {**ATTENDING, "downsample": "residual", "upsample": "residual"},
    "resampling_beside_attention": {**SMALL, "downsample": ["residual", "strided_asymmetric"], "upsample": "residual"},
    "no_middle": {**SMALL, "middle": False},
    "no_middle_attention": {**SMALL, "middle_attention": False},
    "up_channels_of_one_width": {**SMALL, "channels": [8, 8], "attention": False, "up_channels": "next"},
    "scale_shift": {**SMALL, "norm": {**PLACEMENT, "time": "scale_shift"}},
    "scale_shift_bare_middle": {
        **SMALL,
        "norm": {**PLACEMENT, "time": "scale_shift", "middle": {**SITE, "attention": "none"}},
    },
    "middle_normed_apart": {**SMALL, "norm": {**PLACEMENT, "middle": {**SITE, "attention": {**NORM, "groups": 2}}}},
    "norms_that_come_out_the_same": {
        **SMALL,
        "norm": {**PLACEMENT, "decoder": {"norm": {**NORM, "min_group_channels": 2, "fp32_stats": False}}},
    },
    "fourier": {**SMALL, "time_embedding": "fourier", "time_input": "log", "wave_channels": 16}
    | {"sin_first": True, "divide_by_timestep": True, "frequency_shift": 1},
    "sines_first": {**SMALL, "sin_first": True, "frequency_shift": 1, "padding_mode": "zeros"},
}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_out_and_in_again_gives_the_network_that_went_out(name: str) -> None:
    ours = redraw(UNet(**EXPRESSIBLE[name])).eval()
    assert isinstance(ours, UNet)
    config, weights = ours.to_foreign("diffusers")
    theirs = UNet2DModel(**config).eval()
    theirs.load_state_dict(weights)
    call = inputs(ours, size=(16, 8))
    with torch.no_grad():
        actual, expected = theirs(**call).sample, ours(**call).sample
    assert (actual - expected).norm() < 1e-5 * expected.norm()
    back = UNet.from_foreign("diffusers", config, weights).state_dict()
    assert list(back) == list(ours.state_dict())
    assert all(torch.equal(tensor, back[key]) for key, tensor in ours.state_dict().items())


def placed(**changes: Any) -> dict[str, Any]:
    """The small network with another placement."""
    return {**SMALL, "norm": {**PLACEMENT, **changes}}


# Settings, and the one of them that UNet2DModel does not have.
INEXPRESSIBLE: list[tuple[dict[str, Any], str]] = [
    ({**SMALL, "dims": 1}, "dims 1"),
    ({**SMALL, "dims": 3, "strides": [[1, 2, 2], 2]}, "dims 3"),
    ({**SMALL, "heads": {"noise": 3, "mask": 1}}, r"heads \['noise', 'mask'\]"),
    ({**SMALL, "stem_channels": 4}, "stem_channels 4"),
    ({**SMALL, "head_kernel": 1}, "head_kernel 1"),
    ({**SMALL, "blocks": [1, 2, 1]}, r"blocks \[1, 2, 1\]"),
    ({**SMALL, "decoder_blocks": 1}, r"decoder_blocks \[1, 1, 1\]"),
    ({**SMALL, "blocks": 2, "attention": [False, [True, False], False], "decoder_attention": False}, "attention "),
    ({**SMALL, "decoder_attention": [False, [True, False], False]}, "decoder_attention "),
    ({**SMALL, "attention": True, "attention_heads": 2}, r"attention_heads give heads of \[4, 8\] channels"),
    ({**SMALL, "decoder_attention_heads": 2}, r"attention_heads give heads of \[8, 16\] channels"),
    ({**SMALL, "strides": [2, 4]}, "strides "),
    ({**SMALL, "strides": [[1, 2], 2]}, "strides "),
    ({**SMALL, "downsample": "max_pool"}, "downsample "),
    ({**SMALL, "downsample": "average_pool"}, "downsample "),
    ({**SMALL, "downsample": "block"}, "downsample "),
    ({**SMALL, "downsample": ["strided", "strided_asymmetric"]}, "downsample "),
    ({**ATTENDING, "downsample": ["residual", "strided"]}, "downsample "),
    ({**ATTENDING, "upsample": ["residual", "nearest"]}, "upsample "),
    ({**SMALL, "upsample": "transposed"}, "upsample "),
    ({**SMALL, "upsample": ["repeat", "nearest"]}, "upsample "),
    ({**SMALL, "up_channels": "next"}, "up_channels "),
    ({**SMALL, "downsample": "residual", "resample_filter": [1, 3, 3, 1]}, "resample_filter "),
    ({**SMALL, "upsample": "residual", "resample_shortcut": "conv"}, "resample_shortcut 'conv'"),
    ({**SMALL, "input_pyramid": True}, "input_pyramid True"),
    ({**SMALL, "time_embedding": "none"}, "time_embedding 'none'"),
    ({**SMALL, "time_embedding": "fourier_phase"}, "time_embedding 'fourier_phase'"),
    ({**SMALL, "time_embedding": "fourier"}, "time_input 'thousandth'"),
    ({**EXPRESSIBLE["fourier"], "wave_channels": 8}, "wave_channels 8"),
    ({**EXPRESSIBLE["fourier"], "sin_first": False}, "sin_first False"),
    ({**EXPRESSIBLE["fourier"], "divide_by_timestep": False}, "divide_by_timestep False"),
    ({**SMALL, "time_input": "log"}, "time_input 'log'"),
    ({**SMALL, "wave_channels": 12}, "wave_channels 12"),
    ({**SMALL, "divide_by_timestep": True}, "divide_by_timestep True"),
    ({**SMALL, "num_classes": 3, "label_entry": "waves"}, "label_entry 'waves'"),
    ({**SMALL, "activation": "gelu"}, "activation 'gelu'"),
    ({**SMALL, "norm": "ncsnpp"}, "norm.residual 'sqrt_half'"),
    ({**SMALL, "norm": "nnunet"}, "norm.residual 'off'"),
    ({**SMALL, "norm": "edm2"}, "norm.residual 'mp'"),
    ({**SMALL, "norm": "ddpm"}, r"norm.encoder.norm.groups {8: 2, 16: 4}"),
    (placed(time="scale"), "norm.time 'scale'"),
    (placed(weights="standardized"), "norm.weights 'standardized'"),
    (placed(clip=10.0), "norm.clip 10.0"),
    (placed(attention="none"), "norm.attention 'none'"),
    (placed(qk="rms"), "norm.qk 'rms'"),
    (placed(concat="mp"), "norm.concat 'mp'"),
    (placed(skip="before_concat"), "norm.skip 'before_concat'"),
    (placed(skip_scale=0.5), "norm.skip_scale 0.5"),
    (placed(input=NORM), "norm.input.kind 'group'"),
    (placed(out="none"), "norm.out.kind 'none'"),
    (placed(out={**NORM, "groups": 2}), "norm.out.groups {8: 2}"),
    (placed(encoder={**SITE, "pos": "post"}), "norm.encoder.pos 'post'"),
    (placed(encoder={**SITE, "main": "pixel"}), "norm.encoder.main.kind 'pixel'"),
    (placed(encoder={"norm": "layer"}), "norm.encoder.norm.kind 'layer'"),
    (placed(encoder={"norm": {**NORM, "affine": False}}), "norm.encoder.norm.affine False"),
    (placed(encoder={"norm": {**NORM, "center": False}}), "norm.encoder.norm.center False"),
    (placed(decoder={"norm": {**NORM, "eps": 1e-3}}), "norm.decoder.norm.eps 0.001"),
    (placed(decoder={**SITE, "attention": {**NORM, "groups": 2}}), "norm.decoder.attention.groups "),
    (placed(encoder={**SITE, "attention": "none"}), "norm.encoder.attention.kind 'none'"),
    (placed(middle={**SITE, "attention": "none"}), "norm.middle.attention.kind 'none'"),
    (placed(middle={"norm": {**NORM, "groups": 2}}), "norm.middle.norm.groups "),
]


@pytest.mark.parametrize(("settings", "named"), INEXPRESSIBLE)
def test_what_it_does_not_have_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^UNet2DModel .*({named})"):
        UNet(**settings).to_foreign("diffusers")


@pytest.mark.filterwarnings("ignore:a norm of")
def test_groups_that_differ_by_width_in_the_same_way_are_refused() -> None:
    norm = {**NORM, "groups": 8}
    settings = {**SMALL, "channels": [8, 12], "attention": False}
    settings["norm"] = {**PLACEMENT, "encoder": {"norm": norm}, "decoder": {"norm": norm}, "out": norm}
    with pytest.raises(ValueError, match=r"one number of groups.*norm\.encoder\.norm\.groups are \{8: 8, 12: 6\}"):
        UNet(**settings).to_foreign("diffusers")


def test_choices_may_not_make_it_another_network() -> None:
    ours = UNet(**SMALL)
    config, _ = ours.to_foreign("diffusers", num_train_timesteps=1000, downsample_padding=1, sample_size=64)
    assert (config["num_train_timesteps"], config["sample_size"]) == (1000, 64)
    with pytest.raises(ValueError, match=r"dropout would describe another network: .* dropout 0\.0"):
        ours.to_foreign("diffusers", dropout=0.1)
    with pytest.raises(ValueError, match="UNet2DModel has no argument 'width'"):
        ours.to_foreign("diffusers", width=3)
    with pytest.raises(ValueError, match="act_fn 'relu' is not supported"):
        ours.to_foreign("diffusers", act_fn="relu")
