"""The order of training samples, and every per-sample random number, as pure functions of a seed.

A run counts its samples: sample i of global batch s of size B has position p = s B + i. Position p
belongs to epoch p // length and takes entry p % length of that epoch's permutation. Whatever is random
about a sample (flip, crop, noise, timestep) is drawn from `key(seed, stream, p)`, so it depends neither
on the number of processes or workers nor on where a run was interrupted. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The odd 64-bit number nearest 2**64 over the golden ratio: the increment of SplitMix64."""


def _mix(state: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of uint64 arrays."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def keys(seed: int, stream: str, positions: np.ndarray) -> np.ndarray:
    """Independent 63-bit numbers, one per position.

    Args:
        seed: the seed of the run.
        stream: what the numbers are for ("noise", "flip", ...); streams are independent of each other.
        positions: integers of any shape.

    Returns:
        int64, the shape of `positions`, values in [0, 2**63); the same in every process and version.
    """
    digest = blake2b(f"{seed} {stream}".encode(), digest_size=8).digest()
    start = np.uint64(int.from_bytes(digest, "little"))
    counters = np.asarray(positions).astype(np.uint64) + np.uint64(1)
    return (_mix(start + counters * GOLDEN) >> np.uint64(1)).astype(np.int64)


def key(seed: int, stream: str, position: int) -> int:
    """`keys` for one position: a 63-bit integer, fit for `torch.Generator.manual_seed`."""
    return int(keys(seed, stream, np.array([position]))[0])


def uniforms(seed: int, stream: str, positions: np.ndarray) -> np.ndarray:
    """`keys` as float64 numbers in [0, 1), with all 53 bits random."""
    return (keys(seed, stream, positions) >> 10) * 2.0**-53


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of an epoch: a read-only int64 permutation of range(length), sorted by random keys."""
    permutation = np.argsort(keys(seed, f"epoch {epoch}", np.arange(length)), kind="stable")
    permutation.flags.writeable = False
    return permutation


def indices_at(seed: int, positions: np.ndarray, length: int) -> np.ndarray:
    """The samples that a run has at positions (n,) in ascending order: int64 (n,), in range(length)."""
    indices = np.empty(len(positions), dtype=np.int64)
    for epoch in range(int(positions[0]) // length, int(positions[-1]) // length + 1):
        inside = positions // length == epoch
        indices[inside] = epoch_permutation(seed, epoch, length)[positions[inside] % length]
    return indices


def batch_indices(seed: int, step: int, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples of one global batch.

    Epochs follow each other without a gap, so a batch may span several and none is ever short.

    Args:
        seed: the seed of the run.
        step: which optimizer step, counted from 0.
        batch_size: samples per step over all processes.
        length: samples in the data set.

    Returns:
        indices into the data set and positions in the run, both int64 of shape (batch_size,).
    """
    positions = step * batch_size + np.arange(batch_size)
    return indices_at(seed, positions, length), positions


@dataclass(frozen=True, kw_only=True)
class StepBatchSampler:
    """The endless batches of one process, as lists of (index, position); see the module's docstring.

    Process r of R takes the contiguous slice [r B/R, (r+1) B/R) of each global batch and cuts it into
    `micro_batches` equal parts, so that any R and any accumulation see the same global batches.

    Args:
        length: samples in the data set.
        batch_size: the global batch size B.
        seed: the seed of the run.
        start_step: the first step to yield.
        rank, world_size: r and R.
        micro_batches: batches yielded per step.

    Raises:
        ValueError: the data set is empty, or B is no multiple of R times `micro_batches`.
    """

    length: int
    batch_size: int
    seed: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("The data set is empty; expected at least one sample to train on.")
        parts = self.world_size * self.micro_batches
        if self.batch_size < 1 or self.batch_size % parts:
            raise ValueError(
                f"train.batch_size {self.batch_size} is the global batch; expected a positive multiple of "
                f"{parts} ({self.world_size} processes x {self.micro_batches} micro-batches)."
            )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        micro = share // self.micro_batches
        step = self.start_step
        while True:
            indices, positions = batch_indices(self.seed, step, self.batch_size, self.length)
            pairs = list(zip(indices.tolist(), positions.tolist(), strict=True))
            for first in range(self.rank * share, (self.rank + 1) * share, micro):
                yield pairs[first : first + micro]
            step += 1
