from __future__ import annotations

import numpy as np
import pytest

from unetdiff.data.labels import class_names
from unetdiff.data.records import Arrays


def labelled(labels: list) -> Arrays:
    return Arrays(np.zeros((len(labels), 8)), labels, origin="x.npy")


def test_classes_without_samples_are_counted():
    assert class_names(labelled([3, 1])) == ("0", "1", "2", "3")
    names = class_names(labelled([0, 1019, 0]))  # 1020 classes, the most for two distinct labels
    assert names is not None
    assert len(names) == 1020


def test_numbers_that_are_no_class_numbers_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^x\.npy, sample 1 has label 1020, .*; expected class numbers from 0 without large gaps, or names\.$",
    ):
        class_names(labelled([0, 1020, 0]))
    names = class_names(labelled(["20231105", "0"]))
    assert names == ("0", "20231105")
