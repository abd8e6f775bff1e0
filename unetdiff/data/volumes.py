"""Files of images, volumes and tracks as arrays: whatever pillow reads, TIFF stacks, NIfTI and .npy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unetdiff.data.errors import first_line
from unetdiff.data.formats import DTYPES
from unetdiff.data.images import SUFFIXES, decode_image, decode_numbers, decode_pages, page_count
from unetdiff.data.records import array_header, open_npy
from unetdiff.data.windows import NpyWindows, Windowed, exact_floats, tiff_windows

NIFTI = (".nii", ".nii.gz")
TIFF = (".tif", ".tiff")
ARRAY_SUFFIXES = (*SUFFIXES, ".npy", *NIFTI)
"""Files that hold an image, a volume or a track."""


class RawMask(NamedTuple):
    """A mask as its file stores it: numbers (*space) or (*space, C), and the palette (R, G, B, ...) of indices."""

    array: np.ndarray
    palette: tuple[int, ...] | None = None


def suffix_of(path: Path) -> str:
    """The suffix in small letters, .nii.gz in one piece."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def stem_of(path: Path) -> str:
    """The name without its suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def holds_slice(path: Path) -> bool:
    """Whether a file holds one 2-D image, which with its neighbours may be a volume."""
    return suffix_of(path) not in (".npy", *NIFTI) and page_count(path, str(path)) == 1


def stack_slices(slices: Sequence[Callable[[], np.ndarray]], names: Sequence[str]) -> np.ndarray:
    """Slices as one array; `ValueError` names the first that has another shape or dtype."""
    arrays = [read() for read in slices]
    for name, one in zip(names, arrays, strict=True):
        if (one.shape, one.dtype) != (arrays[0].shape, arrays[0].dtype):
            raise ValueError(
                f"{name} has shape {list(one.shape)} and dtype {one.dtype}; expected {list(arrays[0].shape)} and "
                f"{arrays[0].dtype} as in {names[0]}, since they are slices of one volume."
            )
    return np.stack(arrays)


def read_image(path: Path, dims: int | None) -> np.ndarray:
    """An image, volume or track as (*space, C) in uint8, uint16 or float32; .npy stays on disk where it can.

    Args:
        path: the file. NIfTI comes as (Z, Y, X), TIFF stacks as (page, row, column); pages are channels in 2-D.
        dims: spatial axes, where the shape leaves it open.

    Raises:
        ValueError: it cannot be read, or its axes or numbers do not fit.
    """
    suffix = suffix_of(path)
    if suffix == ".npy":
        return _as_image(open_npy(path), dims, str(path))
    if suffix in NIFTI:
        return _as_image(_flat_axes(_read_nifti(path), dims), dims or 3, str(path))
    image = _read_tiff(path) if suffix in TIFF else decode_image(path, str(path))
    if image.ndim == 4 and dims == 2:
        image = np.moveaxis(image[..., 0], 0, -1) if image.shape[-1] == 1 else image  # pages are channels
    if dims not in (None, image.ndim - 1):
        raise ValueError(f"{path} is {image.ndim - 1}-D; expected {dims}-D data, as data.dims says.")
    return image


def open_image(path: Path, dims: int, least: int) -> Windowed:
    """As `read_image`; a .npy or TIFF file of `least` positions or more is read by windows where its form allows that.

    What is read whole for its form: TIFF with a palette, with bits or numbers that are no dtype of images, or whose
    compression only pillow knows; NIfTI; every other image.

    Raises:
        ValueError: it cannot be read, or its axes or numbers do not fit.
    """
    suffix = suffix_of(path)
    if suffix == ".npy":
        array = open_npy(path)
        whole = array.dtype.kind in "iu" and array.dtype.name not in DTYPES
        header = array_header(array.shape, np.dtype(np.float32) if whole else array.dtype, dims, str(path))
        if math.prod(header.shape[:-1]) >= least:
            return NpyWindows(path, header.shape, header.dtype)
    windows = tiff_windows(path, dims, least) if suffix in TIFF and dims > 1 else None
    return read_image(path, dims) if windows is None else windows


def read_mask(path: Path) -> RawMask:
    """A mask as its file stores it; NIfTI comes as (Z, Y, X).

    Raises:
        ValueError: it cannot be read.
    """
    suffix = suffix_of(path)
    if suffix == ".npy":
        return RawMask(open_npy(path))
    if suffix in NIFTI:
        return RawMask(_read_nifti(path))
    try:
        array, palette = decode_numbers(path, str(path))
    except ValueError:
        if suffix not in TIFF:
            raise
        array, palette = _tiff_array(path), None
    return RawMask(array, None if palette is None else _shared(palette))


def open_mask(path: Path, dims: int, least: int) -> Windowed:
    """A mask's numbers, (*space) or (*space, C), by windows as `open_image`; indices stay indices."""
    windows = tiff_windows(path, dims, least, indexed=True) if suffix_of(path) in TIFF and dims > 1 else None
    return read_mask(path).array if windows is None else windows


@lru_cache(maxsize=16)
def _shared(palette: tuple[int, ...]) -> tuple[int, ...]:
    """One object for all equal palettes, since every mask has one."""
    return palette


def _read_tiff(path: Path) -> np.ndarray:
    """A TIFF file as (H, W, C), or a stack as (D, H, W, C): by pillow where it holds the file exactly."""
    try:
        return decode_pages(path, str(path)) if page_count(path, str(path)) > 1 else decode_image(path, str(path))
    except ValueError as refused:  # more channels or bits than pillow has modes for, or damaged
        try:
            array = _tiff_array(path)
        except ValueError:
            raise refused from None
    return _as_image(array, 3 if array.ndim > 3 else 2, str(path))


def _tiff_array(path: Path) -> np.ndarray:
    """What a TIFF file holds, its channels last."""
    try:
        import tifffile

        with tifffile.TiffFile(path) as file:
            array, axes = file.series[0].asarray(), file.series[0].axes
    except Exception as error:  # tifffile raises many kinds, of missing codecs too
        raise ValueError(f"{path} cannot be read as TIFF ({first_line(error)}); expected a whole file.") from error
    channels = next((axes.index(name) for name in "SC" if name in axes), None)
    return array if channels is None else np.moveaxis(array, channels, -1)


def nifti_affine(path: Path) -> np.ndarray:
    """The (4, 4) matrix from voxels to millimetres of a NIfTI file, for predictions that lie on it."""
    import nibabel

    return np.asarray(nibabel.load(path).affine)  # pyright: ignore[reportAttributeAccessIssue]


def _as_image(array: np.ndarray, dims: int | None, name: str) -> np.ndarray:
    """(*space, C) in a dtype of `DTYPES`: other whole numbers, such as those of CT, become float32 where exact."""
    if array.dtype.kind in "iu" and array.dtype.name not in DTYPES:
        array = exact_floats(array, name)
    header = array_header(array.shape, array.dtype, dims, name)
    return array.astype(header.dtype, copy=False).reshape(header.shape)  # memory-mapped data stay so


def _flat_axes(array: np.ndarray, dims: int | None) -> np.ndarray:
    """NIfTI keeps axes of length 1 that say nothing: of depth in 2-D, of time before channels."""
    if dims == 2 and array.shape[0] == 1:
        array = array[0]
    return array[..., 0, :] if array.ndim == 5 and array.shape[3] == 1 else array


def _read_nifti(path: Path) -> np.ndarray:
    """(Z, Y, X[, C]) with the file's scaling applied."""
    try:
        import nibabel
    except ImportError as error:
        raise ValueError(f"{path} needs nibabel to be read; pip install 'unetdiff[volumes]'.") from error
    try:
        array = np.asanyarray(nibabel.load(path).dataobj)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # nibabel, gzip and the file system raise many kinds
        raise ValueError(f"{path} cannot be read as NIfTI ({first_line(error)}); expected a whole file.") from error
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    return np.swapaxes(array, 0, 2)
