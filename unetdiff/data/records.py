"""Records: the samples of one split as a source finds them, before anything is resized or put in range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unetdiff.data.errors import first_line
from unetdiff.data.formats import DTYPES
from unetdiff.data.images import SUFFIXES, Header, decode_image, image_header

Labels = Sequence[Any] | np.ndarray
"""Numbers, names or None, as found."""

Samples = list[np.ndarray] | np.ndarray
"""An array when all have one shape, a list when they may differ."""


class Records(Protocol):
    """Samples that may still differ in size, with labels as found: numbers, names or None.

    Attributes:
        in_memory: whether loading costs a copy at most, so that caching gains nothing.
    """

    in_memory: bool

    @property
    def labels(self) -> Labels | None:
        """One per record, or None when the data have none."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the labels 0, 1, ... where the data define them."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call a record: its file, and the row where a file holds several."""
        ...

    def header(self, index: int) -> Header:
        """Shape and dtype of a record, from its header where there is one."""
        ...

    def load(self, indices: np.ndarray) -> Samples:
        """Samples (*space, C): one per index."""
        ...


def sample_layout(shape: tuple[int, ...], dims: int | None) -> tuple[tuple[int, ...], int]:
    """Tells spatial axes from channels in the shape of one array.

    Args:
        shape: (*space,) or (*space, C).
        dims: number of spatial axes; None guesses: a last axis of 1 to 4 holds channels.

    Returns:
        spatial shape and channels.

    Raises:
        ValueError: the number of axes does not fit.
    """
    if dims is None:
        dims = len(shape) - (len(shape) > 1 and shape[-1] <= 4)
    if not (1 <= dims <= 3 and len(shape) - dims in (0, 1) and all(shape)):
        raise ValueError(
            f"has samples of shape {list(shape)}; expected 1 to 3 spatial axes, then channels (see data.dims)"
        )
    return shape[:dims], shape[dims] if len(shape) > dims else 1


def as_sample_dtype(dtype: np.dtype) -> str:
    """The dtype in which arrays are kept: 8 and 16 bits as they are, every float as float32.

    Raises:
        ValueError: another type of number, whose range nothing tells.
    """
    name = "float32" if dtype.kind == "f" else dtype.name
    if name not in DTYPES:
        raise ValueError(f"has dtype {dtype.name}; expected uint8, uint16 or a float")
    return name


@dataclass
class Arrays:
    """Records in one array, which may be memory-mapped, or in a list of arrays of differing size.

    Args:
        samples: (n, *space, C) or n arrays (*space, C).
        labels: n labels or None.
        class_names: names of the labels.
        origin: the file or generator that messages name.
    """

    samples: np.ndarray | list[np.ndarray]
    labels: Labels | None = None
    class_names: tuple[str, ...] | None = None
    origin: str = "array"
    in_memory = True

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return f"{self.origin}, sample {index}"

    def header(self, index: int) -> Header:
        return Header(self.samples[index].shape, as_sample_dtype(self.samples[index].dtype))

    def load(self, indices: np.ndarray) -> Samples:
        if isinstance(self.samples, list):
            return [self.samples[i] for i in indices]
        chosen = self.samples[indices]
        return chosen.astype(as_sample_dtype(chosen.dtype), copy=False)


@dataclass
class Files:
    """Records in one file each: images, or .npy arrays.

    Args:
        paths: the files.
        labels: the name of each file's class, or None.
        dims: spatial axes of .npy arrays; None reads it from the shape.
    """

    paths: list[Path]
    labels: Labels | None = None
    dims: int | None = None
    class_names = None
    in_memory = False

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def header(self, index: int) -> Header:
        path = self.paths[index]
        if path.suffix.lower() in SUFFIXES:
            return image_header(path, str(path))
        array = open_npy(path)
        return array_header(array.shape, array.dtype, self.dims, str(path))

    def load(self, indices: np.ndarray) -> list[np.ndarray]:
        return [self._load_one(self.paths[i]) for i in indices]

    def _load_one(self, path: Path) -> np.ndarray:
        if path.suffix.lower() in SUFFIXES:
            return decode_image(path, str(path))
        return as_sample(open_npy(path), self.dims, str(path))


@dataclass
class Subset:
    """Some records of others, in the order of `indices`."""

    base: Records
    indices: np.ndarray

    def __post_init__(self) -> None:
        self.class_names = self.base.class_names
        self.in_memory = self.base.in_memory
        labels = self.base.labels
        self.labels = None if labels is None else [labels[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.base.name(int(self.indices[index]))

    def header(self, index: int) -> Header:
        return self.base.header(int(self.indices[index]))

    def load(self, indices: np.ndarray) -> Samples:
        return self.base.load(self.indices[indices])


def array_header(shape: tuple[int, ...], dtype: np.dtype, dims: int | None, name: str) -> Header:
    """The header of an array that holds one sample; ValueError names it when layout or dtype do not fit."""
    try:
        space, channels = sample_layout(shape, dims)
        return Header((*space, channels), as_sample_dtype(dtype))
    except ValueError as error:
        raise ValueError(f"{name} {error}.") from error


def as_sample(array: np.ndarray, dims: int | None, name: str) -> np.ndarray:
    """An array that holds one sample, as (*space, C) in a dtype of `DTYPES`."""
    header = array_header(array.shape, array.dtype, dims, name)
    return np.array(array, dtype=header.dtype).reshape(header.shape)


def open_npy(path: Path) -> np.ndarray:
    """A memory-mapped .npy array; ValueError names a file that is none or holds Python objects."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # np.load would take archives too
    except Exception as error:  # of a damaged header, numpy's parser raises many kinds
        raise ValueError(
            f"{path} cannot be read as .npy ({first_line(error)}); expected a plain array in a .npy file."
        ) from error
