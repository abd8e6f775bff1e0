"""The check before training: what is wrong with a data set is said at once, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from unetdiff.data.sources import Source, open_source, value_range

if TYPE_CHECKING:
    from unetdiff.config import DataConfig


def check_headers(source: Source) -> None:
    """Compares every record with the format, by its header alone; for sets too large to decode beforehand.

    Raises:
        ValueError: a file is not readable, or has other channels, another dtype or an unfit size.
    """
    for index in tqdm(range(len(source)), desc="checking", unit="sample", delay=2, disable=None):
        source.check_header(source.records.header(index), index)


def check_source(settings: DataConfig, batch_size: int = 1) -> tuple[Source, Source]:
    """Opens the training and validation data and checks all that can be checked before training.

    Args:
        settings: `data.*`.
        batch_size: the global batch size, which needs as many training samples.

    Returns:
        the training and the validation source, ready for use, so that nothing is decoded twice.

    Raises:
        ValueError: one sentence that names the file, column or value and says what was expected.
    """
    training = open_source(settings, "train")
    if len(training) < batch_size:
        raise ValueError(
            f"The training data hold {len(training)} samples; expected at least train.batch_size {batch_size}."
        )
    validation = open_source(settings, "validation", training.format)
    if training.format.dtype == "float32" and len(validation):
        value_range(validation.records)
    for source in (training, validation):
        if not source.records.in_memory:
            check_headers(source)
    return training, validation
