"""What is normalised in a network, where and how, as small typed values. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from unetdiff.typed import check_types, from_json, plain

T = TypeVar("T")

NormKind = Literal["none", "group", "layer", "rms", "pixel", "instance", "batch"]
Position = Literal["none", "pre", "post"]
Part = Literal["branch", "attention", "out"]
Weights = Literal["plain", "standardized", "mp_forced"]


@dataclass(frozen=True, slots=True)
class Norm:
    """One normalization layer.

    kind: `group` (Wu & He 2018), `layer` (per position over channels, with mean), `rms` (per group, without mean),
        `pixel` (per position over channels, without mean; Karras et al. 2018), `instance` (Ulyanov et al. 2016),
        `batch` (mixes timesteps and samples, so it suits neither diffusion nor exact resume; `make_norm` warns).
    groups: upper limit on the number of groups; where it does not divide the channels, the largest divisor that
        leaves `min_group_channels` channels per group is taken.
    eps: added to the variance (`rms`: to the mean square; `pixel`: to the root mean square, as EDM2, whose 1e-4 keeps
        the gradient at zeros within float16).
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


def _as(kind: type[T], value: Any) -> T:
    """A norm or a site from itself, from its first field alone (`"pixel"`, `"post"`), or from a JSON object."""
    if isinstance(value, str):
        return kind(value)  # pyright: ignore[reportCallIssue] # both have defaults
    return value if isinstance(value, kind) else from_json(kind, value)


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
        object.__setattr__(self, "norm", NONE if self.pos == "none" else _as(Norm, self.norm))
        object.__setattr__(self, "main", _as(Norm, self.main))
        if self.attention is not None:
            object.__setattr__(self, "attention", _as(Norm, self.attention))
        check_types(self)

    @property
    def before_attention(self) -> Norm:
        """The norm before self-attention, where the placement has one there."""
        return self.norm if self.attention is None else self.attention


@dataclass(frozen=True, slots=True)
class NormPlacement:
    """Everything about where a network normalises, and how magnitudes are kept.

    encoder, decoder, middle: a `Site` each (`middle` None: as the encoder). input: on the network's input.
    out: before the output convolution. skip: a norm on the main path where encoder meets decoder, on each source
    (`before_concat`) or on their concatenation (`after_concat`), of kind `skip_norm` (None: the decoder's).
    concat: `plain`, or `mp` (EDM2, Karras et al. 2024, Eq. 103) with balance `concat_t`. skip_scale: a factor on
    the skip, or `learned` (one per skip). residual: `sum`, `sqrt_half` (divided by sqrt 2; Song et al. 2021), `mp`
    (EDM2, Eq. 88) with balance `residual_t` (after self-attention `attention_t`; None: the same), or `off`: blocks
    without shortcuts (Ronneberger et al. 2015; self-attention keeps its sum). attention: norm before
    self-attention; qk: norm of queries and keys (`rms_values`: `rms`, of the values as well; EDM2). time: how the
    embedding enters a block: `add` (Ho et al. 2020), `scale_shift` (Dhariwal & Nichol 2021), `scale`, or `none`.
    zero_init: which outputs start at zero: the residual `branch`, `attention`, the `out` convolution. weights:
    `plain`; `standardized` (Qiao et al. 2019; the convolutions of blocks and strides); or `mp_forced`, EDM2's
    magnitude-preserving layers: unit-norm filters without biases, kept at unit norm while training, activations
    divided by their root mean square, a constant channel beside the input, and learned scalar gains that start at
    zero on the output and on what the embedding says. clip: bound on the values of the residual stream.
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
    residual: Literal["sum", "sqrt_half", "mp", "off"] = "sum"
    residual_t: float = 0.3
    attention_t: float | None = None
    attention: Literal["none", "pre"] = "pre"
    qk: Literal["none", "rms", "rms_values", "l2"] = "none"
    time: Literal["none", "add", "scale_shift", "scale"] = "scale_shift"
    zero_init: frozenset[Part] = frozenset({"branch", "attention", "out"})
    weights: Weights = "plain"
    clip: float | None = None

    def __post_init__(self) -> None:
        for names, kind in ((("encoder", "decoder", "middle"), Site), (("input", "out", "skip_norm"), Norm)):
            for name in names:
                if getattr(self, name) is not None:
                    object.__setattr__(self, name, _as(kind, getattr(self, name)))
        if not isinstance(self.zero_init, str):  # a word alone is refused below, not taken letter by letter
            object.__setattr__(self, "zero_init", frozenset(self.zero_init))
        check_types(self)
        sites = (self.encoder, self.decoder, self.site("middle"))
        bare = [site for site in sites if site.pos == "post" and not site.norm.affine]
        if bare and "branch" in self.zero_init:
            raise ValueError(
                "zero_init 'branch' with pos 'post' sets the scale of the last norm to zero: it needs affine"
            )
        if self.residual == "off" and "branch" in self.zero_init:
            raise ValueError("zero_init 'branch' with residual 'off' would silence the network: leave 'branch' out")
        if self.weights == "mp_forced" and self.zero_init:
            raise ValueError("weights 'mp_forced' have no size that could start at zero: expected zero_init []")
        for name in ("residual_t", "attention_t", "concat_t"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} is {share}; expected a share between 0 and 1")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is {self.clip}; expected a positive bound")

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

    @property
    def attention_balance(self) -> float:
        """The share of self-attention in magnitude-preserving sums."""
        return self.residual_t if self.attention_t is None else self.attention_t

    def to_json(self) -> dict[str, Any]:
        """The placement as a JSON object that `of` takes back."""
        return plain(self)


_DDPM_SITE = Site("pre", Norm("group", eps=1e-6))
_INSTANCE = Site("post", Norm("instance"))
_BARE = Site("post", NONE)
_PLUS_PLUS = NormPlacement(
    encoder=_DDPM_SITE, decoder=_DDPM_SITE, out=_DDPM_SITE.norm, residual="sqrt_half", time="add"
)

PLACEMENTS: dict[str, NormPlacement] = {
    # Ho et al. 2020: group norm before every convolution, the timestep added between the two.
    "ddpm": NormPlacement(encoder=_DDPM_SITE, decoder=_DDPM_SITE, out=_DDPM_SITE.norm, time="add"),
    # Dhariwal & Nichol 2021: the timestep scales and shifts the second norm.
    "adm": NormPlacement(time="scale_shift"),
    # Song et al. 2021: DDPM's norms, residual sums divided by sqrt 2. The two networks differ elsewhere (embedding,
    # resampling filter, input pyramid).
    "ncsnpp": _PLUS_PLUS,
    "ddpmpp": _PLUS_PLUS,
    # Karras et al. 2024, configuration G: no norm but the pixel norm on the encoder's stream; magnitudes are kept
    # by the weights, the sums and the concatenation.
    "edm2": NormPlacement(
        encoder=Site("none", main=Norm("pixel", eps=1e-4, affine=False)),
        decoder=Site("none"),
        middle=Site("none"),
        out=NONE,
        concat="mp",
        residual="mp",
        attention="none",
        qk="rms_values",
        time="scale",
        zero_init=frozenset(),
        weights="mp_forced",
        clip=256.0,
    ),
    # Isensee et al. 2021: convolution, instance norm, leaky ReLU; no shortcuts.
    "nnunet": NormPlacement(
        encoder=_INSTANCE, decoder=_INSTANCE, out=NONE, residual="off", time="add", zero_init=frozenset()
    ),
    # Ronneberger et al. 2015: convolution and ReLU; no norm anywhere, no shortcuts.
    "unet2015": NormPlacement(
        encoder=_BARE, decoder=_BARE, out=NONE, residual="off", time="add", zero_init=frozenset()
    ),
}


def _placement_preset(name: str) -> NormPlacement:
    if not isinstance(name, str) or name not in PLACEMENTS:
        raise ValueError(f"no norm placement is called {name!r}; there are: {', '.join(PLACEMENTS)}")
    return PLACEMENTS[name]
