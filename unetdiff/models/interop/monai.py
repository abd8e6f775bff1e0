"""MONAI (https://github.com/Project-MONAI/MONAI, 1.5 and later): `DiffusionModelUNet` without cross-attention.

The network of Pinaya et al. 2022 (https://arxiv.org/abs/2209.07162) for images and volumes. `timestep` is the
library's `timesteps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unetdiff.models.interop.arguments import complete, refuse, require_positive
from unetdiff.models.interop.library import Arguments, Library
from unetdiff.models.interop.weights import SAME, STACKED, Weight, address, layer, layers
from unetdiff.models.plan import Plan
from unetdiff.models.step import Step

_NETWORK = "MONAI's DiffusionModelUNet"


@dataclass(frozen=True, kw_only=True)
class _DiffusionModelUNet:
    """The constructor's arguments with their defaults."""

    spatial_dims: int
    in_channels: int
    out_channels: int
    num_res_blocks: int | Sequence[int] = (2, 2, 2, 2)
    channels: Sequence[int] = (32, 64, 64, 64)
    attention_levels: Sequence[bool] = (False, False, True, True)
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    resblock_updown: bool = False
    num_head_channels: int | Sequence[int] = 8
    with_conditioning: bool = False
    transformer_num_layers: int = 1
    cross_attention_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    dropout_cattn: float = 0.0
    include_fc: bool = True
    use_combined_linear: bool = False
    use_flash_attention: bool = False


# Theirs is built with spatial_dims 1, but its blocks add the timestep as to a volume and fail. `upcast_attention`,
# `dropout_cattn` and `use_flash_attention` change nothing that a network without cross-attention computes.
_SUPPORTED = {
    "spatial_dims": (2, 3),
    "with_conditioning": (False,),
    "transformer_num_layers": (1,),
    "cross_attention_dim": (None,),
    "include_fc": (True,),
}


def _complete(given: Arguments) -> dict[str, Any]:
    arguments = complete(_NETWORK, given, _DiffusionModelUNet)
    refuse(_NETWORK, arguments, _SUPPORTED)
    require_positive(_NETWORK, arguments, "channels", "norm_num_groups")
    channels, groups = arguments["channels"], arguments["norm_num_groups"]
    for name in ("num_res_blocks", "attention_levels", "num_head_channels"):
        value = arguments[name]
        arguments[name] = value = [value] * len(channels) if isinstance(value, int) else value
        if len(value) != len(channels):
            raise ValueError(f"{_NETWORK}: {name} is {value!r}; expected {len(channels)} entries, one per level")
    if any(width % groups for width in channels):
        raise ValueError(f"{_NETWORK}: channels {channels} are not all multiples of norm_num_groups {groups}")
    if channels[0] % 2:
        raise ValueError(f"{_NETWORK}: channels {channels} with an odd first width are not supported; expected even")
    return arguments


def _settings(arguments: Arguments) -> dict[str, Any]:
    channels, attends = list(arguments["channels"]), [bool(on) for on in arguments["attention_levels"]]
    # The middle attends with the last level's heads; elsewhere a level without attention may say anything, often 0.
    uses = [*attends[:-1], True]
    heads = zip(uses, arguments["num_head_channels"], channels, strict=True)
    norm = {
        "kind": "group",
        "groups": arguments["norm_num_groups"],
        "min_group_channels": 1,
        "eps": arguments["norm_eps"],
    }
    resblocks = arguments["resblock_updown"]
    return {
        "dims": arguments["spatial_dims"],
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["out_channels"],
        "channels": channels,
        "blocks": arguments["num_res_blocks"],
        "attention": attends,
        "attention_head_channels": [head if used else width for used, head, width in heads],
        "downsample": "residual" if resblocks else "strided",
        "upsample": "residual" if resblocks else "nearest",
        "num_classes": arguments["num_class_embeds"],
        "norm": {"preset": "ddpm", "encoder": {"norm": norm}, "decoder": {"norm": norm}, "out": norm},
    }


_BLOCK = {
    "norm1": "norm1",
    "conv1.conv": "conv1",
    "time_emb_proj": "norm2.project",
    "norm2": "norm2.norm",
    "conv2.conv": "conv2",
    "skip_connection.conv": "shortcut",
}


def _residual(step: Step, theirs: str) -> list[Weight]:
    return layers(_BLOCK, theirs, f"{address(step)}.residual")


def _attention(step: Step, theirs: str, arguments: Arguments) -> list[Weight]:
    ours, inner = f"{address(step)}.attention", f"{theirs}.attn"
    # Their one layer for all three has its rows in our order.
    names, form = [f"{inner}.to_{part}" for part in "qkv"], STACKED
    if arguments["use_combined_linear"]:
        names, form = [f"{inner}.qkv"], SAME
    weights = layer(f"{ours}.norm", f"{theirs}.norm") + layer(f"{ours}.out", f"{inner}.out_proj")
    return weights + layer(f"{ours}.query_key_value", names, form)


def _block(step: Step, plan: Plan, arguments: Arguments) -> list[Weight]:
    at = f"{_level(step, step.level, plan)}.{{}}.{step.number}"
    block, attention = at.format("resnets"), at.format("attentions")
    if step.side == "middle":
        block, attention = f"middle_block.resnet_{step.number + 1}", "middle_block.attention"
    return _residual(step, block) + _attention(step, attention, arguments)


def _resampling(step: Step, plan: Plan, arguments: Arguments) -> list[Weight]:
    """A step between levels; there it ends the level that it leaves."""
    down = step.kind == "down"
    left = step.level - 1 if down else step.level + 1
    theirs = f"{_level(step, left, plan)}.{'downsampler' if down else 'upsampler'}"
    if step.resampling == "residual":
        return _residual(step, theirs)
    ours = f"{address(step)}.module"
    return layer(ours, f"{theirs}.op.conv") if down else layer(f"{ours}.1", f"{theirs}.postconv.conv")


def _level(step: Step, level: int, plan: Plan) -> str:
    """Their name of a level on the side of `step`; their decoder counts from the coarsest."""
    coarsest = max(entry.level for entry in plan.steps)
    return f"down_blocks.{level}" if step.side == "encoder" else f"up_blocks.{coarsest - level}"


def _ends(step: Step, plan: Plan, arguments: Arguments) -> list[Weight]:
    """The first convolution, and what follows the decoder."""
    if step.kind == "stem":
        return layer(f"{address(step)}.module", "conv_in.conv")
    return layer(f"{address(step)}.0", "out.0") + layer(f"{address(step)}.2", "out.2.conv")


_WALK = {"stem": _ends, "block": _block, "down": _resampling, "up": _resampling, "head": _ends}


def _weights(plan: Plan, arguments: Arguments) -> list[Weight]:
    weights = layer("embedding.time.0", "time_embed.0") + layer("embedding.time.2", "time_embed.2")
    weights += layer("embedding.label", "class_embedding", bias=False)
    for step in plan.steps:
        weights += _WALK[step.kind](step, plan, arguments)
    return weights


MONAI = Library(complete=_complete, settings=_settings, weights=_weights)
