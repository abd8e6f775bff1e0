"""How one value, or one per level, becomes the levels of a side; what a network is given as a backbone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unetdiff.typed import check_types, from_json

PerLevel = int | Sequence[int]
Flags = bool | Sequence[bool | Sequence[bool]]


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """One resolution of one side of the U.

    channels: width of its blocks. heads: attention heads of each block (0: no self-attention follows it); its length
    is the number of blocks. stride: per axis, the factor between this level and the next coarser one; resampling:
    how that step is taken, on this side ("": the coarsest level, which takes none).
    """

    channels: int
    heads: tuple[int, ...]
    stride: tuple[int, ...] = (2, 2)
    resampling: str = ""


def per_level(name: str, value: Any, levels: int) -> tuple[Any, ...]:
    """One value for all levels, or one per level."""
    if not isinstance(value, Sequence):
        return (value,) * levels
    if len(value) != levels:
        held = f"{name} has {len(value)} entries {list(value)}, channels {levels}"
        raise ValueError(f"{held}: expected one value, or one per level")
    return tuple(value)


def per_transition(name: str, value: str | Sequence[str], levels: int) -> tuple[str, ...]:
    """How each step between two levels is taken: one word for all, or one per step; none at the coarsest level."""
    words = (value,) * (levels - 1) if isinstance(value, str) else tuple(value)
    if len(words) != levels - 1:
        raise ValueError(f"{name} has {len(words)} entries; expected one word, or {levels - 1}: one per transition")
    return (*words, "")


def per_block(attention: bool | Sequence[bool], blocks: int, side: str) -> tuple[bool, ...]:
    """One entry per block of a level."""
    entries = (attention,) * blocks if isinstance(attention, bool) else tuple(attention)
    if len(entries) != blocks:
        raise ValueError(f"attention lists {len(entries)} blocks for a level with {blocks} in the {side}")
    return entries


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Blocks per level of the decoder from those of the encoder: one more, so that every saved feature has a taker
# (Ho et al. 2020); in a nested decoder as many, at every level that has something coarser to take in.
DECODER_BLOCKS: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "plain": lambda blocks: [entry + 1 for entry in blocks],
    "nested": lambda blocks: [*blocks[:-1], 0],
}

# What a block reads of `channels` of the decoder and `skip` of a saved feature.
FUSED_CHANNELS: dict[str, Callable[[int, int], int]] = {
    "concat": lambda channels, skip: channels + skip,
    "concat_1x1": lambda channels, skip: channels,
    "add": lambda channels, skip: channels,
    "gate": lambda channels, skip: channels + skip,
}


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained network that stands in for the encoder: any that transformers' `AutoBackbone` knows.

    name: on the hub (owner/name), or a local folder; its weights are read when the network is first built. frozen: its
    weights and the statistics of its norms stay as they are. features: the stages or layers to read, by transformers'
    names; None: all stages, or four layers evenly spaced where all are of one resolution. mean, std: of the images
    that it was trained on, per channel, in [0, 1]. Filled in from `name` where they are not given: config, its own
    settings as JSON; channels and strides of the features, fine to coarse, those of equal stride taken together.
    """

    name: str | None = None
    frozen: bool = True
    features: Sequence[str] | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    config: Mapping[str, Any] | None = None
    channels: Sequence[int] | None = None
    strides: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not self.name and self.config is None:
            raise ValueError("backbone has neither name nor config: expected a name on the hub or a local folder")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("backbone.config has no model_type; expected the settings of a model of transformers")
        if self.features is not None and not self.features:
            raise ValueError("backbone.features is empty; expected names of stages, or none for all")
        self._check_filled_in()
        for name in ("mean", "std"):
            held = getattr(self, name)
            if len(held) != 3 or (name == "std" and min(held) <= 0):
                raise ValueError(f"backbone.{name} is {list(held)}; expected three numbers, std positive")

    def _check_filled_in(self) -> None:
        """Whether what is read from the network is there as a whole, or not at all."""
        if self.channels is None and self.strides is None:
            return
        if self.config is None or not self.channels or not self.strides or len(self.channels) != len(self.strides):
            held = f"channels {self.channels} and strides {self.strides}"
            raise ValueError(f"backbone has {held}: expected one each per feature and a config, or neither")
        out = self.config.get("out_features")
        if self.features is not None and out is not None and {*self.features} != {*out}:
            raise ValueError(f"backbone.features is {list(self.features)}, but its config returns {list(out)}")

    @classmethod
    def of(cls, value: str | Mapping[str, Any] | Backbone) -> Backbone:
        """A backbone from its name alone, from a JSON object, or from itself."""
        if isinstance(value, str):
            return cls(value)
        return value if isinstance(value, Backbone) else from_json(cls, value)


def head_count(heads: int, head_channels: int | None, channels: int) -> int:
    """Attention heads at a width; `ValueError` where the width does not divide."""
    count = heads if head_channels is None else channels // max(head_channels, 1)
    if count < 1 or channels % count or (head_channels is not None and channels % head_channels):
        asked = f"attention_heads {heads}" if head_channels is None else f"attention_head_channels {head_channels}"
        raise ValueError(f"channels {channels} do not divide into {asked}")
    return count
