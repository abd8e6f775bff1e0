"""Two settings are the same network, or the first setting that tells them apart is named."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from tests.networks import NETWORKS
from unetdiff.models.interop.express import require_same
from unetdiff.placement import Norm, NormPlacement
from unetdiff.spec import UNetSpec

BASE: dict[str, Any] = {
    "channels": [8, 16, 16],
    "blocks": 1,
    "attention": [False, True, False],
    "attention_heads": 2,
    "downsample": "residual",
    "upsample": "residual",
    "num_classes": 3,
    "norm": "ddpm",
}
MP: dict[str, Any] = {**BASE, "norm": "edm2"}

# Another value for each setting (and what it needs); the error names that setting.
OTHER: dict[str, dict[str, Any]] = {
    "channels": {"channels": [8, 16, 24]},
    "decoder_channels": {"decoder_channels": [8, 16, 24]},
    "block_convolutions": {"block_convolutions": "separable"},
    "backbone": {"backbone": {"config": {"model_type": "resnet"}, "channels": [8], "strides": [4]}},
    "decoder_kind": {"decoder_kind": "nested"},
    "deep_supervision": {"deep_supervision": True},
    "transformer_layers": {"transformer_layers": 1},
    "stem_channels": {"stem_channels": 4},
    "head_kernel": {"head_kernel": 1},
    "blocks": {"blocks": [1, 2, 1]},
    "decoder_blocks": {"decoder_blocks": 1},
    "middle": {"middle": False},
    "attention": {"attention": [False, True, True]},
    "decoder_attention": {"decoder_attention": False},
    "middle_attention": {"middle_attention": False},
    "attention_heads": {"attention_heads": 4},
    "attention_head_channels": {"attention_head_channels": 4},
    "decoder_attention_heads": {"decoder_attention_heads": 4},
    "strides": {"strides": [2, 1]},
    "downsample": {"downsample": ["residual", "max_pool"]},
    "upsample": {"upsample": ["nearest", "residual"]},
    "up_channels": {"up_channels": "next"},
    "resample_filter": {"resample_filter": [1, 3, 3, 1]},
    "resample_shortcut": {"resample_shortcut": "conv"},
    "skip_fusion": {"skip_fusion": "add"},
    "convolutions": {"convolutions": "valid", "norm": "unet2015", "downsample": "max_pool", "upsample": "nearest"},
    "input_pyramid": {"input_pyramid": True},
    "time_embedding": {"time_embedding": "fourier"},
    "time_input": {"time_input": "log"},
    "wave_channels": {"wave_channels": 12},
    "time_channels": {"time_channels": 12},
    "frequency_shift": {"frequency_shift": 1},
    "sin_first": {"sin_first": True},
    "label_entry": {"label_entry": "waves"},
    "divide_by_timestep": {"divide_by_timestep": True},
    "activation": {"activation": "relu"},
    "dropout": {"dropout": 0.1},
    "dims": {"dims": 1},
    "in_channels": {"in_channels": 1},
    "out_channels": {"out_channels": 6},
    "heads": {"heads": {"noise": 3}},
    "num_classes": {"num_classes": 4},
    "null_class": {"null_class": True},
}
OTHER_NORMS: dict[str, Any] = {
    "encoder": {"norm": {"groups": 1, "eps": 1e-6}},
    "middle": "post",
    "decoder": {"norm": {"kind": "layer", "eps": 1e-6}},
    "input": "group",
    "out": {"eps": 1e-5},
    "skip": "after_concat",
    "concat": "mp",
    "skip_scale": "learned",
    "residual": "sqrt_half",
    "attention": "none",
    "qk": "rms",
    "time": "scale",
    "weights": "standardized",
    "clip": 9.0,
}
# Settings that act in magnitude-preserving networks only.
OTHER_MP: dict[str, dict[str, Any]] = {
    "label_balance": {"label_balance": 0.3},
    "norm.concat_t": {"norm": {"preset": "edm2", "concat_t": 0.3}},
    "norm.residual_t": {"norm": {"preset": "edm2", "residual_t": 0.4, "attention_t": 0.3}},
    "norm.attention_t": {"norm": {"preset": "edm2", "attention_t": 0.4}},
    "norm.encoder.main": {"norm": {"preset": "edm2", "encoder": {"pos": "none"}}},
}
WITHOUT_EFFECT = {"label_balance", "padding_mode", "sample_size", "norm"}
WITHOUT_EFFECT_NORMS = {"concat_t", "residual_t", "attention_t", "skip_norm", "zero_init"}


def refused(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^Theirs does not have {name}\b"):
        require_same(UNetSpec(**ours), UNetSpec(**theirs), "Theirs")


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_counts(name: str) -> None:
    refused({**BASE, **OTHER[name]}, BASE, name)


@pytest.mark.parametrize("name", OTHER_NORMS)
def test_every_norm_setting_counts(name: str) -> None:
    refused({**BASE, "norm": {"preset": "ddpm", name: OTHER_NORMS[name]}}, BASE, f"norm.{name}")


@pytest.mark.parametrize("name", OTHER_MP)
def test_settings_of_magnitude_preserving_networks_count(name: str) -> None:
    refused({**MP, **OTHER_MP[name]}, MP, name)


def test_skip_norm_counts_where_it_acts() -> None:
    norm = {"preset": "ddpm", "skip": "before_concat"}
    ours = {**BASE, "norm": {**norm, "skip_norm": "pixel"}}
    refused(ours, {**BASE, "norm": norm}, "norm.skip_norm at level2_block0.kind")


def test_the_grid_of_positions_counts_where_there_are_any() -> None:
    ours = {**BASE, "transformer_layers": 1, "position_grid": 4}
    refused(ours, {**BASE, "transformer_layers": 1}, "position_grid")
    require_same(UNetSpec(**BASE), UNetSpec(**BASE, position_grid=4), "Theirs")


def test_no_setting_is_forgotten() -> None:
    assert {entry.name for entry in fields(UNetSpec)} == {*OTHER, "position_grid"} | WITHOUT_EFFECT
    assert {entry.name for entry in fields(NormPlacement)} == set(OTHER_NORMS) | WITHOUT_EFFECT_NORMS


@pytest.mark.parametrize(("name", "value"), [("kind", "rms"), ("eps", 0.1), ("affine", False), ("center", False)])
def test_every_field_of_a_norm_counts(name: str, value: Any) -> None:
    norm = {"kind": "group", "groups": 4}
    theirs = {**BASE, "norm": {"preset": "ddpm", "out": norm}}
    refused({**BASE, "norm": {"preset": "ddpm", "out": {**norm, name: value}}}, theirs, f"norm.out.{name}")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_says_the_same_is_the_same(name: str) -> None:
    settings = NETWORKS[name]
    spec = UNetSpec(**settings)
    said = {
        "blocks": [len(level.heads) for level in spec.levels("encoder", spec.dims)],
        "strides": [list(row) for row in spec.stride_tuples(spec.dims)],
        "sample_size": 48,
        "padding_mode": "circular",
    }
    if spec.time_embedding != "none":
        said |= {"wave_channels": spec.waves, "time_channels": spec.embedding_channels}
    if spec.stem_channels is None:
        said["stem_channels"] = spec.channels[0]
    require_same(spec, UNetSpec(**{**settings, **said}), "Theirs")
    require_same(UNetSpec(**{**settings, **said}), spec, "Theirs")


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "heads_by_width": ({"attention_heads": 4}, {"attention_heads": 1, "attention_head_channels": 4}),
    "filter_of_two": ({"resample_filter": [1, 1]}, {"resample_filter": None}),
    "filter_scaled": ({"resample_filter": [1, 3, 3, 1]}, {"resample_filter": [2, 6, 6, 2]}),
    "filter_without_use": (
        {"downsample": "strided", "upsample": "nearest"},
        {"downsample": "strided", "upsample": "nearest", "resample_filter": [1, 2, 2, 1], "resample_shortcut": "conv"},
    ),
    "same_widths": ({"channels": [16, 16, 16]}, {"channels": [16, 16, 16], "up_channels": "next"}),
    "groups_that_come_out_the_same": ({}, {"norm": {"preset": "ddpm", "out": {"groups": 2, "eps": 1e-6}}}),
    "one_group_per_channel": (
        {"norm": {"out": "instance"}},
        {"norm": {"out": {"groups": 8, "min_group_channels": 1}}},
    ),
    "first_weights": ({}, {"norm": {"preset": "ddpm", "zero_init": []}}),
    "no_norm": ({"norm": {"encoder": "none"}}, {"norm": {"encoder": {"norm": "none"}}}),
    "no_classes": ({"num_classes": None}, {"num_classes": None, "label_entry": "waves"}),
}


@pytest.mark.parametrize("name", SAME)
def test_two_ways_to_say_it(name: str) -> None:
    ours, theirs = ({**BASE, **changes} for changes in SAME[name])
    require_same(UNetSpec(**ours), UNetSpec(**theirs), "Theirs")


def test_statistics_in_half_precision_count_where_they_are_computed_here() -> None:
    for kind, counts in (("layer", True), ("group", False)):
        ours, theirs = ({**BASE, "norm": {"out": Norm(kind, fp32_stats=held)}} for held in (False, True))
        if counts:
            refused(ours, theirs, "norm.out.fp32_stats")
        else:
            require_same(UNetSpec(**ours), UNetSpec(**theirs), "Theirs")
