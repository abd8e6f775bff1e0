"""Means of values that may not be defined."""

from __future__ import annotations

from unetdiff.segmentation.scoring import mean_of_defined, mean_per_class, ratio


def test_what_is_not_defined_is_left_out() -> None:
    assert mean_of_defined([0.5, None, 1.0]) == 0.75
    assert mean_of_defined([None]) is None
    assert mean_of_defined([]) is None
    assert mean_per_class([{"iou": [0.5, None]}, {"iou": [1.0, None]}], "iou", 2) == [0.75, None]
    assert ratio(0, 0) is None
    assert ratio(0, 2) == 0


def test_the_order_of_the_values_changes_no_bit() -> None:
    assert mean_of_defined([1e16, 1.0, -1e16]) == mean_of_defined([1e16, -1e16, 1.0]) == 1 / 3
