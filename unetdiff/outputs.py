"""Samples as files: one picture of all, one file each, and everything as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unetdiff.data.formats import DataFormat, write_images
from unetdiff.figures import grid


def write_samples(
    folder: Path, samples: np.ndarray, format: DataFormat, labels: Sequence[int] | None, seeds: Sequence[int]
) -> None:
    """Write `grid.png`, `00000.png` and on, and `samples.npz` with `images`, `labels` and `seeds`.

    Args:
        folder: made when missing.
        samples: (N, *space, C) in the form of the training data, as `DataFormat.decode` returns them.
        format: images are written in the data's own form, signals as plots, volumes as slices.
        labels: one per sample; None is stored as -1. In the grid, samples of one class stand in a row.
        seeds: one per sample.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.full(len(samples), -1) if labels is None else np.asarray(labels)
    order = np.argsort(stored, kind="stable")
    counts = np.unique(stored, return_counts=True)[1]
    columns = int(counts[0]) if labels is not None and len(counts) > 1 and len(set(counts)) == 1 else None
    named = None if labels is None else stored[order].tolist()
    grid(samples[order], format, columns=columns, labels=named).save(folder / "grid.png")
    for stale in folder.glob("[0-9][0-9][0-9][0-9][0-9].*"):
        stale.unlink()  # of an earlier call with more samples
    if format.dims == 2:
        write_images(samples, format, folder)
    else:
        for index, sample in enumerate(samples):
            grid(sample[None], format).save(folder / f"{index:05d}.png")
    np.savez_compressed(folder / "samples.npz", images=samples, labels=stored, seeds=np.asarray(seeds))
