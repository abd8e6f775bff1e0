"""Masks of images by trained networks: class numbers, probabilities and uncertainty, rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from unetdiff.data.formats import DataFormat
from unetdiff.runs import Run
from unetdiff.segmentation.predict import Inference, Scores, predict_rows, probabilities_of
from unetdiff.segmentation.tiles import Predict
from unetdiff.segmentation.uncertainty import Uncertainty, decompose

MAPS = ("total_entropy", "expected_entropy", "mutual_information")


@dataclass(frozen=True)
class FormattedImage:
    """An image in the form of the data, (*space, C), in memory or on disk, read by windows as the network takes it."""

    array: np.ndarray
    format: DataFormat

    @property
    def shape(self) -> tuple[int, ...]:
        """(*space)."""
        return self.array.shape[:-1]

    def read(self, window: tuple[slice, ...], /) -> np.ndarray:
        """(C, *window) float32 in [-1, 1]."""
        return self.format.encode(np.asarray(self.array[window])[None])[0].numpy()


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
    runs: Run | Sequence[Run], image: np.ndarray, inference: Inference | None = None, *, passes: int = 1, seed: int = 0
) -> Segmentation:
    """The mask of one image by one network or several, and how sure they are.

    Args:
        runs: segmentation networks of the same classes, as `load_run` returns them; several are an ensemble.
        image: (*space, C) in the form of the data that they were trained on, of any size.
        inference: tiles and flips; None: whole.
        passes: of each network with dropout on and norms as they are (Gal & Ghahramani 2016); 1: without dropout.
        seed: of the dropout.

    Raises:
        ValueError: the networks have other data or classes, or the image is not of their form.
    """
    parts = list(segment_rows(runs, image, inference, passes=passes, seed=seed))
    probabilities = torch.cat([part.probabilities[0] for _, part in parts], dim=1)
    maps = {name: torch.cat([maps_of(part)[name] for _, part in parts]).numpy() for name in MAPS}
    return Segmentation(probabilities.argmax(0).numpy(), probabilities.numpy(), maps)


def segment_rows(
    runs: Run | Sequence[Run], image: np.ndarray, inference: Inference | None = None, *, passes: int = 1, seed: int = 0
) -> Iterator[tuple[int, Uncertainty]]:
    """As `segment`, some rows of the first axis at a time, in memory that does not grow with it.

    Yields:
        (start, what the members say of the rows from there): tensors with a batch axis of 1.
    """
    every = [runs] if isinstance(runs, Run) else list(runs)
    _check_alike(every, image)
    how = inference or Inference()
    members = [
        _rows(run, image, how, None if passes == 1 else seed + number) for run in every for number in range(passes)
    ]
    for parts in zip(*members, strict=True):
        starts = {start for start, _ in parts}
        assert len(starts) == 1, starts
        yield starts.pop(), decompose(rows[None] for _, rows in parts)


def scores_of(run: Run) -> Scores:
    """The network of a run as a function of images alone."""
    timestep = run.beside.settings.get("timestep")
    return lambda images: run.unet(images, timestep, return_dict=False)[0]


def _rows(run: Run, image: np.ndarray, how: Inference, seed: int | None) -> Iterator[tuple[int, Tensor]]:
    """Probabilities (K, n, *rest) by one member, rows at a time; seed: of its dropout, None for none."""
    predict = probabilities_of(scores_of(run), run.unet.device)
    if seed is not None:
        predict = _with_dropout(predict, run.unet, seed)
    yield from predict_rows(predict, FormattedImage(image, run.format), how, run.unet.multiple)  # pyright: ignore


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


def _check_alike(runs: Sequence[Run], image: np.ndarray) -> None:
    """Whether the members were trained on the same classes, and the image is of the form that they know."""
    lead = runs[0]
    for run in runs[1:]:
        if run.masks != lead.masks or replace(run.format, size=None) != replace(lead.format, size=None):
            raise ValueError(f"{run.folder} was trained on other data or classes than {lead.folder}: expected the same")
    form = lead.format
    if (image.ndim - 1, image.shape[-1], image.dtype.name) != (form.dims, form.channels, form.dtype):
        raise ValueError(
            f"the image has {image.shape[-1]} channels of {image.dtype} in {image.ndim - 1}-D; "
            f"{lead.folder} takes {form.channels} of {form.dtype} in {form.dims}-D"
        )
