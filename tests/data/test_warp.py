from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from unetdiff.data.mask_options import WarpConfig
from unetdiff.data.order import key
from unetdiff.data.warp import (
    affine_matrix,
    change_values,
    elastic_field,
    reach,
    resample,
    source_coordinates,
    warped_crop,
)
from unetdiff.segmentation.options import IGNORE

POSITIONS = np.arange(60)
EVERYTHING = WarpConfig(
    flips=[0, 1], quarter_turns="plane", rotation=20, scale=0.2, shear=5, elastic=2, gain=0.1, offset=0.1, gamma=0.2,
    noise=0.05,
)  # fmt: skip


def warp(samples, masks, positions, *, seed: int, settings: WarpConfig, low: float = 0, high: float = 1):
    """A batch of whole images, changed."""
    settings.check_size(masks.shape[1:])
    whole = tuple(slice(0, side) for side in masks.shape[1:])
    parts = [
        warped_crop(
            lambda window, sample=sample, mask=mask: (sample[window], mask[window]),
            mask.shape, whole, int(position), seed=seed, settings=settings,
        )
        for sample, mask, position in zip(samples, masks, positions, strict=True)
    ]  # fmt: skip
    samples, masks = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    return change_values(samples, positions, seed, settings, low, high), masks


def coordinates_batch(space: tuple[int, ...], n: int = len(POSITIONS)) -> tuple[np.ndarray, np.ndarray]:
    """Images whose channels are their positions along each axis, and masks that number the positions."""
    grid = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), axis=-1).astype(np.float32)
    numbers = np.arange(np.prod(space)).reshape(space)
    return np.tile(grid, (n, *[1] * grid.ndim)), np.tile(numbers, (n, *[1] * len(space)))


@pytest.mark.parametrize("space", [(6,), (5, 5), (3, 4, 4)])
def test_flips_and_turns_move_image_and_mask_alike(space: tuple[int, ...]):
    samples, masks = coordinates_batch(space)
    settings = WarpConfig(flips=list(range(len(space))), quarter_turns="none" if len(space) == 1 else "plane")
    moved, labels = warp(samples, masks, POSITIONS, seed=0, settings=settings)
    numbers = np.ravel_multi_index(np.moveaxis(moved.astype(int), -1, 0), space)
    np.testing.assert_array_equal(numbers, labels)
    assert len({label.tobytes() for label in labels}) == {1: 2, 2: 8, 3: 16}[len(space)]  # the whole symmetry group


def test_flips_touch_the_named_axis_half_of_the_time():
    samples, masks = coordinates_batch((4, 5), 400)
    moved, _ = warp(samples, masks, np.arange(400), seed=0, settings=WarpConfig(flips=[1]))
    np.testing.assert_array_equal(moved[..., 0], samples[..., 0])
    assert 0.4 < (moved[:, 0, 0, 1] == 4).mean() < 0.6


def test_all_planes_turn_a_cube_into_its_24_orientations():
    samples, masks = coordinates_batch((3, 3, 3), 600)
    _, labels = warp(samples, masks, np.arange(600), seed=0, settings=WarpConfig(quarter_turns="all"))
    assert len({label.tobytes() for label in labels}) == 24


@pytest.mark.parametrize("space", [(40,), (24, 30), (10, 16, 12)])
@pytest.mark.parametrize("fill", ["reflect", "ignore"])
def test_masks_are_nearest_where_images_are_linear(space: tuple[int, ...], fill):
    """Linear interpolation is exact on coordinates, so the image says where each result came from."""
    samples, masks = coordinates_batch(space, 5)
    turning = {} if len(space) == 1 else {"rotation": 30.0, "shear": 5.0}
    settings = WarpConfig(**turning, scale=0.3, elastic=1.5, fill=fill)
    moved, labels = warp(samples, masks, np.arange(5), seed=1, settings=settings)
    left = 0
    for position in range(5):
        source = source_coordinates(space, position, 1, settings)
        last = np.array(space).reshape(-1, *[1] * len(space)) - 1
        inside = ((source >= 0) & (source <= last)).all(0)
        assert inside.mean() > 0.3
        np.testing.assert_allclose(moved[position][inside], np.moveaxis(source, 0, -1)[inside], atol=1e-4)
        nearest = np.ravel_multi_index(np.rint(source[:, inside]).astype(int), space)
        np.testing.assert_array_equal(labels[position][inside], nearest)
        outside = ((np.rint(source) < 0) | (np.rint(source) > last)).any(0)
        assert ((labels[position] == IGNORE) == (outside & (fill == "ignore"))).all()
        left += outside.sum()
    assert left > 0
    assert np.isfinite(moved).all()


def test_a_quarter_of_a_turn_by_coordinates_is_rot90():
    sample, mask = (part[0] for part in coordinates_batch((5, 5), 1))
    grid = np.stack(np.meshgrid(*[np.arange(5) - 2.0] * 2, indexing="ij"))
    coordinates = np.tensordot([[0, 1], [-1, 0]], grid, axes=1) + 2
    turned, labels = resample(sample, mask, coordinates=coordinates)
    np.testing.assert_allclose(turned, np.rot90(sample, 1))
    np.testing.assert_array_equal(labels, np.rot90(mask, 1))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_affine_maps_stay_in_their_bounds(dims: int):
    settings = WarpConfig(scale=0.25) if dims == 1 else WarpConfig(scale=0.25, rotation=30)
    matrices = np.stack([affine_matrix(dims, position, 0, settings) for position in range(300)])
    scales = np.linalg.det(matrices) ** (1 / dims)
    assert 0.8 <= scales.min() < 0.82
    assert 1.22 < scales.max() <= 1.25
    orthogonal = matrices / scales[:, None, None]
    np.testing.assert_allclose(orthogonal @ orthogonal.swapaxes(1, 2), np.tile(np.eye(dims), (300, 1, 1)), atol=1e-12)
    if dims > 1:
        angles = np.degrees(np.arctan2(orthogonal[:, -1, -2], orthogonal[:, -1, -1]))
        assert -30 <= angles.min() < -28
        assert 28 < angles.max() <= 30
    if dims == 3:
        np.testing.assert_allclose(orthogonal[:, 0], np.tile([1.0, 0, 0], (300, 1)))


@pytest.mark.parametrize("shape", [(9,), (9, 13), (5, 7, 9)])
def test_elastic_field_is_the_cubic_spline_of_the_grid(shape: tuple[int, ...]):
    coarse = np.random.default_rng(0).normal(0, 10, (len(shape), *[3] * len(shape)))
    places = np.stack(np.meshgrid(*[np.linspace(0, 2, side) for side in shape], indexing="ij"))
    expected = np.stack([map_coordinates(one, places, order=3, mode="mirror") for one in coarse])
    field = elastic_field(coarse, shape)
    np.testing.assert_allclose(field, expected, atol=1e-10)
    corners = field[(slice(None), *[slice(None, None, (side - 1) // 2) for side in shape])]
    np.testing.assert_allclose(corners, coarse, atol=1e-10)  # the grid's points are met


def test_elastic_displacements_have_the_stated_deviation():
    settings = WarpConfig(elastic=10)
    still = source_coordinates((3, 3), 0, 0, WarpConfig())
    moves = np.stack([source_coordinates((3, 3), position, 0, settings) - still for position in range(500)])
    assert abs(moves.mean()) < 0.3
    assert abs(moves.std() - 10) < 0.2


def test_each_sample_depends_on_its_position_alone():
    draw = np.random.default_rng(0)
    samples, masks = draw.integers(0, 255, (12, 8, 8, 2), np.uint8), draw.integers(-1, 3, (12, 8, 8))
    positions = np.arange(12)
    copies = samples.copy(), masks.copy()
    whole = warp(samples, masks, positions, seed=3, settings=EVERYTHING, low=0, high=255)
    np.testing.assert_array_equal(samples, copies[0])
    np.testing.assert_array_equal(masks, copies[1])
    some = np.array([7, 2, 9])
    part = warp(samples[some], masks[some], positions[some], seed=3, settings=EVERYTHING, low=0, high=255)
    for one, other in zip(part, whole, strict=True):
        np.testing.assert_array_equal(one, other[some])
    assert (warp(samples, masks, positions, seed=4, settings=EVERYTHING, high=255)[0] != whole[0]).any()
    assert (warp(samples, masks, positions + 12, seed=3, settings=EVERYTHING, high=255)[0] != whole[0]).any()
    assert set(np.unique(whole[1])) <= {-1, 0, 1, 2}
    assert (whole[0].dtype, whole[1].dtype) == (np.float32, np.int64)


def test_nothing_asked_nothing_done():
    samples, masks = coordinates_batch((4, 5), 3)
    samples = samples.astype(np.uint8)
    kept, labels = warp(samples, masks, np.arange(3), seed=0, settings=WarpConfig())
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, samples)
    np.testing.assert_array_equal(labels, masks)


def test_gain_offset_and_gamma_follow_their_formula():
    samples = np.array([0, 51, 255], np.uint8).reshape(1, 3, 1)
    masks = np.zeros((1, 3), np.int64)
    for position in range(20):
        at = np.array([position])
        values = warp(samples, masks, at, seed=0, settings=WarpConfig(gamma=0.5), low=0, high=255)[0].ravel()
        np.testing.assert_allclose(values[[0, 2]], [0, 255], atol=1e-3)
        exponent = np.log(values[1] / 255) / np.log(0.2)
        assert 1 / 1.5 <= exponent <= 1.5
        settings = WarpConfig(gain=0.5, offset=0.2)
        low, middle, high = warp(samples, masks, at, seed=0, settings=settings, low=0, high=255)[0].ravel()
        assert abs(low) <= 51
        assert 1 / 1.5 <= (high - low) / 255 <= 1.5
        np.testing.assert_allclose(middle - low, 0.2 * (high - low), rtol=1e-4)


def test_noise_is_measured_in_the_range_of_the_data():
    samples, masks = np.full((300, 16, 16, 1), 0.5, np.float32), np.zeros((300, 16, 16), np.int64)
    noisy, _ = warp(samples, masks, np.arange(300), seed=0, settings=WarpConfig(noise=0.1), low=-1, high=3)
    deviations = (noisy - samples).std(axis=(1, 2, 3)) / 4
    assert 0.095 < deviations.max() < 0.11
    assert abs(deviations.mean() - 0.05) < 0.005


@pytest.mark.parametrize(
    "space, settings, expected",
    [
        ((4, 5), WarpConfig(quarter_turns="plane"), "expected equal sides along axes 0 and 1"),
        ((3, 4, 4), WarpConfig(quarter_turns="all"), "expected equal sides along axes 0 and 1"),
        ((8,), WarpConfig(rotation=5), "1-D data lack"),
        ((8,), WarpConfig(flips=[1]), "axes below 1"),
    ],
)
def test_what_the_data_cannot_do_is_said(space: tuple[int, ...], settings: WarpConfig, expected: str):
    with pytest.raises(ValueError, match=expected):
        warp(*coordinates_batch(space, 2), np.arange(2), seed=0, settings=settings)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"fill": "ignore"},
            r"data\.augment\.fill is 'ignore', .* without data\.augment\.rotation, scale, shear or elastic",
        ),
        ({"elastic_grid": 5, "rotation": 3}, r"data\.augment\.elastic_grid is 5, .* without data\.augment\.elastic"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(changes: dict, expected: str):
    with pytest.raises(ValueError, match=expected):
        WarpConfig(**changes)


@pytest.mark.parametrize("changes", [{"shear": 90.0}, {"flips": [3]}, {"noise": -1.0}, {"elastic_grid": 1}])
def test_settings_out_of_range_are_refused(changes: dict):
    with pytest.raises(ValueError):
        WarpConfig(**changes)


def test_one_pixel_does_not_crash():
    samples, masks = np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1), np.int64)
    moved, labels = warp(samples, masks, np.array([key(0, "any", 0) % 1000]), seed=0, settings=EVERYTHING)
    assert np.isfinite(moved).all()
    assert labels.item() == 1


@pytest.mark.parametrize("corner", [(0, 0), (7, 9), (20, 30), (3, 30)])
@pytest.mark.parametrize("fill", ["reflect", "ignore"])
def test_what_moves_into_a_crop_is_what_lies_beside_it_in_the_image(corner: tuple[int, int], fill):
    """A crop is what resampling the whole image gives there, though only a window of it is read."""
    sample, mask = (part[0] for part in coordinates_batch((40, 50), 1))
    settings = WarpConfig(rotation=40, scale=0.3, shear=10, elastic=3, fill=fill)
    crop = tuple(slice(start, start + side) for start, side in zip(corner, (20, 20), strict=True))
    read: list[int] = []

    def window(part):
        read.append(mask[part].size)
        return sample[part], mask[part]

    for position in range(8):
        found = warped_crop(window, (40, 50), crop, position, seed=0, settings=settings)
        coordinates = source_coordinates((20, 20), position, 0, settings) + np.array(corner).reshape(2, 1, 1)
        expected = resample(sample, mask, coordinates=coordinates, fill=fill)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
        np.testing.assert_array_equal(found[1], expected[1])
    assert min(read) < mask.size


def test_reach_covers_reflections_but_no_more():
    assert reach(np.array([[3.2, 5.5]]), (10,)) == (slice(3, 7),)
    assert reach(np.array([[-4.5, 2]]), (10,)) == (slice(0, 6),)  # -4.5 is reflected to 4.5
    assert reach(np.array([[8.5, 12]]), (10,)) == (slice(6, 10),)  # 12 is reflected to 6
    assert reach(np.array([[-50, 2.0]]), (10,)) == (slice(0, 10),)


@pytest.mark.parametrize("space", [(40,), (16, 16), (8, 12, 12)])
@pytest.mark.parametrize("fill", ["reflect", "ignore"])
def test_weights_stay_with_their_labels(space: tuple[int, ...], fill):
    """Every position has a weight of its own, which says where its label must have come from."""
    samples, masks = coordinates_batch(space, 6)
    turning = {} if len(space) == 1 else {"rotation": 30.0, "quarter_turns": "plane"}
    settings = WarpConfig(**turning, flips=[0], scale=0.3, elastic=1.5, fill=fill)
    weights = (masks[0] + 2).astype(np.float32)
    whole = tuple(slice(0, side) for side in space)
    moved = set()
    for position in range(6):
        _, labels, found = warped_crop(
            lambda window: (samples[0][window], masks[0][window], weights[window]),
            space, whole, position, seed=0, settings=settings,
        )  # fmt: skip
        np.testing.assert_array_equal(found, np.where(labels == IGNORE, 1, labels + 2))
        assert found.dtype == np.float32
        moved.add(found.tobytes())
    assert len(moved) == 6
