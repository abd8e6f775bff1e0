"""The typed values that describe a network. Plain frozen data: no torch, so that settings parse fast.

`Norm`, `Site` and `NormPlacement` say what is normalised, where and how; `LevelSpec` describes one resolution of
one side of the U; `Architecture` is what a researcher chooses, and `UNetSpec` adds what the data decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

NormKind = Literal["none", "group", "layer", "rms", "pixel", "instance", "batch"]
Position = Literal["none", "pre", "post"]
Part = Literal["branch", "attention", "out"]
DownKind = Literal["strided", "strided_asymmetric", "max_pool", "average_pool", "residual"]
UpKind = Literal["nearest", "transposed", "residual"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Activation = Literal["silu", "gelu", "relu", "leaky_relu"]
TimeEmbedding = Literal["sinusoidal", "fourier", "none"]

T = TypeVar("T")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type hint; the containers here are JSON's, so a list may stand for any sequence."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is type(None):
        return hint is Any or value is None
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping) and all(_fits(entry, inner[1]) for entry in value.values())
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is not None:
        return isinstance(value, (list, tuple, frozenset)) and all(_fits(entry, inner[0]) for entry in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _expected(hint: Any) -> str:
    """A type hint in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(_expected(choice) for choice in inner)
    if origin in (Mapping, dict):
        return "settings by name"
    if origin is not None:
        return f"a list ({_expected(inner[0])})"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def check_types(value: Any) -> None:
    """Raise `ValueError` where a field of the dataclass `value` is not of its type, with what was expected.

    Dataclasses do not check; settings files, Python callers and JSON all pass through here.
    """
    for name, hint in get_type_hints(type(value)).items():
        held = getattr(value, name)
        if not _fits(held, hint):
            raise ValueError(f"{name} is {held!r}; expected {_expected(hint)}")


def check_at_least(value: Any, least: float, *names: str) -> None:
    """Raise `ValueError` where one of the named fields of a dataclass is a number below `least`."""
    for name in names:
        held = getattr(value, name)
        if held is not None and held < least:
            raise ValueError(f"{name} is {held}; expected at least {least}")


def from_json(kind: type[T], value: Mapping[str, Any]) -> T:
    """Build the dataclass `kind` from a JSON object; a key it does not have is a `ValueError` that names it."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind.__name__} is {value!r}; expected settings by name")
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
        check_types(self)
        if self.groups < 1 or self.min_group_channels < 1:
            raise ValueError(f"groups ({self.groups}) and min_group_channels must be at least 1")


NONE = Norm("none")


def _as_norm(value: Norm | str | Mapping[str, Any]) -> Norm:
    """A norm from itself, from its kind alone, or from a JSON object."""
    if isinstance(value, str):
        return Norm(value)  # pyright: ignore[reportArgumentType] # checked there
    return value if isinstance(value, Norm) else from_json(Norm, value)


@dataclass(frozen=True, slots=True)
class Site:
    """Where one side of the U normalises.

    pos: `pre` (norm, activation, convolution on the residual branch; the main path stays un-normalised), `post`
        (convolution, norm, activation), or `none`: its blocks then have no norm, whatever `norm` says.
    norm: with what.
    main: a norm ON the residual stream, after the shortcut and before the branch reads it (Karras et al. 2024):
        every path to the output then crosses it.
    attention: the norm before self-attention; None: as `norm`.
    """

    pos: Position = "pre"
    norm: Norm = field(default_factory=Norm)
    main: Norm = NONE
    attention: Norm | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", NONE if self.pos == "none" else _as_norm(self.norm))
        object.__setattr__(self, "main", _as_norm(self.main))
        if self.attention is not None:
            object.__setattr__(self, "attention", _as_norm(self.attention))
        check_types(self)


def _as_site(value: Site | str | Mapping[str, Any]) -> Site:
    """A site from itself, from its position alone, or from a JSON object."""
    if isinstance(value, str):
        return Site(value)  # pyright: ignore[reportArgumentType] # checked there
    return value if isinstance(value, Site) else from_json(Site, value)


@dataclass(frozen=True, slots=True)
class NormPlacement:
    """Everything about where a network normalises, and how magnitudes are kept.

    encoder, decoder, middle: a `Site` each (`middle` None: as the encoder). input: on the network's input.
    out: before the output convolution. skip: a norm on the main path where encoder meets decoder, on each source
    (`before_concat`) or on their concatenation (`after_concat`), of kind `skip_norm` (None: the decoder's).
    concat: `plain`, or `mp` (EDM2, Karras et al. 2024, Eq. 103) with balance `concat_t`. skip_scale: a factor on
    the skip, or `learned` (one per skip). residual: `sum`, `sqrt_half` (divided by sqrt 2; Song et al. 2021), or
    `mp` (EDM2, Eq. 88) with balance `residual_t`. attention: norm before self-attention; qk: norm of queries and
    keys. time: how the embedding enters a block: `add` (Ho et al. 2020), `scale_shift` (Dhariwal & Nichol 2021),
    `scale`, or `none`. zero_init: which outputs start at zero: the residual `branch`, `attention`, the `out`
    convolution. weights: `plain`, or `standardized` (Qiao et al. 2019; the convolutions of blocks and strides).
    """

    encoder: Site = field(default_factory=Site)
    decoder: Site = field(default_factory=Site)
    middle: Site | None = None
    input: Norm = NONE
    out: Norm = field(default_factory=Norm)
    skip: Literal["none", "before_concat", "after_concat"] = "none"
    skip_norm: Norm | None = None
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
        for names, convert in ((("encoder", "decoder", "middle"), _as_site), (("input", "out", "skip_norm"), _as_norm)):
            for name in names:
                if getattr(self, name) is not None:
                    object.__setattr__(self, name, convert(getattr(self, name)))
        object.__setattr__(self, "zero_init", frozenset(self.zero_init))
        check_types(self)
        sites = (self.encoder, self.decoder, self.site("middle"))
        bare = [site for site in sites if site.pos == "post" and not site.norm.affine]
        if bare and "branch" in self.zero_init:
            raise ValueError(
                "zero_init 'branch' with pos 'post' sets the scale of the last norm to zero: it needs affine"
            )

    @classmethod
    def of(cls, value: str | NormPlacement | Mapping[str, Any]) -> NormPlacement:
        """A placement from its preset's name, from itself, or from a JSON object.

        An object may name a preset to start from: `{"preset": "ddpm", "out": {"kind": "none"}}`.
        """
        if isinstance(value, NormPlacement):
            return value
        if isinstance(value, str):
            return _placement_preset(value)
        if not isinstance(value, Mapping):
            raise ValueError(f"norm is {value!r}; expected a placement's name or the fields of a NormPlacement")
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
    if not isinstance(name, str) or name not in PLACEMENTS:
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
        return _plain(self)


def _head_pairs(heads: Any) -> tuple[tuple[str, int], ...]:
    """Named outputs as pairs, checked: names become keys of modules."""
    if not isinstance(heads, (Mapping, list, tuple)) or not heads:
        raise ValueError(f"heads is {heads!r}; expected at least one name with its number of channels")
    pairs = tuple(tuple(pair) for pair in (heads.items() if isinstance(heads, Mapping) else heads))
    for name, channels in pairs:
        if not isinstance(name, str) or not name.isidentifier() or hasattr(dict, name):
            raise ValueError(f"heads names an output {name!r}; expected a plain word such as 'noise'")
        if not _fits(channels, int) or channels < 1:
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
