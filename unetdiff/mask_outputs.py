"""Images in, masks out: what `sample/masks.py` reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unetdiff.data.files import list_files
from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import MaskEncoding, mask_suffix, write_mask
from unetdiff.data.volumes import ARRAY_SUFFIXES, read_image, read_mask, stem_of
from unetdiff.mask_figures import error_plane, image_plane, label_plane, map_picture, overlay, panels
from unetdiff.runs import Run
from unetdiff.segmentation.uncertainty import Uncertainty
from unetdiff.segmenting import MAPS, Segmentation, maps_of

LARGE = 2**22
"""Positions from which an image's results are written row by row, as .npy files, and never held whole."""

PREVIEW = 1024  # positions of the longer side of a large image's pictures


def find_images(path: Path, format: DataFormat) -> dict[str, Callable[[], np.ndarray]]:
    """Images by the names that their masks get, each read when it is called: (*space, C).

    A file that holds one dimension more than the network takes is a stack of images.

    Raises:
        ValueError: there is nothing, or two files have one name.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}; expected an image or a folder of them")
    files = [path] if path.is_file() else list_files(path, ARRAY_SUFFIXES)
    found: dict[str, Callable[[], np.ndarray]] = {}
    for file in files:
        name = stem_of(file)
        if name in found:
            raise ValueError(f"{path} has two files called {name}; expected different names")
        found[name] = partial(read_image, file, format.dims)
    return found


def read_truth(folder: Path, name: str, encoding: MaskEncoding, space: tuple[int, ...]) -> np.ndarray:
    """The true labels (*space) of an image by its name.

    Raises:
        ValueError: there is none, or it has another size or other values.
    """
    candidates = [folder / f"{name}{suffix}" for suffix in ARRAY_SUFFIXES]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has no mask called {name}; expected {name}{encoding.suffix}")
    try:
        labels = encoding.encode(read_mask(path).array)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if labels.shape != space:
        raise ValueError(f"{path} has size {list(labels.shape)}; the image has {list(space)}")
    return labels


def write_segmentation(
    folder: Path, name: str, image: np.ndarray, found: Segmentation, run: Run, truth: np.ndarray | None
) -> None:
    """Write the mask, an overlay (with `truth`: a row of panels), the numbers, and the maps of uncertainty."""
    encoding, format = run.masks, run.format
    write_mask(found.labels, encoding, folder / f"{name}{mask_suffix(encoding, format.dims)}")
    colours = encoding.colours()
    Image.fromarray(overlay(image, found.labels, format, colours)).save(folder / f"{name}_overlay.png")
    if truth is not None:
        planes = [
            image_plane(image, format),
            label_plane(truth, colours),
            label_plane(found.labels, colours),
            error_plane(found.labels, truth),
        ]
        panels([planes], ["image", "truth", "prediction", "error"]).save(folder / f"{name}_panels.png")
    arrays: dict[str, Any] = {"probabilities": found.probabilities.astype(np.float16), **found.maps}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    most = math.log(len(found.probabilities))
    for map_name, values in found.maps.items():
        map_picture(values, f"{map_name.replace('_', ' ')} (nats)", most).save(folder / f"{name}_{map_name}.png")


class RowFile:
    """A .npy file that is filled row by row; no part of it stays in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any, axis: int = 0) -> None:
        self.path, self.axis = path, axis
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Put rows in their place along the axis."""
        place = (*[slice(None)] * self.axis, slice(start, start + rows.shape[self.axis]))
        # Opened anew each time: the pages of a file that stays mapped would count as memory.
        np.lib.format.open_memmap(self.path, mode="r+")[place] = rows

    def preview(self, step: int) -> np.ndarray:
        """Every so many positions of each axis of a file without other axes."""
        held = np.lib.format.open_memmap(self.path, mode="r")
        return np.array(held[tuple(slice(None, None, step) for _ in held.shape)])


def write_rows(folder: Path, name: str, image: np.ndarray, rows: Iterator[tuple[int, Uncertainty]], run: Run) -> None:
    """As `write_segmentation`, for an image whose results are not held whole: .npy files, and small pictures.

    `NAME.npy` is the mask in the form of the training masks, `NAME_probabilities.npy` (K, *space) and a file per map of
    uncertainty are float16.
    """
    encoding, format, space = run.masks, run.format, image.shape[:-1]
    form = (*space, encoding.channels) if encoding.channels else space
    masks = RowFile(folder / f"{name}.npy", form, encoding.dtype)
    shape = (encoding.num_classes, *space)
    probabilities = RowFile(folder / f"{name}_probabilities.npy", shape, np.float16, axis=1)
    maps = {entry: RowFile(folder / f"{name}_{entry}.npy", space, np.float16) for entry in MAPS}
    step = -(-max(space) // PREVIEW)
    shown: list[np.ndarray] = []
    for start, part in rows:
        found = part.probabilities[0]
        labels = found.argmax(0).numpy()
        masks.write(start, encoding.decode(labels))
        probabilities.write(start, found.numpy())
        for entry, values in maps_of(part).items():
            maps[entry].write(start, values.numpy())
        rest = tuple(slice(None, None, step) for _ in space[1:])
        shown.append(labels[(slice((-start) % step, None, step), *rest)].copy())  # a view would keep all of them
    small = np.array(image[tuple(slice(None, None, step) for _ in space)])
    Image.fromarray(overlay(small, np.concatenate(shown), format, encoding.colours())).save(
        folder / f"{name}_overlay.png"
    )
    most = math.log(encoding.num_classes)
    for entry, file in maps.items():
        map_picture(file.preview(step), f"{entry.replace('_', ' ')} (nats)", most).save(folder / f"{name}_{entry}.png")
