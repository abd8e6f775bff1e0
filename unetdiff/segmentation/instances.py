"""Instances: the objects of each class told apart, by connected components or by watershed.

All of it reads whole label maps: one image in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from unetdiff.segmentation.options import IGNORE

Landscape = Callable[[int, np.ndarray], np.ndarray]
"""A class and its mask (*space) bool to heights (*space), highest in the middle of its objects."""


class Instances(NamedTuple):
    """The objects of an image.

    Attributes:
        ids: (*space) int32: 0 where there is no object, otherwise the object's number, from 1, without gaps.
        classes: (objects,) int64: the class of object i is classes[i - 1].
    """

    ids: np.ndarray
    classes: np.ndarray


def connected_components(
    labels: np.ndarray, connectivity: int = 1, min_size: int = 1, background: Collection[int] = (0,)
) -> Instances:
    """Objects that are the connected components of each class, numbered as they are met, row by row.

    Args:
        labels: (*space) whole numbers in 0..K-1, or IGNORE, which is no object.
        connectivity: how many axes two neighbours may differ on: 1 (those that share a face: 2, 4 or 6 of them) to
            the number of axes (all 2, 8 or 26).
        min_size: objects of fewer positions are left out.
        background: the classes that have no objects.

    Raises:
        ValueError: the connectivity is not one of the labels'.
    """
    from skimage.measure import label

    _check_connectivity(connectivity, labels.ndim)
    ids = label(np.where(_foreground(labels, background), labels, -1), background=-1, connectivity=connectivity)
    return _numbered(np.asarray(ids), labels, min_size)


def watershed_by_distance(
    labels: np.ndarray,
    depth: float = 1.0,
    spacing: tuple[float, ...] | None = None,
    connectivity: int = 1,
    min_size: int = 1,
    background: Collection[int] = (0,),
) -> Instances:
    """Objects that touch told apart where they narrow: watershed on the distance to the nearest other position.

    The heights are Euclidean distances inside each class to what is not of the class; the image's border is no edge.
    Two peaks are two objects if the way between them goes down by more than `depth` below the lower one (extended
    maxima: Soille 2004, Morphological Image Analysis, section 6.3). Each connected component has one at least.

    Args:
        labels: (*space) whole numbers in 0..K-1, or IGNORE, which is no object.
        depth: above 0, in positions or in the unit of `spacing`; more depth, fewer objects.
        spacing: the distance between neighbours along each axis; None: 1.
        connectivity, min_size, background: as in `connected_components`.

    Raises:
        ValueError: the connectivity is not one of the labels', or the depth is not above 0.
    """
    from scipy.ndimage import distance_transform_edt

    def distance(_: int, mask: np.ndarray) -> np.ndarray:
        if mask.all():  # nothing to measure a distance to
            return np.ones(mask.shape)
        return np.asarray(distance_transform_edt(mask, sampling=spacing))

    return _watershed(labels, distance, depth, connectivity, min_size, background)


def watershed_by_probability(
    probabilities: np.ndarray,
    depth: float = 0.1,
    connectivity: int = 1,
    min_size: int = 1,
    background: Collection[int] = (0,),
) -> Instances:
    """Objects that touch told apart where their class is less probable: watershed on its probability.

    Each position belongs to its most probable class. Two peaks of a class are two objects if its probability falls
    by more than `depth` between them, as in `watershed_by_distance`.

    Args:
        probabilities: (K, *space).
        depth: above 0; more depth, fewer objects.
        connectivity, min_size, background: as in `connected_components`.

    Raises:
        ValueError: the connectivity is not one of the image's, or the depth is not above 0.
    """
    return _watershed(
        probabilities.argmax(axis=0),
        lambda class_index, _: probabilities[class_index],
        depth,
        connectivity,
        min_size,
        background,
    )


def _watershed(
    labels: np.ndarray,
    landscape: Landscape,
    depth: float,
    connectivity: int,
    min_size: int,
    background: Collection[int],
) -> Instances:
    from skimage.segmentation import watershed

    _check_connectivity(connectivity, labels.ndim)
    if not depth > 0:
        raise ValueError(f"depth is {depth}; expected a number above 0.")
    ids = np.zeros(labels.shape, np.int32)
    for class_index in np.unique(labels[_foreground(labels, background)]):
        mask = labels == class_index
        heights = np.where(mask, landscape(int(class_index), mask), 0).astype(np.float64)
        markers = _peaks(heights, mask, depth, connectivity)
        basins = watershed(-heights, markers, connectivity=connectivity, mask=mask)
        ids[mask] = basins[mask] + ids.max()
    return _numbered(ids, labels, min_size)


def _peaks(heights: np.ndarray, mask: np.ndarray, depth: float, connectivity: int) -> np.ndarray:
    """The peaks that stand out by more than `depth`, numbered from 1: (*space) int, 0 elsewhere."""
    from scipy.ndimage import generate_binary_structure
    from skimage.measure import label
    from skimage.morphology import local_maxima, reconstruction

    # What is not of the class lies below all of it, around the image too, so that each component has a peak.
    floor = heights.min() - 2 * depth
    heights = np.pad(np.where(mask, heights, floor), 1, constant_values=floor)
    footprint = generate_binary_structure(heights.ndim, connectivity)
    filled = reconstruction(np.maximum(heights - depth, floor), heights, footprint=footprint)
    peaks = np.asarray(local_maxima(filled, connectivity=connectivity))
    inner = (slice(1, -1),) * heights.ndim
    return np.asarray(label(peaks[inner], connectivity=connectivity))


def _foreground(labels: np.ndarray, background: Collection[int]) -> np.ndarray:
    return ~np.isin(labels, [*background, IGNORE])


def _check_connectivity(connectivity: int, dims: int) -> None:
    if not 1 <= connectivity <= dims:
        raise ValueError(f"connectivity is {connectivity}; expected 1 to {dims} for {dims}-D labels.")


def _numbered(ids: np.ndarray, labels: np.ndarray, min_size: int) -> Instances:
    """Objects of `min_size` positions or more, numbered from 1 in their order, with the class of each."""
    sizes = np.bincount(ids.ravel())
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    numbers = np.cumsum(kept, dtype=np.int32) * kept
    first = np.unique(ids, return_index=True)
    class_of = dict(zip(first[0].tolist(), labels.ravel()[first[1]].tolist(), strict=True))
    classes = np.array([class_of[place] for place in np.flatnonzero(kept).tolist()], np.int64)
    return Instances(numbers[ids].astype(np.int32), classes)
