"""The objects of a mask as files: their numbers, a picture, and a table."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unetdiff.data.masks import MaskEncoding, mask_suffix, write_mask
from unetdiff.mask_figures import overlay
from unetdiff.runs import Run
from unetdiff.segmentation.instances import (
    Instances,
    connected_components,
    watershed_by_distance,
    watershed_by_probability,
)
from unetdiff.segmenting import Segmentation

GOLDEN = 0.6180339887498949  # of the circle of hues between an object and the next, so that neighbours differ
AXES = ("z", "y", "x")


@dataclass(frozen=True)
class ObjectOptions:
    """How objects are told apart.

    Attributes:
        method: a name of METHODS.
        depth: of the watershed; None: that of the method. See `unetdiff.segmentation.instances`.
        min_size: objects of fewer positions are left out.
        background: the class that has no objects; None: every class has.

    Raises:
        ValueError: the depth is not above 0 or meant for another method, or the size is below 1.
    """

    method: str
    depth: float | None = None
    min_size: int = 1
    background: int | None = 0

    def __post_init__(self) -> None:
        if self.depth is not None and (self.method == "components" or not self.depth > 0):
            raise ValueError(
                f"--depth is {self.depth}; expected a number above 0, with --instances distance or probability"
            )
        if self.min_size < 1:
            raise ValueError(f"--min_size is {self.min_size}; expected at least 1")


def _components(found: Segmentation, how: ObjectOptions) -> Instances:
    return connected_components(found.labels, min_size=how.min_size, background=_background(how))


def _by_distance(found: Segmentation, how: ObjectOptions) -> Instances:
    return watershed_by_distance(found.labels, how.depth or 1.0, min_size=how.min_size, background=_background(how))


def _by_probability(found: Segmentation, how: ObjectOptions) -> Instances:
    return watershed_by_probability(
        found.probabilities, how.depth or 0.1, min_size=how.min_size, background=_background(how)
    )


METHODS: dict[str, Callable[[Segmentation, ObjectOptions], Instances]] = {
    "components": _components,
    "distance": _by_distance,
    "probability": _by_probability,
}


def _background(how: ObjectOptions) -> tuple[int, ...]:
    return () if how.background is None else (how.background,)


def write_objects(
    folder: Path,
    name: str,
    image: np.ndarray,
    found: Segmentation,
    run: Run,
    how: ObjectOptions,
    affine: np.ndarray | None = None,
) -> int:
    """Write the objects: their numbers (`NAME_instances`), a picture and a table (`NAME_objects`).

    Returns:
        how many there are.
    """
    objects = METHODS[how.method](found, how)
    encoding = numbers_encoding(len(objects.classes), run.masks.suffix)
    suffix = mask_suffix(encoding, run.format.dims)
    write_mask(objects.ids.astype(np.int64), encoding, folder / f"{name}_instances{suffix}", affine)
    shown = overlay(image, objects.ids, run.format, object_colours(len(objects.classes)))
    Image.fromarray(shown).save(folder / f"{name}_objects.png")
    _write_table(folder / f"{name}_objects.csv", objects, run.masks.class_names)
    return len(objects.classes)


def numbers_encoding(count: int, suffix: str) -> MaskEncoding:
    """How the numbers 0 (no object) to `count` are written: 16 bits where they suffice, else 32."""
    numbers = tuple(range(max(count, 1) + 1))
    dtype = "uint16" if len(numbers) <= 2**16 else "int32"
    return MaskEncoding(kind="values", values=numbers, class_names=tuple(map(str, numbers)), dtype=dtype, suffix=suffix)


def object_colours(count: int) -> np.ndarray:
    """Black for no object, then a colour for each, far from that of the next: uint8 (count + 1, 3)."""
    from matplotlib.colors import hsv_to_rgb

    numbers = np.arange(count)
    hsv = np.stack([numbers * GOLDEN % 1, np.where(numbers % 2, 0.6, 0.85), np.where(numbers % 3, 1.0, 0.8)], axis=-1)
    return np.concatenate([np.zeros((1, 3)), 255 * hsv_to_rgb(hsv).reshape(-1, 3)]).round().astype(np.uint8)


def _write_table(path: Path, objects: Instances, class_names: tuple[str, ...]) -> None:
    """A line per object: its number, class, size, and the mean of its positions along each axis."""
    dims = objects.ids.ndim
    sizes = np.bincount(objects.ids.ravel(), minlength=len(objects.classes) + 1)
    centres = []
    for axis, length in enumerate(objects.ids.shape):
        along = np.arange(length).reshape([-1 if place == axis else 1 for place in range(dims)])
        weights = np.broadcast_to(along, objects.ids.shape).ravel()
        centres.append(np.bincount(objects.ids.ravel(), weights=weights, minlength=len(sizes)) / np.maximum(sizes, 1))
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["object", "class", "class_name", "positions", *AXES[-dims:]])
        for number, place in enumerate(objects.classes.tolist(), start=1):
            middle = [f"{centre[number]:.2f}" for centre in centres]
            lines.writerow([number, place, class_names[place], int(sizes[number]), *middle])
