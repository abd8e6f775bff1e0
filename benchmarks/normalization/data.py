"""Images of a parquet folder, averaged down, as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.normalization.settings import StudyConfig
from benchmarks.normalization.training import Images
from unetdiff.config import DataConfig
from unetdiff.data.tables import data_set


def average_down(images: np.ndarray, size: int) -> np.ndarray:
    """(N, H, W, C) uint8, H = W a multiple of `size`, to float32 (N, C, size, size) in [-1, 1]: means of squares."""
    count, height, width, channels = images.shape
    if height != width or height % size:
        raise ValueError(f"the images are {height} x {width}; expected squares whose side is a multiple of {size}")
    squares = images.reshape(count, size, height // size, size, width // size, channels)
    means = squares.astype(np.float32).mean(axis=(2, 4)) / np.float32(127.5) - 1
    return np.ascontiguousarray(means.transpose(0, 3, 1, 2))


def load_images(path: str, config: StudyConfig, device: torch.device) -> Images:
    """The first training images, those after them to validate on, and the first test images.

    Raises:
        ValueError: the folder has no test split, or too few images.
    """
    splits = data_set(DataConfig(source="dataset", path=path, image_column="img", label_column=None))
    held_out = next((name for name in splits if name != "train"), None)
    if held_out is None:
        raise ValueError(f"{path} has no test images; expected one file of training and one of test images")

    def read(split: str, count: int) -> Tensor:
        table = splits[split]()
        if len(table) < count:
            raise ValueError(f"{path} has {len(table)} {split} images; the study asks for {count}")
        images = np.stack(list(table.load(np.arange(count))))
        return torch.from_numpy(average_down(images, config.size)).to(device)

    known = read("train", config.train_images + config.validation_images)
    return Images(known[: config.train_images], known[config.train_images :], read(held_out, config.test_images))
