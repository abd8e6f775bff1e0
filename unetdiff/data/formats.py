"""What samples look like outside the network, and the way in and out of its range [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

DTYPES = ("uint8", "uint16", "float32")
INTEGER_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
"""Integers keep their full range whatever values occur; floats take the range of the training data."""

PNG_CHANNELS = {"uint8": (1, 2, 3, 4), "uint16": (1,), "float32": ()}
"""What pillow writes to PNG without loss; everything else is written as .npy."""


@dataclass(frozen=True, kw_only=True)
class DataFormat:
    """The form of a data set: stored with the model, so that outputs leave as inputs came.

    Args:
        dims: spatial axes: 1 (signals), 2 (images) or 3 (volumes).
        channels: channels C per sample, at least 1.
        dtype: "uint8", "uint16" or "float32".
        low, high: the values that become -1 and +1.
        clip: whether `encode` takes values beyond them for the nearer one; else they lie beyond -1 and +1.
        size: spatial shape of a sample, `dims` numbers, or None if it varies.
        class_names: one name per label 0, 1, ..., or None without labels.

    Raises:
        ValueError: one of these is outside what is listed here.
    """

    dims: int
    channels: int
    dtype: str
    low: float
    high: float
    clip: bool = False
    size: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dims not in (1, 2, 3):
            raise ValueError(f"dims is {self.dims!r}; expected 1, 2 or 3.")
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels!r}; expected at least 1.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}.")
        if not self.low < self.high:
            raise ValueError(f"The value range is {self.low} to {self.high}; expected low below high.")
        if self.size is not None and len(self.size) != self.dims:
            raise ValueError(f"size is {list(self.size)}; expected {self.dims} numbers.")

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.class_names or ())

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DataFormat:
        """The inverse of `to_dict`."""
        tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **tuples})

    def encode(self, array: np.ndarray) -> torch.Tensor:
        """Data to network: (N, *space, C) of `dtype` to float32 (N, C, *space), [low, high] to [-1, 1]; see `clip`."""
        return self.scale(self.stored(array))

    def stored(self, array: np.ndarray) -> torch.Tensor:
        """An array (N, *space, C) as a tensor (N, C, *space) of its dtype, a copy; `scale` makes it network input."""
        import torch

        assert (array.ndim, array.shape[-1]) == (self.dims + 2, self.channels), array.shape
        native = array.dtype.newbyteorder("=")
        return torch.from_numpy(np.moveaxis(array, -1, 1).astype(native, order="C"))

    def scale(self, values: torch.Tensor) -> torch.Tensor:
        """Values of any dtype and shape to float32, [low, high] to [-1, 1], where they are; see `clip`."""
        scaled = values.float()
        if self.clip:
            scaled = scaled.clamp(self.low, self.high)
        return (scaled - self.low).mul_(2 / (self.high - self.low)).sub_(1)

    def decode(self, samples: torch.Tensor) -> np.ndarray:
        """Network to data, the inverse of `encode`: (N, C, *space) to (N, *space, C) of `dtype`.

        Integers are rounded and clipped to [low, high]; floats may lie outside, as the network left them.
        """
        assert (samples.ndim, samples.shape[1]) == (self.dims + 2, self.channels), samples.shape
        values = samples.detach().float().movedim(1, -1).cpu().numpy()
        values = (values + 1) * np.float32((self.high - self.low) / 2) + np.float32(self.low)
        if self.dtype in INTEGER_RANGES:
            values = np.rint(values).clip(self.low, self.high)
        return np.ascontiguousarray(values, dtype=self.dtype)


def write_images(arrays: Sequence[np.ndarray] | np.ndarray, format: DataFormat, folder: Path) -> list[Path]:
    """Writes samples as files in the form of the training data.

    Args:
        arrays: samples (*space, C) of the format's dtype, as `DataFormat.decode` returns them.
        format: images become PNG where pillow's PNG holds them exactly (8 bits: 1 to 4 channels; 16 bits:
            1 channel); everything else becomes .npy of shape (*space, C).
        folder: made when missing.

    Returns:
        the files, 00000.png (or .npy) and on, in the order of `arrays`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    as_png = format.dims == 2 and format.channels in PNG_CHANNELS[format.dtype]
    paths = [folder / f"{i:05d}.{'png' if as_png else 'npy'}" for i in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        assert (array.dtype, array.shape[-1]) == (format.dtype, format.channels), (array.dtype, array.shape)
        if as_png:
            Image.fromarray(array[..., 0] if format.channels == 1 else array).save(path)
        else:
            np.save(path, array)
    return paths
