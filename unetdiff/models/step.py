"""One step of a walk through the U: pure data. What the whole is made of is in `plan.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unetdiff.spec import FUSED_CHANNELS, LevelSpec, UNetSpec

Side = Literal["encoder", "middle", "decoder", "head"]
Kind = Literal["stem", "block", "down", "up", "head", "position", "transformer", "backbone", "feature"]

INPUT = "input"  # what `source` says of a step that reads the network's input


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a walk through the U.

    name: its key in the state dict. level: 0 is the finest. number: of a block among those of its level, or of the
    middle. in_channels: before the skip. fused: with the skip. source: key of the step whose output it reads ("": the
    step before it; INPUT: the network's input). takes: keys of the steps whose outputs join it as a skip, side by
    side; skip: their channels together (0: none). heads: attention heads (0: no attention after the block). saves:
    whether its output is kept for a later step. stream: channels of the input pyramid that it reads (0: none).
    shrinks: positions that its convolutions take off every axis, where they are not padded. stride: per axis, for
    steps that change the resolution; resampling: how ("": not at all). parameters: how many it has;
    operations: multiplications and additions for one sample (filled in by `UNet.plan`).
    """

    name: str
    side: Side
    kind: Kind
    level: int
    in_channels: int
    out_channels: int
    skip: int = 0
    source: str = ""
    takes: tuple[str, ...] = ()
    heads: int = 0
    saves: bool = False
    stream: int = 0
    stride: tuple[int, ...] = ()
    resampling: str = ""
    number: int = 0
    fused: int = 0
    shrinks: int = 0
    parameters: int = 0
    operations: int = 0

    @property
    def key(self) -> str:
        """A name that no other step of the network has."""
        return f"{self.side}.{self.name}"

    @property
    def reads(self) -> int:
        """Channels of what its block reads: of the skip and what it joined, as they were fused."""
        return self.fused or self.in_channels

    @property
    def first(self) -> bool:
        """Whether it is the first block, so that no nonlinearity of a block before it shaped its input."""
        return (self.side, self.kind, self.level, self.number) == ("encoder", "block", 0, 0)


def head_name(name: str, mark: int) -> str:
    """What a further head of an output is called; `mark` says where the decoder has it."""
    return f"{name}@{mark}"  # no word, so that no output of the network can be called so


def step_up(spec: UNetSpec, name: str, level: int, channels: int, finer: LevelSpec, source: str = "") -> Step:
    """The step of the decoder up to `level`, which `finer` describes."""
    after = finer.channels if spec.up_channels == "next" else channels
    how: dict[str, Any] = {"stride": finer.stride, "resampling": finer.resampling, "source": source}
    return Step(name, "decoder", "up", level, channels, after, **how)


def joining(spec: UNetSpec, channels: int, sources: Sequence[Step]) -> dict[str, Any]:
    """What a step is given that `sources` join as a skip, where it reads `channels` else."""
    skip = sum(source.out_channels for source in sources)
    if not skip:
        return {}
    fused = FUSED_CHANNELS[spec.skip_fusion](channels, skip)
    return {"skip": skip, "fused": fused, "takes": tuple(source.key for source in sources)}
