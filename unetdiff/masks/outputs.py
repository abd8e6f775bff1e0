"""What `sample/masks.py` writes: masks, pictures, probabilities and maps of uncertainty, whole or row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unetdiff.data.masks import mask_suffix, write_mask
from unetdiff.data.windows import Windowed, thinned
from unetdiff.figures import SEQUENTIAL, plot_style
from unetdiff.files import write_folder
from unetdiff.mask_figures import (
    as_plane,
    case_captions,
    case_planes,
    image_plane,
    label_plane,
    map_picture,
    most_wrong_slice,
    overlay,
    panels,
)
from unetdiff.runs import Run
from unetdiff.segmenting import DRAWN_MAPS, MAPS, Segmentation

PREVIEW = 1024  # positions of the longer side of a large image's pictures
PICTURE_WIDTH = 8  # inches, of 120 pixels, of the panels of probabilities

LEAST_SCALE = 0.01
"""Nats: what a picture of mutual information reaches up to at least, so that rounding is not drawn as disagreement."""

MOST_DRAWN = 8
"""Masks that a picture of those that were drawn shows at most."""

MOST_PANELS = 12
"""Classes that a picture of probabilities shows at most."""

SCALES: dict[str, Callable[[np.ndarray, int], tuple[float, str]]] = {
    "mutual_information": lambda values, classes: (max(float(values.max()), LEAST_SCALE), "nats"),
    "disagreement": lambda values, classes: (1 - 1 / classes, "share of masks"),
}
"""Of maps that are no entropies up to log K: (values, classes) -> the end of the scale, and its unit."""

ENDINGS = (
    "overlay",
    "panels",
    "objects",
    "instances",
    "probabilities",
    "probability",
    "masks",
    "drawn",
    *MAPS,
    *DRAWN_MAPS,
)
"""What follows an image's name in the names of its results."""


def check_names(names: Sequence[str]) -> None:
    """Raise `ValueError` for an image whose mask would have the name of another image's picture."""
    known = set(names)
    for name in names:
        for ending in ENDINGS:
            if f"{name}_{ending}" in known:
                raise ValueError(f"the images {name} and {name}_{ending} would share a file; expected other names")


def write_segmentation(
    folder: Path,
    name: str,
    image: np.ndarray,
    found: Segmentation,
    run: Run,
    truth: np.ndarray | None = None,
    affine: np.ndarray | None = None,
) -> None:
    """Write the mask, an overlay (with `truth`: a row of panels), the numbers, and the maps of uncertainty.

    affine: (4, 4), where the voxels of the image lie, for masks that are NIfTI files.
    """
    encoding, format = run.masks, run.format
    write_mask(found.labels, encoding, folder / f"{name}{mask_suffix(encoding, format.dims)}", affine)
    colours = encoding.colours()
    Image.fromarray(overlay(image, found.labels, format, colours)).save(folder / f"{name}_overlay.png")
    if truth is not None:
        place = most_wrong_slice(found.labels, truth) if format.dims == 3 else None
        planes = case_planes(image, truth, found.probabilities, format, colours, place)
        panels([planes], case_captions(encoding.num_classes)).save(folder / f"{name}_panels.png")
    arrays: dict[str, Any] = {"probabilities": found.probabilities.astype(np.float16), **found.maps}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    probability_picture(found.probabilities, encoding.class_names).save(folder / f"{name}_probability.png")
    for entry, values in found.maps.items():
        _write_map(folder, name, entry, values, encoding.num_classes)
    if found.masks is not None:
        write_drawn(folder, name, image, found.masks, run, affine)


def write_drawn(
    folder: Path, name: str, image: np.ndarray, masks: np.ndarray, run: Run, affine: np.ndarray | None
) -> None:
    """Write masks (M, *space) that were drawn into `NAME_masks/`, by number, and a picture of the first few."""
    encoding, format = run.masks, run.format
    digits = len(str(len(masks) - 1))

    def fill(inner: Path) -> None:
        for number, mask in enumerate(masks):
            write_mask(mask, encoding, inner / f"{number:0{digits}d}{mask_suffix(encoding, format.dims)}", affine)

    write_folder(folder / f"{name}_masks", fill)
    shown = masks[:MOST_DRAWN]
    planes = [image_plane(image, format), *(label_plane(mask, encoding.colours()) for mask in shown)]
    panels([planes], ["image", *(f"mask {number}" for number in range(len(shown)))]).save(folder / f"{name}_drawn.png")


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


def write_rows(folder: Path, name: str, image: Windowed, rows: Iterator[tuple[int, Segmentation]], run: Run) -> None:
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
    shown, shown_probabilities = [], []
    for start, part in rows:
        masks.write(start, encoding.decode(part.labels))
        probabilities.write(start, part.probabilities)
        for entry, values in part.maps.items():
            maps[entry].write(start, values)
        few = (slice((-start) % step, None, step), *(slice(None, None, step) for _ in space[1:]))
        shown.append(part.labels[few].copy())  # a view would keep all of them
        shown_probabilities.append(part.probabilities[:, *few].astype(np.float16))
    small = overlay(thinned(image, step), np.concatenate(shown), format, encoding.colours())
    Image.fromarray(small).save(folder / f"{name}_overlay.png")
    small = np.concatenate(shown_probabilities, axis=1)
    probability_picture(small, encoding.class_names).save(folder / f"{name}_probability.png")
    for entry, file in maps.items():
        _write_map(folder, name, entry, file.preview(step), encoding.num_classes)


def probability_picture(probabilities: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Probabilities (K, *space) as a panel per class, with one scale from 0 to 1; a volume's middle slice.

    Of more than 12 classes, those are shown that have the largest shares, in their order.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = probabilities.reshape(len(probabilities), -1).mean(1, dtype=np.float64)
    chosen = sorted(np.argsort(-shares, kind="stable")[:MOST_PANELS].tolist())
    dims = probabilities.ndim - 1
    step = -(-max(probabilities.shape[1:]) // PREVIEW)
    thin = (slice(None, None, step),) * 2
    planes = [as_plane(probabilities[number].astype(np.float32), dims)[thin] for number in chosen]
    height, width = planes[0].shape
    share = 8 if dims == 1 else min(max(width / height, 0.25), 8)  # width over height; a longer one is stretched
    columns = min(len(planes), math.ceil(math.sqrt(len(planes) / share)))
    across = PICTURE_WIDTH / columns
    with plot_style():
        figure = Figure(
            (PICTURE_WIDTH + 1, -(-len(planes) // columns) * (across / share + 0.3)), 120, layout="constrained"
        )
        canvas = FigureCanvasAgg(figure)
        every = figure.subplots(-(-len(planes) // columns), columns, squeeze=False).ravel()
        for axes in every:
            axes.set_axis_off()
        for axes, number, plane in zip(every, chosen, planes, strict=False):
            axes.imshow(plane, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axes.set_title(class_names[number])
        figure.colorbar(every[0].images[0], ax=every, label="probability")
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _write_map(folder: Path, name: str, entry: str, values: np.ndarray, classes: int) -> None:
    """The picture of a map of uncertainty: entropies from 0 to log K, mutual information to its largest value."""
    most, unit = SCALES[entry](values, classes) if entry in SCALES else (math.log(classes), "nats")
    map_picture(values, f"{entry.replace('_', ' ')} ({unit})", most).save(folder / f"{name}_{entry}.png")
