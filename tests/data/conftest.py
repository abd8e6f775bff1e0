"""Tiny data sets on disk, made anew for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.config import DataConfig

SaveImage = Callable[..., np.ndarray]


@pytest.fixture
def save_image() -> SaveImage:
    """Writes a random image of shape (H, W) or (H, W, C), its folder too; returns the pixels (H, W, C)."""

    def save(path: Path, shape: tuple[int, ...] = (8, 8, 3), dtype: str = "uint8", seed: int = 0) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        Image.fromarray(pixels).save(path)
        return pixels.reshape(*shape[:2], -1)

    return save


@pytest.fixture
def image_folder(tmp_path: Path, save_image: SaveImage) -> Path:
    """A folder with classes `ant` and `bee` of 6 RGB images of 8x8 each."""
    for number in range(6):
        for name in ("bee", "ant"):
            save_image(tmp_path / "images" / name / f"{number}.png", seed=number + 10 * (name == "bee"))
    return tmp_path / "images"


@pytest.fixture
def folder_settings(image_folder: Path) -> DataConfig:
    return DataConfig(source="folder", path=str(image_folder), validation_fraction=0.25)
