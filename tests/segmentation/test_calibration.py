"""ECE, Brier score, NLL and AURC beside hand-computed values, scikit-learn, torchmetrics and an explicit ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torchmetrics.classification import MulticlassCalibrationError

from tests.segmentation.cases import SHAPES, evaluate, one_hot, random_case
from unetdiff.segmentation.options import IGNORE

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=len)


def two_classes(confidences: list[float], right: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """One signal (1, 2, n) that always predicts class 0 with these confidences, and its labels (1, n)."""
    first = torch.tensor(confidences)
    return torch.stack([first, 1 - first])[None], 1 - torch.tensor(right).long()[None]


def exact_aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """The mean over k of the errors among the k most confident, from the ranking itself."""
    ranked = wrong[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1)).mean())


@each_shape
def test_torchmetrics_agrees_on_ece(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape)
    expected = MulticlassCalibrationError(4, n_bins=15, norm="l1", ignore_index=IGNORE)(probabilities, labels)
    assert evaluate(probabilities, labels)["ece"] == pytest.approx(float(expected), abs=1e-6)


@each_shape
def test_scikit_learn_agrees_on_nll_and_the_definition_on_brier(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape)
    values, counted = evaluate(probabilities, labels), labels != IGNORE
    flat, truth = probabilities.movedim(1, -1)[counted].double(), labels[counted]
    scaled = (flat / flat.sum(1, keepdim=True)).numpy()
    assert values["nll"] == pytest.approx(log_loss(truth.numpy(), scaled, labels=range(4)), abs=1e-6)
    brier = (flat - one_hot(truth, 4)).square().sum(1).mean()
    assert values["brier"] == pytest.approx(float(brier), abs=1e-6)


def test_by_hand() -> None:
    values = evaluate(*two_classes([0.9, 0.9, 0.55, 1.0], [True, False, False, True]))
    # 0.9, 0.55 and 1.0 lie in the bins 13, 8 and 14 of 15.
    assert values["ece"] == pytest.approx((abs(1 - 1.8) + abs(0 - 0.55) + abs(1 - 1.0)) / 4)
    assert values["brier"] == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.55**2 + 0) / 4)
    assert values["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.45)) / 4)
    filled = {place: entry for place, entry in enumerate(values["reliability"]) if entry["positions"]}
    assert sorted(filled) == [8, 13, 14]
    assert filled[13]["accuracy"] == 0.5
    assert filled[13]["confidence"] == pytest.approx(0.9)
    assert values["reliability"][0]["accuracy"] is None
    # Ranked: right; then one of two wrong, in either order; then wrong.
    either_order = [(0 + 0 + 1 / 3 + 2 / 4) / 4, (0 + 1 / 2 + 1 / 3 + 2 / 4) / 4]
    assert values["aurc"] == pytest.approx(sum(either_order) / 2)
    assert values["aurc_error"] == pytest.approx((either_order[1] - either_order[0]) / 2)
    assert values["excess_aurc"] == pytest.approx(sum(either_order) / 2 - either_order[0])


def test_the_bins_are_closed_above() -> None:
    edge = float(torch.linspace(0, 1, 16)[12])
    values = evaluate(*two_classes([edge, edge + 1e-6], [True, True]))
    assert [entry["positions"] for entry in values["reliability"]][11:13] == [1, 1]


def test_certain_mistakes_cost_a_finite_amount() -> None:
    assert evaluate(*two_classes([1.0], [False]))["nll"] == pytest.approx(-math.log(1e-7))
    assert evaluate(*two_classes([1.0], [False]))["brier"] == 2


def test_small_errors_of_certain_predictions_are_not_rounded_away() -> None:
    values = evaluate(*two_classes([1 - 2.0**-20], [True]))
    assert values["brier"] == pytest.approx(2 * 2.0**-40)
    assert values["nll"] == pytest.approx(2.0**-20, rel=1e-3)


@each_shape
def test_aurc_is_that_of_the_ranking_within_its_error(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape, images=20)
    values, counted = evaluate(probabilities, labels), labels != IGNORE
    confidence, wrong = probabilities.amax(1)[counted].numpy(), (probabilities.argmax(1) != labels)[counted].numpy()
    assert abs(values["aurc"] - exact_aurc(confidence, wrong)) <= values["aurc_error"] + 1e-12
    assert values["aurc_error"] < 0.002
    assert values["excess_aurc"] == pytest.approx(values["aurc"] - exact_aurc(-wrong.astype(float), wrong))


def test_aurc_tells_confidences_close_to_one_apart() -> None:
    steps = torch.arange(1, 23)
    confidences = (1 - 2.0**-steps).tolist()
    for wrong in (0, 21):
        probabilities, labels = two_classes(confidences, [place != wrong for place in range(22)])
        values = evaluate(probabilities, labels)
        expected = exact_aurc(np.arange(22.0), np.arange(22) == wrong)
        assert values["aurc"] == pytest.approx(expected)
        assert values["aurc_error"] == pytest.approx(0, abs=1e-12)


def test_the_curve_ends_at_the_error_rate() -> None:
    probabilities, labels = random_case((13, 17))
    values = evaluate(probabilities, labels)
    curve = values["risk_coverage"]
    assert curve["coverage"][-1] == 1
    assert curve["risk"][-1] == pytest.approx(1 - values["accuracy"])
    assert np.mean(curve["risk"]) == pytest.approx(values["aurc"], abs=0.02)
    assert curve["risk"][49] < curve["risk"][-1]


def test_image_aurc_ranks_images_by_their_mean_confidence() -> None:
    probabilities, labels = random_case((13, 17), images=6, void=0.0)
    labels[3:] = (labels[3:] + 1) % 4  # half of the images are wrong
    values = evaluate(probabilities, labels)
    confidence = np.array([row["confidence"] for row in values["per_image"]])
    risk = np.array([1 - row["mean_dice"] for row in values["per_image"]])
    np.testing.assert_allclose(confidence, probabilities.amax(1).flatten(1).mean(1).numpy(), rtol=1e-6)
    assert values["image_aurc"] == pytest.approx(exact_aurc(confidence, risk))
    assert values["image_risk_coverage"]["risk"][-1] == pytest.approx(risk.mean())


def test_images_of_equal_confidence_have_no_order() -> None:
    probabilities = torch.tensor([[[0.9, 0.9], [0.1, 0.1]], [[0.9, 0.9], [0.1, 0.1]]])
    for labels in ([[0, 0], [1, 1]], [[1, 1], [0, 0]]):
        assert evaluate(probabilities, torch.tensor(labels))["image_aurc"] == pytest.approx((0.5 + 0.5) / 2)
