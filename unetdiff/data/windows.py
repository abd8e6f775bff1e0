"""Files read by windows: only the parts that a window needs are read and decoded, and none of them stays in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unetdiff.data.errors import first_line
from unetdiff.data.formats import DTYPES
from unetdiff.data.records import open_npy
from unetdiff.data.tiff_codecs import decode_alone

Window = tuple[slice, ...]
"""One slice per spatial axis, each with a start and a stop inside the image; channels always come whole."""

CACHED_BYTES = 2**26  # of decoded tiles of a TIFF file, so that windows that overlap decode each once
BAND = 2**22  # positions that `thinned` holds at a time

EXACT = 2**24
"""Whole numbers up to this are exact in float32."""


class Windowed(Protocol):
    """An image (*space, C) that is read by windows; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(*space, C)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of what is read."""
        ...

    def __getitem__(self, window: Window, /) -> np.ndarray:
        """(*window, C)."""
        ...


class NpyWindows:
    """A plain .npy array, mapped anew for each window: pages of a file that stays mapped would count as memory.

    Args:
        path: the file.
        shape: (*space, C), what the array is read as.
        dtype: what its numbers become; whole numbers become float32 only where that is exact.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: str) -> None:
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)

    def __getitem__(self, window: Window, /) -> np.ndarray:
        held = open_npy(self.path).reshape(self.shape)[window]
        return np.array(exact_floats(held, self.path) if self.dtype.kind == "f" else held, dtype=self.dtype)


def exact_floats(array: np.ndarray, name: object) -> np.ndarray:
    """The numbers as float32.

    Raises:
        ValueError: whole numbers that float32 does not hold exactly.
    """
    if array.dtype.kind in "iu" and array.size and max(-int(array.min()), int(array.max())) > EXACT:
        raise ValueError(f"{name} holds numbers beyond {EXACT}, which float32 cannot; expected smaller ones.")
    return array.astype(np.float32, copy=False)


class TiffWindows:
    """A page of a TIFF file (H, W, C), or its pages as a stack (D, H, W, C); BigTIFF too.

    Tiles and strips are decoded as windows need them, and `CACHED_BYTES` of them kept; what lies in the file as an
    array is mapped for each window. Channels are last, however the file has them.

    Attributes:
        shape: (*space, C).
        dtype: of the numbers.
    """

    def __init__(self, path: Path, pages: Sequence[Any], dims: int) -> None:
        from tifffile import TIFF

        assert dims == 3 or len(pages) == 1, (dims, len(pages))
        self.path, self._pages, self._page = path, pages, pages[0].keyframe
        page = self._page
        self.separate = page.planarconfig == 2
        self._by_pillow = page.compression != 1 and page.compression not in TIFF.DECOMPRESSORS
        self.channels = int(page.samplesperpixel)
        plane = (int(page.imagelength), int(page.imagewidth), self.channels)
        self.shape = (len(pages), *plane) if dims == 3 else plane
        self.dtype = np.dtype(page.dtype)
        strip = (int(page.rowsperstrip), int(page.imagewidth))
        self.tile = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else strip
        held = math.prod(self.tile) * (1 if self.separate else self.channels) * self.dtype.itemsize
        self._segment = lru_cache(maxsize=max(CACHED_BYTES // held, 1))(self._decode)

    def __getitem__(self, window: Window, /) -> np.ndarray:
        *of_pages, rows, columns = window
        try:
            if not of_pages:
                return self._read(0, rows, columns)
            return np.stack([self._read(number, rows, columns) for number in range(*of_pages[0].indices(len(self)))])
        except Exception as error:  # tifffile and its codecs raise many kinds
            raise ValueError(f"{self.path} cannot be read as TIFF ({first_line(error)}).") from error

    def __len__(self) -> int:
        return self.shape[0]

    def _read(self, number: int, rows: slice, columns: slice) -> np.ndarray:
        """A window of one page, (h, w, C)."""
        if self._page.is_contiguous:
            return self._read_mapped(number, rows, columns)
        found = np.empty((rows.stop - rows.start, columns.stop - columns.start, self.channels), self.dtype)
        grid = [math.ceil(length / step) for length, step in zip(self.shape[-3:-1], self.tile, strict=True)]
        reached = [range(cut.start // step, -(-cut.stop // step))
                   for cut, step in zip((rows, columns), self.tile, strict=True)]  # fmt: skip
        planes = range(self.channels) if self.separate else range(1)
        for plane, row, column in product(planes, *reached):
            values = self._segment(number, (plane * grid[0] + row) * grid[1] + column)
            down, across = (_shared(cut, place * step, length) for cut, place, step, length in
                            zip((rows, columns), (row, column), self.tile, values.shape[:2], strict=True))  # fmt: skip
            of_plane = slice(plane, plane + 1) if self.separate else slice(None)
            found[down[0], across[0], of_plane] = values[down[1], across[1]]
        return found

    def _read_mapped(self, number: int, rows: slice, columns: slice) -> np.ndarray:
        """A window of a page that lies in the file as one array."""
        planar, plane = self.separate, self.shape[-3:]
        kind = self._page.dtype.newbyteorder(self._page.parent.byteorder)
        held = np.memmap(self.path, kind, "r", self._pages[number].dataoffsets[0],
                         (plane[2], *plane[:2]) if planar else plane)  # fmt: skip
        return np.array((np.moveaxis(held, 0, -1) if planar else held)[rows, columns], self.dtype)

    def _decode(self, number: int, index: int) -> np.ndarray:
        """A tile or strip, (h, w, channels it has)."""
        page = self._pages[number]
        file = page.parent.filehandle
        file.seek(page.dataoffsets[index])
        data = file.read(page.databytecounts[index])
        if not data:  # what is not in the file is empty
            return np.zeros((*self.tile, 1 if self.separate else self.channels), self.dtype)
        if self._by_pillow:
            row = 0 if page.is_tiled else index % math.ceil(self.shape[-3] / self.tile[0]) * self.tile[0]
            height = self.tile[0] if page.is_tiled else min(self.tile[0], self.shape[-3] - row)
            return decode_alone(page, data, (height, self.tile[1]))
        jpeg = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}
        return self._page.decode(data, index, **jpeg)[0][0]


def _shared(cut: slice, start: int, length: int) -> tuple[slice, slice]:
    """Where a tile that begins at `start` lies in a window along one axis, and which part of the tile that is."""
    first, stop = max(cut.start, start), min(cut.stop, start + length)
    return slice(first - cut.start, stop - cut.start), slice(first - start, stop - start)


def tiff_windows(path: Path, dims: int, least: int = 0, indexed: bool = False) -> TiffWindows | None:
    """A TIFF file by windows; None where it is too small for that, or in a form that is read whole only.

    Args:
        path: the file.
        dims: 2: the only page; 3: all pages as a stack.
        least: positions from which the file is read by windows.
        indexed: whether indices into a palette are what is wanted.
    """
    found = None
    with ExitStack() as opened:
        try:
            from tifffile import TiffFile

            file = opened.enter_context(TiffFile(path))
            found = _windows_of(file, path, dims, least, indexed)
        except (
            Exception
        ):  # of a damaged or foreign file tifffile raises many kinds; reading it whole says what is wrong
            return None
        if found is not None:
            opened.pop_all()  # it stays open for the windows
    return found


def _windows_of(file: Any, path: Path, dims: int, least: int, indexed: bool) -> TiffWindows | None:
    """As `tiff_windows`, of an open file."""
    pages = file.pages
    page = pages[0]
    count = len(pages) if dims == 3 else 1
    if (dims == 2 and len(pages) > 1) or count * page.imagelength * page.imagewidth < least:
        return None
    if not _plain(page, indexed) or len({other.hash for other in pages}) > 1:
        return None
    found = TiffWindows(path, list(pages), dims)
    found[tuple(slice(0, 1) for _ in range(dims))]  # nothing may be able to decode it
    return found


def _plain(page: Any, indexed: bool) -> bool:
    """Whether the numbers of a page are what they stand for."""
    meanings = ("MINISBLACK", "RGB", *(("PALETTE",) if indexed else ()))
    jpeg_colours = page.compression.name == "JPEG" and page.photometric.name == "YCBCR"  # tifffile makes RGB of them
    stored = page.dtype is not None and page.dtype.name in DTYPES
    return stored and page.imagedepth == 1 and (page.photometric.name in meanings or jpeg_colours)


def thinned(image: Windowed, step: int) -> np.ndarray:
    """Every `step`-th position of each axis, (*space / step, C), read in bands of the first axis."""
    space = image.shape[:-1]
    height = max(BAND // math.prod(space[1:]) // step, 1) * step
    rest = tuple(slice(0, length) for length in space[1:])
    coarse = tuple(slice(None, None, step) for _ in space)
    bands = [image[(slice(start, min(start + height, space[0])), *rest)][coarse].copy()  # a view would keep all
             for start in range(0, space[0], height)]  # fmt: skip
    return np.concatenate(bands)
