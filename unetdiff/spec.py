"""The typed values that describe a network. Plain frozen data: no torch, so that settings parse fast.

`LevelSpec` describes one resolution of one side of the U; `Architecture` is what a researcher chooses, and `UNetSpec`
adds what the data decides. `Norm`, `Site` and `NormPlacement` say what is normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unetdiff.placement import NONE, PLACEMENTS, Norm, NormPlacement, Site
from unetdiff.typed import check_at_least, check_types, fits, plain

__all__ = ["NONE", "PLACEMENTS", "Architecture", "LevelSpec", "Norm", "NormPlacement", "Site", "UNetSpec"]

DownKind = Literal["strided", "strided_asymmetric", "max_pool", "average_pool", "residual"]
UpKind = Literal["nearest", "transposed", "residual"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Activation = Literal["silu", "gelu", "relu", "leaky_relu"]
TimeEmbedding = Literal["sinusoidal", "fourier", "none"]


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """One resolution of one side of the U.

    channels: width of its blocks. attention: one entry per block, whether self-attention follows it (its length
    is the number of blocks). stride: per axis, the factor between this level and the next coarser one.
    """

    channels: int
    attention: tuple[bool, ...]
    stride: tuple[int, ...] = (2, 2)


def _per_level(name: str, value: Any, levels: int) -> tuple[Any, ...]:
    """One value for all levels, or one per level."""
    if not isinstance(value, Sequence):
        return (value,) * levels
    if len(value) != levels:
        held = f"{name} has {len(value)} entries {list(value)}, channels {levels}"
        raise ValueError(f"{held}: expected one value, or one per level")
    return tuple(value)


def _per_block(attention: bool | Sequence[bool], blocks: int, side: str) -> tuple[bool, ...]:
    """One entry per block of a level."""
    entries = (attention,) * blocks if isinstance(attention, bool) else tuple(attention)
    if len(entries) != blocks:
        raise ValueError(f"attention lists {len(entries)} blocks for a level with {blocks} in the {side}")
    return entries


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a researcher chooses about a `UNet`; nothing here depends on the data.

    Args:
        channels: width of each level, fine to coarse.
        blocks: residual blocks per encoder level: one number, or one per level.
        decoder_blocks: the same for the decoder; None: one more than the encoder's, so that every saved feature
            has a taker (Ho et al. 2020).
        attention: whether each level attends: one value, or one per level, or a list per level with one per block.
        decoder_attention: the same for the decoder alone; None: as the encoder.
        middle_attention: attention between the two blocks at the coarsest level.
        attention_heads: heads per attention layer.
        attention_head_channels: width of a head, instead of their number.
        strides: resampling factor from each level to the next: one number for all, one per transition, or one
            list per transition with a factor per axis (anisotropic volumes).
        downsample: `strided` convolution, `strided_asymmetric` (padded after the end only, as TensorFlow's SAME
            in the DDPM network), `max_pool`, `average_pool`, or `residual` (inside a residual block, as ADM).
        upsample: `nearest` and a convolution, `transposed` convolution, or `residual`.
        time_embedding: `sinusoidal` (Vaswani et al. 2017), `fourier` (Tancik et al. 2020), or `none`: the network
            then owns no time parameters and refuses a timestep.
        time_channels: width of the embedding; None: 4 times the first level's.
        frequency_shift: layout of the sinusoid: 1 is DDPM's, 0 is ADM's.
        sin_first: layout of the sinusoid: sines before cosines as DDPM, or after them as ADM.
        norm: a placement's name (`ddpm`, `adm`) or the fields of a `NormPlacement`.
        activation: the nonlinearity throughout.
        dropout: probability, before the second convolution of each residual block.
        padding_mode: how an input whose size the strides do not divide is padded inside (and cropped after).
    """

    channels: Sequence[int] = (64, 128, 256)
    blocks: int | Sequence[int] = 2
    decoder_blocks: int | Sequence[int] | None = None
    attention: bool | Sequence[bool | Sequence[bool]] = False
    decoder_attention: bool | Sequence[bool | Sequence[bool]] | None = None
    middle_attention: bool = True
    attention_heads: int = 1
    attention_head_channels: int | None = None
    strides: int | Sequence[int | Sequence[int]] = 2
    downsample: DownKind = "strided"
    upsample: UpKind = "nearest"
    time_embedding: TimeEmbedding = "sinusoidal"
    time_channels: int | None = None
    frequency_shift: int = 0
    sin_first: bool = False
    norm: str | dict[str, Any] = "ddpm"
    activation: Activation = "silu"
    dropout: float = 0.0
    padding_mode: PaddingMode = "reflect"

    def __post_init__(self) -> None:
        check_types(self)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(
                f"channels is {list(self.channels)}; expected one positive width per level, fine to coarse"
            )
        check_at_least(self, 1, "attention_heads", "attention_head_channels", "time_channels")
        if not 0 <= self.frequency_shift < max(self.channels[0] // 2, 2):
            raise ValueError(f"frequency_shift is {self.frequency_shift}; expected 0 or 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")
        per_axis = [] if isinstance(self.strides, int) else [row for row in self.strides if not isinstance(row, int)]
        dims = len(per_axis[0]) if per_axis else 2
        for side in ("encoder", "decoder"):
            for level in self.levels(side, dims):
                if any(level.attention):
                    self.heads_at(level.channels)
        if self.middle_attention:
            self.heads_at(self.channels[-1])
        NormPlacement.of(self.norm)

    @property
    def placement(self) -> NormPlacement:
        """`norm` as a typed value."""
        return NormPlacement.of(self.norm)

    def heads_at(self, channels: int) -> int:
        """Attention heads at a width; `ValueError` where the width does not divide."""
        width = self.attention_head_channels
        heads = self.attention_heads if width is None else channels // width
        if heads < 1 or channels % heads or (width is not None and channels % width):
            asked = f"attention_heads {self.attention_heads}" if width is None else f"attention_head_channels {width}"
            raise ValueError(f"channels {channels} do not divide into {asked}")
        return heads

    def levels(self, side: Literal["encoder", "decoder"], dims: int) -> tuple[LevelSpec, ...]:
        """One side of the U as `LevelSpec` values, fine to coarse, in `dims` dimensions."""
        count = len(self.channels)
        blocks = _per_level("blocks", self.blocks, count)
        attention = _per_level("attention", self.attention, count)
        if side == "decoder":
            extra = [entry + 1 for entry in blocks]
            given = self.decoder_blocks
            blocks = _per_level("decoder_blocks", extra if given is None else given, count)
            if self.decoder_attention is not None:
                attention = _per_level("decoder_attention", self.decoder_attention, count)
        if min(blocks) < 1:
            raise ValueError(f"{side} blocks are {list(blocks)}; expected at least 1 per level")
        strides = (*self.stride_tuples(dims), (1,) * dims)
        rows = zip(self.channels, blocks, attention, strides, strict=True)
        return tuple(LevelSpec(width, _per_block(on, number, side), stride) for width, number, on, stride in rows)

    def stride_tuples(self, dims: int) -> tuple[tuple[int, ...], ...]:
        """`strides` with one factor per axis, one row per transition between levels."""
        count = len(self.channels) - 1
        given = (self.strides,) * count if isinstance(self.strides, int) else tuple(self.strides)
        if len(given) != count:
            raise ValueError(
                f"strides has {len(given)} entries for {count + 1} levels; expected {count}, one per transition"
            )
        rows = [(entry,) * dims if isinstance(entry, int) else tuple(entry) for entry in given]
        wrong = [list(row) for row in rows if len(row) != dims]
        if wrong:
            raise ValueError(f"strides entry {wrong[0]} has {len(wrong[0])} factors; the data has {dims} dimensions")
        if any(factor < 1 for row in rows for factor in row):
            raise ValueError(f"strides are {self.strides}; expected factors of at least 1")
        return tuple(rows)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values: what `config.json` and `config.yaml` hold."""
        return plain(self)


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
