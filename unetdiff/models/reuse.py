"""Deep features kept for later calls: a network divided at a skip into a shallow part and a deep one.

Between neighbouring steps of sampling the deep part of a U-Net changes little (Ma et al. 2024, DeepCache,
https://arxiv.org/abs/2312.00858): computed at every k-th step, it is reused in between, and only the finest blocks run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unetdiff.models.plan import Plan
from unetdiff.models.step import INPUT, Step
from unetdiff.nn.dims import pad_to_multiple

if TYPE_CHECKING:
    from unetdiff.models.unet import UNet

WORTH = 0.25  # by default, the most that the shallow part may cost of the whole


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where a network is divided: the stream that enters one step of the decoder.

    skip: the step of the encoder whose output joins that stream, down to which every step is shallow. entry: the step
    of the decoder. shallow: the steps, in order, that the output needs beside the stream. share: operations of these
    and of the heads, over those of the network.
    """

    skip: Step
    entry: Step
    shallow: tuple[Step, ...]
    share: float


def cuts(plan: Plan) -> list[Cut]:
    """The places where a network can be divided, the finest skip first; none where its decoder is nested.

    plan: with operations, see `UNet.plan`.
    """
    if any(len(step.takes) > 1 for step in plan.steps):
        return []  # several streams lead from the deep part to the output
    by_key, total = {step.key: step for step in plan.steps}, sum(step.operations for step in plan.steps)
    found = []
    for entry in reversed(plan.side("decoder")):
        if entry.takes and entry in plan.reads:
            needed = _needed(plan, entry)
            shallow = tuple(step for step in plan.steps if step.key in needed)
            share = sum(step.operations for step in (*shallow, *plan.side("head"))) / total
            found.append(Cut(by_key[entry.takes[0]], entry, shallow, share))
    return [cut for cut in found if cut.share < 1]


def choose_cut(plan: Plan, cache_step: str | None = None) -> Cut:
    """The cut at the skip that `cache_step` names by key or name; by default the deepest one that costs a quarter.

    Where none is as cheap, the cheapest.

    Raises:
        ValueError: the network cannot be divided, or not there.
    """
    found = cuts(plan)
    if not found:
        raise ValueError(
            "this network has no deep features to reuse: expected decoder_kind plain, and skips above a deeper part"
        )
    if cache_step is None:
        cheap = [cut for cut in found if cut.share <= WORTH]
        return max(cheap, key=lambda cut: cut.share) if cheap else min(found, key=lambda cut: cut.share)
    named = [cut for cut in found if cache_step in (cut.skip.key, cut.skip.name)]
    if not named:
        known = ", ".join(cut.skip.key for cut in found)
        raise ValueError(f"cache_step is {cache_step!r}; expected a step of the encoder with a skip: {known}")
    return named[0]


def _needed(plan: Plan, entry: Step) -> set[str]:
    """Keys of the steps that the network's own output needs, once the stream that enters `entry` is given."""
    streams = [step for step in plan.steps if step.stream]
    sources = {step.key: list(step.takes) for step in plan.steps}
    for before, step in [*((before, step) for step, before in plan.reads.items()), *pairwise(streams)]:
        if step != entry:
            sources[step.key].append(before.key)
    needed, waiting = set(), [plan.outputs[0]]
    while waiting:
        key = waiting.pop()
        waiting += [] if key in needed else sources[key]
        needed.add(key)
    return needed


_CHOSEN: dict[tuple[str, str | None], Cut] = {}
"""Cuts by a network's settings and `cache_step`: to count operations takes a second."""


class DividedUNet:
    """The two ways through a network divided at a skip: all of it, and its shallow part with a deep feature of before.

    Evaluation only. Weights are the network's own.

    Args:
        unet: the network.
        cache_step: where to divide it, see `choose_cut`.

    Attributes:
        cut: where it is divided.
    """

    def __init__(self, unet: UNet, cache_step: str | None = None):
        plan, settings = unet.layout, (unet.to_json_string(), cache_step)
        if settings not in _CHOSEN:
            _CHOSEN[settings] = choose_cut(unet.plan, cache_step)
        self.unet, self.cut = unet, _CHOSEN[settings]
        self._modules, self._output = unet.step_modules(), plan.outputs[0]
        self._every = tuple(step for step in plan.steps if step.side != "head")
        self._kept = {key for step in plan.steps for key in (step.source, *step.takes)}
        self._head = next(step for step in plan.side("head") if step.source == self._output)

    def full(self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The network's `.sample`, bit for bit, and the deep feature (N, C, *space) that entered the cut.

        Arguments as of `UNet.forward`.
        """
        return self._run(self._every, sample, timestep, class_labels, None)

    def shallow(self, sample: Tensor, timestep: Any, class_labels: Tensor | None, deep: Tensor) -> Tensor:
        """The network's `.sample` if its deep part had given `deep`, computed by the shallow part alone."""
        return self._run(self.cut.shallow, sample, timestep, class_labels, deep)[0]

    def _run(
        self, steps: Sequence[Step], sample: Tensor, timestep: Any, class_labels: Tensor | None, deep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What `UNet.forward` does around its body, around some steps of it."""
        unet, layout = self.unet, self.unet.layout
        unet._check(sample)
        size = layout.output_size(sample.shape[2:])
        x = pad_to_multiple(sample, unet.multiple, unet.padding_mode) if layout.pads else sample
        embedding = unet.embed(timestep, class_labels, len(x))
        x, deep = self._walk(steps, unet.input_norm(x), embedding, deep)
        return unet._finish(self._modules[self._head.key](x), size, timestep), deep

    def _walk(
        self, steps: Sequence[Step], x: Tensor, embedding: Tensor | None, deep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The output of the body and the stream that entered the cut, which is `deep` where that is given."""
        kept, stream = {INPUT: x}, x
        for step in steps:
            if step.key != self.cut.entry.key:
                read = kept[step.source] if step.source else x
            elif deep is None:
                read = deep = kept[step.source] if step.source else x
            else:
                read = deep
            skip = stream if step.stream else next((kept[key] for key in step.takes), None)
            x = self._modules[step.key](read, embedding, skip)
            if step.stream:
                stream = x
            if step.key in self._kept:
                kept[step.key] = x
        assert deep is not None
        return kept[self._output], deep
