"""V-Rand and V-Info on partitions computed by hand and beside scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information
from sklearn.metrics import mutual_info_score

from tests.segmentation.cases import evaluate, evaluate_hard, one_hot
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.rand_scores import cells, partition_scores

MEMBRANE = 1
each_shape = pytest.mark.parametrize("shape", [(60,), (24, 31), (9, 11, 10)], ids=len)


def noisy_membranes(shape: tuple[int, ...], images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (N, 2, *shape) of cell and membrane, and labels (N, *shape)."""
    labels = (torch.rand(images, *shape) < 0.45).long()
    membrane = (0.8 * labels + 0.1 + 0.5 * torch.randn(labels.shape)).clamp(0.01, 0.99)
    return torch.stack([1 - membrane, membrane], 1), labels


def test_partitions_by_hand() -> None:
    truth, proposal = np.array([1, 1, 1, 1, 2, 2, 0, 0]), np.array([1, 1, 2, 2, 2, 2, 5, 6])
    # n_ij = [[2, 2], [0, 2]], s = (4, 2), t = (2, 4), n = 6: pairs together in both 3, in the truth 7, proposed 7.
    scores = partition_scores(truth, proposal)
    assert scores["v_rand"] == pytest.approx(3 / 7)
    split = 4 / 6 * 1.0  # bits: the first true segment falls apart into halves
    entropy = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert scores["vi_split"] == pytest.approx(split)
    assert scores["vi_merge"] == pytest.approx(split)
    assert scores["v_info"] == pytest.approx(1 - 2 * split / (2 * entropy))


def test_v_rand_is_the_harmonic_mean_over_pairs_of_distinct_positions() -> None:
    truth, proposal = np.array([1, 1, 1, 1]), np.array([1, 1, 1, 2])
    precision, recall = 1.0, 3 / 6
    assert partition_scores(truth, proposal)["v_rand"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_equal_partitions_score_one_whatever_their_labels() -> None:
    scores = partition_scores(np.array([1, 1, 2, 3, 3]), np.array([7, 7, 0, 4, 4]))
    assert (scores["v_rand"], scores["v_info"]) == pytest.approx((1, 1))
    assert partition_scores(np.ones(4, int), np.ones(4, int)) == {
        "v_rand": 1, "v_info": 1, "vi_split": 0, "vi_merge": 0
    }  # fmt: skip


def test_what_is_not_defined_is_none() -> None:
    assert set(partition_scores(np.zeros(4, int), np.ones(4, int)).values()) == {None}
    singles = partition_scores(np.array([1, 2, 3]), np.array([1, 2, 3]))
    assert singles["v_rand"] is None
    assert singles["v_info"] == 1


@each_shape
def test_scikit_image_and_scikit_learn_agree(shape: tuple[int, ...]) -> None:
    probabilities, labels = noisy_membranes(shape)
    values = evaluate(probabilities, labels, membrane=MEMBRANE)
    for row, probability, truth in zip(values["per_image"], probabilities, labels, strict=True):
        true_cells = label(truth.numpy() != MEMBRANE, connectivity=1)
        proposed = label(probability.argmax(0).numpy() != MEMBRANE, connectivity=1)
        kept = true_cells != 0
        assert row["v_rand"] == pytest.approx(1 - adapted_rand_error(true_cells, proposed)[0])
        split, merge = variation_of_information(true_cells, proposed, ignore_labels=(0,))
        assert (row["vi_split"], row["vi_merge"]) == pytest.approx((split, merge))
        s, t = true_cells[kept], proposed[kept]
        shared, in_truth, in_proposal = mutual_info_score(s, t), mutual_info_score(s, s), mutual_info_score(t, t)
        assert row["v_info"] == pytest.approx(2 * shared / (in_truth + in_proposal))
    assert values["v_rand"] == pytest.approx(np.mean([row["v_rand"] for row in values["per_image"]]))


def test_cells_that_touch_at_a_corner_are_two() -> None:
    assert cells(np.eye(3, dtype=bool)).max() == 3
    assert cells(np.array([[[1, 0], [0, 0]], [[0, 0], [0, 1]]], bool)).max() == 2
    assert cells(np.array([1, 1, 0, 1], bool)).tolist() == [1, 1, 0, 2]


def test_one_gap_in_a_membrane_costs_little_dice_and_much_v_rand() -> None:
    truth = torch.zeros(20, 21, dtype=torch.int64)
    truth[:, 10] = 1
    prediction = truth.clone()
    prediction[5, 10] = 0
    values = evaluate_hard(prediction, truth, membrane=MEMBRANE)
    assert values["dice"][MEMBRANE] > 0.97
    pairs = 200 * 199 / 2
    assert values["v_rand"] == pytest.approx(2 * pairs / ((400 * 399 / 2 + 2 * pairs) / 2))


def test_the_true_membrane_is_left_out() -> None:
    truth = torch.tensor([[0, 0, 1, 1, 0, 0]])
    for thick in ([0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]):
        assert evaluate_hard([thick], truth, membrane=MEMBRANE)["v_rand"] == 1


def test_scores_do_not_depend_on_the_areas_alone() -> None:
    truth, proposal = np.repeat([1, 2], 8), np.tile([1, 2], 8)
    assert partition_scores(truth, proposal)["v_rand"] < 0.5
    assert partition_scores(truth, proposal)["v_info"] == pytest.approx(0)


def test_cells_neither_join_nor_count_through_void() -> None:
    truth = torch.tensor([[0, 0, IGNORE, 0, 0]])
    for guess in (0, 1):
        assert evaluate_hard([[0, 0, guess, 0, 0]], truth, membrane=MEMBRANE)["v_rand"] == 1


def test_the_oracle_is_one_threshold_for_the_data_set() -> None:
    probabilities, labels = noisy_membranes((24, 31))
    cuts = (0.2, 0.5, 0.8)
    values = evaluate(probabilities, labels, membrane=MEMBRANE, membrane_thresholds=cuts)
    means = []
    for cut in cuts:
        prediction = (probabilities[:, MEMBRANE] > cut).long()
        means.append(evaluate(one_hot(prediction, 2), labels, membrane=MEMBRANE)["v_rand"])
    assert values["oracle_v_rand"] == pytest.approx(max(means))
    assert values["oracle_v_rand_threshold"] == cuts[int(np.argmax(means))]
    assert values["v_rand"] == pytest.approx(means[1])  # the most probable of two classes is the threshold 0.5
    alone = evaluate(probabilities, labels, membrane=MEMBRANE, membrane_thresholds=())
    assert alone["oracle_v_rand"] is None
    assert alone["v_rand"] == values["v_rand"]
