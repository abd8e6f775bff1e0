"""Masks of images by trained networks: class numbers, probabilities and uncertainty, rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdiff.data.formats import DataFormat
from unetdiff.data.windows import Windowed
from unetdiff.diffusion.options import SamplerName
from unetdiff.drawing import Drawing, check_drawing, check_whole, draw, draws
from unetdiff.members import has_dropout, members_of
from unetdiff.runs import Run
from unetdiff.segmentation.predict import Inference, predict_rows
from unetdiff.segmentation.uncertainty import decompose, decompose_votes, entropy

MAPS = ("total_entropy", "expected_entropy", "mutual_information")
DRAWN_MAPS = ("vote_entropy", "disagreement")
"""Of masks that are drawn: the entropy of the shares of their votes, and the share that is not of the majority."""


@dataclass(frozen=True)
class FormattedImage:
    """An image in the form of the data, (*space, C), in memory or on disk, read by windows as the network takes it."""

    array: Windowed
    format: DataFormat
    name: str = "the image"

    @property
    def shape(self) -> tuple[int, ...]:
        """(*space)."""
        return self.array.shape[:-1]

    def read(self, window: tuple[slice, ...], /) -> np.ndarray:
        """(C, *window) float32 in [-1, 1]; `ValueError` for values that are no numbers."""
        values = np.asarray(self.array[window])
        if not np.isfinite(values).all():
            raise ValueError(f"{self.name} holds NaN or infinity; expected finite numbers")
        return self.format.encode(values[None])[0].numpy()


@dataclass(frozen=True)
class Segmentation:
    """What networks say of an image.

    labels: (*space) int64. probabilities: (K, *space) float32, the mean over members. maps: by the names of MAPS,
    (*space) float32 in nats; of masks that are drawn by those of DRAWN_MAPS, disagreement in [0, 1], and where several
    networks draw of MAPS[1:] too. masks: those that are drawn, (M, *space) int64, one network's after another's.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    maps: dict[str, np.ndarray]
    masks: np.ndarray | None = None


def segment(
    runs: Run | Sequence[Run],
    image: Windowed,
    inference: Inference | None = None,
    *,
    passes: int = 1,
    masks: int | None = None,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    seed: int = 0,
    name: str = "the image",
) -> Segmentation:
    """The mask of one image by one network or several, and how sure they are.

    A run of kind `diffusion` draws masks, which vote. What they disagree about is what the training data leave open
    (aleatoric); with several such networks, `mutual_information` is what those disagree about, each by its own votes.

    Args:
        runs: segmentation networks of the same classes, as `load_run` returns them; several are an ensemble.
        image: (*space, C) in the form of the data that they were trained on, of any size.
        inference: tiles and flips; None: whole. A network without padding sees images mirrored at their borders.
        passes: of each network with dropout on and norms as they are (Gal & Ghahramani 2016); 1: without dropout.
        masks, steps, sampler: of each network that draws masks: how many, in how many steps of which sampler; None: as
            its settings say. They are drawn of whole images.
        seed: of the dropout; of the first mask, from which the others count on.
        name: what messages call the image.

    Raises:
        ValueError: the networks have other data or classes, the image is not of their form or holds NaN, there are
            passes of a network without dropout, or masks of one that draws none.
    """
    drawing = Drawing(masks, steps, sampler, seed)
    every = [runs] if isinstance(runs, Run) else list(runs)
    check_drawing(every, drawing, passes)
    if draws(every[0]):
        return _drawn(every, image, inference or Inference(), drawing, name)
    space = image.shape[:-1]
    labels, maps = np.empty(space, np.int64), {entry: np.empty(space, np.float32) for entry in MAPS}
    probabilities = np.empty((0, *space), np.float32)
    for start, part in segment_rows(runs, image, inference, passes=passes, seed=seed, name=name):
        if not len(probabilities):
            probabilities = np.empty((len(part.probabilities), *space), np.float32)
        place = slice(start, start + len(part.labels))
        labels[place], probabilities[:, place] = part.labels, part.probabilities
        for entry, values in part.maps.items():
            maps[entry][place] = values
    return Segmentation(labels, probabilities, maps)


def segment_rows(
    runs: Run | Sequence[Run],
    image: Windowed,
    inference: Inference | None = None,
    *,
    passes: int = 1,
    seed: int = 0,
    name: str = "the image",
) -> Iterator[tuple[int, Segmentation]]:
    """As `segment`, some rows of the first axis at a time, in memory that does not grow with it.

    Members whose tiles lie alike answer tile by tile together. What is blended where tiles overlap are the mean of
    their probabilities and, beside it, what they disagree about in each tile: so tiles that differ are no
    disagreement, and memory does not grow with the number of members.

    Yields:
        (start, what the members say of the rows from there).
    """
    every = [runs] if isinstance(runs, Run) else list(runs)
    check_members(every, passes)
    if any(map(draws, every)):
        raise ValueError(f"{name} is read in parts; {every[0].folder} draws masks of whole images: cut it into parts")
    _check_form(every[0], image, name)
    how = inference or Inference()
    groups = _groups(every, how, image.shape[:-1])
    strips = [_rows(group, FormattedImage(image, group[0].format, name), how, passes, seed) for group in groups]
    for start, parts in _in_step(strips):
        yield start, _joined(parts, [len(group) for group in groups])


def _drawn(runs: Sequence[Run], image: Windowed, inference: Inference, drawing: Drawing, name: str) -> Segmentation:
    """Of masks that are drawn: the shares of their votes, a network's as one member."""
    check_members(runs)
    _check_form(runs[0], image, name)
    space = image.shape[:-1]
    check_whole(inference, space, name)
    sets = []
    for run in runs:
        whole = FormattedImage(image, run.format, name).read(tuple(slice(0, length) for length in space))
        sets.append(draw(run, torch.from_numpy(whole)[None], drawing))
    votes = decompose(decompose_votes(masks, runs[0].masks.num_classes).probabilities for masks in sets)
    maps = {"vote_entropy": votes.total, "disagreement": 1 - votes.probabilities.amax(1)}
    if len(runs) > 1:
        maps |= dict(zip(MAPS[1:], (votes.expected, votes.mutual_information), strict=True))
    return Segmentation(
        votes.probabilities[0].argmax(0).numpy(),
        votes.probabilities[0].numpy(),
        {entry: values[0].numpy() for entry, values in maps.items()},
        torch.cat(sets)[:, 0].numpy(),
    )


def _groups(runs: Sequence[Run], how: Inference, space: tuple[int, ...]) -> list[list[Run]]:
    """The runs that read an image in the same numbers and in the same tiles, together."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        plan = run.unet.layout
        tiles = how.layout(space, plan.multiple, None if plan.pads else plan)
        groups.setdefault((tiles, replace(run.format, size=None, class_names=None)), []).append(run)
    return list(groups.values())


def _joined(parts: Sequence[Tensor], counts: Sequence[int]) -> Segmentation:
    """What groups of so many members say of the same rows, each (K + 1, n, *rest) as `_rows` yields them."""
    shares = [count / sum(counts) for count in counts]
    mean = torch.stack([share * part[:-1] for share, part in zip(shares, parts, strict=True)]).sum(0)
    members = [share * (entropy(part[:-1], 0) - part[-1]) for share, part in zip(shares, parts, strict=True)]
    expected = torch.stack(members).sum(0)
    total = entropy(mean, 0)
    maps = dict(zip(MAPS, (total, expected, (total - expected).clamp(min=0)), strict=True))
    return Segmentation(mean.argmax(0).numpy(), mean.numpy(), {name: values.numpy() for name, values in maps.items()})


def _in_step(members: Sequence[Iterator[tuple[int, Tensor]]]) -> Iterator[tuple[int, list[Tensor]]]:
    """The same rows (K + 1, n, *rest) of every group, whose tiles may end elsewhere, with where they start."""
    held: list[Tensor | None] = [None] * len(members)
    start = 0
    while True:
        for number, member in enumerate(members):
            if held[number] is None:
                at, rows = next(member, (start, None))
                assert at == start, (at, start)
                held[number] = rows
        present = [rows for rows in held if rows is not None]
        if not present:
            return
        assert len(present) == len(members), "a group ends early"
        count = min(rows.shape[1] for rows in present)
        yield start, [rows[:, :count] for rows in present]
        held = [rows[:, count:] if rows.shape[1] > count else None for rows in present]
        start += count


def _rows(
    group: Sequence[Run], image: FormattedImage, how: Inference, passes: int, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """By members that answer together, rows at a time: (K + 1, n, *rest), mean probabilities and mutual information."""
    members = [member for run in group for member in members_of(run, how.flips, passes, seed)]
    classes = group[0].masks.num_classes

    def answers(images: Tensor) -> Tensor:
        found = decompose(one for member in members for one in member(images).split(classes, dim=1))
        return torch.cat([found.probabilities, found.mutual_information[:, None]], dim=1)

    plan = group[0].unet.layout
    yield from predict_rows(answers, image, replace(how, flips=()), plan.multiple, None if plan.pads else plan)


def check_members(runs: Sequence[Run], passes: int = 1) -> None:
    """Whether networks can be asked together, so many times each.

    Raises:
        ValueError: they were trained on other data or classes, or there are passes of one without dropout.
    """
    lead = runs[0]
    for run in runs:
        forms = [(known.format.dims, known.format.channels, known.format.dtype, known.masks) for known in (run, lead)]
        if forms[0] != forms[1]:
            raise ValueError(f"{run.folder} was trained on other data or classes than {lead.folder}: expected the same")
        if passes > 1 and not has_dropout(run):
            raise ValueError(
                f"{run.folder} was trained without dropout; expected --passes 1, or a run with model.dropout above 0"
            )


def _check_form(run: Run, image: Windowed, name: str) -> None:
    """Whether an image is of the form that the members know."""
    form, dims = run.format, len(image.shape) - 1
    if (dims, image.shape[-1], image.dtype.name) != (form.dims, form.channels, form.dtype):
        raise ValueError(
            f"{name} has {image.shape[-1]} channels of {image.dtype} in {dims}-D; "
            f"{run.folder} takes {form.channels} of {form.dtype} in {form.dims}-D"
        )
