"""Opens a data set by its settings: one `Source` per split, whatever the data are kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from unetdiff.data.augment import augment, crop_places
from unetdiff.data.files import image_folder, npy_arrays
from unetdiff.data.formats import INTEGER_RANGES, DataFormat
from unetdiff.data.generated import blobs, digits, waveforms
from unetdiff.data.images import Header, cover, crop
from unetdiff.data.labels import class_names, label_indices
from unetdiff.data.records import Arrays, Records, Samples
from unetdiff.data.scenes import digit_scenes
from unetdiff.data.splits import Splits, open_split
from unetdiff.data.tables import data_set

if TYPE_CHECKING:
    from unetdiff.config import DataConfig

KINDS: dict[str, Callable[[DataConfig], Splits]] = {
    "digits": digits,
    "waveforms": waveforms,
    "blobs": blobs,
    "digit_scenes": digit_scenes,
    "folder": image_folder,
    "dataset": data_set,
    "npy": npy_arrays,
}
"""The values of `data.source`."""

MEMORY_LIMIT = 2**30
"""Data sets of fewer bytes than this when decoded are decoded once and kept."""

CHUNK = 256
"""Records loaded at a time when all are gone through."""


@dataclass(frozen=True)
class Source:
    """The samples of one split, all of one shape.

    Args:
        records: the samples as found.
        format: what they look like; its `size`, always set here, is what `read` returns.
        labels: (n,) int64 in range(num_classes), or None.
        scaled: whether larger and smaller samples are brought to the size (`data.size` was set).
        reference: what messages call the sample that the format was read from.
        resized: whether images that differ from the size are scaled first, or only cut (`data.resize`).
    """

    records: Records
    format: DataFormat
    labels: np.ndarray | None
    scaled: bool
    reference: str
    resized: bool = True

    def __len__(self) -> int:
        return len(self.records)

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial shape of every sample."""
        assert self.format.size is not None
        return self.format.size

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return self.format.num_classes

    def read(self, indices: Sequence[int] | np.ndarray, places: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Loads samples.

        Args:
            indices: n of them, at least one.
            places: (n, dims) in [0, 1), where to cut samples larger than `size`; None is the centre.

        Returns:
            "sample" (n, *size, C) in the original dtype and, when labelled, "label" (n,) int64.

        Raises:
            ValueError: a record cannot be decoded, or has another shape or dtype than the rest.
        """
        indices = np.asarray(indices, dtype=np.int64)
        samples = self.load(indices)
        if not (isinstance(samples, np.ndarray) and samples.shape[1:-1] == self.size):
            where = [None] * len(indices) if places is None else places
            samples = np.stack([crop(s, self.size, place) for s, place in zip(samples, where, strict=True)])
        batch = {"sample": samples}
        return batch if self.labels is None else {**batch, "label": self.labels[indices]}

    def draw(
        self, indices: np.ndarray, positions: np.ndarray, seed: int, settings: DataConfig
    ) -> dict[str, np.ndarray]:
        """A training batch: cut, flipped and shifted, a function of indices, positions and seed alone; see `read`."""
        arrays = self.read(indices, crop_places(seed, positions, self.format.dims))
        samples = augment(arrays["sample"], positions, seed=seed, flip=settings.random_flip, pad=settings.random_crop)
        return {**arrays, "sample": samples}

    def load(self, indices: np.ndarray) -> Samples:
        """Samples that cover `size`: checked, images scaled where that is wanted, nothing cropped yet."""
        samples = self.records.load(indices)
        if isinstance(samples, np.ndarray) and samples.shape[1:-1] == self.size:
            return samples
        return list(self._covering(indices, samples))

    def _covering(self, indices: np.ndarray, samples: Samples) -> Iterator[np.ndarray]:
        for index, sample in zip(indices, samples, strict=True):
            self.check_header(Header(sample.shape, sample.dtype.name), int(index))
            yield cover(sample, self.size) if self.resized else sample

    def check_header(self, header: Header, index: int) -> None:
        """Compares a record with the format.

        Raises:
            ValueError: it has other axes, channels or another dtype, or cannot be brought to the size.
        """
        self.check_form(header, index)
        space, form, name = header.shape[:-1], self.format, self.records.name(index)
        if not self.scaled and tuple(space) != self.size:
            raise ValueError(
                f"{name} has size {list(space)}; expected {list(self.size)} as in {self.reference}, or data.size set."
            )
        small = any(have < want for have, want in zip(space, self.size, strict=True))
        if small and (form.dims != 2 or not self.resized):
            raise ValueError(
                f"{name} has size {list(space)}; expected data.size {list(self.size)} to be no larger, since only "
                "images are scaled (with data.resize)."
            )

    def check_form(self, header: Header, index: int) -> None:
        """Compares a record with the format, but for its size.

        Raises:
            ValueError: it has other axes, channels or another dtype.
        """
        *space, channels = header.shape
        form, name = self.format, self.records.name(index)
        if (len(space), channels, header.dtype) != (form.dims, form.channels, form.dtype):
            raise ValueError(
                f"{name} has {channels} channels of {header.dtype} in {len(space)}-D; expected {form.channels} "
                f"of {form.dtype} in {form.dims}-D as in {self.reference}."
            )


def open_source(
    settings: DataConfig,
    split: str = "train",
    format: DataFormat | None = None,
    *,
    kind: type[Source] = Source,
    reference: str | None = None,
) -> Source:
    """Opens a data set.

    Data that fit in `MEMORY_LIMIT` are decoded here, so that whatever cannot be decoded is named at once.

    Args:
        settings: `data.*`.
        split: "train", "validation" or "test"; see `open_split` for what these are.
        format: the format of the training data, where it is known; floats are then not scanned again.
        kind: what to return. reference: what messages call the samples that `format` is of; None: the first one.

    Raises:
        ValueError: whatever is wrong with the settings or the data, with the file, column or value.
    """
    if settings.source not in KINDS:
        raise ValueError(f"data.source is {settings.source!r}; expected one of {', '.join(KINDS)}.")
    splits = {name: cache(opened) for name, opened in KINDS[settings.source](settings).items()}
    records = open_split(splits, split, settings.validation_fraction)
    reference = reference or splits["train"]().name(0)
    form = format or training_format(splits, settings)
    labels = label_indices(records, form.class_names)
    source = kind(records, form, labels, settings.size is not None, reference, settings.resize)
    if len(source):
        source.check_header(records.header(0), 0)
    return decoded(source)


def training_format(splits: Splits, settings: DataConfig) -> DataFormat:
    """The format of the training split: shape and dtype of its first sample, range of them all for floats."""
    records = splits["train"]()
    if not len(records):
        raise ValueError(f"data.path {settings.path} holds no samples; expected at least one.")
    header = records.header(0)
    dims = len(header.shape) - 1
    names = None if settings.label_column is None else class_names(records)
    if header.dtype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[header.dtype]
    else:
        low, high = value_range(open_split(splits, "train", settings.validation_fraction))
    return DataFormat(
        dims=dims,
        channels=header.shape[-1],
        dtype=header.dtype,
        low=low,
        high=high,
        size=target_size(settings.size, header.shape[:-1]),
        class_names=names,
    )


def target_size(size: int | Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`data.size` as a spatial shape: None takes that of the first sample, one number holds for every axis.

    Raises:
        ValueError: it has another number of axes, or is not positive.
    """
    if size is None:
        return shape
    target = (size,) * len(shape) if isinstance(size, int) else tuple(size)
    if len(target) != len(shape) or min(target) < 1:
        raise ValueError(f"data.size is {size}; expected one positive number or {len(shape)} of them.")
    return target


def chunks(length: int) -> list[np.ndarray]:
    """range(length) in pieces of at most `CHUNK`."""
    return [np.arange(first, min(first + CHUNK, length)) for first in range(0, length, CHUNK)]


def value_range(records: Records) -> tuple[float, float]:
    """Smallest and largest value of floating-point records.

    Raises:
        ValueError: a value is not finite, or all are equal.
    """
    low, high = np.inf, -np.inf
    for chunk in tqdm(chunks(len(records)), desc="value range", delay=2, disable=None):
        for index, sample in zip(chunk, records.load(chunk), strict=True):
            least, most = float(sample.min()), float(sample.max())  # either is NaN if any value is
            if not (np.isfinite(least) and np.isfinite(most)):
                raise ValueError(f"{records.name(int(index))} holds NaN or infinity; expected finite numbers.")
            low, high = min(low, least), max(high, most)
    if low == high:
        raise ValueError(f"All values of {records.name(0)} and the rest are {low}; expected data that vary.")
    return low, high


def decoded(source: Source) -> Source:
    """The same source with its samples decoded and scaled in memory, when that saves work and they are few."""
    if not len(source):
        return source
    first = source.load(np.array([0]))[0]
    if source.records.in_memory and first.shape == source.records.header(0).shape:
        return source
    if first.nbytes * len(source) >= MEMORY_LIMIT:
        return source
    samples: list[np.ndarray] = []
    with tqdm(total=len(source), desc="decoding", unit="sample", delay=2, disable=None) as progress:
        for chunk in chunks(len(source)):
            samples.extend(source.load(chunk))
            progress.update(len(chunk))
    one_shape = all(sample.shape == first.shape for sample in samples)
    return replace(source, records=Arrays(np.stack(samples) if one_shape else samples))
