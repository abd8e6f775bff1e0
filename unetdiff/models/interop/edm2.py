"""EDM2 (Karras et al. 2024, https://arxiv.org/abs/2312.02696): the magnitude-preserving `UNet`.

Written from the paper (appendix B, Fig. 21 and Eq. 66 to 103) and from the names in published weights, which carry a
non-commercial licence. `timestep` is the library's noise label, c_noise = log(sigma) / 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unetdiff.models.interop.arguments import complete, refuse, require_positive
from unetdiff.models.interop.library import Arguments, Library
from unetdiff.models.interop.weights import SAME, Weight, address, layer, layers, pointwise, projection
from unetdiff.models.plan import Plan
from unetdiff.models.step import Step
from unetdiff.placement import PLACEMENTS


@dataclass(frozen=True, kw_only=True)
class _UNet:
    """The constructor's arguments, those of its blocks among them, with their defaults."""

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    resample_filter: Sequence[int] = (1, 1)
    channels_per_head: int = 64
    dropout: float = 0
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256


# Their decoder filters before the nonlinearity, ours behind it: the same for repetition alone.
_SUPPORTED = {"resample_filter": ([1, 1],)}


def _complete(given: Arguments) -> dict[str, Any]:
    arguments = complete("EDM2's UNet", given, _UNet)
    refuse("EDM2's UNet", arguments, _SUPPORTED)
    require_positive("EDM2's UNet", arguments, "img_resolution", "model_channels", "channel_mult", "num_blocks")
    require_positive("EDM2's UNet", arguments, "channels_per_head", "channel_mult_noise", "channel_mult_emb")
    return arguments


def _settings(arguments: Arguments) -> dict[str, Any]:
    width = arguments["model_channels"]
    channels = [width * factor for factor in arguments["channel_mult"]]
    noise, embedding = arguments["channel_mult_noise"], arguments["channel_mult_emb"]
    heads = [count // arguments["channels_per_head"] for count in channels]
    resolutions = [arguments["img_resolution"] >> level for level in range(len(channels))]
    balances = {"residual_t": "res_balance", "attention_t": "attn_balance", "concat_t": "concat_balance"}
    norm = {
        **PLACEMENTS["edm2"].to_json(),
        **{ours: arguments[theirs] for ours, theirs in balances.items()},
        "clip": arguments["clip_act"],
    }
    return {
        "channels": channels,
        "blocks": arguments["num_blocks"],
        "attention": [
            size in arguments["attn_resolutions"] and count > 0 for size, count in zip(resolutions, heads, strict=True)
        ],
        "middle_attention": heads[-1] > 0,
        "attention_heads": [max(count, 1) for count in heads],
        "downsample": "residual",
        "upsample": "residual",
        "time_embedding": "fourier_phase",
        "time_input": "timestep",
        "wave_channels": channels[0] if noise is None else width * noise,
        "time_channels": max(channels) if embedding is None else width * embedding,
        "label_balance": arguments["label_balance"],
        "norm": norm,
        "dropout": arguments["dropout"],
        "in_channels": arguments["img_channels"],
        "num_classes": arguments["label_dim"] or None,
        "null_class": bool(arguments["label_dim"]),
        "sample_size": arguments["img_resolution"],
    }


def _bare(ours: str, theirs: str) -> list[Weight]:
    """A layer without bias."""
    return layer(ours, theirs, SAME, bias=False)


_BLOCK = {"conv_res0": "conv1", "emb_linear": "norm2.project", "conv_res1": "conv2", "conv_skip": "shortcut"}


def _block(step: Step, theirs: str) -> list[Weight]:
    ours = f"{address(step)}.residual"
    weights = layers(_BLOCK, theirs, ours, bias=False)
    weights.append(Weight(f"{ours}.norm2.project.gain", (f"{theirs}.emb_gain",)))
    if step.heads:
        form = projection("h c q", step.heads, 2)
        ours = f"{address(step)}.attention"
        weights += layer(f"{ours}.query_key_value", f"{theirs}.attn_qkv", form, bias=False)
        weights += layer(f"{ours}.out", f"{theirs}.attn_proj", pointwise(2), bias=False)
    return weights


def _weights(plan: Plan, arguments: Arguments) -> list[Weight]:
    weights = _bare("embedding.time", "emb_noise") + _bare("embedding.label.project", "emb_label")
    weights += [Weight(f"embedding.waves.{ours}", (f"emb_fourier.{theirs}",)) for ours, theirs in _WAVES.items()]
    for step in plan.steps:
        size = arguments["img_resolution"] >> step.level
        at = f"{'enc' if step.side == 'encoder' else 'dec'}.{size}x{size}"
        if step.kind == "stem":
            weights += _bare(f"{address(step)}.module.1", f"{at}_conv")
        elif step.kind == "head":
            weights += _bare(f"{address(step)}.2", "out_conv")
            weights.append(Weight(f"{address(step)}.2.gain", ("out_gain",)))
        else:
            block = f"{'in' if step.side == 'middle' else 'block'}{step.number}"
            weights += _block(step, f"{at}_{block if step.kind == 'block' else step.kind}")
    return weights


_WAVES = {"frequency": "freqs", "phase": "phases"}

EDM2 = Library(complete=_complete, settings=_settings, weights=_weights, noise="edm")
