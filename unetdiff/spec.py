"""The typed values that describe a network. Plain frozen data: no torch, so that settings parse fast.

`Norm`, `Site` and `NormPlacement` say what is normalised, where and how; `LevelSpec` describes one resolution of
one side of the U; `Architecture` is what a researcher chooses, and `UNetSpec` adds what the data decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_type_hints

NormKind = Literal["none", "group", "layer", "rms", "pixel", "instance", "batch"]
Position = Literal["none", "pre", "post"]
Part = Literal["branch", "attention", "out"]
DownKind = Literal["strided", "strided_asymmetric", "max_pool", "average_pool", "residual"]
UpKind = Literal["nearest", "transposed", "residual"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Activation = Literal["silu", "gelu", "relu", "leaky_relu"]
TimeEmbedding = Literal["sinusoidal", "fourier", "none"]

T = TypeVar("T")


def check_choices(value: Any) -> None:
    """Raise `ValueError` where a `Literal` field of the dataclass `value` holds something outside its choices.

    Dataclasses do not check; configuration files, Python callers and JSON all pass through here.
    """
    for name, hint in get_type_hints(type(value)).items():
        choices = get_args(hint)
        held = getattr(value, name, None)
        literal = choices and all(isinstance(choice, str) for choice in choices)
        if literal and held not in choices:
            raise ValueError(f"{name} is {held!r}; expected one of: {', '.join(choices)}")


def from_json(kind: type[T], value: Mapping[str, Any]) -> T:
    """Build the dataclass `kind` from a JSON object; a key it does not have is a `ValueError` that names it."""
    known = {entry.name for entry in fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ValueError(f"{kind.__name__} has no setting {unknown[0]!r}; it has: {', '.join(sorted(known))}")
    return kind(**value)


def _plain(value: Any) -> Any:
    """Tuples and sets as lists, dataclasses as objects: what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


@dataclass(frozen=True, slots=True)
class Norm:
    """One normalization layer.

    kind: `group` (Wu & He 2018), `layer` (per position over channels, with mean), `rms` (per group, without mean),
        `pixel` (per position over channels, without mean; Karras et al. 2018), `instance` (Ulyanov et al. 2016),
        `batch` (mixes timesteps and samples, so it suits neither diffusion nor exact resume; `make_norm` warns).
    groups: upper limit on the number of groups; where it does not divide the channels, the largest divisor that
        leaves `min_group_channels` channels per group is taken.
    eps: added to the variance (mean square for `rms`, `pixel`).
    affine: learned scale; center: learned shift beside it (`rms` and `pixel` never have one).
    fp32_stats: statistics in float32 whatever the autocast.
    """

    kind: NormKind = "group"
    groups: int = 32
    min_group_channels: int = 4
    eps: float = 1e-5
    affine: bool = True
    center: bool = True
    fp32_stats: bool = True

    def __post_init__(self) -> None:
        check_choices(self)
        if self.groups < 1 or self.min_group_channels < 1:
            raise ValueError(f"groups ({self.groups}) and min_group_channels must be at least 1")


NONE = Norm("none")


def _as_norm(value: Norm | Mapping[str, Any]) -> Norm:
    return value if isinstance(value, Norm) else from_json(Norm, value)


@dataclass(frozen=True, slots=True)
class Site:
    """Where one side of the U normalises.

    pos: `pre` (norm, activation, convolution on the residual branch; the main path stays un-normalised), `post`
        (convolution, norm, activation) or `none`; norm: with what; main: a norm ON the residual stream, which
        every path to the output then crosses.
    """

    pos: Position = "pre"
    norm: Norm = field(default_factory=Norm)
    main: Norm = NONE

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "norm", _as_norm(self.norm))
        object.__setattr__(self, "main", _as_norm(self.main))


def _as_site(value: Site | Mapping[str, Any]) -> Site:
    return value if isinstance(value, Site) else from_json(Site, value)


@dataclass(frozen=True, slots=True)
class NormPlacement:
    """Everything about where a network normalises, and how magnitudes are kept.

    encoder, decoder, middle: a `Site` each (`middle` None: as the encoder). input: on the network's input.
    out: before the output convolution. skip: a norm on the main path where encoder meets decoder, on each source
    (`before_concat`) or on their concatenation (`after_concat`). concat: `plain`, or `mp` (EDM2, Karras et al.
    2024, Eq. 103) with balance `concat_t`. skip_scale: a factor on the skip, or `learned` (one per skip).
    residual: `sum`, `sqrt_half` (divided by sqrt 2; Song et al. 2021), or `mp` (EDM2, Eq. 88) with balance
    `residual_t`. attention: norm before self-attention; qk: norm of queries and keys. time: how the embedding
    enters a block: `add` (Ho et al. 2020), `scale_shift` (Dhariwal & Nichol 2021), `scale`, or `none`.
    zero_init: which outputs start at zero: the residual `branch`, `attention`, the `out` convolution.
    weights: `plain`, or `standardized` (Qiao et al. 2019).
    """

    encoder: Site = field(default_factory=Site)
    decoder: Site = field(default_factory=Site)
    middle: Site | None = None
    input: Norm = NONE
    out: Norm = field(default_factory=Norm)
    skip: Literal["none", "before_concat", "after_concat"] = "none"
    concat: Literal["plain", "mp"] = "plain"
    concat_t: float = 0.5
    skip_scale: float | Literal["learned"] = 1.0
    residual: Literal["sum", "sqrt_half", "mp"] = "sum"
    residual_t: float = 0.3
    attention: Literal["none", "pre"] = "pre"
    qk: Literal["none", "rms", "l2"] = "none"
    time: Literal["none", "add", "scale_shift", "scale"] = "scale_shift"
    zero_init: frozenset[Part] = frozenset({"branch", "attention", "out"})
    weights: Literal["plain", "standardized"] = "plain"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("encoder", "decoder"):
            object.__setattr__(self, name, _as_site(getattr(self, name)))
        if self.middle is not None:
            object.__setattr__(self, "middle", _as_site(self.middle))
        for name in ("input", "out"):
            object.__setattr__(self, name, _as_norm(getattr(self, name)))
        object.__setattr__(self, "zero_init", frozenset(self.zero_init))
        unknown = self.zero_init - set(get_args(Part))
        if unknown:
            raise ValueError(f"zero_init names {sorted(unknown)[0]!r}; expected some of: {', '.join(get_args(Part))}")
        if isinstance(self.skip_scale, str) and self.skip_scale != "learned":
            raise ValueError(f"skip_scale is {self.skip_scale!r}; expected a number or 'learned'")

    @classmethod
    def of(cls, value: str | NormPlacement | Mapping[str, Any]) -> NormPlacement:
        """A placement from its preset's name, from itself, or from a JSON object.

        An object may name a preset to start from: `{"preset": "ddpm", "out": {"kind": "none"}}`.
        """
        if isinstance(value, NormPlacement):
            return value
        if isinstance(value, str):
            return _placement_preset(value)
        rest = dict(value)
        base = _placement_preset(rest.pop("preset")) if "preset" in rest else cls()
        return from_json(cls, {**{entry.name: getattr(base, entry.name) for entry in fields(cls)}, **rest})

    def site(self, side: Literal["encoder", "middle", "decoder"]) -> Site:
        """The site of one side of the U; the middle follows the encoder unless it has one of its own."""
        if side == "middle":
            return self.middle or self.encoder
        return self.encoder if side == "encoder" else self.decoder

    def to_json(self) -> dict[str, Any]:
        """The placement as a JSON object that `of` takes back."""
        return _plain(self)


_DDPM_SITE = Site("pre", Norm("group", eps=1e-6))

PLACEMENTS: dict[str, NormPlacement] = {
    # Ho et al. 2020: group norm before every convolution, the timestep added between the two.
    "ddpm": NormPlacement(encoder=_DDPM_SITE, decoder=_DDPM_SITE, out=_DDPM_SITE.norm, time="add"),
    # Dhariwal & Nichol 2021: the timestep scales and shifts the second norm.
    "adm": NormPlacement(time="scale_shift"),
}


def _placement_preset(name: str) -> NormPlacement:
    if name not in PLACEMENTS:
        raise ValueError(f"no norm placement is called {name!r}; there are: {', '.join(PLACEMENTS)}")
    return PLACEMENTS[name]


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


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a researcher chooses about a `UNet`; nothing here depends on the data.

    Args:
        channels: width of each level, fine to coarse.
        blocks: residual blocks per encoder level: one number, or one per level.
        decoder_blocks: the same for the decoder; None: one more than the encoder's, so that every saved feature
            has a taker (Ho et al. 2020).
        attention: whether each level attends: one value, or one per level (both sides).
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
    attention: bool | Sequence[bool] = False
    decoder_attention: bool | Sequence[bool] | None = None
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
        check_choices(self)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(
                f"channels is {list(self.channels)}; expected one positive width per level, fine to coarse"
            )
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
        return tuple(LevelSpec(width, (bool(on),) * number, stride) for width, number, on, stride in rows)

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
        return _plain(self)


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
        super().__post_init__()
        if self.heads is not None:
            pairs = self.heads.items() if isinstance(self.heads, Mapping) else self.heads
            object.__setattr__(self, "heads", tuple((name, channels) for name, channels in pairs))
        self.stride_tuples(self.dims)
        if self.in_channels < 1:
            raise ValueError(f"in_channels is {self.in_channels}; expected at least 1")
        if self.heads is not None and (not self.heads or self.out_channels is not None):
            raise ValueError("heads must name at least one output, and out_channels is then not given")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; expected at least 1, or none for no labels")
        if self.null_class and self.num_classes is None:
            raise ValueError("null_class needs num_classes")
        if self.num_classes is not None and self.time_embedding == "none" and self.time_channels is None:
            raise ValueError(
                "num_classes without a time embedding needs time_channels, the width of the class embedding"
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
