"""Training crops: where those lie that hold a position, and how images are continued that are smaller than they."""

from __future__ import annotations

import numpy as np

from unetdiff.data.warp import Arrays
from unetdiff.segmentation.options import IGNORE


def place_around(
    at: np.ndarray,
    space: tuple[int, ...],
    size: tuple[int, ...],
    draw: np.ndarray,
    coordinates: np.ndarray | None = None,
) -> np.ndarray:
    """The place, as `crop_window` reads it, of a crop that holds a position.

    Args:
        at: (dims,) the position.
        space: of the image. size: of the crop; larger ones hold the whole axis.
        draw: (dims,) in [0, 1), which of the offsets that hold it.
        coordinates: (dims, *size) of a crop that is warped: where its positions come from, beside its corner (see
            `source_coordinates`). Then the result holds the position, where any crop within the image has it so.
    """
    room = np.maximum(np.array(space) - size, 0)
    least = np.maximum(at - np.array(size) + 1, 0)
    most = np.minimum(at, room)
    offset = least + np.floor(draw * (most - least + 1))
    if coordinates is not None:
        offsets = at - np.rint(coordinates).reshape(len(at), -1).T  # that bring the position to each of the result's
        within = offsets[((offsets >= 0) & (offsets <= room)).all(1)]
        offset = within[int(draw[0] * len(within))] if len(within) else offset
    return (offset + 0.5) / (room + 1)


def pad_to(size: tuple[int, ...], image: np.ndarray, labels: np.ndarray, *weights: np.ndarray) -> Arrays:
    """Continues an image by reflection, its labels by `IGNORE` and weights by 1, alike at both ends, to `size`."""
    missing = [max(want - have, 0) for want, have in zip(size, labels.shape, strict=True)]
    ends = [(count // 2, count - count // 2) for count in missing]
    image, labels = np.pad(image, [*ends, (0, 0)], mode="reflect"), np.pad(labels, ends, constant_values=IGNORE)
    return image, labels, *(np.pad(each, ends, constant_values=1) for each in weights)
