"""Images in, masks out: what `sample/masks.py` reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from unetdiff.segmenting import Segmentation


def find_images(path: Path, format: DataFormat) -> dict[str, Callable[[], np.ndarray]]:
    """Images by the names that their masks get, each read when it is called: (*space, C).

    A file that holds one dimension more than the network takes is a stack of images.

    Raises:
        ValueError: there is nothing, or two files have one name.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}; expected an image or a folder of them")
    files = [path] if path.is_file() else list_files(path, ARRAY_SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no images; expected files that end in {', '.join(ARRAY_SUFFIXES)}")
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
