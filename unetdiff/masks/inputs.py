"""What `sample/masks.py` reads: images to segment, and the masks that are their truth."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from unetdiff.data.files import list_files, natural_key
from unetdiff.data.formats import DataFormat
from unetdiff.data.images import CAMERA_FORMATS, ORIENTATION
from unetdiff.data.masks import MaskEncoding
from unetdiff.data.records import open_npy
from unetdiff.data.volumes import (
    ARRAY_SUFFIXES,
    NIFTI,
    holds_slice,
    nifti_affine,
    open_image,
    open_mask,
    read_image,
    read_mask,
    stack_slices,
    stem_of,
    suffix_of,
)
from unetdiff.data.windows import Windowed

LARGE = 2**22
"""Positions from which an image is read, predicted and written in parts, and never held whole."""

TILES = {1: 2**18, 2: 512, 3: 96}
"""The side of the tiles of large images by dimension, where none is asked for."""


def is_large(shape: Sequence[int]) -> bool:
    """Whether an image of shape (*space, C) is not held whole."""
    return math.prod(shape[:-1]) >= LARGE


@dataclass(frozen=True)
class ImageFile:
    """An image to segment.

    path: the file, or the folder of a volume whose slices are files. name: what its results are called. dims: spatial
    axes. slices: files of 2-D images that are one volume, in their order.
    """

    path: Path
    name: str
    dims: int
    slices: tuple[Path, ...] = ()

    def open(self) -> Windowed:
        """(*space, C), from a large .npy or TIFF file by windows; `ValueError` names a file that cannot be read."""
        if self.slices:
            return stack_slices([partial(read_image, path, 2) for path in self.slices], list(map(str, self.slices)))
        return open_image(self.path, self.dims, LARGE)

    @property
    def affine(self) -> np.ndarray | None:
        """(4, 4), where the voxels of a NIfTI file lie; None for other files."""
        return nifti_affine(self.path) if suffix_of(self.path) in NIFTI else None

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The distance between neighbours along each axis, where the file says it: of NIfTI files, in millimetres."""
        affine = self.affine
        if affine is None:
            return None
        lengths = np.linalg.norm(affine[:3, :3], axis=0)[::-1]  # arrays have the file's last axis first
        return tuple(map(float, lengths[-self.dims :]))


def find_images(path: Path, format: DataFormat) -> list[ImageFile]:
    """An image, or those in a folder and the folders in it, with names that all differ.

    Where the network takes volumes and files hold 2-D images, those of one folder are a volume that is called as it is.

    Raises:
        ValueError: there is nothing, or two files have one name.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}; expected an image or a folder of them")
    if path.is_file() and not path.name.lower().endswith(ARRAY_SUFFIXES):
        raise ValueError(f"{path} is no image; expected a file such as {', '.join(ARRAY_SUFFIXES[:3])} or .npy")
    files = [path] if path.is_file() else list_files(path, ARRAY_SUFFIXES)
    if path.is_dir() and format.dims == 3 and holds_slice(files[0]):
        found = _volumes(files)
    else:
        found = [ImageFile(file, stem_of(file), format.dims) for file in files]
    name, count = Counter(image.name for image in found).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path} has {count} files called {name}; expected different names")
    return found


def _volumes(slices: Sequence[Path]) -> list[ImageFile]:
    """The slices of each folder as one image."""
    folders: dict[Path, list[Path]] = {}
    for path in slices:
        folders.setdefault(path.parent, []).append(path)
    return [ImageFile(folder, folder.resolve().name, 3, tuple(files)) for folder, files in folders.items()]


@dataclass(frozen=True)
class TruthMask:
    """The true labels of an image, read some rows of its first axis at a time."""

    path: Path
    array: Windowed
    encoding: MaskEncoding
    space: tuple[int, ...]

    def rows(self, start: int, count: int) -> np.ndarray:
        """int64 (count, *rest), 0 ... K-1 and `IGNORE`; `ValueError` names the file where it holds other values."""
        window = (slice(start, start + count), *(slice(0, length) for length in self.space[1:]))
        values = np.asarray(self.array[window])
        plain = values.ndim > len(self.space) and not self.encoding.channels
        try:
            return self.encoding.encode(values[..., 0] if plain else values)
        except ValueError as error:
            raise ValueError(f"{self.path} {error}") from error

    def whole(self) -> np.ndarray:
        """int64 (*space)."""
        return self.rows(0, self.space[0])


def open_truth(folder: Path, name: str, encoding: MaskEncoding, space: tuple[int, ...]) -> TruthMask:
    """The mask of an image (*space) by its name; that of a volume may be a folder of slices, or `folder` be one.

    Raises:
        ValueError: there is none, or it has another size.
    """
    paths = find_truth(folder, name, encoding, len(space))
    path = paths[0] if len(paths) == 1 else paths[0].parent
    stacked = len(space) == 3 and holds_slice(paths[0])
    array = _stacked_masks(paths) if stacked else open_mask(path, len(space), LARGE)
    channels = tuple(array.shape[len(space) :])
    if tuple(array.shape[: len(space)]) != space or len(channels) > 1:
        raise ValueError(f"{path} has size {list(array.shape)}; the image has {list(space)}")
    if channels not in ([(encoding.channels,)] if encoding.channels else [(), (1,)]):
        raise ValueError(f"{path} has {channels[0] if channels else 1} channels; expected {encoding.channels or 1}")
    return TruthMask(path, array, encoding, space)


def find_truth(folder: Path, name: str, encoding: MaskEncoding, dims: int) -> list[Path]:
    """The file of an image's mask by its name, or those of a volume's slices; `ValueError` where there is none."""
    files = [path for suffix in ARRAY_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()][:1]
    files = files or (_mask_slices(folder, name) if dims == 3 and folder.is_dir() else [])
    if not files:
        raise ValueError(f"{folder} has no mask called {name}; expected {name}{encoding.suffix}")
    return files


def check_truth(folder: Path, file: ImageFile, encoding: MaskEncoding) -> None:
    """Whether an image has a mask, of its size where headers say both; `ValueError` else, as of `open_truth`."""
    paths = find_truth(folder, file.name, encoding, file.dims)
    size, expected = header_size(paths[0], file.dims), header_size(file.path, file.dims)
    if len(paths) == 1 and size and expected and size != expected:
        raise ValueError(f"{paths[0]} has size {list(size)}; the image has {list(expected)}")


def header_size(path: Path, dims: int) -> tuple[int, ...] | None:
    """The size (*space) of an image or mask by its header alone; None where only decoding it says that, or fails."""
    if suffix_of(path) == ".npy":
        shape = open_npy(path).shape
        return shape[:dims] if len(shape) in (dims, dims + 1) else None
    if dims != 2 or suffix_of(path) in NIFTI or not path.is_file():
        return None
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:  # it warns of large images
            turned = image.format in CAMERA_FORMATS and image.getexif().get(ORIENTATION, 1) > 4
            return None if turned or getattr(image, "n_frames", 1) > 1 else (image.height, image.width)
    except Exception:  # each of pillow's plugins raises its own kinds; whoever decodes it says what is wrong
        return None


def _mask_slices(folder: Path, name: str) -> list[Path]:
    """The files of a volume's mask in the folder of its name, or else in `folder` itself."""
    place = folder / name if (folder / name).is_dir() else folder
    files = [path for path in place.iterdir() if path.is_file() and path.name.lower().endswith(ARRAY_SUFFIXES)]
    files.sort(key=natural_key)
    return files if files and holds_slice(files[0]) else []


def _stacked_masks(slices: Sequence[Path]) -> np.ndarray:
    """(slices, H, W) or (slices, H, W, C)."""
    return stack_slices([lambda path=path: read_mask(path).array for path in slices], list(map(str, slices)))


def class_of(text: str, encoding: MaskEncoding, option: str) -> int | None:
    """The class that an option names, by its number or else its name; None for `none`.

    Raises:
        ValueError: there is no such class.
    """
    names = encoding.class_names
    if text.isdigit() and int(text) < len(names):
        return int(text)
    if text in names:
        return names.index(text)
    if text == "none":
        return None
    raise ValueError(f"{option} names {text!r}; the classes are 0 to {len(names) - 1}, or {', '.join(names)}")


def check_output(out: Path, images: Path, truths: Sequence[Path]) -> None:
    """Whether results can be written to a folder without harm.

    Raises:
        ValueError: it is a file, or lies in the folder of the images or of their truth: those would be overwritten, or
            results be read as images the next time.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a folder")
    place = out.resolve()
    read = [("IMAGES", images.parent if images.is_file() else images), *(("--truth", truth) for truth in truths)]
    for what, folder in read:
        inside = images.is_dir() and place.is_relative_to(folder.resolve())
        if inside or place == folder.resolve():
            raise ValueError(f"--out {out} lies in the folder of {what}, {folder}; expected another")
