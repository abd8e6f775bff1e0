"""diffusers (https://github.com/huggingface/diffusers): `UNet2DModel`, both ways.

Its blocks are those of DDPM (Ho et al. 2020) with the options of Song et al. 2021 (Fourier features, resampling inside
residual blocks) and of Dhariwal & Nichol 2021 (scale and shift).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from unetdiff.models.interop.arguments import complete, defaults, refuse
from unetdiff.models.interop.express import require_same
from unetdiff.models.interop.library import Arguments, Library
from unetdiff.models.interop.weights import STACKED, Weight, address, layer, layers
from unetdiff.models.plan import Plan
from unetdiff.models.step import Step
from unetdiff.nn.norm import group_count
from unetdiff.spec import Norm, UNetSpec

_NETWORK = "UNet2DModel"


@dataclass(frozen=True, kw_only=True)
class _UNet2DModel:
    """The constructor's arguments with their defaults."""

    sample_size: int | Sequence[int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: Sequence[int] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None  # read by the learned time embedding alone


_ATTENDING = ("AttnDownBlock2D", "AttnUpBlock2D")
# How a block leaves its level; an attending one as `downsample_type` or `upsample_type` says.
_WAYS = {
    "down_block_types": {"DownBlock2D": "conv", "AttnDownBlock2D": None, "ResnetDownsampleBlock2D": "resnet"},
    "up_block_types": {"UpBlock2D": "conv", "AttnUpBlock2D": None, "ResnetUpsampleBlock2D": "resnet"},
}
_TIMES = {"default": "add", "scale_shift": "scale_shift"}
# The head's activation is the SiLU whatever `act_fn` is.
_SUPPORTED = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional", "fourier"),
    "flip_sin_to_cos": (True, False),
    "mid_block_type": ("UNetMidBlock2D", None),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": tuple(_TIMES),
    "add_attention": (True, False),
    "class_embed_type": (None,),
}
_LEAST = {
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "freq_shift": 0,
    "time_embedding_dim": 0,  # another way to say None
    "attention_head_dim": 1,
    "attn_norm_num_groups": 1,
    "num_class_embeds": 1,
    "num_train_timesteps": 0,
}


def _complete(given: Arguments) -> dict[str, Any]:
    """Without what a saved configuration says about itself (`_class_name`, ...)."""
    if isinstance(given, Mapping):
        given = {name: value for name, value in given.items() if not name.startswith("_")}
    arguments = complete(_NETWORK, given, _UNet2DModel)
    refuse(_NETWORK, arguments, _SUPPORTED)
    for name, ways in _WAYS.items():
        # The prefix of the first releases, which the library takes off as well.
        arguments[name] = [kind.removeprefix("UNetRes") for kind in arguments[name]]
        for kind in arguments[name]:
            refuse(_NETWORK, {name: kind}, {name: tuple(ways)})
    _check_numbers(arguments)
    _check_widths(arguments)
    return arguments


def _check_numbers(arguments: Arguments) -> None:
    for name, least in _LEAST.items():
        value = arguments[name]
        if value is not None and value < least:
            raise ValueError(f"{_NETWORK}: {name} {value!r} is not supported; expected a whole number from {least}")
    channels = arguments["block_out_channels"]
    if not channels or min(channels) < 1:
        raise ValueError(f"{_NETWORK}: block_out_channels {channels!r} is not supported; expected a width per level")
    for name in _WAYS:
        if len(arguments[name]) != len(channels):
            held = f"{name} has {len(arguments[name])} entries, block_out_channels {len(channels)}"
            raise ValueError(f"{_NETWORK}: {held}; expected as many")


def _check_widths(arguments: Arguments) -> None:
    """Widths divide into groups, heads, and sines and cosines."""
    channels = arguments["block_out_channels"]
    middle = [channels[-1]] if arguments["mid_block_type"] and arguments["add_attention"] else []
    levels = [*zip(channels, arguments["down_block_types"], strict=True)]
    levels += zip(reversed(channels), arguments["up_block_types"], strict=True)
    attending = middle + [width for width, kind in levels if kind in _ATTENDING]
    divided = {"norm_num_groups": channels, "attn_norm_num_groups": middle, "attention_head_dim": attending}
    for name, widths in divided.items():
        for width in widths:
            if arguments[name] is not None and width % arguments[name]:
                raise ValueError(
                    f"{_NETWORK}: {name} {arguments[name]} does not divide the {width} channels of a level"
                )
    if arguments["time_embedding_type"] == "positional" and channels[0] % 2:
        held = f"block_out_channels {list(channels)}"
        raise ValueError(f"{_NETWORK}: {held} is not supported; expected an even first width, half of it sines")


def _settings(arguments: Arguments) -> dict[str, Any]:
    down, up = arguments["down_block_types"], arguments["up_block_types"][::-1]
    strided = "strided" if arguments["downsample_padding"] else "strided_asymmetric"
    downs = {"conv": strided, "resnet": "residual"}
    ups = {"conv": "nearest", "resnet": "residual"}
    return {
        "channels": list(arguments["block_out_channels"]),
        "blocks": arguments["layers_per_block"],
        "middle": arguments["mid_block_type"] is not None,
        "attention": [kind in _ATTENDING for kind in down],
        "decoder_attention": [kind in _ATTENDING for kind in up],
        "middle_attention": arguments["add_attention"],
        "attention_head_channels": arguments["attention_head_dim"],
        "downsample": [downs[_WAYS["down_block_types"][kind] or arguments["downsample_type"]] for kind in down[:-1]],
        "upsample": [ups[_WAYS["up_block_types"][kind] or arguments["upsample_type"]] for kind in up[1:]],
        **_time(arguments),
        "time_channels": arguments["time_embedding_dim"] or None,
        "norm": _norm(arguments),
        "dropout": arguments["dropout"],
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["out_channels"],
        "num_classes": arguments["num_class_embeds"],
        "sample_size": arguments["sample_size"],
    }


def _time(arguments: Arguments) -> dict[str, Any]:
    if arguments["time_embedding_type"] == "positional":
        return {"frequency_shift": arguments["freq_shift"], "sin_first": not arguments["flip_sin_to_cos"]}
    return {
        "time_embedding": "fourier",
        "time_input": "log",
        "wave_channels": 2 * arguments["block_out_channels"][0],
        "sin_first": True,
        "divide_by_timestep": True,
    }


def _norm(arguments: Arguments) -> dict[str, Any]:
    """Group norm before every convolution; before the middle's attention only where asked, or without scale_shift."""
    scales = arguments["resnet_time_scale_shift"] == "scale_shift"
    norm = {
        "kind": "group",
        "groups": arguments["norm_num_groups"],
        "min_group_channels": 1,
        "eps": arguments["norm_eps"],
    }
    asked = arguments["attn_norm_num_groups"]
    attention = {**norm, "groups": asked} if asked is not None else "none" if scales else norm
    site = {"pos": "pre", "norm": norm}
    return {
        "encoder": site,
        "decoder": site,
        "middle": {**site, "attention": attention},
        "out": norm,
        "time": _TIMES[arguments["resnet_time_scale_shift"]],
    }


_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2.norm", "time_emb_proj": "norm2.project"}
_BLOCK |= {"conv2": "conv2", "conv_shortcut": "shortcut"}
# The convolution of a step between two levels, by how it is taken.
_CONVOLUTIONS = {"strided": "module", "strided_asymmetric": "module.conv", "nearest": "module.1"}
_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _residual(step: Step, theirs: str) -> list[Weight]:
    return layers(_BLOCK, theirs, f"{address(step)}.residual")


def _block(step: Step, at: str) -> list[Weight]:
    number = step.number
    ours, theirs = f"{address(step)}.attention", f"{at}.attentions.{number}"
    weights = _residual(step, f"{at}.resnets.{number}")
    if step.heads:
        weights += layer(f"{ours}.norm", f"{theirs}.group_norm")
        weights += layer(f"{ours}.query_key_value", [f"{theirs}.to_{part}" for part in "qkv"], STACKED)
        weights += layer(f"{ours}.out", f"{theirs}.to_out.0")
    return weights


def _between(step: Step, at: str) -> list[Weight]:
    theirs = f"{at}.{step.kind}samplers.0"
    if step.resampling == "residual":
        return _residual(step, theirs)
    return layer(f"{address(step)}.{_CONVOLUTIONS[step.resampling]}", f"{theirs}.conv")


_STEPS = {
    "stem": lambda step, at: layer(f"{address(step)}.module", "conv_in"),
    "block": _block,
    "down": _between,
    "up": _between,
    "head": lambda step, at: layer(f"{address(step)}.0", "conv_norm_out") + layer(f"{address(step)}.2", "conv_out"),
}


def _place(step: Step, levels: int) -> str:
    """The block of theirs that holds a step: a step between two levels belongs to the level that it leaves."""
    level = step.level + {"down": -1, "up": 1}.get(step.kind, 0)
    places = {"encoder": f"down_blocks.{level}", "middle": "mid_block", "decoder": f"up_blocks.{levels - 1 - level}"}
    return places.get(step.side, "")


def _weights(plan: Plan, arguments: Arguments) -> list[Weight]:
    levels = len(arguments["block_out_channels"])
    weights = [weight for step in plan.steps for weight in _STEPS[step.kind](step, _place(step, levels))]
    weights += layer("embedding.time.0", "time_embedding.linear_1") + layer(
        "embedding.time.2", "time_embedding.linear_2"
    )
    if arguments["time_embedding_type"] == "fourier":
        weights.append(Weight("embedding.waves.frequency", ("time_proj.weight",)))
    if arguments["num_class_embeds"] is not None:
        weights.append(Weight("embedding.label.weight", ("class_embedding.weight",)))
    return weights


def _prepare(arguments: Arguments, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the names of today for the attention of published networks, which are older."""
    pattern = re.compile(rf"(?<=\.)({'|'.join(_ATTENTION_NAMES)})(?=\.(weight|bias)$)")
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        now = pattern.sub(lambda found: _ATTENTION_NAMES[found[0]], name)
        if now in renamed or (now != name and now in state):
            raise ValueError(f"the state dict holds {now!r} twice, also under its old name")
        renamed[now] = tensor
    return renamed


def _export(spec: UNetSpec, choices: Arguments) -> dict[str, Any]:
    """The arguments of the network that `spec` describes; choices may say otherwise what stays the same network."""
    closest = {**defaults(_UNet2DModel), **_closest(spec)}
    # The null class is a label like any other there.
    labels = None if spec.num_classes is None else spec.num_classes + spec.null_class
    asked = replace(spec, num_classes=labels, null_class=False)
    require_same(asked, _spec(closest), _NETWORK)
    _require_one_group_count(spec)
    arguments = _complete({**closest, **choices})
    if choices:
        try:
            require_same(asked, _spec(arguments), _NETWORK)
        except ValueError as error:
            raise ValueError(f"{', '.join(choices)} would describe another network: {error}") from error
    return arguments


def _spec(arguments: Arguments) -> UNetSpec:
    return UNetSpec(**{**_settings(arguments), "sample_size": None})


def _closest(spec: UNetSpec) -> dict[str, Any]:
    """The arguments that come closest to a network of ours, whatever it is."""
    encoder, decoder = spec.levels("encoder", spec.dims), spec.levels("decoder", spec.dims)
    placement = spec.placement
    ways = {  # per level, how it is left
        "down_block_types": [(level.heads, level.resampling) for level in encoder],
        "up_block_types": [(decoder[at].heads, decoder[at - 1].resampling if at else "") for at in range(len(decoder))],
    }
    residual = {name: [any(heads) for heads, way in rows if way == "residual"] for name, rows in ways.items()}
    norm = placement.encoder.norm if placement.encoder.norm.kind == "group" else placement.out
    groups = _group_count(norm, spec.channels[0])
    return {
        "sample_size": spec.sample_size,
        "in_channels": spec.in_channels,
        "out_channels": next(iter(spec.outputs.values())),
        "time_embedding_type": "fourier" if spec.time_embedding == "fourier" else "positional",
        "time_embedding_dim": spec.embedding_channels,
        "freq_shift": spec.frequency_shift,
        "flip_sin_to_cos": not spec.sin_first,
        "down_block_types": [_kind("down_block_types", *row) for row in ways["down_block_types"]],
        "mid_block_type": "UNetMidBlock2D" if spec.middle else None,
        "up_block_types": [_kind("up_block_types", *row) for row in ways["up_block_types"]][::-1],
        "block_out_channels": list(spec.channels),
        "layers_per_block": len(encoder[0].heads),
        "downsample_padding": int(not any(level.resampling == "strided_asymmetric" for level in encoder)),
        "downsample_type": "resnet" if any(residual["down_block_types"]) else "conv",
        "upsample_type": "resnet" if any(residual["up_block_types"]) else "conv",
        "dropout": spec.dropout,
        "attention_head_dim": _head_width(spec),
        "norm_num_groups": groups,
        "attn_norm_num_groups": _middle_groups(spec, groups),
        "norm_eps": norm.eps,
        "resnet_time_scale_shift": "default" if placement.time == "add" else "scale_shift",
        "add_attention": spec.middle_heads > 0,
        "num_class_embeds": None if spec.num_classes is None else spec.num_classes + spec.null_class,
    }


def _kind(name: str, heads: tuple[int, ...], way: str) -> str:
    """The type of a block by its attention and by how its level is left."""
    plain, attending, resampling = _WAYS[name]
    return attending if any(heads) else resampling if way == "residual" else plain


def _group_count(norm: Norm, width: int) -> int:
    return group_count(width, norm.groups, norm.min_group_channels)


def _middle_groups(spec: UNetSpec, groups: int) -> int | None:
    """Groups of the norm before the middle's attention; None where theirs has them, or has no norm, by itself."""
    norm = spec.placement.site("middle").before_attention
    if not spec.middle_heads or spec.placement.attention == "none" or norm.kind != "group":
        return None
    count = _group_count(norm, spec.channels[-1])
    return None if spec.placement.time == "add" and count == groups else count


def _head_width(spec: UNetSpec) -> int | None:
    """Channels of an attention head, the same everywhere; None: one head everywhere."""
    levels = [*spec.levels("encoder", spec.dims), *spec.levels("decoder", spec.dims)]
    attending = {(level.channels, heads) for level in levels for heads in level.heads if heads}
    attending |= {(spec.channels[-1], spec.middle_heads)} if spec.middle_heads else set()
    widths = {width // heads for width, heads in attending}
    if all(heads == 1 for _, heads in attending):
        return None
    if len(widths) > 1:
        held = f"attention_heads give heads of {sorted(widths)} channels"
        raise ValueError(f"{_NETWORK} has heads of one width, its attention_head_dim; {held}")
    return widths.pop()


def _require_one_group_count(spec: UNetSpec) -> None:
    norm = spec.placement.encoder.norm
    counts = {width: _group_count(norm, width) for width in spec.channels}
    if len(set(counts.values())) > 1:
        held = f"norm.encoder.norm.groups are {counts} by width"
        raise ValueError(f"{_NETWORK} has one number of groups for all widths, its norm_num_groups; {held}")


DIFFUSERS = Library(complete=_complete, settings=_settings, weights=_weights, prepare=_prepare, export=_export)
