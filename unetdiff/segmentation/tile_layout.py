"""Where tiles lie on an image, which positions each answers for, and with what weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.signal.windows import gaussian

_LEAST_WEIGHT = 1e-3  # MONAI's floor, which keeps the corners of 3-D tiles away from 0 / 0


class Span(NamedTuple):
    """One tile along one axis, in positions of the image.

    Attributes:
        start: the first position the tile reads, negative where it begins before the image.
        origin: the position that its output's first entry stands for; `start` for networks that keep the size.
        first, stop: the positions it answers for, inside the image.
    """

    start: int
    origin: int
    first: int
    stop: int


class Tiles(Protocol):
    """A layout of tiles."""

    @property
    def tile(self) -> tuple[int, ...]:
        """The size of what the network is given."""
        ...

    def weights(self) -> Tensor:
        """(*output) float32, above 0: the weight of a tile's answer at each position of its output."""
        ...

    def spans(self, axis: int, size: int) -> list[Span]:
        """The tiles along one axis of the image, in order, `first` and `stop` rising; they leave no position out."""
        ...


@dataclass(frozen=True)
class GaussianTiles:
    """Overlapping tiles, averaged with weights that fall off from each tile's centre as a Gaussian does.

    As `monai.inferers.sliding_window_inference` with `mode="gaussian"` and `padding_mode="reflect"`: tiles lie
    int(tile * (1 - overlap)) apart, the last one ends with the image, and an image shorter than a tile lies in its
    middle. No weight is below 1e-3 (at its centre it is 1). Unlike there, a smaller output is what is laid out, its
    lost border being mirrored beyond the image; and with `multiple` all tiles, the last and the lone one too, lie
    where the network's strides would have fallen in the whole image, without which neighbours disagree the more.

    Attributes:
        tile: the size of what the network is given.
        overlap: of neighbouring outputs, as a share of them, in [0, 1).
        sigma_scale: the Gaussian's standard deviation as a share of the output's size, above 0.
        output: the size of what the network returns for `tile`; None: the same.
        multiple: what tiles' distances are multiples of; None: 1. The network's total stride.

    Raises:
        ValueError: a setting is out of its range, the numbers of axes differ, or `output` does not lie in the middle
            of `tile`.
    """

    tile: tuple[int, ...]
    overlap: float = 0.25
    sigma_scale: float = 0.125
    output: tuple[int, ...] | None = None
    multiple: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}; expected a share of the tile in [0, 1).")
        if not self.sigma_scale > 0:
            raise ValueError(f"sigma_scale is {self.sigma_scale}; expected a share of the tile above 0.")
        lost_border(self.tile, self.output)
        _check_axes(self.tile, multiple=self.multiple)

    def fitted(self, shape: tuple[int, ...]) -> GaussianTiles:
        """Tiles no longer than an image (*space) and its `multiple`; the same where the network loses a border."""
        return self if self.output else replace(self, tile=_fitted_tile(self.tile, shape, self.multiple))

    def weights(self) -> Tensor:
        weights = torch.ones(())
        for length in self.output or self.tile:
            bell = gaussian(length, std=self.sigma_scale * length)
            weights = weights[..., None] * bell
        return weights.clamp_min(max(float(weights.min()), _LEAST_WEIGHT))

    def spans(self, axis: int, size: int) -> list[Span]:
        length = (self.output or self.tile)[axis]
        lost = lost_border(self.tile, self.output)[axis]
        multiple = self.multiple[axis] if self.multiple else 1
        step = int(length * (1 - self.overlap)) // multiple * multiple
        before = max(length - size, 0) // 2 // multiple * multiple
        origins = [at - before for at in _starts(size - length, max(step, multiple), multiple)]
        return [Span(at - lost, at, max(at, 0), min(at + length, size)) for at in origins]


@dataclass(frozen=True)
class MirrorTiles:
    """The overlap-tile strategy of Ronneberger et al. 2015 (https://arxiv.org/abs/1505.04597, figure 2).

    Every position is answered by one tile alone, which sees at least `context` positions to either side of it, or the
    image up to where it is mirrored. Where `context` covers the network's receptive field (half of it, to either
    side), tiles begin at multiples of the network's total stride (`multiple`) and no part of it reads the tile as a
    whole, this is what the network gives for the whole image, to rounding.

    At the image's own borders a network that keeps the size pads as it does for the whole image, and only what
    `multiple` needs is mirrored, behind the end, as `nn.dims.pad_to_multiple` does by reflection. With `border` equal
    to `context`, mirrored positions take the place of that padding, as in 2015. A network with valid convolutions has
    no padding, and the border that it loses is always mirrored.

    Attributes:
        tile: the size of what the network is given.
        context: positions that a tile sees beyond those it answers for.
        output: the size of what the network returns for `tile`; None: the same. 388 for 572 in the paper.
        border: mirrored positions around the image; None: those that the network loses, (tile - output) / 2.
        multiple: what tiles' distances are multiples of; None: 1. The network's total stride.

    Raises:
        ValueError: the numbers of axes differ, `output` does not lie in the middle of `tile`, `border` lies outside
            lost border to context, or the context leaves no `multiple` of positions to answer for.
    """

    tile: tuple[int, ...]
    context: tuple[int, ...]
    output: tuple[int, ...] | None = None
    border: tuple[int, ...] | None = None
    multiple: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        lost = lost_border(self.tile, self.output)
        _check_axes(self.tile, context=self.context, border=self.border, multiple=self.multiple)
        for least, border, context in zip(lost, self.border or lost, self.context, strict=True):
            if not least <= border <= context:
                raise ValueError(
                    f"border {border} and context {context}: expected border at least {least}, what the network loses, "
                    "and context at least border."
                )
        if min(self._steps) < 1:
            raise ValueError(
                f"context {self.context} leaves nothing to predict of tile {self.tile}; expected a tile of at least "
                f"twice the context and {self.multiple or 1} more."
            )

    @cached_property
    def _steps(self) -> tuple[int, ...]:
        """How far tiles lie apart."""
        multiples = self.multiple or (1,) * len(self.tile)
        return tuple(
            (tile - 2 * context) // multiple * multiple
            for tile, context, multiple in zip(self.tile, self.context, multiples, strict=True)
        )

    def fitted(self, shape: tuple[int, ...]) -> MirrorTiles:
        """Tiles no longer than an image (*space) and its `multiple`, which need no context where one covers an axis.

        So the network pads short axes too as for the whole image. The same tiles where a border is mirrored.
        """
        if self.output or self.border:
            return self
        tile = _fitted_tile(self.tile, shape, self.multiple)
        context = tuple(
            0 if size <= length else context for size, length, context in zip(shape, tile, self.context, strict=True)
        )
        return replace(self, tile=tile, context=context)

    def weights(self) -> Tensor:
        return torch.ones(self.output or self.tile)

    def spans(self, axis: int, size: int) -> list[Span]:
        lost = lost_border(self.tile, self.output)
        border, context, step = (self.border or lost)[axis], self.context[axis], self._steps[axis]
        multiple = self.multiple[axis] if self.multiple else 1
        starts = [at - border for at in _starts(size + 2 * border - self.tile[axis], step, multiple)]
        edges = [0, *(start + context for start in starts[1:]), size]
        return [Span(start, start + lost[axis], *edges[place : place + 2]) for place, start in enumerate(starts)]


def _starts(last: int, step: int, multiple: int) -> list[int]:
    """0, step, 2 * step, ... up to the first multiple that is `last` or more, which ends them; 0 alone before that."""
    last = math.ceil(max(last, 0) / multiple) * multiple
    return [min(place * step, last) for place in range(math.ceil(last / step) + 1)]


def _fitted_tile(tile: tuple[int, ...], shape: tuple[int, ...], multiple: tuple[int, ...] | None) -> tuple[int, ...]:
    multiples = multiple or (1,) * len(tile)
    return tuple(
        min(length, math.ceil(size / factor) * factor)
        for length, size, factor in zip(tile, shape, multiples, strict=True)
    )


def _check_axes(tile: tuple[int, ...], **settings: tuple[int, ...] | None) -> None:
    for name, value in settings.items():
        if value is not None and len(value) != len(tile):
            raise ValueError(f"{name} is {value}; expected {len(tile)} numbers, as tile {tile}.")
        if value is not None and min(value) < (name == "multiple"):
            raise ValueError(f"{name} is {value}; expected numbers of at least {int(name == 'multiple')}.")


def lost_border(tile: tuple[int, ...], output: tuple[int, ...] | None) -> tuple[int, ...]:
    """The positions that a network loses at either end of each axis, from the sizes of a tile and its output.

    Raises:
        ValueError: a size is below 1, or the output does not lie in the middle of the tile.
    """
    output = output or tile
    pairs = list(zip(tile, output, strict=False))
    if len(tile) != len(output) or any(not 1 <= out <= held or (held - out) % 2 for held, out in pairs):
        raise ValueError(f"tile {tile} and output {output}: expected sizes above 0 that differ by an even number.")
    return tuple((held - out) // 2 for held, out in pairs)
