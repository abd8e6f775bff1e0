"""Class labels as found (numbers or names) to numbers 0, 1, ... and names."""

from __future__ import annotations

import numpy as np

from unetdiff.data.records import Records

MOST_PER_LABEL, MOST_BESIDE = 10, 1000
"""Numbers are taken as class numbers up to 10 classes per label that occurs and 1000 beside; dates are not."""


def class_names(records: Records) -> tuple[str, ...] | None:
    """The names of the classes: those the data define, else the sorted names, else the numbers to the largest.

    Returns:
        one name per class, or None without labels.

    Raises:
        ValueError: a label is missing, negative or no whole number, or so large that it is no class number.
    """
    if records.labels is None or records.class_names is not None:
        return records.class_names
    found = {_checked(records, index): index for index in range(len(records))}
    if any(isinstance(label, str) for label in found):
        return tuple(sorted(map(str, found)))
    largest = max(map(int, found))
    if largest + 1 > MOST_PER_LABEL * len(found) + MOST_BESIDE:
        raise ValueError(
            f"{records.name(found[largest])} has label {largest}, the largest of {len(found)} distinct ones; "
            "expected class numbers from 0 without large gaps, or names."
        )
    return tuple(map(str, range(1 + largest)))


def label_indices(records: Records, names: tuple[str, ...] | None) -> np.ndarray | None:
    """Labels as (n,) int64 in range(len(names)), or None without labels.

    Raises:
        ValueError: a label is missing, negative, or none of the classes of the training data.
    """
    if names is None:
        return None
    if records.labels is None:
        raise ValueError(f"{records.name(0)} has no label; expected one of {', '.join(names[:10])}.")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.empty(len(records), dtype=np.int64)
    for index in range(len(records)):
        label = _checked(records, index)
        number = numbers.get(label) if isinstance(label, str) else label
        if number is None or number >= len(names):
            raise ValueError(
                f"{records.name(index)} has label {label!r}; expected one of the {len(names)} classes of the "
                f"training data ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})."
            )
        labels[index] = number
    return labels


def _checked(records: Records, index: int) -> str | int:
    """The label of a record, which must be a name or a whole number from 0."""
    assert records.labels is not None
    label = records.labels[index]
    if isinstance(label, str):
        return str(label)
    if not isinstance(label, int | np.integer) or label < 0:
        found = "no label" if label is None else f"label {label!r}"
        raise ValueError(f"{records.name(index)} has {found}; expected a class name or a whole number from 0.")
    return int(label)
