"""The typed values that describe a network. Plain frozen data: no torch, so that settings parse fast.

`Architecture` is what a researcher chooses, and `UNetSpec` adds what the data decides; `LevelSpec` describes one
resolution of one side of the U. `Norm`, `Site` and `NormPlacement` say what is normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unetdiff.architecture import Activation, Architecture, BlockConvolutions, Memory, PaddingMode, SkipFusion
from unetdiff.levels import FUSED_CHANNELS, LevelSpec
from unetdiff.placement import NONE, PLACEMENTS, Norm, NormPlacement, Site
from unetdiff.typed import check_at_least, fits

__all__ = [
    "FUSED_CHANNELS",
    "NONE",
    "PLACEMENTS",
    "Activation",
    "Architecture",
    "BlockConvolutions",
    "LevelSpec",
    "Memory",
    "Norm",
    "NormPlacement",
    "PaddingMode",
    "Site",
    "SkipFusion",
    "UNetSpec",
]


def _head_pairs(heads: Any) -> tuple[tuple[str, int], ...]:
    """Named outputs as pairs, checked: names become keys of modules."""
    if not isinstance(heads, (Mapping, list, tuple)) or not heads:
        raise ValueError(f"heads is {heads!r}; expected at least one name with its number of channels")
    pairs = tuple(tuple(pair) for pair in (heads.items() if isinstance(heads, Mapping) else heads))
    for name, channels in pairs:
        if not isinstance(name, str) or not name.isidentifier() or hasattr(dict, name):
            raise ValueError(f"heads names an output {name!r}; expected a plain word such as 'noise'")
        if not fits(channels, int) or channels < 1:
            raise ValueError(f"heads gives {name!r} {channels!r} channels; expected at least 1")
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"heads names an output twice: {[name for name, _ in pairs]}")
    return pairs


@dataclass(frozen=True, kw_only=True)
class UNetSpec(Architecture):
    """A whole `UNet`: the architecture, and what the data and the task decide.

    Args:
        dims: 1 (signals), 2 (images) or 3 (volumes).
        in_channels: channels of the input.
        out_channels: channels of the output; None: as the input. With learned variance, twice the input's.
        heads: several named outputs on one trunk instead, such as `{"noise": 3, "mask": 2}`; the first is what
            diffusers pipelines see as `.sample`. Kept as pairs, since saved JSON objects lose their order.
        num_classes: labels 0 .. num_classes - 1 condition the network; None: no labels.
        null_class: one more label, index `num_classes`, that stands for "no label": needed for classifier-free
            guidance, and taken when the network is called without labels.
        sample_size: height and width (or length, or depth, height and width) that pipelines make by default; the
            network itself takes any size.
    """

    dims: int = 2
    in_channels: int = 3
    out_channels: int | None = None
    heads: Mapping[str, int] | Sequence[tuple[str, int]] | None = None
    num_classes: int | None = None
    null_class: bool = False
    sample_size: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.dims not in (1, 2, 3):
            raise ValueError(f"dims is {self.dims}; expected 1, 2 or 3")
        if self.heads is not None:
            object.__setattr__(self, "heads", _head_pairs(self.heads))
        super().__post_init__()
        self.stride_tuples(self.dims)
        self._check_sides(self.dims)
        check_at_least(self, 1, "in_channels", "out_channels", "num_classes")
        if self.heads is not None and self.out_channels is not None:
            raise ValueError("heads and out_channels are both given; expected one of them")
        if not isinstance(self.sample_size, (int, type(None))) and len(self.sample_size) != self.dims:
            raise ValueError(f"sample_size is {list(self.sample_size)}; expected {self.dims} numbers")
        self._check_conditions()

    def _check_conditions(self) -> None:
        """Whether what conditions the network reaches it."""
        if self.null_class and self.num_classes is None:
            raise ValueError("null_class needs num_classes")
        if self.time_embedding == "none" and (self.divide_by_timestep or self.label_entry == "waves"):
            setting = "divide_by_timestep" if self.divide_by_timestep else "label_entry 'waves'"
            raise ValueError(f"{setting} needs a time embedding; time_embedding is none")
        if self.num_classes is not None and self.time_embedding == "none" and self.time_channels is None:
            raise ValueError("num_classes without a time embedding needs time_channels: the width of its embedding")
        if self.embedding_channels is not None and self.placement.time == "none":
            raise ValueError(
                "norm.time is none, so that timestep and class reach no block; expected add or scale_shift"
            )

    @property
    def outputs(self) -> dict[str, int]:
        """Channels of each named output; a network with one output calls it `sample`."""
        return dict(self.heads) if self.heads else {"sample": self.out_channels or self.in_channels}

    @property
    def embedding_channels(self) -> int | None:
        """Width of the embedding that conditions the blocks; None where nothing conditions them."""
        if self.time_embedding == "none" and self.num_classes is None:
            return None
        return self.time_channels or 4 * self.channels[0]
