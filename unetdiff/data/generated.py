"""Small data sets that need no download: real handwritten digits, generated waveforms and volumes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from unetdiff.data.images import resize
from unetdiff.data.order import keys, uniforms
from unetdiff.data.records import Arrays
from unetdiff.data.splits import Splits

if TYPE_CHECKING:
    from unetdiff.config import DataConfig

DIGIT_SHARES = {"train": (0.0, 0.75), "validation": (0.75, 0.8), "test": (0.8, 1.0)}
"""Which part of each digit's scans, in a fixed shuffled order, belongs to a split."""

COUNTS = {"train": 2000, "validation": 200, "test": 200}
"""Samples of a generated data set."""

SIGNAL_LENGTH = 64
VOLUME_LENGTH = 16


def digits(settings: DataConfig) -> Splits:
    """The 1,797 8x8 scans of scikit-learn's digits at 16x16, uint8 0 ... 255, 1 channel, ten classes.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    return {split: partial(_digits, split) for split in DIGIT_SHARES}


def _digits(split: str) -> Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("data.source digits needs scikit-learn; pip install 'unetdiff[demo]'.") from error
    scans, labels = (np.asarray(part) for part in load_digits(return_X_y=True))  # (1797, 64) of 0 ... 16
    order = np.argsort(keys(0, "digits", np.arange(len(labels))))
    first, last = DIGIT_SHARES[split]
    chosen = []
    for label in range(10):
        members = order[labels[order] == label]
        chosen.append(members[round(first * len(members)) : round(last * len(members))])
    indices = np.sort(np.concatenate(chosen))
    pixels = np.rint(scans[indices].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    samples = np.stack([resize(scan, (16, 16)) for scan in pixels])
    return Arrays(samples, labels[indices], tuple(map(str, range(10))), "scikit-learn digits")


WAVEFORMS = {
    "sine": lambda turn: np.sin(2 * np.pi * turn),
    "square": lambda turn: np.where(turn % 1 < 0.5, 1.0, -1.0),
    "sawtooth": lambda turn: 2 * (turn % 1) - 1,
    "triangle": lambda turn: 4 * np.abs(turn % 1 - 0.5) - 1,
}
"""One period of each class over turn = 0 ... 1, with values -1 ... 1."""


def waveforms(settings: DataConfig) -> Splits:
    """Signals of 64 samples, 1 channel, float32: four shapes of random phase, 1 to 4 periods, amplitude
    0.5 to 1; a sample is a function of its split and index."""
    return {split: partial(_waveforms, split) for split in COUNTS}


def _waveforms(split: str) -> Arrays:
    index = np.arange(COUNTS[split])
    phase, frequency, amplitude = (
        uniforms(0, f"waveforms {split} {quantity}", index)[:, None] for quantity in ("phase", "frequency", "amplitude")
    )
    turns = phase + (1 + 3 * frequency) * np.arange(SIGNAL_LENGTH) / SIGNAL_LENGTH
    labels = index % len(WAVEFORMS)
    signals = np.choose(labels[:, None], [shape(turns) for shape in WAVEFORMS.values()])
    signals = (0.5 + 0.5 * amplitude) * signals
    return Arrays(signals[..., None].astype(np.float32), labels, tuple(WAVEFORMS), "waveforms")


def blobs(settings: DataConfig) -> Splits:
    """Volumes of 16^3 voxels, 1 channel, float32: one, two or three Gaussian balls, in different octants.

    A ball has height 1, radius (standard deviation) 1.2 to 2 voxels and a centre up to 1.5 voxels from its
    octant's; a sample is a function of its split and index.
    """
    return {split: partial(_blobs, split) for split in COUNTS}


def _blobs(split: str) -> Arrays:
    index = np.arange(COUNTS[split])
    labels = index % 3

    def draw(quantity: str, count: int) -> np.ndarray:
        numbers = index[:, None] * count + np.arange(count)
        return uniforms(0, f"blobs {split} {quantity}", numbers)  # (n, count)

    octants = np.argsort(draw("octant", 8), axis=1)[:, :3]
    corners = np.stack([octants // 4, octants // 2 % 2, octants % 2], axis=-1)  # (n, ball, axis) of 0 and 1
    jitter = 3 * draw("centre", 9).reshape(-1, 3, 3) - 1.5
    centres = VOLUME_LENGTH * (0.25 + 0.5 * corners) - 0.5 + jitter
    radii = 1.2 + 0.8 * draw("radius", 3)
    distance = (np.arange(VOLUME_LENGTH) - centres[..., None]) / radii[..., None, None]
    profile = np.exp(-0.5 * distance**2).astype(np.float32)  # (n, ball, axis, voxel); a ball is their product
    present = (np.arange(3) <= labels[:, None]).astype(np.float32)
    x, y, z = np.moveaxis(profile, 2, 0)
    volumes = np.einsum("nb,nbi,nbj,nbk->nijk", present, x, y, z, optimize=True)
    return Arrays(volumes[..., None], labels, ("one", "two", "three"), "blobs")
