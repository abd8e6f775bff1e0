"""The whole U as a flat list of steps: pure data, no tensors. The network builds what the plan says and walks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

from unetdiff.models.nested import nested_decoder
from unetdiff.models.pretrained import backbone_features, resolve
from unetdiff.models.step import Side, Step, head_name, joining, step_up
from unetdiff.spec import LevelSpec, NormPlacement, UNetSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a network in the order in which they run, and what its table needs besides.

    multiple: per axis, what the input's size must be a multiple of: the product of all strides.
    """

    steps: tuple[Step, ...]
    placement: NormPlacement
    multiple: tuple[int, ...]
    dims: int = 2
    embedding_parameters: int = 0
    size: tuple[int, ...] = ()

    def side(self, side: Side) -> tuple[Step, ...]:
        """The steps of one side."""
        return tuple(step for step in self.steps if step.side == side)

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
    def output_weights(self) -> tuple[float, ...]:
        """What each output counts in a loss: half as much with every level down, 1 together (Isensee et al. 2021)."""
        levels = {step.source: step.level for step in self.side("head")}
        shares = [0.5**level for level in levels.values()]
        return tuple(share / sum(shares) for share in shares)

    @property
    def skips(self) -> dict[Step, tuple[Step, ...]]:
        """For each step of the decoder that takes saved outputs, the steps that saved them."""
        steps = {step.key: step for step in self.steps}
        return {step: tuple(steps[key] for key in step.takes) for step in self.side("decoder") if step.takes}

    @property
    def reads(self) -> dict[Step, Step]:
        """For each step of the body, the step whose output it reads, skips apart; none for one that reads the input."""
        body = [step for step in self.steps if step.side != "head"]
        by_key = {step.key: step for step in body}
        named = {step: by_key[step.source] for step in body if step.source in by_key}
        return {step: before for before, step in pairwise(body) if not step.source} | named

    def upto(self, step: Step) -> list[Step]:
        """The steps from the input up to this one, each of which reads the one before it."""
        reads, chain = self.reads, [step]
        while chain[0] in reads:
            chain.insert(0, reads[chain[0]])
        return chain

    def onwards(self, step: Step) -> list[Step]:
        """The steps from this one on, each of which reads the one before it, up to one that none reads."""
        readers, chain = {before: reader for reader, before in self.reads.items()}, [step]
        while chain[-1] in readers:
            chain.append(readers[chain[-1]])
        return chain

    def __str__(self) -> str:
        return _table(self)


def make_plan(spec: UNetSpec) -> Plan:
    """The plan of the network that `spec` describes (a backbone that it names alone is looked up)."""
    spec = resolve(spec)
    levels = spec.levels("encoder", spec.dims)
    encoder = _encoder(spec, levels, {} if spec.backbone is None else backbone_features(spec))
    middle = _middle(spec)
    decoder, outputs = DECODERS[spec.decoder_kind](spec, spec.levels("decoder", spec.dims), encoder, middle)
    body = [*encoder, *middle, *decoder]
    # The decoder starts from the last feature, whether or not a step takes it again.
    taken = {encoder[-1].key, *(key for step in decoder for key in step.takes)}
    steps = (*(replace(step, saves=step.key in taken) for step in body), *_heads(spec, outputs))
    _check_used(steps)
    if spec.convolutions == "valid":  # two convolutions, each of which takes one position off either end
        steps = tuple(replace(step, shrinks=4) if step.kind == "block" else step for step in steps)
    multiple = tuple(map(math.prod, zip((1,) * spec.dims, *spec.stride_tuples(spec.dims), strict=True)))
    return Plan(steps, spec.placement, multiple, spec.dims)


def _check_used(steps: Sequence[Step]) -> None:
    """Raise `ValueError` for a step that nothing reads: beside a backbone, levels of our own need a skip."""
    named = {key for step in steps for key in (step.source, *step.takes)}
    for step, after in pairwise(steps):
        if step.side != "head" and step.key not in named and after.source:
            raise ValueError(
                f"{step.name} leads nowhere: expected skip_fusion and decoder_blocks that take a feature of each level "
                "above the backbone's"
            )


def _heads(spec: UNetSpec, outputs: Mapping[int, Step]) -> list[Step]:
    """The heads at every output of the decoder; those of a coarser level repeat what they say up to full size."""
    steps = []
    for number, (mark, output) in enumerate(outputs.items()):
        rows = spec.stride_tuples(spec.dims)[: output.level]
        stride = tuple(map(math.prod, zip((1,) * spec.dims, *rows, strict=True)))
        how: dict[str, Any] = {"stride": stride, "resampling": "repeat"} if output.level else {}
        for name, channels in spec.outputs.items():
            key = head_name(name, mark) if number else name
            width = output.out_channels
            steps.append(Step(key, "head", "head", output.level, width, channels, source=output.key, **how))
    return steps


def _encoder(spec: UNetSpec, levels: Sequence[LevelSpec], entries: Mapping[int, Sequence[Step]]) -> list[Step]:
    """Stem, then the blocks of each level; between levels a step down, or what `entries` has for a level instead."""
    width = spec.in_channels if spec.stem_channels == 0 else spec.stem_channels or levels[0].channels
    steps = [Step("stem", "encoder", "stem", 0, spec.in_channels, width)] if spec.stem_channels != 0 else []
    stream: int = spec.in_channels
    entry: dict[str, Any] = {}
    for number, level in enumerate(levels):
        if number in entries:
            steps += entries[number]
            width = steps[-1].out_channels
        for block, heads in enumerate(level.heads):
            name = f"level{number}_block{block}"
            steps.append(
                Step(name, "encoder", "block", number, width, level.channels, heads=heads, number=block, **entry)
            )
            width, entry = level.channels, {}
        if not level.resampling or number + 1 in entries:
            continue
        how: dict[str, Any] = {"stride": level.stride, "resampling": level.resampling}
        if level.resampling == "block":
            entry = how
        else:
            stream_read = stream if spec.input_pyramid else 0
            steps.append(
                Step(f"level{number}_down", "encoder", "down", number + 1, width, width, stream=stream_read, **how)
            )
            stream = width
    return steps


def _middle(spec: UNetSpec) -> list[Step]:
    """Block, attention, block at the coarsest level, and the layers of a transformer between the two."""
    width, last = spec.channels[-1], len(spec.channels) - 1
    blocks = [
        Step("middle_block0", "middle", "block", last, width, width, heads=spec.middle_heads),
        Step("middle_block1", "middle", "block", last, width, width, number=1),
    ]
    layers = [
        Step(f"middle_layer{number}", "middle", "transformer", last, width, width, heads=spec.transformer_heads)
        for number in range(spec.transformer_layers)
    ]
    position = [Step("middle_position", "middle", "position", last, width, width)] if layers else []
    return [*blocks[: spec.middle], *position, *layers, *blocks[1 : 1 + spec.middle]]


def plain_decoder(
    spec: UNetSpec, levels: Sequence[LevelSpec], encoder: Sequence[Step], middle: Sequence[Step]
) -> tuple[list[Step], dict[int, Step]]:
    """The blocks of each level, coarse to fine, with a step up between levels; then its outputs by level.

    A level's blocks take that level's saved features, the latest first; a shorter decoder takes the latest only,
    and blocks beyond the last feature take none. With deep supervision, every coarser level that has blocks has an
    output behind its last one (Isensee et al. 2021).
    """
    width = spec.channels[-1]
    steps: list[Step] = []
    for number in reversed(range(len(levels))):
        level = levels[number]
        sources = [step for step in encoder if step.level == number and spec.skip_fusion != "none"]
        for block, heads in enumerate(level.heads):
            how: dict[str, Any] = {"heads": heads, "number": block, **joining(spec, width, sources[-1:])}
            steps.append(Step(f"level{number}_block{block}", "decoder", "block", number, width, level.channels, **how))
            width, sources = level.channels, sources[:-1]
        if number:
            steps.append(step_up(spec, f"level{number}_up", number - 1, width, levels[number - 1]))
            width = steps[-1].out_channels
    ends = {step.level: step for step in steps if step.kind == "block" and step.level and spec.deep_supervision}
    return steps, {0: [*encoder, *middle, *steps][-1], **dict(reversed(ends.items()))}


# The ways to build a decoder: (spec, its levels, encoder, middle) -> its steps, and those that heads read, each by what
# tells the names of its heads apart; the first is for the network's own output.
DECODERS = {"plain": plain_decoder, "nested": nested_decoder}


def _site_text(plan: Plan, step: Step) -> str:
    """Where this step normalises, and with what."""
    if step.kind == "stem":
        return "" if plan.placement.input.kind == "none" else plan.placement.input.kind
    if step.side == "head":
        return "" if plan.placement.out.kind == "none" else f"pre {plan.placement.out.kind}"
    if step.kind == "transformer":
        return "pre layer" if plan.placement.attention == "pre" else ""
    if step.kind != "block" and step.resampling != "residual":
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
