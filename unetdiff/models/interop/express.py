"""Whether another library has a network of ours: two settings compared by what they compute, not by how they say it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unetdiff.models.plan import Plan, make_plan
from unetdiff.models.step import Step
from unetdiff.nn.norm import group_count
from unetdiff.spec import LevelSpec, Norm, Site, UNetSpec


def require_same(ours: UNetSpec, theirs: UNetSpec, network: str) -> None:
    """Check that `theirs`, the closest that `network` comes to `ours`, is the same network with the same weights.

    What has no effect does not count: how a value is written (one, or one per level), what a default stands for,
    settings of parts that the network does not have, first weights (`zero_init`), `padding_mode`, `sample_size`.

    Raises:
        ValueError: names the first setting of ours that `network` does not have, and what it has instead.
    """
    held, expected = _effective(theirs), _effective(ours)
    for name, value in expected.items():
        if held.get(name) != value:
            by_width = name == "attention_heads" and ours.attention_head_channels is not None
            setting = f"attention_head_channels {ours.attention_head_channels}, heads" if by_width else name
            closest = held.get(name)
            raise ValueError(f"{network} does not have {setting} {value!r}; where it comes closest it has {closest!r}")


def _effective(spec: UNetSpec) -> dict[str, Any]:
    """What the network computes, by the name of the setting that decides it; what decides nothing is None."""
    plan = make_plan(spec)
    return {**_blocks(spec), **_resampling(spec, plan), **_conditions(spec), **_norms(spec, plan)}


def _blocks(spec: UNetSpec) -> dict[str, Any]:
    encoder, decoder = spec.levels("encoder", spec.dims), spec.levels("decoder", spec.dims)
    return {
        "dims": spec.dims,
        "convolutions": spec.convolutions,
        "block_convolutions": spec.block_convolutions,
        "backbone": None if spec.foreign is None else spec.foreign.name or "without a name",
        "deep_supervision": spec.deep_supervision,
        "decoder_kind": spec.decoder_kind,
        "transformer_layers": spec.transformer_layers,
        "position_grid": spec.position_grid if spec.transformer_layers else None,
        "in_channels": spec.in_channels,
        "heads": list(spec.outputs),
        "out_channels": list(spec.outputs.values()),
        "channels": list(spec.channels),
        "decoder_channels": [level.channels for level in decoder],
        "stem_channels": spec.channels[0] if spec.stem_channels is None else spec.stem_channels,
        "head_kernel": spec.head_kernel,
        "blocks": [len(level.heads) for level in encoder],
        "decoder_blocks": [len(level.heads) for level in decoder],
        "middle": spec.middle,
        "attention": _attends(encoder),
        "decoder_attention": _attends(decoder),
        "middle_attention": spec.middle_heads > 0,
        "attention_heads": [level.heads for level in encoder] + [spec.middle_heads],
        "decoder_attention_heads": [level.heads for level in decoder],
        "activation": spec.activation,
        "dropout": spec.dropout,
    }


def _attends(levels: Iterable[LevelSpec]) -> list[list[bool]]:
    return [[heads > 0 for heads in level.heads] for level in levels]


def _resampling(spec: UNetSpec, plan: Plan) -> dict[str, Any]:
    downs, ups = ([level.resampling for level in spec.levels(side, spec.dims)[:-1]] for side in ("encoder", "decoder"))
    pyramid = spec.input_pyramid and bool(downs)
    taps = spec.resample_filter or [1, 1]  # the mean of two, or their repetition: what None says at a stride of 2
    filters = pyramid or "residual" in (*downs, *ups)
    return {
        "strides": [list(row) for row in spec.stride_tuples(spec.dims)],
        "downsample": downs,
        "upsample": ups,
        "up_channels": [step.out_channels for step in plan.side("decoder") if step.kind == "up"],
        "skip_fusion": spec.skip_fusion if any(step.skip for step in plan.steps) else "none",
        "input_pyramid": pyramid,
        "resample_filter": [tap / sum(taps) for tap in taps] if filters else None,
        "resample_shortcut": spec.resample_shortcut if "residual" in (*downs, *ups) else None,
    }


def _conditions(spec: UNetSpec) -> dict[str, Any]:
    kind = spec.time_embedding
    timed, labelled = kind != "none", spec.num_classes is not None
    balanced = timed and labelled and spec.placement.weights == "mp_forced"
    return {
        "time_embedding": kind,
        "time_input": spec.embedded_time if timed else None,
        "wave_channels": spec.waves if timed else None,
        "time_channels": spec.embedding_channels,
        "frequency_shift": spec.frequency_shift if kind == "sinusoidal" else None,
        "sin_first": spec.sin_first if kind in ("sinusoidal", "fourier") else None,
        "num_classes": spec.num_classes,
        "null_class": spec.null_class,
        "label_entry": spec.label_entry if timed and labelled else None,
        "label_balance": spec.label_balance if balanced else None,
        "divide_by_timestep": spec.divide_by_timestep,
    }


def _norms(spec: UNetSpec, plan: Plan) -> dict[str, Any]:
    placement = spec.placement
    skips = [step for step in plan.steps if step.skip]
    attends = any(step.heads for step in plan.steps)
    balanced = placement.residual == "mp"
    found: dict[str, Any] = {
        "residual": placement.residual,
        "residual_t": placement.residual_t if balanced else None,
        "attention_t": placement.attention_balance if balanced and (attends or spec.input_pyramid) else None,
        "time": "none" if spec.embedding_channels is None else placement.time,
        "weights": placement.weights,
        "clip": placement.clip,
        "attention": placement.attention if attends else None,
        "qk": placement.qk if attends else None,
        "concat": placement.concat if skips else None,
        "concat_t": placement.concat_t if skips and placement.concat == "mp" else None,
        "skip": placement.skip if skips else None,
        "skip_scale": placement.skip_scale if skips else None,
        **_norm("input", placement.input, [spec.in_channels]),
        **_norm("out", placement.out, [step.in_channels for step in plan.side("head")]),
    }
    for side in ("encoder", "middle", "decoder"):
        found |= _site(spec, side, placement.site(side), [step for step in plan.side(side) if _is_block(step)])
    if placement.skip != "none":
        for step in skips:
            norm = placement.skip_norm or placement.site("decoder").norm
            apart = placement.skip == "before_concat"
            widths = [step.in_channels, step.skip] if apart else [step.reads]
            found |= _norm(f"skip_norm at {step.name}", norm, widths)
    return {f"norm.{name}": value for name, value in found.items()}


def _is_block(step: Step) -> bool:
    return step.kind == "block" or step.resampling == "residual"


def _site(spec: UNetSpec, side: str, site: Site, blocks: list[Step]) -> dict[str, Any]:
    """The norms of one side of the U. Blocks without a norm run in the order of `pre`."""
    widths = [width for step in blocks for width in (step.reads, step.out_channels)]
    attending = [step.out_channels for step in blocks if step.heads and spec.placement.attention == "pre"]
    return {
        f"{side}.pos": ("post" if site.pos == "post" else "pre") if blocks else None,
        **_norm(f"{side}.norm", site.norm, widths),
        **_norm(f"{side}.main", site.main, [step.out_channels for step in blocks]),
        **_norm(f"{side}.attention", site.before_attention, attending),
    }


def _norm(name: str, norm: Norm, widths: Iterable[int]) -> dict[str, Any]:
    """A norm as it acts on each of the widths. Norms of one group per channel are `group` norms like any other."""
    distinct = sorted(set(widths))
    kind = "group" if norm.kind == "instance" else norm.kind
    acts = bool(distinct) and kind != "none"
    counts = {width: width if norm.kind == "instance" else _groups(norm, width) for width in distinct}
    centred = norm.affine and norm.center and kind in ("group", "layer")
    return {
        f"{name}.kind": kind if distinct else None,
        f"{name}.groups": counts if acts and kind in ("group", "rms") else None,
        f"{name}.eps": norm.eps if acts else None,
        f"{name}.affine": norm.affine if acts else None,
        f"{name}.center": centred if acts else None,
        # The kernels of the others keep float32 statistics whatever this says.
        f"{name}.fp32_stats": norm.fp32_stats if acts and kind in ("rms", "layer", "pixel") else None,
    }


def _groups(norm: Norm, width: int) -> int:
    return group_count(width, norm.groups, norm.min_group_channels)
