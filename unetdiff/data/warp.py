"""Random changes of images and masks together; each sample's are a function of its position in the run alone.

Images are interpolated linearly and reflected outside of their borders; masks take the nearest position, and weights
that of their mask, so that every label keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from unetdiff.data.mask_options import WarpConfig
from unetdiff.data.order import key, keys, uniforms
from unetdiff.segmentation.options import IGNORE

Arrays = tuple[np.ndarray, ...]
"""One sample (*space, C), its mask (*space) and, where there are any, the weights of its positions (*space)."""

Window = tuple[slice, ...]
"""A part of an image, along each of its axes."""


def warped_crop(
    read: Callable[[Window], Arrays],
    space: tuple[int, ...],
    crop: Window,
    position: int,
    *,
    seed: int,
    settings: WarpConfig,
) -> Arrays:
    """One crop with everything done that moves positions; what is around it in the image moves in.

    Args:
        read: gives any window of an image (*space, C), of its mask and, where there are any, of its weights.
        space: spatial shape of the image.
        crop: where the crop lies.
        position: in the run; the same one gives the same result in any worker.
        seed: the seed of the run.
        settings: which changes, and how strong; `check_size` has passed the crop.

    Returns:
        sample (*size, C), float32 where it is interpolated and as read otherwise; mask, int64 (*size); weights as read.
    """
    if settings.moves:
        size = tuple(part.stop - part.start for part in crop)
        coordinates = source_coordinates(size, position, seed, settings) + _corner(crop)
        window = reach(coordinates, space)
        parts = resample(*read(window), coordinates=coordinates - _corner(window), fill=settings.fill)
    else:
        parts = read(crop)
    return _turn(_flip(parts, position, seed, settings.flips), position, seed, settings)


def _corner(window: Window) -> np.ndarray:
    """The first position of a window, to be added to coordinates: (dims, 1, ..., 1)."""
    return np.array([part.start for part in window]).reshape(-1, *[1] * len(window))


def reach(coordinates: np.ndarray, space: tuple[int, ...]) -> Window:
    """The smallest window of an image from which all `coordinates` (dims, *shape) can be resampled by reflection."""
    window = []
    for along, length in zip(coordinates, space, strict=True):
        first, last = int(np.floor(along.min())), int(np.ceil(along.max()))
        if first < 0:
            last = max(last, -first)
        if last >= length:
            first = min(first, 2 * (length - 1) - last)
        window.append(slice(max(first, 0), min(last, length - 1) + 1))
    return tuple(window)


def _flip(parts: Arrays, position: int, seed: int, flips: list[int]) -> Arrays:
    axes = tuple(axis for axis in flips if key(seed, f"flip {axis}", position) % 2)
    return tuple(np.flip(part, axes) for part in parts)


def _turn(parts: Arrays, position: int, seed: int, settings: WarpConfig) -> Arrays:
    """0 to 3 quarter turns, one after the other in each of the planes."""
    for plane in settings.planes(parts[1].ndim):
        count = key(seed, f"quarter turns {plane}", position) % 4
        parts = tuple(np.rot90(part, count, plane) for part in parts)
    return parts


def source_coordinates(shape: tuple[int, ...], position: int, seed: int, settings: WarpConfig) -> np.ndarray:
    """Where each position of the result comes from: float64 (dims, *shape), in pixels.

    An affine map about the centre, then the elastic displacements.
    """
    centre = (np.array(shape) - 1) / 2
    grid = np.stack(
        np.meshgrid(*[np.arange(side) - middle for side, middle in zip(shape, centre, strict=True)], indexing="ij")
    )
    matrix = affine_matrix(len(shape), position, seed, settings)
    coordinates = np.tensordot(matrix, grid, axes=1) + centre.reshape(-1, *[1] * len(shape))
    if settings.elastic:
        draw = np.random.Generator(np.random.PCG64(key(seed, "elastic", position)))
        coarse = draw.normal(0, settings.elastic, (len(shape), *[settings.elastic_grid] * len(shape)))
        coordinates += elastic_field(coarse, shape)
    return coordinates


def affine_matrix(dims: int, position: int, seed: int, settings: WarpConfig) -> np.ndarray:
    """From positions in the result to those in the source, about the centre: float64 (dims, dims).

    All axes are scaled alike; the last two are sheared along each other, then rotated.
    """

    def draw(name: str, most: float) -> float:
        return most * (2 * float(uniforms(seed, name, np.array([position]))[0]) - 1)

    matrix = np.eye(dims)
    if dims > 1:
        shears = [np.tan(np.radians(draw(f"shear {axis}", settings.shear))) for axis in range(2)]
        angle = np.radians(draw("rotation", settings.rotation))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix[-2:, -2:] = turn @ np.array([[1, shears[0]], [0, 1]]) @ np.array([[1, 0], [shears[1], 1]])
    return matrix / np.exp(draw("scale", np.log1p(settings.scale)))


def elastic_field(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Displacements at every position from those on a coarse grid, by cubic splines (bicubic in 2-D).

    Ronneberger et al. (2015), section 3.1: a 3x3 grid of normal displacements with a standard deviation of 10 pixels.

    Args:
        coarse: (dims, g, ..., g), in pixels; the outer points of the grid lie on the borders.
        shape: (*space).

    Returns:
        float64 (dims, *space).
    """
    field = coarse
    for axis, side in enumerate(shape):  # splines of several axes are products
        field = np.moveaxis(np.tensordot(_spline(coarse.shape[1], side), field, axes=(1, axis + 1)), 0, axis + 1)
    return field


@lru_cache(maxsize=16)
def _spline(points: int, side: int) -> np.ndarray:
    """Cubic spline through `points` values as a matrix (side, points); the ends are reflected."""
    from scipy.ndimage import map_coordinates

    places = np.linspace(0, points - 1, side)[None]
    columns = [map_coordinates(unit, places, order=3, mode="mirror") for unit in np.eye(points)]
    return np.stack(columns, axis=-1)


def resample(
    sample: np.ndarray, mask: np.ndarray, *weights: np.ndarray, coordinates: np.ndarray, fill: str = "reflect"
) -> Arrays:
    """An image and a mask, and weights, at other positions: linear, and nearest.

    Args:
        sample: (*space, C). mask: (*space). weights: (*space).
        coordinates: (dims, *shape), in pixels; see `source_coordinates`.
        fill: `reflect` or `ignore`, of the mask outside of its borders; the image is reflected.

    Returns:
        sample float32 (*shape, C), mask int64 (*shape), and weights (*shape), 1 where the mask is continued by IGNORE.
    """
    from scipy.ndimage import map_coordinates

    channels = [
        map_coordinates(channel, coordinates, np.float32, order=1, mode="mirror")
        for channel in np.moveaxis(sample, -1, 0)
    ]
    nearest = np.rint(coordinates)  # before the border is looked at, so that it is where the outermost pixels end
    outside = {"reflect": "mirror", "ignore": "constant"}[fill]
    labels = map_coordinates(mask, nearest, np.int64, order=0, mode=outside, cval=IGNORE)
    theirs = [map_coordinates(each, nearest, np.float32, order=0, mode=outside, cval=1) for each in weights]
    return np.stack(channels, axis=-1), labels, *theirs


def change_values(
    samples: np.ndarray, positions: np.ndarray, seed: int, settings: WarpConfig, low: float, high: float
) -> np.ndarray:
    """Gain, offset, gamma and noise, the same for all channels but the noise; see `WarpConfig`.

    Returns:
        float32 (n, *space, C) where anything was asked for, else `samples`.
    """
    if not (settings.gain or settings.offset or settings.gamma or settings.noise):
        return samples
    shape = (-1, *[1] * (samples.ndim - 1))

    def draw(name: str, most: float) -> np.ndarray:
        return (most * (2 * uniforms(seed, name, positions) - 1)).reshape(shape).astype(np.float32)

    share = ((samples.astype(np.float32) - np.float32(low)) / np.float32(high - low)).clip(0, 1)
    share = np.exp(draw("gain", np.log1p(settings.gain))) * share ** np.exp(draw("gamma", np.log1p(settings.gamma)))
    share += draw("offset", settings.offset)
    if settings.noise:
        strengths = settings.noise * uniforms(seed, "noise strength", positions).reshape(shape)
        share += (strengths * _normals(samples.shape, positions, seed)).astype(np.float32)
    return share * np.float32(high - low) + np.float32(low)


def _normals(shape: tuple[int, ...], positions: np.ndarray, seed: int) -> np.ndarray:
    """Standard normal numbers, those of each sample from its position."""
    draws = [
        np.random.Generator(np.random.PCG64(number)).standard_normal(shape[1:], np.float32)
        for number in keys(seed, "pixel noise", positions).tolist()
    ]
    return np.stack(draws)
