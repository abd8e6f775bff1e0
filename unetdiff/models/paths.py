"""Which paths from input to output know the amplitude and the mean of the input: pure data, from the plan.

A path follows the stream (shortcuts, resampling, skips) from the input through the encoder up to a saved feature, over
to the step of the decoder that takes it, and on to the head; one more goes through the middle. A norm on the stream
erases the amplitude of what crosses it: every group's, every position's or every channel's own. The mean of a channel
is a constant that linear layers pass on as a constant; instance norm subtracts it, group and layer norm subtract one
mean per group, norms without mean none. A residual branch runs beside the stream and crosses the norms of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from unetdiff.models.plan import Plan
from unetdiff.models.step import Step
from unetdiff.nn.norm import group_count
from unetdiff.nn.transformer import LAYER_NORM
from unetdiff.placement import Norm, NormPlacement

Passing = Literal["passes", "per group", "erased"]

_PASSING = ("passes", "per group", "erased")
_GROUPED = ("group", "rms")


@dataclass(frozen=True, slots=True)
class Crossing:
    """A norm on a path. place: where it sits, in words; groups: how many means or amplitudes it takes out."""

    place: str
    kind: str
    channels: int
    groups: int

    @property
    def amplitude(self) -> Passing:
        """Whether the amplitude of what crosses it is gone; batch norm is a fixed scale once trained."""
        return "passes" if self.kind == "batch" else "erased"

    @property
    def mean(self) -> Passing:
        """Whether a constant per channel is gone."""
        if self.kind == "instance" or (self.kind == "group" and self.groups == self.channels):
            return "erased"
        return "per group" if self.kind in ("group", "layer") else "passes"

    def __str__(self) -> str:
        return f"{self.place} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a path crosses in one step, in this order: branches leave behind the norms, the nonlinearity is last.

    norms: on the stream. branches: for each residual branch or attention beside the stream, its first norm (None: it
    has none). bends: the stream passes a nonlinearity.
    """

    norms: tuple[Crossing, ...] = ()
    branches: tuple[Crossing | None, ...] = ()
    bends: bool = False


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of amplitude or mean, and the norm that makes it so."""

    passing: Passing = "passes"
    norm: Crossing | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """One path from input to output. name: `skip of ...`, or `middle`; stretches: what it crosses.

    amplitude and mean say what reaches the output along the stream; branch_amplitude and branch_mean, along the ways
    that leave it for a residual branch or for attention (None: nothing runs beside the stream).
    """

    name: str
    stretches: tuple[Stretch, ...]

    @property
    def norms(self) -> tuple[Crossing, ...]:
        """The norms on the stream, one of each place and kind."""
        norms = (norm for stretch in self.stretches for norm in stretch.norms)
        return tuple({(norm.place, norm.kind): norm for norm in norms}.values())

    @property
    def amplitude(self) -> Fate:
        return next((Fate("erased", norm) for norm in reversed(self.norms) if norm.amplitude == "erased"), Fate())

    @property
    def branch_amplitude(self) -> Fate | None:
        branches = [norm for stretch in self.stretches for norm in stretch.branches]
        if not branches or self.amplitude.passing == "erased":
            return self.amplitude if branches else None
        return next(
            (Fate() for norm in branches if norm is None or norm.amplitude == "passes"), Fate("erased", branches[0])
        )

    @property
    def mean(self) -> Fate:
        """By the first norm: behind it, or behind a nonlinearity, what is left of the mean is no constant any more."""
        for stretch in self.stretches:
            fate = _first(stretch.norms)
            if fate is not None or stretch.bends:
                return fate or Fate()
        return Fate()

    @property
    def branch_mean(self) -> Fate | None:
        fates = []
        for stretch in self.stretches:
            on_stream = _first(stretch.norms)
            if on_stream is not None:
                fates.append(on_stream)
                break
            fates += [_first((norm,)) or Fate() for norm in stretch.branches]
            if stretch.bends:
                break
        beside = any(stretch.branches for stretch in self.stretches)
        return min(fates, key=lambda fate: _PASSING.index(fate.passing)) if beside and fates else None


def _first(norms: Iterable[Crossing | None]) -> Fate | None:
    """What the first norm makes of the mean; None where there is none. A trained batch norm is none: it is linear."""
    return next((Fate(norm.mean, norm) for norm in norms if norm and norm.kind != "batch"), None)


def _crossing(place: str, norm: Norm, channels: int) -> tuple[Crossing, ...]:
    """A norm as a crossing; none for no norm."""
    if norm.kind == "none":
        return ()
    grouped = norm.kind in _GROUPED
    groups = group_count(channels, norm.groups, norm.min_group_channels) if grouped else 1
    return (Crossing(place, norm.kind, channels, channels if norm.kind == "instance" else groups),)


def paths(plan: Plan) -> tuple[Path, ...]:
    """Every path along the stream: one per skip, fine to coarse, and the one through the middle.

    A nested decoder has more; those that are followed take the fewest steps from each feature. What passes a pretrained
    network is not followed. Behind a step that the input pyramid joins there is another of each, `by the pyramid`, past
    all before that step.
    """
    entry = Stretch(_crossing("input norm", plan.placement.input, plan.steps[0].in_channels))
    exit = Stretch(_crossing("out norm", plan.placement.out, plan.side("head")[0].in_channels))
    encoder = plan.side("encoder")
    found = []
    for taker, sources in reversed(plan.skips.items()):
        after = plan.onwards(taker)
        if after[-1].key != plan.outputs[0]:
            continue  # an output that only joins others as a skip
        rest_of_it = [_stretch(plan, taker, over="skip"), *(_stretch(plan, step) for step in after[1:]), exit]
        found += [(f"skip of {source.name}", source, rest_of_it) for source in sources if source.side == "encoder"]
    through = [_stretch(plan, step) for step in plan.onwards(encoder[-1])[1:]]
    found.append(("middle", encoder[-1], [*through, exit]))
    every = []
    for name, source, end in found:
        before = plan.upto(source)
        if any(step.kind == "backbone" for step in before):
            continue
        joined = [number for number, step in enumerate(before) if step.stream]
        starts = {name: 0} | ({f"{name} by the pyramid": joined[-1] + 1} if joined else {})
        for title, start in starts.items():
            every.append(Path(title, (entry, *(_stretch(plan, step) for step in before[start:]), *end)))
    return tuple(every)


def _stretch(plan: Plan, step: Step, over: Literal["stream", "skip"] = "stream") -> Stretch:
    """What the stream crosses in a step; `over`: whether it comes in as the stream or as the skip."""
    merging = _merge_norms(plan, step, over) if step.skip else ()
    if step.kind == "transformer":
        normed = plan.placement.attention == "pre"
        return Stretch(branches=_crossing("transformer's norm", LAYER_NORM, step.out_channels) if normed else (None,))
    if step.kind != "block" and step.resampling != "residual":
        return Stretch()
    assert step.side != "head"
    placement, site = plan.placement, plan.placement.site(step.side)
    off = placement.residual == "off"
    main = _crossing(f"{step.side}'s main norm", site.main, step.out_channels)
    reads = step.out_channels if main or site.pos == "post" else step.reads
    inner = _crossing(f"{step.side}'s norm", site.norm, reads)
    attention = (_attention_norm(plan, step),) if step.heads else ()
    if off:
        return Stretch((*merging, *main, *inner), attention, bends=True)
    branch = inner[0] if inner else None
    return Stretch((*merging, *main), (branch, *attention), bends=site.pos == "post")


def _merge_norms(plan: Plan, step: Step, over: Literal["stream", "skip"]) -> tuple[Crossing, ...]:
    """The norms on the main path where encoder meets decoder."""
    norm = _skip_norm(plan.placement)
    channels = {"stream": step.in_channels, "skip": step.skip}[over]
    return {
        "none": (),
        "before_concat": _crossing("skip norm", norm, channels),
        "after_concat": _crossing("skip norm", norm, step.reads),
    }[plan.placement.skip]


def _attention_norm(plan: Plan, step: Step) -> Crossing | None:
    """The norm that what passes self-attention crosses."""
    assert step.side != "head"
    placement, site = plan.placement, plan.placement.site(step.side)
    before = (
        _crossing("attention's norm", site.before_attention, step.out_channels) if placement.attention == "pre" else ()
    )
    if not before and placement.qk == "rms_values":
        before = (Crossing("attention's value norm", "rms", step.out_channels, step.heads),)
    return before[0] if before else None


def straddling(plan: Plan) -> tuple[tuple[Step, int], ...]:
    """The steps whose first norm has groups with channels of both encoder and decoder, with the number of groups."""
    site, placement = plan.placement.decoder, plan.placement
    norms = []
    if placement.skip == "after_concat":
        norms.append(_skip_norm(placement))
    if site.pos == "pre" and site.main.kind == "none":
        norms.append(site.norm)
    found = {}
    for step in plan.skips:
        if step.reads != step.in_channels + step.skip:
            continue  # fused into channels that belong to neither
        for norm in norms:
            width = step.reads
            groups = group_count(width, norm.groups, norm.min_group_channels)
            if norm.kind in _GROUPED and step.in_channels % (width // groups):
                found[step] = groups
    return tuple(found.items())


def describe(plan: Plan) -> str:
    """The paths as a table, and what they mean for the network, in sentences."""
    every = paths(plan)
    alike: dict[tuple[str, ...], list[str]] = {}
    for path in every:
        alike.setdefault(_cells(path), []).append(path.name)
    header = ["path", "norms on the stream", "amplitude", "mean", "amplitude by branches", "mean by branches"]
    rows = [header, *([_names(names), *cells] for cells, names in alike.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    notes = [_amplitude_sentence(every, plan.placement.clip), _mean_sentence(every), *_not_followed(plan)]
    return "\n".join([lines[0], rule, *lines[1:], rule, *notes, *_mixed_groups(plan), *_batch_norms(plan)])


def _not_followed(plan: Plan) -> list[str]:
    """A sentence on what passes a pretrained network, where there is one."""
    if not any(step.kind == "backbone" for step in plan.steps):
        return []
    return ["What the pretrained network makes of amplitude and mean is not followed: its paths are left out."]


def _cells(path: Path) -> tuple[str, ...]:
    """A path's row, but for its name."""
    fates = (path.amplitude, path.mean, path.branch_amplitude, path.branch_mean)
    norms = ", ".join(map(str, path.norms)) or "-"
    return (norms, *("-" if fate is None else fate.passing for fate in fates))


def _names(names: Sequence[str]) -> str:
    """Several paths in few words: skips are counted."""
    parts = []
    for way in ("", " by the pyramid"):
        here = [name for name in names if name.endswith("by the pyramid") == bool(way)]
        skips = [name for name in here if name.startswith("skip")]
        parts += [f"{len(skips)} skips{way}"] if len(skips) > 1 else skips
        parts += [name for name in here if name.startswith("middle")]
    return ", ".join(parts)


def _amplitude_sentence(every: Sequence[Path], clip: float | None) -> str:
    bound = "" if clip is None else f", up to the clip at {clip:g}"
    passing = [path.name for path in every if path.amplitude.passing == "passes"]
    if len(passing) == len(every):
        return f"The amplitude of the input reaches the output along every path{bound}."
    norms = " or the ".join(dict.fromkeys(str(path.amplitude.norm) for path in every if path.amplitude.norm))
    if passing:
        along = f"{_names(passing)} ({len(passing)} of {len(every)} paths)"
        return f"The amplitude of the input reaches the output along {along}{bound}; the others cross the {norms}."
    return f"Every path to the output crosses the {norms}: the network cannot tell the amplitude of its input."


def _mean_sentence(every: Sequence[Path]) -> str:
    fates = [fate for path in every for fate in (path.mean, path.branch_mean) if fate is not None]
    named = [path.mean for path in every if path.mean.norm] or fates
    norms = " or the ".join(dict.fromkeys(str(fate.norm) for fate in named if fate.norm))
    kinds = {fate.passing for fate in fates}
    if kinds == {"erased"}:
        return f"On every path the {norms} erases the mean of each channel (zero padding shows it at the border)."
    if "passes" in kinds:
        return "The means of the input's channels reach the output."
    return f"The means of the input's channels reach the output, but for one per group that the {norms} subtracts."


def _mixed_groups(plan: Plan) -> list[str]:
    """A sentence on groups of both encoder and decoder channels, where there are any."""
    mixed = [
        f"{step.name}'s first norm ({step.in_channels} + {step.skip} channels in {groups})"
        for step, groups in straddling(plan)
    ]
    return [f"Some groups mix decoder and encoder channels: those of {', '.join(mixed)}."] if mixed else []


def _batch_norms(plan: Plan) -> list[str]:
    """A sentence on batch norm, where there is any."""
    placement = plan.placement
    norms = {"input norm": placement.input, "out norm": placement.out}
    if placement.skip != "none":
        norms["skip norm"] = _skip_norm(placement)
    for step in plan.steps:
        if step.kind == "block" and step.side != "head":
            site = placement.site(step.side)
            norms |= {f"{step.side}'s norm": site.norm, f"{step.side}'s main norm": site.main}
    batch = [place for place, norm in norms.items() if norm.kind == "batch"]
    if not batch:
        return []
    return [
        f"Batch norm ({', '.join(batch)}): while training, outputs depend on the other samples of the batch; in "
        "evaluation it is a fixed scale and shift per channel, through which amplitude and mean pass."
    ]


def _skip_norm(placement: NormPlacement) -> Norm:
    return placement.decoder.norm if placement.skip_norm is None else placement.skip_norm
