"""The accumulator: any division of the data gives the same bits, void counts nowhere, bad input is named."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch

from tests.segmentation.cases import SHAPES, evaluate, options, random_case
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.segmentation.options import IGNORE

ALL: dict[str, Any] = {"hd95": True, "membrane": 1, "membrane_thresholds": (0.3, 0.6)}
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=len)


def of(probabilities: torch.Tensor, labels: torch.Tensor, places: list[int], batch: int) -> SegmentationMetrics:
    """What a process holds after these images in batches of at most `batch`."""
    metrics = SegmentationMetrics(options(probabilities.shape[1], **ALL))
    for start in range(0, len(places), batch):
        own = places[start : start + batch]
        metrics.update(probabilities[own], labels[own], names=[f"{place:03d}" for place in own])
    return metrics


@each_shape
def test_several_processes_give_the_bits_of_one(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape, images=7)
    alone = of(probabilities, labels, list(range(7)), batch=3).compute()
    assert alone["images"] == 7  # 3 + 3 + 1: the last batch counts
    assert alone["positions"] + alone["ignored"] == labels.numel()
    for parts in ([[0, 3, 6], [1, 4], [2, 5]], [[6, 5, 4, 3], [2, 1, 0], []]):
        held = [pickle.loads(pickle.dumps(of(probabilities, labels, part, batch=2))) for part in parts]
        assert SegmentationMetrics.merged(held).compute() == alone


def test_tiles_give_the_values_of_the_image() -> None:
    probabilities, labels = random_case((16, 16), images=1)
    whole = evaluate(probabilities, labels, boundary_tolerance=None)
    tiles = SegmentationMetrics(options(4, boundary_tolerance=None))
    for half in (slice(0, 5), slice(5, 16)):
        tiles.update(probabilities[:, :, half], labels[:, half])
    found = tiles.compute()
    for name in ("confusion", "iou", "mean_dice", "ece", "reliability", "aurc", "risk_coverage"):
        assert found[name] == whole[name], name
    assert (found["nll"], found["brier"]) == pytest.approx((whole["nll"], whole["brier"]))


def test_merging_changes_no_part() -> None:
    probabilities, labels = random_case((9, 8), images=4)
    one, other = of(probabilities, labels, [0, 1], 2), of(probabilities, labels, [2, 3], 2)
    before = one.compute()
    SegmentationMetrics.merged([one, other])
    assert one.compute() == before


def test_an_image_counts_once() -> None:
    probabilities, labels = random_case((9, 8), images=2)
    metrics = of(probabilities, labels, [0, 1], 2)
    with pytest.raises(ValueError, match="The image 001 was counted before"):
        metrics.update(probabilities[1:], labels[1:], names=["001"])
    with pytest.raises(ValueError, match="The image 000 was counted before"):
        SegmentationMetrics.merged([metrics, of(probabilities, labels, [0], 1)])


@each_shape
def test_nothing_that_is_predicted_on_void_changes_a_value(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape)
    void = (labels == IGNORE)[:, None].expand_as(probabilities)
    other = random_case(shape)[0].roll(1, 1)
    assert evaluate(probabilities.where(~void, other), labels, **ALL) == evaluate(probabilities, labels, **ALL)


def test_another_ignored_value() -> None:
    probabilities, labels = random_case((9, 8))
    renamed = labels.where(labels != IGNORE, torch.tensor(255))
    expected = evaluate(probabilities, labels, **ALL)
    assert evaluate(probabilities, renamed, ignore=255, **ALL) == expected
    assert evaluate(probabilities, renamed.to(torch.uint8), ignore=255, **ALL) == expected


@each_shape
def test_an_image_without_truth_and_no_image_at_all_give_none(shape: tuple[int, ...]) -> None:
    probabilities, _ = random_case(shape, images=1)
    empty = SegmentationMetrics(options(4, **ALL)).compute()
    void = evaluate(probabilities, torch.full((1, *shape), IGNORE), **ALL)
    for values in (empty, void):
        for name in ("mean_iou", "mean_dice", "accuracy", "ece", "nll", "brier", "aurc", "image_aurc"):
            assert values[name] is None, name
        for name in ("mean_boundary_f", "mean_hd95", "v_rand", "v_info", "oracle_v_rand"):
            assert values[name] is None, name
        assert values["iou"] == [None] * 4
    assert (empty["images"], void["images"], void["positions"]) == (0, 1, 0)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1), (2, 1), (1, 16, 1)])
def test_the_smallest_images(shape: tuple[int, ...]) -> None:
    probabilities, labels = random_case(shape, images=2, classes=2, void=0.0)
    values = evaluate(probabilities, labels, **ALL)
    assert values["accuracy"] == pytest.approx(float((probabilities.argmax(1) == labels).float().mean()))


@each_shape
def test_values_are_json(shape: tuple[int, ...]) -> None:
    values = evaluate(*random_case(shape), **ALL)
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_what_is_held_does_not_grow_with_the_images_size() -> None:
    sizes = []
    for side in (8, 128):
        metrics = SegmentationMetrics(options(4, **ALL, calibration=True))
        metrics.update(*random_case((side, side), images=2))
        sizes.append(sum(len(pickle.dumps(part)) for part in (metrics.counts, metrics.rows)))
    assert sizes[1] < sizes[0] + 200


def test_what_is_not_asked_for_is_not_there() -> None:
    values = evaluate(*random_case((9, 8)), calibration=False, boundary_tolerance=None)
    assert not {"ece", "aurc", "boundary_f", "hd95", "v_rand"} & set(values)


def test_half_precision_is_taken() -> None:
    probabilities, labels = random_case((9, 8))
    halved = probabilities.bfloat16()
    assert evaluate(halved, labels) == evaluate(halved.float(), labels)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p, y: (p / p.amax(1, keepdim=True), y), "expected probabilities"),  # normalised to their maximum
        (lambda p, y: (p.log(), y), "expected probabilities"),
        (lambda p, y: (p * float("nan"), y), "expected probabilities"),
        (lambda p, y: (2 * p - 0.25, y), "expected probabilities"),
        (lambda p, y: (p[:, :3], y), r"shape is \(5, 3, 9, 8\); expected \(5, 4, 9, 8\)"),
        (lambda p, y: (p[..., :7], y), "The probabilities' shape"),
        (lambda p, y: (p, y.clamp(min=0) + 200), r"The labels hold \[200, 201, 202, 203\]; expected 0..3 or -1"),
        (lambda p, y: (p, torch.where(y == IGNORE, -100, y)), r"The labels hold \[-100\]"),
    ],
)
def test_bad_batches_are_one_sentence(spoil: Any, message: str) -> None:
    metrics = SegmentationMetrics(options(4))
    with pytest.raises(ValueError, match=message):
        metrics.update(*spoil(*random_case((9, 8))))
    assert metrics.compute() == SegmentationMetrics(options(4)).compute()


def test_spacing_has_a_number_for_each_axis() -> None:
    with pytest.raises(ValueError, match=r"spacing is \[1.0\]; expected 2 numbers"):
        evaluate(*random_case((9, 8)), spacing=(1.0,))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"class_names": ()}, "class_names is empty"),
        ({"ignore": 1}, "ignore is 1, which is a class"),
        ({"boundary_tolerance": -1.0}, "boundary_tolerance is -1.0"),
        ({"membrane": 2}, "membrane is 2; expected a class, 0..1"),
        ({"membrane_thresholds": (0.5, 1.0)}, "expected values between 0 and 1"),
    ],
)
def test_bad_options_are_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricOptions(**{"class_names": ("cell", "membrane"), **settings})
