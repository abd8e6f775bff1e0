"""Sets of masks beside hand-computed cases, plain enumeration and the transport problem as a linear program."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import jaccard_score

from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.samples import (
    MaskDistances,
    annotator_counts,
    classify_annotator,
    generalized_energy_distance,
    hungarian_iou,
    iou_distances,
    spread_note,
    vote_entropy,
)

EMPTY, LEFT, BOTH = [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]


def masks(count: int, seed: int, classes: int = 3, shape: tuple[int, ...] = (5, 6)) -> torch.Tensor:
    """Random masks, of which the last class is in some alone."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randint(classes, (count, *shape), generator=draw)
    found[::2][found[::2] == classes - 1] = 0
    return found


def plain_distance(one: torch.Tensor, other: torch.Tensor, classes: int) -> float:
    """scikit-learn's IoU of each class but 0, 1 where neither has it."""
    labels = list(range(1, classes))
    ious = jaccard_score(one.ravel().numpy(), other.ravel().numpy(), labels=labels, average=None, zero_division=1.0)  # pyright: ignore[reportArgumentType]
    return 1 - float(np.mean(ious))


def mean_of_pairs(left: torch.Tensor, right: torch.Tensor, classes: int, same: bool = True) -> float:
    pairs = [
        plain_distance(one, other, classes)
        for (i, one), (j, other) in itertools.product(enumerate(left), enumerate(right))
        if same or i != j
    ]
    return sum(pairs) / len(pairs)


def test_scikit_learn_agrees_on_distances() -> None:
    left, right = masks(4, 0), masks(3, 1)
    expected = [[plain_distance(one, other, 3) for other in right] for one in left]
    np.testing.assert_allclose(iou_distances(left, right, 3).numpy(), expected, atol=1e-12)


def test_distances_by_hand() -> None:
    few = torch.tensor([EMPTY, LEFT, BOTH])
    expected = torch.tensor([[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]], dtype=torch.float64)
    assert torch.equal(iou_distances(few, few, 2), expected)
    # A third class that no mask holds: its distance is 0 everywhere, and the mean over two classes half of it.
    assert torch.equal(iou_distances(few, few, 3), expected / 2)
    with_background = iou_distances(few, few, 2, background=None)
    assert with_background[1, 2] == pytest.approx((0.5 + 1 / 3) / 2)


def test_energy_by_hand() -> None:
    """Samples all empty; truths one empty and one not: 2 * 1/2 - 0 - 1/2 = 1/2 over all pairs, 0 over distinct."""
    samples, truths = torch.tensor([EMPTY, EMPTY]), torch.tensor([EMPTY, LEFT])
    assert generalized_energy_distance(samples, truths, 2) == 0.5
    assert generalized_energy_distance(samples, truths, 2, pairs="distinct") == 0
    assert generalized_energy_distance(samples, samples, 2) == 0  # empty masks are alike
    assert hungarian_iou(samples, truths, 2) == 0.5


@pytest.mark.parametrize("pairs", ["all", "distinct"])
def test_enumeration_agrees_on_energy(pairs) -> None:
    samples, truths = masks(5, 2), masks(4, 3)
    same = pairs == "all"
    expected = (
        2 * mean_of_pairs(samples, truths, 3)
        - mean_of_pairs(samples, samples, 3, same)
        - mean_of_pairs(truths, truths, 3, same)
    )
    assert generalized_energy_distance(samples, truths, 3, pairs=pairs) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("pairs", ["all", "distinct"])
def test_counts_are_repeated_truths(pairs) -> None:
    samples, truths, counts = masks(6, 4), masks(3, 5), [4, 0, 2]
    repeated = truths.repeat_interleave(torch.tensor(counts), dim=0)
    for figure in (lambda *a, **k: generalized_energy_distance(*a, **k, pairs=pairs), hungarian_iou):
        assert figure(samples, truths, 3, truth_counts=counts) == pytest.approx(figure(samples, repeated, 3), abs=1e-12)


def test_the_energy_over_all_pairs_is_a_distance() -> None:
    """Never negative, and 0 for the same masks in the same shares: Jaccard distances are of negative type."""
    for seed in range(40):
        samples, truths = masks(4, seed), masks(3, 100 + seed)
        assert generalized_energy_distance(samples, truths, 3) > 0
        assert generalized_energy_distance(truths.repeat(2, 1, 1), truths, 3) == pytest.approx(0, abs=1e-12)


def test_the_rule_of_distinct_pairs_is_unbiased() -> None:
    """Over all draws of two samples from three masks, it is on average what the three masks themselves have."""
    pool, truths = masks(3, 6), masks(3, 7)
    exact = MaskDistances.of(pool, truths, 3)
    drawn = [MaskDistances.of(pool[list(pair)], truths, 3) for pair in itertools.product(range(3), repeat=2)]
    unbiased = sum(one.between_samples("distinct") for one in drawn) / len(drawn)
    usual = sum(one.between_samples("all") for one in drawn) / len(drawn)
    assert unbiased == pytest.approx(exact.between_samples("all"))
    assert usual == pytest.approx(exact.between_samples("all") / 2)


def test_every_permutation_agrees_on_the_matching() -> None:
    samples, truths = masks(4, 8), masks(4, 9)
    ious = 1 - iou_distances(samples, truths, 3).numpy()
    best = max(ious[range(4), order].mean() for order in map(list, itertools.permutations(range(4))))
    assert hungarian_iou(samples, truths, 3) == pytest.approx(best)


def test_the_repeated_matching_is_the_optimal_transport() -> None:
    """6 samples and 4 truths drawn 1, 2, 3, 4 times, repeated to 30, beside the linear program over their shares."""
    samples, truths, counts = masks(6, 10), masks(4, 11), [1, 2, 3, 4]
    cost = iou_distances(samples, truths, 3).numpy()
    rows = np.kron(np.eye(6), np.ones(4))
    columns = np.kron(np.ones(6), np.eye(4))
    shares = np.concatenate([np.full(6, 1 / 6), np.array(counts) / 10])
    solved = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=shares)
    assert hungarian_iou(samples, truths, 3, truth_counts=counts) == pytest.approx(1 - solved.fun)


def test_ignored_positions_count_in_no_mask() -> None:
    samples, truths = masks(3, 12), masks(2, 13)
    void = torch.zeros(5, 6, dtype=torch.bool)
    void[1:3] = True
    marked = truths.clone()
    marked[0][void] = IGNORE  # of one truth: left out of the other one too
    other = samples.clone()
    other[:, void] = 1
    kept = samples[:, ~void], truths[:, ~void]
    for figure in (generalized_energy_distance, hungarian_iou):
        assert figure(samples, marked, 3) == figure(other, marked, 3) == pytest.approx(figure(*kept, 3))


@pytest.mark.parametrize(
    ("samples", "truths", "counts", "pairs"),
    [
        (masks(2, 0), masks(2, 0, shape=(4, 6)), None, "all"),
        (masks(0, 0), masks(2, 0), None, "all"),
        (masks(2, 0), masks(2, 0), [1], "all"),
        (masks(2, 0), masks(2, 0), [0, 0], "all"),
        (masks(1, 0), masks(2, 0), None, "distinct"),
    ],
)
def test_sets_that_cannot_be_compared(samples, truths, counts, pairs) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        generalized_energy_distance(samples, truths, 3, truth_counts=counts, pairs=pairs)


def test_vote_entropy_is_that_of_the_shares() -> None:
    samples = masks(7, 14)
    shares = np.stack([(samples == label).double().mean(0) for label in range(3)])
    np.testing.assert_allclose(vote_entropy(samples, 3).numpy(), scipy_entropy(shares, axis=0), atol=1e-6)
    assert vote_entropy(torch.tensor([LEFT, EMPTY]), 2).tolist() == pytest.approx([math.log(2), 0, 0, 0])


# ---------------------------------------------------------------- annotators


def test_samples_are_given_to_the_nearest_annotator() -> None:
    variants = torch.tensor([EMPTY, LEFT, BOTH])
    samples = torch.tensor([EMPTY, BOTH, [1, 1, 1, 0], [0, 1, 0, 0], LEFT, LEFT])
    nearest = [0, 2, 2, 2, 1, 1]
    assert classify_annotator(samples, variants, 2).tolist() == nearest
    assert annotator_counts(samples, variants, 2).tolist() == [1, 2, 3]


def test_annotators_who_agree_say_nothing() -> None:
    variants = torch.tensor([EMPTY, LEFT, EMPTY])
    assert annotator_counts(torch.tensor([EMPTY, LEFT]), variants, 2).tolist() == [0, 0, 0]
    void = torch.tensor([[0, 1, 0, -1], [0, 0, 0, 1]])
    assert annotator_counts(torch.tensor([EMPTY, BOTH]), void, 2).tolist() == [1, 1]


def test_the_note_says_what_the_spread_speaks_of() -> None:
    assert "of the data (aleatoric), not of the model" in spread_note(16)
    assert "of the model (epistemic)" in spread_note(1, 4)
    assert "4 trained networks" in spread_note(16, 4)
    assert "says nothing" in spread_note(1)
