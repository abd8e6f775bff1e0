"""guided-diffusion (Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233): `UNetModel`, in and out.

Written from the paper and from the constructor's arguments and the names in published weights. `timestep` is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unetdiff.models.interop.arguments import complete, require_positive
from unetdiff.models.interop.express import require_same
from unetdiff.models.interop.library import Arguments, Library
from unetdiff.models.interop.weights import Weight, address, layer, layers, pointwise, projection
from unetdiff.models.plan import Plan
from unetdiff.models.step import Step
from unetdiff.spec import UNetSpec

_NETWORK = "guided-diffusion's UNetModel"
_GROUPS = 32  # of every norm


@dataclass(frozen=True, kw_only=True)
class _UNetModel:
    """The constructor's arguments, their types and defaults. `attention_resolutions` are downsampling factors."""

    image_size: int | Sequence[int] | None
    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    dropout: float = 0
    channel_mult: Sequence[float] = (1, 2, 4, 8)
    conv_resample: bool = True
    dims: Literal[1, 2, 3] = 2
    num_classes: int | None = None
    use_checkpoint: bool = False
    use_fp16: bool = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False


# What our network leaves open: its default size, how rows of one layer are ordered, and how the library runs it.
_CHOICES = ("image_size", "use_new_attention_order", "use_fp16", "use_checkpoint")


def _complete(given: Arguments) -> dict[str, Any]:
    places = given.get("attention_resolutions") if isinstance(given, Mapping) else None
    sets = {"attention_resolutions": sorted(places)} if isinstance(places, (set, frozenset)) else {}
    arguments = complete(_NETWORK, {**given, **sets}, _UNetModel)
    require_positive(_NETWORK, arguments, "model_channels", "num_res_blocks")
    for width in _widths(arguments):
        if width < _GROUPS or width % _GROUPS:
            asked = f"model_channels {arguments['model_channels']} and channel_mult {list(arguments['channel_mult'])}"
            raise ValueError(f"{_NETWORK}: {asked} give a width of {width}; expected a multiple of {_GROUPS}")
    return arguments


def _widths(arguments: Arguments) -> list[int]:
    """Channels of each level, fine to coarse; the first is the stem's as well."""
    return [int(factor * arguments["model_channels"]) for factor in arguments["channel_mult"]]


def _settings(arguments: Arguments) -> dict[str, Any]:
    channels, width, dims = _widths(arguments), arguments["model_channels"], arguments["dims"]
    norm = {"kind": "group", "groups": _GROUPS, "min_group_channels": 1, "eps": 1e-5}
    inside, learned = arguments["resblock_updown"], arguments["conv_resample"]
    return {
        "channels": channels,
        "blocks": arguments["num_res_blocks"],
        "attention": [2**level in arguments["attention_resolutions"] for level in range(len(channels))],
        **_head_settings(arguments),
        # Volumes keep their depth.
        "strides": [[1, 2, 2]] * (len(channels) - 1) if dims == 3 else 2,
        "downsample": "residual" if inside else "strided" if learned else "average_pool",
        "upsample": "residual" if inside else "nearest" if learned else "repeat",
        "wave_channels": width,
        "time_channels": 4 * width,
        "norm": {
            "encoder": {"norm": norm},
            "decoder": {"norm": norm},
            "out": norm,
            "time": "scale_shift" if arguments["use_scale_shift_norm"] else "add",
        },
        "dropout": arguments["dropout"],
        "dims": dims,
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["out_channels"],
        "num_classes": arguments["num_classes"],
        "sample_size": arguments["image_size"],
    }


def _head_settings(arguments: Arguments) -> dict[str, Any]:
    """-1 stands for "not given"; the width of a head goes before their number, on both sides."""
    if arguments["num_head_channels"] != -1:
        return {"attention_head_channels": arguments["num_head_channels"]}
    above = arguments["num_heads_upsample"]
    heads = arguments["num_heads"]
    return {"attention_heads": heads, "decoder_attention_heads": None if above == -1 else above}


_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "norm2.project",
    "out_layers.0": "norm2.norm",
    "out_layers.3": "conv2",
    "skip_connection": "shortcut",
}


def _residual(step: Step, theirs: str) -> list[Weight]:
    return layers(_BLOCK, theirs, f"{address(step)}.residual")


def _attention(step: Step, theirs: str, arguments: Arguments) -> list[Weight]:
    if not step.heads:
        return []
    ours = f"{address(step)}.attention"
    order = "q h c" if arguments["use_new_attention_order"] else "h q c"
    return [
        *layer(f"{ours}.norm", f"{theirs}.norm"),
        *layer(f"{ours}.query_key_value", f"{theirs}.qkv", projection(order, step.heads, 1)),
        *layer(f"{ours}.out", f"{theirs}.proj_out", pointwise(1)),
    ]


def _resampling(step: Step, theirs: str) -> list[Weight]:
    """A step up or down: a residual block, or a convolution (which pooling and repetition do not have)."""
    if step.resampling == "residual":
        return _residual(step, theirs)
    ours, name = {"down": ("module", "op"), "up": ("module.1", "conv")}[step.kind]
    return layer(f"{address(step)}.{ours}", f"{theirs}.{name}")


def _weights(plan: Plan, arguments: Arguments) -> list[Weight]:
    """Modules are numbered in the order in which they run; a step up is the last part of the block before it."""
    weights = layer("embedding.time.0", "time_embed.0") + layer("embedding.time.2", "time_embed.2")
    weights.append(Weight("embedding.label.weight", ("label_emb.weight",)))
    for number, step in enumerate(plan.side("encoder")):
        theirs = f"input_blocks.{number}"
        if step.kind == "stem":
            weights += layer(f"{address(step)}.module", f"{theirs}.0")
        elif step.kind == "down":
            weights += _resampling(step, f"{theirs}.0")
        else:
            weights += _residual(step, f"{theirs}.0") + _attention(step, f"{theirs}.1", arguments)
    first, second = plan.side("middle")
    weights += _residual(first, "middle_block.0") + _attention(first, "middle_block.1", arguments)
    weights += _residual(second, "middle_block.2")
    number, attends = -1, False
    for step in plan.side("decoder"):
        if step.kind == "up":
            weights += _resampling(step, f"output_blocks.{number}.{2 if attends else 1}")
        else:
            number, attends = number + 1, step.heads > 0
            theirs = f"output_blocks.{number}"
            weights += _residual(step, f"{theirs}.0") + _attention(step, f"{theirs}.1", arguments)
    (head,) = plan.side("head")
    return weights + layer(f"{address(head)}.0", "out.0") + layer(f"{address(head)}.2", "out.2")


def _export(spec: UNetSpec, choices: Arguments) -> dict[str, Any]:
    """The arguments that come closest to `spec`; `ValueError` where they are another network."""
    unknown = [name for name in choices if name not in _CHOICES]
    if unknown:
        open_choices = ", ".join(_CHOICES)
        raise ValueError(f"{_NETWORK}: {unknown[0]!r} is not left open by a network of ours; open are {open_choices}")
    uneven = [width for width in spec.channels if width % _GROUPS]
    if uneven:
        raise ValueError(f"{_NETWORK} does not have channels {uneven[0]}: its widths are multiples of {_GROUPS}")
    arguments = _complete({"image_size": spec.sample_size, **_closest(spec), **choices})
    try:
        theirs = UNetSpec(**_settings(arguments))
    except ValueError as error:  # it attends where ours does not, and with a number of heads that does not divide
        raise ValueError(f"{_NETWORK} does not have this attention or middle_attention: {error}") from error
    require_same(spec, theirs, _NETWORK)
    return arguments


def _closest(spec: UNetSpec) -> dict[str, Any]:
    encoder, decoder = spec.levels("encoder", spec.dims), spec.levels("decoder", spec.dims)
    return {
        "in_channels": spec.in_channels,
        "model_channels": spec.waves,
        "out_channels": next(iter(spec.outputs.values())),
        "num_res_blocks": len(encoder[0].heads),
        "attention_resolutions": [
            2**number
            for number, levels in enumerate(zip(encoder, decoder, strict=True))
            if any(heads for level in levels for heads in level.heads)
        ],
        "dropout": spec.dropout,
        "channel_mult": [_factor(width, spec.waves) for width in spec.channels],
        "conv_resample": encoder[0].resampling != "average_pool",
        "dims": spec.dims,
        "num_classes": spec.num_classes,
        "use_scale_shift_norm": spec.placement.time == "scale_shift",
        "resblock_updown": encoder[0].resampling == "residual",
        **_heads(spec),
    }


def _factor(width: int, base: int) -> float:
    """What the library multiplies `base` by, and rounds down, to get `width`."""
    factor = width // base if width % base == 0 else width / base
    return factor if int(factor * base) == width else math.nextafter(factor, math.inf)


def _heads(spec: UNetSpec) -> dict[str, int]:
    """Heads by number where each side has one number; else by their width."""
    encoder, decoder = (
        [(level.channels, heads) for level in spec.levels(side, spec.dims) for heads in level.heads if heads]
        for side in ("encoder", "decoder")
    )
    encoder += [(spec.channels[-1], spec.middle_heads)] if spec.middle_heads else []
    numbers = [sorted({heads for _, heads in side}) or [1] for side in (encoder, decoder)]
    widths = {channels // heads for channels, heads in encoder + decoder}
    uniform = all(len(side) == 1 for side in numbers)
    if len(widths) == 1 and (spec.attention_head_channels is not None or not uniform):
        return {"num_head_channels": widths.pop()}
    (below, *_), (above, *_) = numbers
    return {"num_heads": below, "num_heads_upsample": -1 if above == below or not decoder else above}


GUIDED_DIFFUSION = Library(complete=_complete, settings=_settings, weights=_weights, export=_export)
