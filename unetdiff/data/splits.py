"""Which records are for training, validation and test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unetdiff.data.order import epoch_permutation
from unetdiff.data.records import Records, Subset

Splits = dict[str, Callable[[], Records]]
"""What a source offers: how to open each of its own splits, "train" always among them."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""How folders and files call the splits."""

SPLIT_SEED = 0
"""What is held out must not change with the seed of a run."""


def held_out(length: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Cuts range(length) in two at random, always in the same way: sorted (kept, held out).

    At least one is held out when `fraction` > 0 and `length` > 1, and at least one is kept.
    """
    count = min(max(round(length * fraction), int(fraction > 0)), length - 1)
    order = epoch_permutation(SPLIT_SEED, 0, length)
    return np.sort(order[count:]), np.sort(order[:count])


def open_split(splits: Splits, split: str, fraction: float) -> Records:
    """The records of one split.

    Validation is the source's own validation split, else its test split, else `fraction` of the training
    split, which training then leaves out. There is no test split but the source's own.

    Raises:
        ValueError: no such split.
    """
    if split not in SPLIT_NAMES:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLIT_NAMES)}.")
    if not 0 <= fraction < 1:
        raise ValueError(f"data.validation_fraction is {fraction}; expected at least 0 and below 1.")
    own = {"train": (), "validation": ("validation", "test"), "test": ("test",)}[split]
    for name in own:
        if name in splits:
            return splits[name]()
    if split == "test":
        raise ValueError(f"The data have no test split; they have {', '.join(splits)}.")
    records = splits["train"]()
    if len(splits) > 1:
        return records
    kept, held = held_out(len(records), fraction)
    return Subset(records, kept if split == "train" else held)
