"""Small images as text, so that results hold what their pictures need."""

from __future__ import annotations

from base64 import b64decode, b64encode

import numpy as np
from torch import Tensor


def pack(image: Tensor | np.ndarray, low: float = -1.0, high: float = 1.0) -> str:
    """An image (H, W) as `HxW:` and a byte per pixel in base64; `low` is 0, `high` 255, values beyond are clipped."""
    values = (np.asarray(image, np.float64) - low) / (high - low)
    levels = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    height, width = levels.shape
    return f"{height}x{width}:{b64encode(levels.tobytes()).decode()}"


def unpack(text: str, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """The image (H, W), float64, that `pack` wrote, rounded to 1/255 of the range."""
    shape, _, data = text.partition(":")
    levels = np.frombuffer(b64decode(data), np.uint8).reshape([int(length) for length in shape.split("x")])
    return low + levels.astype(np.float64) / 255 * (high - low)
