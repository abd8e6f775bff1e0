"""IoU, Dice and accuracy beside hand-computed values, scikit-learn, torchmetrics and MONAI."""

from __future__ import annotations

import pytest
import torch
from monai.metrics import compute_iou
from monai.metrics.meandice import compute_dice
from sklearn import metrics as sklearn_metrics
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from tests.segmentation.cases import SHAPES, evaluate, evaluate_hard, one_hot, random_case
from unetdiff.segmentation.options import IGNORE

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=len)


def test_by_hand() -> None:
    values = evaluate_hard([[0, 0, 1], [1, 1, 2]], [[0, 1, 1], [1, 2, 2]], classes=3)
    assert values["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 1, 1]]
    assert values["iou"] == pytest.approx([1 / 2, 2 / 4, 1 / 2])
    assert values["dice"] == pytest.approx([2 / 3, 4 / 6, 2 / 3])
    assert values["class_accuracy"] == pytest.approx([1, 2 / 3, 1 / 2])
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["mean_class_accuracy"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


@each_shape
def test_torchmetrics_agrees(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape)
    values = evaluate(probabilities, labels)
    oracles = {
        "confusion": MulticlassConfusionMatrix(4, ignore_index=IGNORE),
        "iou": MulticlassJaccardIndex(4, average="none", ignore_index=IGNORE),
        "mean_iou": MulticlassJaccardIndex(4, average="macro", ignore_index=IGNORE),
        "class_accuracy": MulticlassAccuracy(4, average="none", ignore_index=IGNORE),
        "mean_class_accuracy": MulticlassAccuracy(4, average="macro", ignore_index=IGNORE),
        "accuracy": MulticlassAccuracy(4, average="micro", ignore_index=IGNORE),
    }
    for name, oracle in oracles.items():
        expected = oracle(probabilities, labels)
        torch.testing.assert_close(torch.tensor(values[name], dtype=expected.dtype), expected, msg=name)


@each_shape
def test_scikit_learn_agrees(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape)
    values = evaluate(probabilities, labels)
    truth, prediction = labels[labels != IGNORE].numpy(), probabilities.argmax(1)[labels != IGNORE].numpy()
    assert values["iou"] == pytest.approx(sklearn_metrics.jaccard_score(truth, prediction, average=None))
    assert values["dice"] == pytest.approx(sklearn_metrics.f1_score(truth, prediction, average=None))
    assert values["mean_dice"] == pytest.approx(sklearn_metrics.f1_score(truth, prediction, average="macro"))


@each_shape
def test_monai_agrees_image_by_image(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape, void=0.0)
    labels[0] = labels[0].clamp(max=2)
    probabilities[0] = one_hot(labels, 4)[0]  # class 3 on neither side: NaN in MONAI, None here
    rows = evaluate(probabilities, labels)["per_image"]
    predicted, truth = one_hot(probabilities.argmax(1), 4), one_hot(labels, 4)
    for name, oracle in (("dice", compute_dice), ("iou", compute_iou)):
        ours = torch.tensor([[float("nan") if value is None else value for value in row[name]] for row in rows])
        torch.testing.assert_close(
            ours,
            oracle(predicted, truth, ignore_empty=False).where((predicted + truth).flatten(2).any(2), torch.nan),
            equal_nan=True,
        )


def test_predictions_on_ignored_positions_are_in_no_union() -> None:
    values = evaluate_hard([0, 1, 1, 1], [0, 1, IGNORE, IGNORE])
    assert values["iou"] == [1, 1]
    assert (values["positions"], values["ignored"]) == (2, 2)


def test_a_class_on_neither_side_is_left_out_of_the_means() -> None:
    values = evaluate_hard([0, 0, 1, 0], [0, 1, 1, 0], classes=3)
    assert values["iou"] == pytest.approx([2 / 3, 1 / 2, None])
    assert values["dice"][2] is None
    assert values["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert values["mean_dice"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_a_class_that_is_only_predicted_has_zero_and_counts() -> None:
    values = evaluate_hard([0, 0, 2, 1], [0, 0, 1, 1], classes=3)
    assert values["iou"] == [1, 0.5, 0]
    assert values["class_accuracy"] == [1, 0.5, None]
    assert values["mean_iou"] == 0.5


def test_the_mean_is_over_classes_and_not_over_positions() -> None:
    values = evaluate_hard([0] * 9 + [0], [0] * 9 + [1])
    assert values["accuracy"] == 0.9
    assert values["mean_iou"] == pytest.approx(0.45)  # the micro IoU is 9 / 11


def test_the_data_set_is_one_matrix_and_not_a_mean_over_images() -> None:
    prediction = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]])
    labels = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    values = evaluate(one_hot(prediction, 2), labels)
    assert values["iou"] == pytest.approx([2 / 4, 4 / 6])
    assert values["image_iou"] == pytest.approx([(0 + 2 / 3) / 2, (3 / 4 + 1 / 2) / 2])
    assert values["mean_image_iou"] == pytest.approx(((0 + 3 / 4) / 2 + (2 / 3 + 1 / 2) / 2) / 2)


def test_an_image_without_a_class_takes_no_part_in_its_mean_over_images() -> None:
    prediction, labels = torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, 0], [1, 1]])
    values = evaluate(one_hot(prediction, 2), labels)
    assert values["per_image"][0]["dice"] == [1, None]
    assert values["image_dice"] == pytest.approx([(1 + 0) / 2, 2 / 3])
    assert values["mean_image_dice"] == pytest.approx((1 + (0 + 2 / 3) / 2) / 2)


def test_overlap_is_of_positions_and_not_of_areas() -> None:
    values = evaluate_hard([1, 1, 0, 0], [0, 0, 1, 1])
    assert values["iou"] == [0, 0]
    assert values["dice"] == [0, 0]
