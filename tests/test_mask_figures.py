"""Pictures of masks: which position gets which colour, and how planes become a table."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageColor

from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import class_colours
from unetdiff.figures import COLOURS, PANEL
from unetdiff.mask_figures import (
    LARGEST_PLANE,
    TRACK_HEIGHT,
    VOID,
    case_captions,
    case_planes,
    entropy_plane,
    most_wrong_slice,
    panels,
)
from unetdiff.segmentation.options import IGNORE

WRONG, RIGHT = ImageColor.getrgb(COLOURS[1]), ImageColor.getrgb(PANEL)


def format_of(dims: int) -> DataFormat:
    return DataFormat(dims=dims, channels=1, dtype="uint8", low=0, high=255)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Certain probabilities (K, *space) float32."""
    return np.moveaxis(np.eye(classes, dtype=np.float32)[labels], -1, 0)


def planes(truth: np.ndarray, found: np.ndarray, place: int | None = None) -> list[np.ndarray]:
    """The planes of a sample whose image is its truth times 80."""
    image = (80 * truth.clip(min=0)).astype(np.uint8)[..., None]
    return case_planes(image, truth, one_hot(found, 3), format_of(truth.ndim), class_colours(3), place)


def test_every_plane_says_what_it_should() -> None:
    truth, found = np.array([[0, 1], [2, IGNORE]]), np.array([[0, 2], [2, 1]])
    image, true, predicted, error, entropy = planes(truth, found)
    colours = class_colours(3)
    assert image[..., 0].tolist() == [[0, 80], [160, 0]]
    np.testing.assert_array_equal(true, [[colours[0], colours[1]], [colours[2], VOID]])
    np.testing.assert_array_equal(predicted, colours[found])
    np.testing.assert_array_equal(error, [[RIGHT, WRONG], [RIGHT, VOID]])
    assert len(np.unique(entropy.reshape(-1, 3), axis=0)) == 1  # certain everywhere


def test_entropy_goes_from_certain_to_no_class_likelier() -> None:
    probabilities = np.array([[[1, 1 / 3, 0.5]], [[0, 1 / 3, 0.5]], [[0, 1 / 3, 0]]])
    shares = [0, 1, np.log(2) / np.log(3)]
    expected = [matplotlib.colormaps["viridis"](round(255 * share), bytes=True)[:3] for share in shares]
    np.testing.assert_array_equal(entropy_plane(probabilities)[0], expected)
    assert case_captions(3)[-1] == "entropy\n0 to 1.10 nats"


def test_a_volume_shows_the_slice_that_is_asked_for() -> None:
    truth = np.zeros((5, 4, 3), int)
    found = truth.copy()
    assert most_wrong_slice(found, truth) == 2
    truth[0] = IGNORE
    found[0], found[3, :2], found[4, 0, 0] = 1, 1, 2
    assert most_wrong_slice(found, truth) == 3
    error = planes(truth, found, place=3)[3]
    np.testing.assert_array_equal((error == WRONG).all(-1), found[3] == 1)
    assert (planes(truth, found)[3] == RIGHT).all()  # the middle one


def test_large_images_are_averaged_down_and_thin_errors_stay() -> None:
    truth = np.zeros((2000, 1000), int)
    found = truth.copy()
    found[1003] = 1
    shown = planes(truth, found)
    assert {plane.shape for plane in shown} == {(LARGEST_PLANE, LARGEST_PLANE // 2, 3)}
    lines = np.unique(np.nonzero(shown[3] != RIGHT)[0])
    assert len(lines) == 1
    assert abs(lines[0] / LARGEST_PLANE - 1003 / 2000) < 0.01


def test_signals_keep_the_height_of_their_band() -> None:
    labels = np.zeros(5000, int)
    assert {plane.shape for plane in planes(labels, labels)} == {(TRACK_HEIGHT, LARGEST_PLANE, 3)}


@pytest.mark.parametrize("size, across", [((32, 32), True), ((700, 400), True), ((24, 512), False), ((1, 1), True)])
def test_panels_hold_every_plane(size: tuple[int, int], across: bool) -> None:
    """Side by side, or one below another where they are wide; each colour takes as many pixels as its plane."""
    rows = [[np.full((*size, 3), 20 * (5 * row + column + 1), np.uint8) for column in range(5)] for row in range(2)]
    picture = np.asarray(panels(rows, case_captions(3)))
    places = [np.nonzero((picture == row[column][0, 0]).all(-1)) for row in rows for column in range(5)]
    scale = (np.ptp(places[0][1]) + 1) / size[1]
    assert scale == int(scale) >= 1
    assert {len(place[0]) for place in places} == {int(scale**2 * size[0] * size[1])}
    assert len({place[1].min() for place in places}) == (5 if across else 1)
    assert len({place[0].min() for place in places}) == (2 if across else 10)


def test_planes_of_different_sizes_make_one_table() -> None:
    rows = [[np.zeros((10, 20, 3), np.uint8)] * 5, [np.zeros((30, 12, 3), np.uint8)] * 5]
    assert isinstance(panels(rows, case_captions(2)), Image.Image)
