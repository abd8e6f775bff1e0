from __future__ import annotations

import numpy as np
import pytest

from unetdiff.data.augment import augment, crop_places, random_flip, random_shift

POSITIONS = np.arange(400)


def batch(dims: int) -> np.ndarray:
    """Samples that are all alike, with different values everywhere."""
    space = (6, 5, 4)[:dims]
    return np.tile(np.arange(np.prod(space)).reshape(1, *space, 1), (len(POSITIONS), *[1] * dims, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_flip_mirrors_half_of_the_samples_along_the_last_axis(dims: int):
    samples = batch(dims)
    flipped = random_flip(samples, POSITIONS, seed=0)
    mirrored = (flipped != samples).reshape(len(samples), -1).any(1)
    assert 0.4 < mirrored.mean() < 0.6
    np.testing.assert_array_equal(flipped[mirrored], np.flip(samples[mirrored], axis=-2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_shift_takes_every_offset_evenly(dims: int):
    samples = batch(dims)
    shifted = random_shift(samples, POSITIONS, seed=0, pad=1)
    assert shifted.shape == samples.shape
    padded = np.pad(samples[0], [(1, 1)] * dims + [(0, 0)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, samples.shape[1:]).reshape(-1, *samples.shape[1:])
    counts = [(shifted == window).reshape(len(samples), -1).all(1).sum() for window in windows]
    assert sum(counts) == len(samples)
    assert min(counts) > 0.3 * len(samples) / 3**dims


def test_each_sample_depends_on_its_position_alone():
    samples = np.random.default_rng(0).integers(0, 255, (len(POSITIONS), 6, 6, 1), np.uint8)
    whole = augment(samples, POSITIONS, seed=3, flip=True, pad=2)
    order = np.random.default_rng(1).permutation(len(POSITIONS))[:7]
    np.testing.assert_array_equal(augment(samples[order], POSITIONS[order], seed=3, flip=True, pad=2), whole[order])
    assert (augment(samples, POSITIONS, seed=4, flip=True, pad=2) != whole).any()
    assert (augment(samples, POSITIONS + 400, seed=3, flip=True, pad=2) != whole).any()


def test_nothing_asked_nothing_done():
    samples = batch(2)
    assert augment(samples, POSITIONS, seed=0) is samples


def test_crop_places_fill_the_square():
    places = crop_places(0, POSITIONS, dims=2)
    assert places.shape == (400, 2)
    counts = np.histogram2d(*places.T, bins=2, range=[[0, 1], [0, 1]])[0]
    assert counts.min() > 70
