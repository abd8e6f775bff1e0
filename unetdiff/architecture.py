"""What a researcher chooses about a network: one frozen value that checks itself. No torch: settings parse fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from unetdiff.levels import (
    DECODER_BLOCKS,
    Backbone,
    Flags,
    LevelSpec,
    PerLevel,
    head_count,
    per_block,
    per_level,
    per_transition,
)
from unetdiff.placement import NormPlacement
from unetdiff.typed import check_at_least, check_types, plain

# The words of the settings; what each means is said below.
DownKind = Literal["strided", "strided_asymmetric", "max_pool", "average_pool", "residual", "block"]
UpKind = Literal["nearest", "repeat", "linear", "transposed", "residual"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Activation = Literal["silu", "gelu", "relu", "leaky_relu"]
TimeEmbedding = Literal["sinusoidal", "fourier", "fourier_phase", "none"]
TimeInput = Literal["timestep", "thousandth", "log"]
SkipFusion = Literal["concat", "concat_1x1", "add", "gate", "none"]
DecoderKind = Literal["plain", "nested"]
BlockConvolutions = Literal["full", "separable"]
Memory = Literal["lean", "plain", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a researcher chooses about a `UNet`; nothing here depends on the data.

    Args:
        channels: width of each level, fine to coarse.
        stem_channels: width of the first convolution; None: the first level's; 0: there is none, and the first
            block reads the input.
        convolutions: `same`, or `valid`: those of blocks are not padded, so that the output is smaller than the input
            (572 to 388 in Ronneberger et al. 2015) and skips are cropped; only for blocks without shortcuts.
        block_convolutions: those of blocks `full`, or `separable`: each channel by itself, then a 1x1 convolution
            (Chollet 2017, Howard et al. 2017).
        backbone: a pretrained network as the encoder: a hub name or folder for transformers' `AutoBackbone`, or the
            fields of a `Backbone`. Levels finer than its finest feature are our own, and at the others our blocks,
            which the timestep conditions, read its features; `strides` must reach its strides.
        decoder_kind: `plain`, or `nested`: blocks at every level for every depth, which take all before them at their
            level and what is below them (UNet++, Zhou et al. 2018).
        deep_supervision: in training, an output for every depth of a nested decoder, so that it can be pruned once
            trained, or for every coarser level with blocks of a plain one (nnU-Net, Isensee et al. 2021).
        head_kernel: width of the output convolution, 3 or 1.
        blocks: residual blocks per encoder level: one number, or one per level.
        decoder_blocks: the same for the decoder, where 0 is a level without blocks; None: one more than the
            encoder's, so that every saved feature has a taker (Ho et al. 2020); nested: as the encoder.
        decoder_channels: width of the decoder: one number, or one per level (nested: the coarsest has none, so that
            its entry is not used); None: as the encoder.
        middle: two more blocks between encoder and decoder, at the coarsest level.
        transformer_layers: layers of a vision transformer between them, with the coarsest level's heads (Dosovitskiy
            et al. 2021; TransUNet, Chen et al. 2021); whatever `activation` and `norm` say, they have a GELU and, where
            `norm.attention` is not none, layer norms.
        position_grid: positions per axis of the transformer's learned position embedding, which is interpolated to
            the size at hand.
        attention: whether each level attends: one value, or one per level, or a list per level with one per block.
        decoder_attention: the same for the decoder alone; None: as the encoder.
        middle_attention: attention between the two blocks of the middle.
        attention_heads: heads per attention layer: one number, or one per level.
        attention_head_channels: width of a head, instead of their number; one number, or one per level.
        decoder_attention_heads: heads in the decoder alone: one number, or one per level; None: as the encoder.
        strides: resampling factor from each level to the next: one number for all, one per transition, or one
            list per transition with a factor per axis (anisotropic volumes).
        downsample: `strided` convolution, `strided_asymmetric` (padded after the end only, as TensorFlow's SAME
            in the DDPM network), `max_pool`, `average_pool`, `residual` (inside a residual block of its own, as
            ADM), or `block` (by the first convolution of the next level, as nnU-Net). One word, or one per
            transition.
        upsample: `nearest` or `linear` interpolation and a convolution, `repeat` (nearest alone), `transposed`
            convolution, or `residual`. One word, or one per transition.
        up_channels: whether a step up keeps the width (`same`) or leaves with that of the level it enters
            (`next`: the up-convolution of Ronneberger et al. 2015).
        resample_filter: the filter of `residual` steps along one axis, such as [1, 3, 3, 1] (Song et al. 2021);
            None: mean and repetition over the stride. Needs strides of 1 or 2.
        resample_shortcut: `conv`: blocks that resample have a 1x1 convolution on their shortcut although no width
            changes (Karras et al. 2022); `identity`: they have none.
        skip_fusion: how the decoder takes a saved feature: `concat`; `concat_1x1`, brought back to the decoder's width
            by a 1x1 convolution; `add`, behind a 1x1 convolution where widths differ; `gate`, weighted per position by
            what the decoder has so far and then concatenated (Oktay et al. 2018); or `none`: an autoencoder, all of
            whose information passes the coarsest level.
        input_pyramid: the input, convolved and brought down level by level, joins the encoder's stream after each
            step down (the residual input of NCSN++, Song et al. 2021).
        time_embedding: `sinusoidal` (Vaswani et al. 2017), `fourier` (Tancik et al. 2020), `fourier_phase` (random
            phases as well; Karras et al. 2024), or `none`: the network then owns no time parameters and refuses a
            timestep.
        time_input: what is embedded: the `timestep` itself, a `thousandth` of it, or its `log`arithm; None: the
            timestep for sinusoids, a thousandth for Fourier features.
        wave_channels: width of the sinusoids or Fourier features; None: the first level's.
        time_channels: width of the embedding; None: 4 times the first level's.
        frequency_shift: layout of the sinusoid: 1 is DDPM's, 0 is ADM's.
        sin_first: layout of the waves: sines before cosines as DDPM, or after them as ADM.
        label_entry: where a class label's vector is added: to the `embedding` (Dhariwal & Nichol 2021), or to the
            `waves` before its layers (Karras et al. 2022, DDPM++).
        label_balance: share of the label in the magnitude-preserving sum (weights `mp_forced`; Karras et al. 2024).
        divide_by_timestep: the output is divided by the timestep, as the score networks of Song et al. 2021 do by
            their noise level.
        norm: a placement's name (`ddpm`, `adm`, `edm2`, ...) or the fields of a `NormPlacement`.
        activation: the nonlinearity throughout.
        dropout: probability, before the second convolution of each residual block.
        padding_mode: how an input whose size the strides do not divide is padded inside (and cropped after).
    """

    channels: Sequence[int] = (64, 128, 256)
    stem_channels: int | None = None
    convolutions: Literal["same", "valid"] = "same"
    block_convolutions: BlockConvolutions = "full"
    backbone: str | dict[str, Any] | None = None
    decoder_kind: DecoderKind = "plain"
    deep_supervision: bool = False
    head_kernel: Literal[1, 3] = 3
    blocks: PerLevel = 2
    decoder_blocks: PerLevel | None = None
    decoder_channels: PerLevel | None = None
    middle: bool = True
    transformer_layers: int = 0
    position_grid: int = 16
    attention: Flags = False
    decoder_attention: Flags | None = None
    middle_attention: bool = True
    attention_heads: PerLevel = 1
    attention_head_channels: PerLevel | None = None
    decoder_attention_heads: PerLevel | None = None
    strides: int | Sequence[int | Sequence[int]] = 2
    downsample: DownKind | Sequence[DownKind] = "strided"
    upsample: UpKind | Sequence[UpKind] = "nearest"
    up_channels: Literal["same", "next"] = "same"
    resample_filter: Sequence[int] | None = None
    resample_shortcut: Literal["identity", "conv"] = "identity"
    skip_fusion: SkipFusion = "concat"
    input_pyramid: bool = False
    time_embedding: TimeEmbedding = "sinusoidal"
    time_input: TimeInput | None = None
    wave_channels: int | None = None
    time_channels: int | None = None
    frequency_shift: int = 0
    sin_first: bool = False
    label_entry: Literal["embedding", "waves"] = "embedding"
    label_balance: float = 0.5
    divide_by_timestep: bool = False
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
        check_at_least(self, 0, "stem_channels", "transformer_layers")
        check_at_least(self, 1, "wave_channels", "time_channels", "position_grid")
        for name in ("attention_heads", "attention_head_channels", "decoder_attention_heads", "decoder_channels"):
            held = getattr(self, name)
            if held is not None and min([held] if isinstance(held, int) else held, default=0) < 1:
                raise ValueError(f"{name} is {held}; expected at least 1")
        if not 0 <= self.frequency_shift < (self.waves // 2 if self.time_embedding == "sinusoidal" else 2):
            held = f"frequency_shift is {self.frequency_shift}"
            raise ValueError(f"{held}; expected 0 or 1, and less than the {self.waves // 2} frequencies")
        if not 0 <= self.label_balance <= 1:
            raise ValueError(f"label_balance is {self.label_balance}; expected 0 to 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")
        per_axis = [] if isinstance(self.strides, int) else [row for row in self.strides if not isinstance(row, int)]
        dims = len(per_axis[0]) if per_axis else 2
        for side in ("encoder", "decoder"):
            self.levels(side, dims)
        if self.middle_heads or self.transformer_layers:
            self.transformer_heads  # noqa: B018 # checks that the width divides
        self._check_sides(dims)
        self._check_resampling(dims)
        self._check_placement()

    def _check_sides(self, dims: int) -> None:
        """Whether encoder and decoder are made of parts that fit."""
        below = [level.heads for level in self.levels("decoder", dims)[1:]]
        if self.deep_supervision and self.decoder_kind == "plain" and not any(below):
            raise ValueError("deep_supervision needs decoder_blocks at a level below the finest: there are none")
        if self.deep_supervision and self.convolutions == "valid":
            raise ValueError("deep_supervision compares levels position by position: expected convolutions 'same'")
        if self.decoder_kind == "nested":
            held = "decoder_kind 'nested'"
            *finer, coarsest = self.levels("decoder", dims)
            if coarsest.heads:
                raise ValueError(f"{held} has no blocks at its coarsest level: expected decoder_blocks that end in 0")
            if not finer or not all(level.heads for level in finer):
                raise ValueError(f"{held} needs at least two levels, and a block at each but the coarsest")
            if self.skip_fusion == "none" or self.convolutions == "valid":
                given = f"skip_fusion {self.skip_fusion!r} and convolutions {self.convolutions!r}"
                raise ValueError(f"{held} is made of skips of equal size, which {given} do not give")
        if self.transformer_layers and self.convolutions == "valid":
            raise ValueError("transformer_layers need convolutions 'same'")
        if self.foreign is not None:
            if dims != 2:
                raise ValueError(f"a backbone takes images: expected dims 2, not {dims}")
            if self.input_pyramid or self.convolutions == "valid":
                raise ValueError("a backbone goes with neither input_pyramid nor convolutions 'valid'")
            if self.placement.input.kind != "none":
                raise ValueError(
                    "norm.input would hide from a backbone the range that it was trained on: expected none"
                )
            if any(len({*row}) > 1 for row in self.stride_tuples(dims)):
                raise ValueError(
                    f"strides of a network with a backbone are the same along both axes, not {self.strides}"
                )

    def _check_resampling(self, dims: int) -> None:
        """Whether the ways between levels fit together."""
        strides = self.stride_tuples(dims)
        if self.resample_filter is not None:
            if len(self.resample_filter) < 2 or len(self.resample_filter) % 2 or sum(self.resample_filter) <= 0:
                held = f"resample_filter is {list(self.resample_filter)}"
                raise ValueError(f"{held}; expected an even number of taps with a positive sum")
            if any(factor > 2 for row in strides for factor in row):
                raise ValueError(f"resample_filter needs strides of 1 or 2; strides are {self.strides}")
        downs = per_transition("downsample", self.downsample, len(self.channels))
        if self.convolutions == "valid" and {"block", "residual"} & {*downs, *self._ups()}:
            raise ValueError("convolutions are 'valid': expected steps between levels that are no blocks themselves")
        if self.input_pyramid and self.convolutions == "valid":
            raise ValueError("input_pyramid keeps the input's size, which convolutions 'valid' do not")
        if self.input_pyramid and "block" in downs:
            raise ValueError("input_pyramid joins after a step down; downsample 'block' has no such step")
        if self.up_channels == "next" and "repeat" in self._ups():
            raise ValueError("up_channels is 'next', but upsample 'repeat' learns nothing and keeps the width")

    def _ups(self) -> tuple[str, ...]:
        """How the decoder enters each finer level."""
        return per_transition("upsample", self.upsample, len(self.channels))

    def _check_placement(self) -> None:
        """Whether the placement and the parts around it fit together."""
        placement = self.placement
        if self.convolutions == "valid" and placement.residual != "off":
            raise ValueError("convolutions are 'valid', but shortcuts keep the size: expected norm.residual off")
        if placement.concat == "mp" and self.skip_fusion not in ("concat", "none"):
            raise ValueError(f"skip_fusion is {self.skip_fusion!r}; norm.concat 'mp' balances a plain concatenation")
        if placement.weights == "mp_forced":
            if placement.time not in ("none", "scale"):
                raise ValueError(f"norm.time is {placement.time!r}; weights 'mp_forced' have no biases: expected scale")
            if self.stem_channels == 0:
                raise ValueError("stem_channels is 0; weights 'mp_forced' need a stem, which adds the constant channel")
            if self.label_entry == "waves":
                raise ValueError("label_entry is 'waves'; weights 'mp_forced' add labels to the embedding")
            if "transposed" in self._ups():
                raise ValueError("upsample 'transposed' has no magnitude-preserving form; expected nearest or residual")

    @property
    def placement(self) -> NormPlacement:
        """`norm` as a typed value."""
        return NormPlacement.of(self.norm)

    @property
    def waves(self) -> int:
        """Width of the sinusoids or Fourier features."""
        return self.wave_channels or self.channels[0]

    @property
    def embedded_time(self) -> TimeInput:
        """What of the timestep is embedded."""
        return self.time_input or ("timestep" if self.time_embedding == "sinusoidal" else "thousandth")

    @property
    def middle_heads(self) -> int:
        """Attention heads of the middle's blocks: as the encoder's coarsest level (0: no attention)."""
        return self.transformer_heads if self.middle and self.middle_attention else 0

    @property
    def transformer_heads(self) -> int:
        """Attention heads at the encoder's coarsest level."""
        return self._heads("encoder")[-1](self.channels[-1])

    @property
    def foreign(self) -> Backbone | None:
        """`backbone` as a typed value."""
        return None if self.backbone is None else Backbone.of(self.backbone)

    def _heads(self, side: Literal["encoder", "decoder"]) -> list[Callable[[int], int]]:
        """For each level, the number of heads at a width; calling it is a `ValueError` where the width does not fit."""
        count = len(self.channels)
        given = self.decoder_attention_heads if side == "decoder" else None
        heads = per_level("attention_heads", self.attention_heads if given is None else given, count)
        widths = per_level("attention_head_channels", self.attention_head_channels if given is None else None, count)
        return [partial(head_count, number, width) for number, width in zip(heads, widths, strict=True)]

    def levels(self, side: Literal["encoder", "decoder"], dims: int) -> tuple[LevelSpec, ...]:
        """One side of the U as `LevelSpec` values, fine to coarse, in `dims` dimensions."""
        count = len(self.channels)
        widths: tuple[int, ...] = tuple(self.channels)
        blocks = per_level("blocks", self.blocks, count)
        attention = per_level("attention", self.attention, count)
        resampling = per_transition("downsample", self.downsample, count)
        if side == "decoder":
            given = DECODER_BLOCKS[self.decoder_kind](blocks) if self.decoder_blocks is None else self.decoder_blocks
            blocks = per_level("decoder_blocks", given, count)
            given = widths if self.decoder_channels is None else self.decoder_channels
            widths = per_level("decoder_channels", given, count)
            resampling = per_transition("upsample", self.upsample, count)
            if self.decoder_attention is not None:
                attention = per_level("decoder_attention", self.decoder_attention, count)
        if min(blocks) < (side == "encoder"):
            raise ValueError(f"{side} blocks are {list(blocks)}; expected at least {int(side == 'encoder')} per level")
        strides = (*self.stride_tuples(dims), (1,) * dims)
        rows = zip(widths, blocks, attention, self._heads(side), strides, resampling, strict=True)
        return tuple(
            LevelSpec(width, tuple(heads(width) if on else 0 for on in per_block(flags, number, side)), stride, how)
            for width, number, flags, heads, stride, how in rows
        )

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
