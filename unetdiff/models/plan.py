"""The whole U as a flat list of steps: pure data, no tensors. The network builds what the plan says and walks it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

from unetdiff.models.step import Side, Step, joining
from unetdiff.spec import LevelSpec, NormPlacement, UNetSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a network in the order in which they run, and what its table needs besides."""

    steps: tuple[Step, ...]
    placement: NormPlacement
    dims: int = 2
    embedding_parameters: int = 0
    size: tuple[int, ...] = ()

    def side(self, side: Side) -> tuple[Step, ...]:
        """The steps of one side."""
        return tuple(step for step in self.steps if step.side == side)

    @property
    def multiple(self) -> tuple[int, ...]:
        """Per axis, what the input's size must be a multiple of: the product of all strides."""
        strides = [step.stride for step in self.side("encoder") if step.resampling]
        return tuple(math.prod(stride[axis] for stride in strides) for axis in range(self.dims))

    @property
    def pads(self) -> bool:
        """Whether convolutions are padded, so that any size goes in and comes back."""
        return not any(step.shrinks for step in self.steps)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size that comes out of an input of this size.

        Raises:
            ValueError: convolutions are not padded and the size does not fit; it names the next that does.
        """
        if self.pads:
            return tuple(size)
        out = [self._length(length, axis) for axis, length in enumerate(size)]
        if None in out:
            fitting = list(self.fitting_size(size))
            raise ValueError(f"size {list(size)} does not fit convolutions without padding; the next is {fitting}")
        return tuple(length for length in out if length is not None)

    def fitting_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest size, at least this, that fits convolutions without padding; with padding, any size does."""
        if self.pads:
            return tuple(size)
        return tuple(next(n for n in count(length) if self._length(n, axis)) for axis, length in enumerate(size))

    def _length(self, length: int, axis: int) -> int | None:
        """What becomes of one axis; None where a step cannot divide it, or nothing is left."""
        for step in self.steps:
            factor = step.stride[axis] if step.resampling else 1
            if step.kind == "down" and length % factor:
                return None
            length = (length // factor if step.kind == "down" else length * factor) - step.shrinks
            if length < 1:
                return None
        return length

    @property
    def features(self) -> tuple[Step, ...]:
        """The steps whose outputs the encoder returns, fine to coarse."""
        return tuple(step for step in self.side("encoder") if step.saves)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Keys of the steps that the heads read, the first of which is the network's own."""
        return tuple(dict.fromkeys(step.source for step in self.side("head")))

    @property
    def skips(self) -> dict[Step, tuple[Step, ...]]:
        """For each step of the decoder that takes saved outputs, the steps that saved them."""
        steps = {step.key: step for step in self.steps}
        return {step: tuple(steps[key] for key in step.takes) for step in self.side("decoder") if step.takes}

    def onwards(self, step: Step) -> list[Step]:
        """A step of the body, and those that read it one behind the other, skips apart, up to one that none reads."""
        body = [entry for entry in self.steps if entry.side != "head"]
        readers = {entry.source or before.key: entry for before, entry in pairwise(body)}
        chain = [step]
        while chain[-1].key in readers:
            chain.append(readers[chain[-1].key])
        return chain

    def __str__(self) -> str:
        return _table(self)


def make_plan(spec: UNetSpec) -> Plan:
    """The plan of the network that `spec` describes."""
    encoder = _encoder(spec, spec.levels("encoder", spec.dims))
    decoder = _decoder(spec, spec.levels("decoder", spec.dims), encoder)
    body = [*encoder, *_middle(spec), *decoder]
    last = body[-1]
    heads = [
        Step(name, "head", "head", 0, last.out_channels, channels, source=last.key)
        for name, channels in spec.outputs.items()
    ]
    # The decoder starts from the last feature, whether or not a step takes it again.
    taken = {encoder[-1].key, *(key for step in decoder for key in step.takes)}
    steps = (*(replace(step, saves=step.key in taken) for step in body), *heads)
    if spec.convolutions == "valid":  # two convolutions, each of which takes one position off either end
        steps = tuple(replace(step, shrinks=4) if step.kind == "block" else step for step in steps)
    return Plan(steps, spec.placement, spec.dims)


def _encoder(spec: UNetSpec, levels: Sequence[LevelSpec]) -> list[Step]:
    """Stem, then the blocks of each level with a step down between levels."""
    width = spec.in_channels if spec.stem_channels == 0 else spec.stem_channels or levels[0].channels
    steps = [Step("stem", "encoder", "stem", 0, spec.in_channels, width)] if spec.stem_channels != 0 else []
    stream: int = spec.in_channels
    entry: dict[str, Any] = {}
    for number, level in enumerate(levels):
        for block, heads in enumerate(level.heads):
            name = f"level{number}_block{block}"
            steps.append(
                Step(name, "encoder", "block", number, width, level.channels, heads=heads, number=block, **entry)
            )
            width, entry = level.channels, {}
        how: dict[str, Any] = {"stride": level.stride, "resampling": level.resampling}
        if level.resampling == "block":
            entry = how
        elif level.resampling:
            stream_read = stream if spec.input_pyramid else 0
            steps.append(
                Step(f"level{number}_down", "encoder", "down", number + 1, width, width, stream=stream_read, **how)
            )
            stream = width
    return steps


def _middle(spec: UNetSpec) -> list[Step]:
    """Block, attention, block at the coarsest level."""
    width, last = spec.channels[-1], len(spec.channels) - 1
    if not spec.middle:
        return []
    return [
        Step("middle_block0", "middle", "block", last, width, width, heads=spec.middle_heads),
        Step("middle_block1", "middle", "block", last, width, width, number=1),
    ]


def _decoder(spec: UNetSpec, levels: Sequence[LevelSpec], encoder: Sequence[Step]) -> list[Step]:
    """The blocks of each level, coarse to fine, with a step up between levels.

    A level's blocks take that level's saved features, the latest first; a shorter decoder takes the latest only,
    and blocks beyond the last feature take none.
    """
    width = levels[-1].channels
    steps: list[Step] = []
    for number in reversed(range(len(levels))):
        level = levels[number]
        sources = [step for step in encoder if step.level == number and spec.skip_fusion != "none"]
        for block, heads in enumerate(level.heads):
            how: dict[str, Any] = {"heads": heads, "number": block, **joining(spec, width, sources[-1:])}
            steps.append(Step(f"level{number}_block{block}", "decoder", "block", number, width, level.channels, **how))
            width, sources = level.channels, sources[:-1]
        if number:
            finer = levels[number - 1]
            after = finer.channels if spec.up_channels == "next" else width
            how = {"stride": finer.stride, "resampling": finer.resampling}
            steps.append(Step(f"level{number}_up", "decoder", "up", number - 1, width, after, **how))
            width = after
    return steps


def _site_text(plan: Plan, step: Step) -> str:
    """Where this step normalises, and with what."""
    if step.kind == "stem":
        return "" if plan.placement.input.kind == "none" else plan.placement.input.kind
    if step.side == "head":
        return "" if plan.placement.out.kind == "none" else f"pre {plan.placement.out.kind}"
    if step.kind in ("down", "up") and step.resampling != "residual":
        return ""
    site = plan.placement.site(step.side)
    main = "" if site.main.kind == "none" else f" + main {site.main.kind}"
    return ("none" if site.pos == "none" else f"{site.pos} {site.norm.kind}") + main


def _row(plan: Plan, step: Step) -> list[str]:
    factor = "x".join(str(entry) for entry in step.stride)
    return [
        step.side,
        step.name,
        str(step.level),
        f"{step.in_channels} -> {step.out_channels}",
        f"+{step.skip}" if step.skip else "saved" if step.saves else "",
        f"{step.kind} {factor} {step.resampling}" if step.resampling else "",
        "1 head" if step.heads == 1 else f"{step.heads} heads" if step.heads else "",
        _site_text(plan, step),
        f"{step.parameters:,}",
        f"{step.operations / 1e6:,.1f}",
    ]


def _table(plan: Plan) -> str:
    """A text table, one row per step, with totals."""
    header = ["side", "step", "level", "channels", "skip", "resampling", "attention", "norm", "parameters", "Mflop"]
    rows = [_row(plan, step) for step in plan.steps]
    parameters = sum(step.parameters for step in plan.steps) + plan.embedding_parameters
    operations = sum(step.operations for step in plan.steps)
    embedding = ["", "embedding", *[""] * 6, f"{plan.embedding_parameters:,}", ""]
    total = ["", "total", *[""] * 6, f"{parameters:,}", f"{operations / 1e6:,.1f}"]
    table = [header, *rows, embedding, total]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    numeric = {len(header) - 2, len(header) - 1}
    lines = [
        "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    rule = "-" * max(len(line) for line in lines)
    size = " x ".join(str(length) for length in plan.size)
    note = f"operations (2 per multiply-add) for one sample of {size}" if size else ""
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:], note]).rstrip()
