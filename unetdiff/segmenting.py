"""Masks of images by trained networks: class numbers, probabilities and uncertainty, rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from unetdiff.data.formats import DataFormat
from unetdiff.data.windows import Windowed
from unetdiff.runs import Run
from unetdiff.segmentation.predict import Inference, Scores, predict_rows, probabilities_of
from unetdiff.segmentation.tiles import Predict
from unetdiff.segmentation.uncertainty import Uncertainty, decompose

MAPS = ("total_entropy", "expected_entropy", "mutual_information")


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
    (*space) float32 in nats.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    maps: dict[str, np.ndarray]


def segment(
    runs: Run | Sequence[Run],
    image: Windowed,
    inference: Inference | None = None,
    *,
    passes: int = 1,
    seed: int = 0,
    name: str = "the image",
) -> Segmentation:
    """The mask of one image by one network or several, and how sure they are.

    Args:
        runs: segmentation networks of the same classes, as `load_run` returns them; several are an ensemble.
        image: (*space, C) in the form of the data that they were trained on, of any size.
        inference: tiles and flips; None: whole. A network without padding sees images mirrored at their borders.
        passes: of each network with dropout on and norms as they are (Gal & Ghahramani 2016); 1: without dropout.
        seed: of the dropout.
        name: what messages call the image.

    Raises:
        ValueError: the networks have other data or classes, the image is not of their form or holds NaN.
    """
    space = image.shape[:-1]
    probabilities, maps = np.empty((0, *space), np.float32), {entry: np.empty(space, np.float32) for entry in MAPS}
    for start, part in segment_rows(runs, image, inference, passes=passes, seed=seed, name=name):
        rows = part.probabilities[0].numpy()
        if not len(probabilities):
            probabilities = np.empty((len(rows), *space), np.float32)
        place = slice(start, start + rows.shape[1])
        probabilities[:, place] = rows
        for entry, values in maps_of(part).items():
            maps[entry][place] = values.numpy()
    return Segmentation(probabilities.argmax(0), probabilities, maps)


def segment_rows(
    runs: Run | Sequence[Run],
    image: Windowed,
    inference: Inference | None = None,
    *,
    passes: int = 1,
    seed: int = 0,
    name: str = "the image",
) -> Iterator[tuple[int, Uncertainty]]:
    """As `segment`, some rows of the first axis at a time, in memory that does not grow with it.

    Yields:
        (start, what the members say of the rows from there): tensors with a batch axis of 1.
    """
    every = [runs] if isinstance(runs, Run) else list(runs)
    _check_alike(every, image, name)
    how = inference or Inference()
    shown = FormattedImage(image, every[0].format, name)
    members = [
        _rows(run, shown, how, None if passes == 1 else seed + number) for run in every for number in range(passes)
    ]
    for start, parts in _in_step(members):
        yield start, decompose(rows[None] for rows in parts)


def _in_step(members: Sequence[Iterator[tuple[int, Tensor]]]) -> Iterator[tuple[int, list[Tensor]]]:
    """The same rows (K, n, *rest) from every member, whose tiles may end elsewhere, with where they start."""
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
        assert len(present) == len(members), "a member ends early"
        count = min(rows.shape[1] for rows in present)
        yield start, [rows[:, :count] for rows in present]
        held = [rows[:, count:] if rows.shape[1] > count else None for rows in present]
        start += count


def scores_of(run: Run) -> Scores:
    """The network of a run as a function of images alone."""
    timestep = run.beside.settings.get("timestep")
    return lambda images: run.unet(images, timestep, return_dict=False)[0]


def _rows(run: Run, image: FormattedImage, how: Inference, seed: int | None) -> Iterator[tuple[int, Tensor]]:
    """Probabilities (K, n, *rest) by one member, rows at a time; seed: of its dropout, None for none."""
    predict = probabilities_of(scores_of(run), run.unet.device)
    if seed is not None:
        predict = _with_dropout(predict, run.unet, seed)
    plan = run.unet.layout
    yield from predict_rows(predict, image, how, plan.multiple, None if plan.pads else plan)


def _with_dropout(predict: Predict, network: nn.Module, seed: int) -> Predict:
    """With dropout on for each call, and all else as in evaluation; calls are reproducible in their order."""
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    generator = torch.Generator().manual_seed(seed)

    def dropped(images: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for layer in layers:
                layer.train()
            try:
                return predict(images)
            finally:
                for layer in layers:
                    layer.eval()

    return dropped


def maps_of(part: Uncertainty) -> dict[str, Tensor]:
    """The maps of an image of a batch of 1, by the names of MAPS."""
    return dict(zip(MAPS, (part.total[0], part.expected[0], part.mutual_information[0]), strict=True))


def _check_alike(runs: Sequence[Run], image: Windowed, name: str) -> None:
    """Whether the members were trained on the same classes, and the image is of the form that they know."""
    lead = runs[0]
    for run in runs[1:]:
        if run.masks != lead.masks or replace(run.format, size=None) != replace(lead.format, size=None):
            raise ValueError(f"{run.folder} was trained on other data or classes than {lead.folder}: expected the same")
    form = lead.format
    dims = len(image.shape) - 1
    if (dims, image.shape[-1], image.dtype.name) != (form.dims, form.channels, form.dtype):
        raise ValueError(
            f"{name} has {image.shape[-1]} channels of {image.dtype} in {dims}-D; "
            f"{lead.folder} takes {form.channels} of {form.dtype} in {form.dims}-D"
        )
