"""Unlabelled images beside labelled ones: of one form and size with them, and batches that hold both."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unetdiff.data.check import check_headers
from unetdiff.data.formats import DataFormat
from unetdiff.data.images import Header
from unetdiff.data.loader import Batch, Drawn, training_loader
from unetdiff.data.order import key
from unetdiff.data.pairs import PairSource
from unetdiff.data.records import Samples
from unetdiff.data.sources import Source, open_source, value_range

if TYPE_CHECKING:
    from unetdiff.segment_config import UnlabelledConfig


@dataclass(frozen=True)
class CutSource(Source):
    """Samples at their own resolution: cut to the size, and continued by reflection where they are smaller."""

    def check_header(self, header: Header, index: int) -> None:
        """Compare a record with the format, but for its size; errors as of `Source`."""
        self.check_form(header, index)

    def _covering(self, indices: np.ndarray, samples: Samples) -> Iterator[np.ndarray]:
        for index, sample in zip(indices, samples, strict=True):
            self.check_header(Header(sample.shape, sample.dtype.name), int(index))
            missing = [max(want - have, 0) for want, have in zip(self.size, sample.shape, strict=False)]
            ends = [(count // 2, count - count // 2) for count in missing]
            yield np.pad(sample, [*ends, (0, 0)], mode="reflect")


@dataclass(frozen=True)
class WithoutMasks:
    """Images of pairs, as training or validation sees them."""

    pairs: PairSource

    @property
    def format(self) -> DataFormat:
        """What samples look like."""
        return self.pairs.format

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: Any) -> dict[str, np.ndarray]:
        """As `PairSource.read`, "sample" alone."""
        return {"sample": self.pairs.read(indices)["sample"]}

    def draw(self, indices: np.ndarray, positions: np.ndarray, seed: int, settings: Any) -> dict[str, np.ndarray]:
        """As `PairSource.draw`, "sample" alone."""
        return {"sample": self.pairs.draw(indices, positions, seed, settings)["sample"]}


def open_unlabelled(settings: UnlabelledConfig, format: DataFormat, size: tuple[int, ...]) -> tuple[Source, Source]:
    """The training and validation images of `unlabelled.*`, in the form of the labelled ones and of their cuts' size.

    Raises:
        ValueError: they have another form than the labelled images, or `unlabelled.size` is not the cuts'.
    """
    given = settings.size
    if given is not None and ((given,) * len(size) if isinstance(given, int) else tuple(given)) != size:
        raise ValueError(f"unlabelled.size is {given}; expected {list(size)}, as the labelled images are cut, or none")
    kind = CutSource if given is None else Source
    form, reference = replace(format, size=size), "the labelled images"
    training, validation = (
        open_source(settings, split, form, kind=kind, reference=reference) for split in ("train", "validation")
    )
    for source in (training, validation):
        if form.dtype == "float32" and len(source):
            value_range(source.records)
        if not source.records.in_memory:
            check_headers(source)
    return training, validation


def unlabelled_count(batch: int, share: float) -> int:
    """How many of a batch's samples are unlabelled: at least one, and at least one is not."""
    return min(max(round(share * batch), 1), batch - 1)


def joint_loader(
    labelled: tuple[Drawn, Any],
    unlabelled: tuple[Drawn, Any],
    share: float,
    *,
    batch_size: int,
    seed: int,
    prepare: Callable[[Batch], Batch] | None = None,
    **others: Any,
) -> Generator[Batch]:
    """Endless batches of unlabelled samples followed by labelled ones; arguments as of `training_loader`.

    Both have an order of their own, so that all steps have the same numbers of them in every process and micro-batch,
    and each goes through its epochs as if it were alone.

    Args:
        labelled, unlabelled: what to draw from, and the settings of drawing; see `training_loader`.
        share: of the unlabelled among the samples of a batch.
        prepare: called with either part of a batch.
    """
    count = unlabelled_count(batch_size, share)
    parts = ((unlabelled, count, key(seed, "unlabelled", 0)), (labelled, batch_size - count, seed))
    streams = [
        training_loader(source, settings, batch_size=size, seed=own, prepare=prepare, **others)
        for (source, settings), size, own in parts
    ]
    return _joined(streams)


def _joined(streams: list[Generator[Batch]]) -> Generator[Batch]:
    """One batch of each stream as one; closes them with it."""
    try:
        for parts in zip(*streams, strict=True):
            names = dict.fromkeys(name for part in parts for name in part)
            yield {name: torch.cat([part[name] for part in parts if name in part]) for name in names}
    finally:
        for stream in streams:
            stream.close()
