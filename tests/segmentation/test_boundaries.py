"""Boundary F by hand and HD95 beside MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from skimage.segmentation import find_boundaries

from tests.segmentation.cases import SHAPES, evaluate, evaluate_hard, one_hot
from unetdiff.segmentation.boundaries import edges, surface_distances
from unetdiff.segmentation.options import IGNORE

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=len)


def blobs(shape: tuple[int, ...], images: int = 3, classes: int = 3) -> torch.Tensor:
    """Labels (N, *shape) with patches of 3 positions a side."""
    coarse = torch.randint(classes, (images, *(-(-size // 3) for size in shape)))
    for axis, size in enumerate(shape, 1):
        coarse = coarse.repeat_interleave(3, axis).narrow(axis, 0, size)
    return coarse


@each_shape
def test_edges_are_those_of_scikit_image(shape: tuple[int, ...]) -> None:
    mask = blobs(shape)[0].numpy() == 1
    everywhere = np.ones_like(mask)
    np.testing.assert_array_equal(edges(mask, everywhere, border=False), find_boundaries(mask, mode="inner") & mask)


def test_the_border_is_an_edge_on_request() -> None:
    mask = np.ones(5, bool)
    assert not edges(mask, mask, border=False).any()
    assert edges(mask, mask, border=True).tolist() == [True, False, False, False, True]


def test_what_is_not_counted_is_no_edge_and_makes_none() -> None:
    mask = np.array([0, 1, 1, 1, 0, 0], bool)
    counted = np.array([0, 1, 1, 1, 1, 1], bool)
    assert np.flatnonzero(edges(mask, counted, border=False)).tolist() == [3]


def test_boundary_f_by_hand() -> None:
    truth, prediction = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    # Class 1: true edges 4 and 7, predicted 1, 5 and 7. Class 0: true 3 and 8, predicted 0, 2, 4 and 8.
    assert evaluate_hard(prediction, truth, boundary_tolerance=0.0)["boundary_f"] == pytest.approx(
        [2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2), 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)]
    )
    values = evaluate_hard(prediction, truth, boundary_tolerance=1.0)
    expected = [2 * (3 / 4) / (3 / 4 + 1), 2 * (2 / 3) / (2 / 3 + 1)]
    assert values["boundary_f"] == pytest.approx(expected)
    assert values["mean_boundary_f"] == pytest.approx(sum(expected) / 2)


def test_boundary_f_adds_up_counts_and_leaves_out_classes_without_edges() -> None:
    labels = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]])
    prediction = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    values = evaluate(one_hot(prediction, 3), labels, boundary_tolerance=0.0)
    assert [row["boundary_f"] for row in values["per_image"]] == [[1, 1, None], [0, 0, None]]
    # Class 1: true edges 2, 3 and 6; class 0: true edges 1, 4 and 5; the second image has no predicted edge.
    assert values["boundary_f"] == pytest.approx([2 * (2 / 3) / (1 + 2 / 3), 2 * (2 / 3) / (1 + 2 / 3), None])


def test_boundary_f_ignores_the_spacing() -> None:
    labels, prediction = torch.tensor([[0, 0, 1, 1, 1, 0, 0]]), torch.tensor([[0, 0, 0, 1, 1, 0, 0]])
    values = evaluate(one_hot(prediction, 2), labels, spacing=(10.0,), boundary_tolerance=1.0)
    assert values["boundary_f"] == [1, 1]


@each_shape
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy", "ignore:the (ground truth|prediction) of class")
def test_hd95_is_monais(shape: tuple[int, ...], scaled: bool) -> None:
    labels, prediction = blobs(shape), blobs(shape)
    spacing = (0.5, 2.0, 3.0)[: len(shape)] if scaled else None
    values = evaluate(one_hot(prediction, 3), labels, spacing=spacing, hd95=True)
    ours = torch.tensor([[float("nan") if one is None else one for one in row["hd95"]] for row in values["per_image"]])
    expected = compute_hausdorff_distance(
        one_hot(prediction, 3), one_hot(labels, 3), True, percentile=95, spacing=None if spacing is None else [*spacing]
    )
    expected = expected.where(expected.isfinite(), torch.nan)  # held on one side only, or on neither
    torch.testing.assert_close(ours, expected, equal_nan=True)
    torch.testing.assert_close(torch.tensor(values["hd95"]), expected.nanmean(0))


def test_hd95_by_hand_and_where_it_is_missed() -> None:
    labels = torch.tensor([[0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0], [0] * 8])
    prediction = torch.tensor([[0, 0, 0, 0, 0, 1, 0, 0], [0] * 8, [0] * 8])
    values = evaluate(one_hot(prediction, 3), labels, spacing=(2.0,), hd95=True)
    assert values["hd95"][1:] == [6.0, None]
    assert values["hd95_missed"] == [0, 1, 0]
    assert [row["hd95"][1] for row in values["per_image"]] == [6.0, None, None]


def test_distances_of_void_do_not_count() -> None:
    labels = torch.tensor([0, 1, 1, 0, 0, 0, IGNORE, IGNORE])
    for far in (0, 1):
        values = evaluate_hard([0, 1, 1, 0, 0, 0, far, far], labels, hd95=True, boundary_tolerance=0.0)
        assert values["hd95"] == [0, 0]
        assert values["boundary_f"] == [1, 1]


def test_distances_go_both_ways() -> None:
    one, other = np.array([1, 0, 0, 0], bool), np.array([1, 0, 0, 1], bool)
    there, back = surface_distances(one, other, (2.0,))
    assert (there.tolist(), back.tolist()) == ([0], [0, 6])
