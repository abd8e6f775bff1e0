"""Taking a shallower network out of a nested one that was trained with an output for every depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unetdiff.levels import per_level
from unetdiff.models.step import head_name
from unetdiff.models.unet import UNet
from unetdiff.spec import UNetSpec
from unetdiff.typed import fits

_PER_LEVEL = (
    *("channels", "decoder_channels", "blocks", "decoder_blocks", "attention", "decoder_attention"),
    *("attention_heads", "attention_head_channels", "decoder_attention_heads"),
)
_PER_TRANSITION = ("strides", "downsample", "upsample")


def prune(unet: UNet, depth: int) -> UNet:
    """The U of `depth` steps down inside a nested network, with its weights (Zhou et al. 2018, section 3.3).

    It returns what the whole returns at that depth, for fewer operations, and is a network like any other. The
    features of coarser levels, and the middle, are not part of it.

    Args:
        unet: of decoder_kind `nested`, with `deep_supervision`.
        depth: 1 (the two finest levels) to the whole's own.

    Raises:
        ValueError: for a network without outputs for every depth, or a depth that it does not have.
    """
    spec, deepest = unet.spec, len(unet.spec.channels) - 1
    if not spec.deep_supervision or spec.decoder_kind != "nested":
        raise ValueError("prune needs decoder_kind 'nested' and deep_supervision: an output of its own for every depth")
    if not fits(depth, int) or not 1 <= depth <= deepest:
        raise ValueError(f"depth is {depth}; expected 1 to {deepest}")
    if spec.backbone is not None and depth < deepest:
        raise ValueError(f"depth is {depth}, but a network with a backbone is not cut: expected {deepest}")
    pruned = UNet(**_cut(spec, depth).to_json())
    held = _renamed(unet.state_dict(), list(spec.outputs), depth) if depth < deepest else unet.state_dict()
    pruned.load_state_dict({name: held[name] for name in pruned.state_dict()})
    if (pruned.device, pruned.dtype) != (unet.device, unet.dtype):
        pruned.to(device=unet.device, dtype=unet.dtype)  # pyright: ignore[reportCallIssue] # diffusers wraps it
    return pruned.train(unet.training)


def _cut(spec: UNetSpec, depth: int) -> UNetSpec:
    """The settings of the finest `depth` + 1 levels."""
    if depth == len(spec.channels) - 1:
        return spec

    def first(name: str, count: int) -> Any:
        value = getattr(spec, name)
        return list(value)[:count] if isinstance(value, Sequence) and not isinstance(value, str) else value

    cut = {name: first(name, depth + 1) for name in _PER_LEVEL} | {name: first(name, depth) for name in _PER_TRANSITION}
    # The coarsest level that is left has no blocks in the decoder, and so no attention there.
    attention = spec.attention if spec.decoder_attention is None else spec.decoder_attention
    cut["decoder_attention"] = [*per_level("attention", attention, len(spec.channels))[:depth], False]
    if isinstance(cut["decoder_blocks"], list):
        cut["decoder_blocks"][-1] = 0
    return replace(spec, **cut, middle=False, transformer_layers=0)


def _renamed(weights: dict[str, Tensor], names: Sequence[str], depth: int) -> dict[str, Tensor]:
    """Weights in which the heads of this depth are the network's own."""
    heads = {f"head.{head_name(name, depth)}.": f"head.{name}." for name in names}
    moved = {
        ours + key.removeprefix(theirs): value
        for theirs, ours in heads.items()
        for key, value in weights.items()
        if key.startswith(theirs)
    }
    return weights | moved
