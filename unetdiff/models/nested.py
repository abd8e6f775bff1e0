"""The decoder of UNet++: a U of every depth in one, all of which share their encoder (Zhou et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from unetdiff.models.step import Step, joining, step_up
from unetdiff.spec import LevelSpec, UNetSpec


def nested_decoder(
    spec: UNetSpec, levels: Sequence[LevelSpec], encoder: Sequence[Step], middle: Sequence[Step]
) -> tuple[list[Step], dict[int, Step]]:
    """The steps column by column, each coarse to fine; then its outputs by depth, that of the deepest U first.

    X[i, 0] is the encoder's last feature of level i; X[i, j], the blocks of level i in column j, take
    X[i, 0 .. j - 1] as their skip and read X[i + 1, j - 1] brought up (Zhou et al. 2018, Eq. 1). Column j at the finest
    level ends a U of depth j. The middle, where there is one, is part of the deepest alone.
    """
    nodes = [[[step for step in encoder if step.level == number][-1]] for number in range(len(levels))]
    coarsest = [*nodes[-1], *middle][-1]
    steps: list[Step] = []
    for column in range(1, len(levels)):
        for number in reversed(range(len(levels) - column)):
            below = coarsest if number + 2 == len(levels) else nodes[number + 1][column - 1]
            name = f"level{number + 1}_column{column - 1}_up"
            steps.append(step_up(spec, name, number, below.out_channels, levels[number], source=below.key))
            steps += _node(spec, levels[number], number, column, steps[-1].out_channels, nodes[number])
            nodes[number].append(steps[-1])
    depths = range(len(levels) - 1, 0, -1)
    return steps, {depth: nodes[0][depth] for depth in (depths if spec.deep_supervision else depths[:1])}


def _node(
    spec: UNetSpec, level: LevelSpec, number: int, column: int, channels: int, before: Sequence[Step]
) -> list[Step]:
    """The blocks of one node, the first of which takes all nodes before it."""
    steps: list[Step] = []
    for block, heads in enumerate(level.heads):
        how = {"heads": heads, "number": block, **({} if block else joining(spec, channels, before))}
        name = f"level{number}_column{column}_block{block}"
        steps.append(Step(name, "decoder", "block", number, channels, level.channels, **how))
        channels = level.channels
    return steps
