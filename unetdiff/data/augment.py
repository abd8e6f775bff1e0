"""Random flips and crops of a batch; each sample's are a function of its position in the run alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetdiff.data.order import keys, uniforms


def crop_places(seed: int, positions: np.ndarray, dims: int) -> np.ndarray:
    """Where to cut samples larger than the training size: (n, dims) in [0, 1), for `Source.read`."""
    return np.stack([uniforms(seed, f"place {axis}", positions) for axis in range(dims)], axis=-1)


def random_flip(samples: np.ndarray, positions: np.ndarray, seed: int, axes: Sequence[int] = ()) -> np.ndarray:
    """Mirrors half of the samples (n, *space, C) along their last spatial axis (left-right for images).

    axes: mirror along each of these spatial axes instead, counted from 0, half of the samples each.
    """
    streams = {axis + 1: f"flip {axis}" for axis in axes} or {samples.ndim - 2: "flip"}
    for axis, stream in streams.items():
        flipped = keys(seed, stream, positions) % 2 == 1
        mask = flipped.reshape(-1, *[1] * (samples.ndim - 1))
        samples = np.where(mask, np.flip(samples, axis), samples)
    return samples


def random_shift(samples: np.ndarray, positions: np.ndarray, seed: int, pad: int) -> np.ndarray:
    """Pads samples (n, *space, C) by reflection and cuts the original shape from a random place.

    Args:
        samples: the batch.
        positions: (n,) positions in the run.
        seed: the seed of the run.
        pad: pixels added on either side of every spatial axis; a shift is uniform in -pad ... pad.
    """
    space = samples.shape[1:-1]
    padded = np.pad(samples, [(0, 0), *[(pad, pad)] * len(space), (0, 0)], mode="reflect")
    offsets = np.stack([keys(seed, f"shift {axis}", positions) % (2 * pad + 1) for axis in range(len(space))], axis=-1)
    windows = (
        sample[tuple(slice(o, o + length) for o, length in zip(offset, space, strict=True))]
        for sample, offset in zip(padded, offsets, strict=True)
    )
    return np.stack(list(windows))


def augment(
    samples: np.ndarray, positions: np.ndarray, *, seed: int, flip: bool | Sequence[int] = False, pad: int = 0
) -> np.ndarray:
    """Flips, then shifts, as the settings say; the same position gives the same result in any worker.

    Args:
        samples: (n, *space, C), any dtype; not changed.
        positions: (n,) positions in the run.
        seed: the seed of the run.
        flip: whether to mirror the last spatial axis at random, or the axes to mirror (`data.random_flip`).
        pad: see `random_shift` (`data.random_crop`).
    """
    if flip:
        samples = random_flip(samples, positions, seed, () if isinstance(flip, bool) else flip)
    return random_shift(samples, positions, seed, pad) if pad else samples
