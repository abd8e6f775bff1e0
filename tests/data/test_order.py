from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from unetdiff.data.order import StepBatchSampler, batch_indices, epoch_permutation, key, keys, uniforms


def test_keys_are_splitmix64():
    """The reference generator of Steele, Lea and Flood with Python's integers, from the same start."""
    from hashlib import blake2b

    mask = 2**64 - 1
    start = int.from_bytes(blake2b(b"7 noise", digest_size=8).digest(), "little")

    def reference(position: int) -> int:
        z = (start + (position + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) >> 1

    positions = [0, 1, 5, 10**12]
    assert keys(7, "noise", np.array(positions)).tolist() == [reference(p) for p in positions]


def test_keys_never_change():
    assert key(0, "noise", 0) == 6701635422994377792


def test_key_is_one_of_keys():
    many = keys(3, "flip", np.arange(100))
    assert many.dtype == np.int64
    assert [key(3, "flip", p) for p in range(100)] == many.tolist()
    assert (many >= 0).all()


def test_streams_seeds_and_positions_are_independent():
    base = uniforms(0, "a", np.arange(20_000))
    for other in (uniforms(0, "b", np.arange(20_000)), uniforms(1, "a", np.arange(20_000)), np.roll(base, 1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03
    assert len(np.unique(base)) == len(base)
    np.testing.assert_allclose(np.histogram(base, 10, (0, 1))[0], 2000, atol=250)


def test_epoch_permutation_is_one_and_differs_between_epochs():
    first, second = epoch_permutation(0, 0, 100), epoch_permutation(0, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any()
    assert (first != epoch_permutation(1, 0, 100)).any()
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


@pytest.mark.parametrize("batch_size", [4, 7, 25])
def test_batches_walk_through_epochs_without_a_gap(batch_size: int):
    steps = [batch_indices(5, step, batch_size, length=10) for step in range(30)]
    indices = np.concatenate([indices for indices, _ in steps])
    positions = np.concatenate([positions for _, positions in steps])
    np.testing.assert_array_equal(positions, np.arange(30 * batch_size))
    for epoch in range(len(indices) // 10):
        np.testing.assert_array_equal(indices[10 * epoch : 10 * epoch + 10], epoch_permutation(5, epoch, 10))


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 3)])
def test_ranks_and_micro_batches_join_to_the_global_batch(world_size: int, micro_batches: int):
    def taken(rank: int, start_step: int, steps: int) -> list[list[tuple[int, int]]]:
        sampler = StepBatchSampler(
            length=10,
            batch_size=12,
            seed=1,
            start_step=start_step,
            rank=rank,
            world_size=world_size,
            micro_batches=micro_batches,
        )
        return list(islice(sampler, steps * micro_batches))

    for step in range(3):
        joined = [pair for rank in range(world_size) for micro in taken(rank, step, 1) for pair in micro]
        indices, positions = batch_indices(1, step, 12, 10)
        assert joined == list(zip(indices, positions, strict=True))
    assert taken(0, 0, 3)[2 * micro_batches :] == taken(0, 2, 1)


def test_batch_size_must_divide():
    with pytest.raises(ValueError, match=r"train\.batch_size 10 .* multiple of 4 \(2 processes x 2"):
        StepBatchSampler(length=10, batch_size=10, seed=0, world_size=2, micro_batches=2)
    with pytest.raises(ValueError, match="empty"):
        StepBatchSampler(length=0, batch_size=10, seed=0)
