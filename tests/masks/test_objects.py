"""Objects as files: numbers that fit, colours that differ; the files themselves are tested with the command."""

from __future__ import annotations

import numpy as np
import pytest

from unetdiff.data.masks import mask_suffix
from unetdiff.masks.objects import METHODS, ObjectOptions, numbers_encoding, object_colours
from unetdiff.segmenting import Segmentation


@pytest.mark.parametrize(
    ("count", "dtype", "suffix"), [(0, "uint16", ".png"), (65535, "uint16", ".png"), (65536, "int32", ".npy")]
)
def test_numbers_take_16_bits_where_they_suffice(count: int, dtype: str, suffix: str) -> None:
    encoding = numbers_encoding(count, ".png")
    assert (encoding.dtype, mask_suffix(encoding, 2)) == (dtype, suffix)
    assert encoding.decode(np.array([0, count])).tolist() == [0, count]
    assert mask_suffix(numbers_encoding(5, ".nii.gz"), 3) == ".nii.gz"


def test_objects_and_their_neighbours_have_colours_of_their_own() -> None:
    colours = object_colours(200).astype(int)
    assert len(np.unique(colours, axis=0)) == 201
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 80
    assert object_colours(0).shape == (1, 3)


@pytest.mark.parametrize(("method", "count"), [("components", 1), ("distance", 2), ("probability", 2)])
def test_methods_by_name(method: str, count: int) -> None:
    """Two discs that touch: one component, two for either watershed unless its depth is larger than the narrowing."""
    grid = np.indices((21, 33))
    distance = np.minimum(*(np.hypot(grid[0] - 10, grid[1] - at) for at in (10, 22)))
    cell = np.clip(1 - distance / 14, 0, 1).astype(np.float32)
    found = Segmentation((cell > 0.5).astype(np.int64), np.stack([1 - cell, cell]), {})
    assert len(METHODS[method](found, ObjectOptions(method)).classes) == count
    if method != "components":
        assert len(METHODS[method](found, ObjectOptions(method, depth=50.0)).classes) == 1
    assert len(METHODS[method](found, ObjectOptions(method, min_size=1000)).classes) == 0
    everywhere = METHODS[method](found, ObjectOptions(method, background=None))
    assert (everywhere.ids > 0).all()
