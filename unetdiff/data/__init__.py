"""Where batches come from and outputs go back to; names are imported on first use, so that torch is not."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetdiff.data.augment import augment as augment
    from unetdiff.data.check import check_source as check_source
    from unetdiff.data.formats import DataFormat as DataFormat
    from unetdiff.data.formats import write_images as write_images
    from unetdiff.data.loader import fixed_batches as fixed_batches
    from unetdiff.data.loader import training_loader as training_loader
    from unetdiff.data.masks import MaskEncoding as MaskEncoding
    from unetdiff.data.masks import write_mask as write_mask
    from unetdiff.data.order import StepBatchSampler as StepBatchSampler
    from unetdiff.data.order import batch_indices as batch_indices
    from unetdiff.data.order import epoch_permutation as epoch_permutation
    from unetdiff.data.order import key as key
    from unetdiff.data.order import keys as keys
    from unetdiff.data.pairs import PairSource as PairSource
    from unetdiff.data.pairs import open_pairs as open_pairs
    from unetdiff.data.sources import Source as Source
    from unetdiff.data.sources import open_source as open_source

_HOMES = {
    "DataFormat": "formats",
    "MaskEncoding": "masks",
    "PairSource": "pairs",
    "Source": "sources",
    "StepBatchSampler": "order",
    "augment": "augment",
    "batch_indices": "order",
    "check_source": "check",
    "epoch_permutation": "order",
    "fixed_batches": "loader",
    "key": "order",
    "keys": "order",
    "open_pairs": "pairs",
    "open_source": "sources",
    "training_loader": "loader",
    "write_images": "formats",
    "write_mask": "masks",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
