"""Instances against scikit-image's components and watershed, and on cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.segmentation import relabel_sequential, watershed

from unetdiff.segmentation.instances import connected_components, watershed_by_distance, watershed_by_probability
from unetdiff.segmentation.options import IGNORE


def ball(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape)
    return np.sum([(part - at) ** 2 for part, at in zip(grid, centre, strict=True)], axis=0) <= radius**2


def touching(dims: int) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Two balls of radius 7 whose middles lie 12 apart on the last axis: (labels, middles)."""
    shape = (21,) * (dims - 1) + (33,)
    middles = [(10,) * (dims - 1) + (at,) for at in (10, 22)]
    return np.logical_or(*(ball(shape, middle, 7) for middle in middles)).astype(np.int64), middles


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.moveaxis(np.eye(classes)[labels], -1, 0)


@pytest.mark.parametrize("shape", [(60,), (17, 23), (7, 9, 8)])
def test_components_are_those_of_scikit_image_per_class(shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(-1, 4, shape)
    for connectivity in range(1, len(shape) + 1):
        found = connected_components(labels, connectivity)
        assert found.ids.dtype == np.int32
        assert found.classes.dtype == np.int64
        for class_index in (1, 2, 3):
            wanted = label(labels == class_index, connectivity=connectivity)
            ids = np.where(labels == class_index, found.ids, 0)
            np.testing.assert_array_equal(relabel_sequential(ids)[0], wanted)
            numbers = np.unique(ids[ids > 0])
            assert (found.classes[numbers - 1] == class_index).all()
        assert not found.ids[labels <= 0].any()
        assert set(np.unique(found.ids)) == set(range(len(found.classes) + 1))


def test_components_by_hand() -> None:
    labels = np.array([[1, 1, 0, 2], [0, 1, 2, 0], [1, 0, 2, IGNORE]])
    faces, corners = connected_components(labels, 1), connected_components(labels, 2)
    np.testing.assert_array_equal(faces.ids, [[1, 1, 0, 2], [0, 1, 3, 0], [4, 0, 3, 0]])
    assert faces.classes.tolist() == [1, 2, 2, 1]
    np.testing.assert_array_equal(corners.ids, [[1, 1, 0, 2], [0, 1, 2, 0], [1, 0, 2, 0]])
    assert corners.classes.tolist() == [1, 2]


def test_objects_too_small_are_left_out_and_the_others_numbered_without_gaps() -> None:
    found = connected_components(np.array([1, 0, 2, 2, 0, 1, 1, 1]), min_size=2)
    assert found.ids.tolist() == [0, 0, 1, 1, 0, 2, 2, 2]
    assert found.classes.tolist() == [2, 1]


def test_the_background_is_what_it_is_said_to_be() -> None:
    found = connected_components(np.array([0, 0, 1, 2, 2]), background=(1, 2))
    assert found.ids.tolist() == [1, 1, 0, 0, 0]
    assert found.classes.tolist() == [0]


@pytest.mark.parametrize("labels", [np.zeros((4, 5), int), np.full((4, 5), IGNORE)])
def test_nothing_is_no_object(labels: np.ndarray) -> None:
    for instances in (connected_components, watershed_by_distance):
        found = instances(labels)
        assert not found.ids.any()
        assert found.classes.shape == (0,)


@pytest.mark.parametrize("dims", [2, 3])
def test_touching_balls_are_told_apart_as_by_scikit_image(dims: int) -> None:
    labels, middles = touching(dims)
    assert len(connected_components(labels).classes) == 1
    distance = np.asarray(distance_transform_edt(labels))
    peaks = peak_local_max(distance, min_distance=5, labels=labels)
    markers = np.zeros(labels.shape, int)
    markers[tuple(peaks[np.argsort(peaks[:, -1])].T)] = [1, 2]
    wanted = watershed(-distance, markers, mask=labels > 0)
    found = watershed_by_distance(labels)
    assert [found.ids[middle] for middle in middles] == [1, 2]
    assert found.classes.tolist() == [1, 1]
    assert (found.ids != wanted).mean() < 0.01  # both cut at the neck; they share out its middle, a tie, differently
    np.testing.assert_array_equal(found.ids > 0, labels > 0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_touching_balls_are_told_apart_by_their_probability(dims: int) -> None:
    labels, middles = touching(dims)
    seeds = sum(ball(labels.shape, middle, 4) for middle in middles)
    sure = gaussian_filter(np.asarray(seeds, float), 1.5)
    foreground = np.where(labels > 0, 0.55 + 0.4 * sure / sure.max(), 0.1)
    probabilities = np.stack([1 - foreground, foreground])
    found = watershed_by_probability(probabilities)
    assert [found.ids[middle] for middle in middles] == [1, 2]
    np.testing.assert_array_equal(found.ids > 0, labels > 0)
    assert len(watershed_by_probability(probabilities, depth=0.5).classes) == 1


def test_the_depth_is_what_the_way_between_two_peaks_goes_down() -> None:
    heights = np.array([0.6, 0.9, 0.7, 0.8, 0.6])  # 0.1 below the lower peak
    probabilities = np.stack([1 - heights, heights])
    assert watershed_by_probability(probabilities, depth=0.09).ids.tolist() == [1, 1, 1, 2, 2]
    assert watershed_by_probability(probabilities, depth=0.11).ids.tolist() == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("depth", [0.5, 5.0, 100.0])
def test_every_component_has_an_object_however_small(depth: float) -> None:
    labels, _ = touching(2)
    labels[0, 0] = labels[20, 30:32] = 1
    found = watershed_by_distance(labels, depth)
    assert len(found.classes) == (4 if depth < 1 else 3)
    np.testing.assert_array_equal(found.ids > 0, labels > 0)
    assert len(watershed_by_distance(labels, depth, min_size=2).classes) == len(found.classes) - 1


def test_classes_that_touch_are_never_one_object() -> None:
    labels, middles = touching(2)
    labels[:, 17:] *= 2
    found = watershed_by_distance(labels, depth=100)
    assert sorted(found.classes.tolist()) == [1, 2]
    assert all(found.classes[found.ids[middle] - 1] == labels[middle] for middle in middles)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1), (2, 3), (4, 2, 1)])
def test_an_image_of_one_class_is_one_object(shape: tuple[int, ...]) -> None:
    labels = np.ones(shape, np.int64)
    for found in (
        connected_components(labels),
        watershed_by_distance(labels),
        watershed_by_probability(one_hot(labels, 2)),
    ):
        assert (found.ids == 1).all()
        assert found.classes.tolist() == [1]


def test_distances_are_in_the_unit_of_the_spacing() -> None:
    labels, _ = touching(2)
    assert len(watershed_by_distance(labels, depth=5).classes) == 1
    assert len(watershed_by_distance(labels, depth=5, spacing=(10.0, 10.0)).classes) == 2


def test_what_cannot_be_is_refused() -> None:
    for connectivity in (0, 3):
        with pytest.raises(ValueError, match="expected 1 to 2 for 2-D"):
            connected_components(np.zeros((3, 3), int), connectivity)
    with pytest.raises(ValueError, match="depth is 0"):
        watershed_by_distance(np.zeros((3, 3), int), depth=0)
