"""How masks are written, and the way from there to class numbers and back. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetdiff.data.mask_options import EncodingKind
from unetdiff.segmentation.options import IGNORE
from unetdiff.typed import check_types, from_json, plain

Value = int | tuple[int, ...]
"""What stands in a mask for one class: a number, or a colour."""

DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64")

MOST_SHOWN = 10
"""Values that a message lists."""

BACKGROUND = (43, 48, 56)
HUES = (
    *((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178)),
    *((221, 225, 221), (150, 50, 100), (170, 238, 255)),
)
"""Colours of classes in pictures: a dark neutral one, those of Okabe and Ito (2008), the calmest first, and three more
that stay apart from them, for colour-blind readers too."""


@dataclass(frozen=True, kw_only=True)
class MaskEncoding:
    """How masks are written: stored with the model, so that predictions leave as masks came.

    Args:
        kind: `values` (a number per position), `palette` (the same in an indexed PNG), `colours` (C numbers per
            position, a colour table), `one_hot` (K numbers per position, one of which is not 0).
        values: what stands for class 0, 1, ... K-1, all different; for `one_hot`, rows that are 0 but for one entry.
        class_names: K names.
        ignore: what stands for `IGNORE`; the first is what is written.
        dtype: of the masks' numbers.
        palette: colours of an indexed PNG, R, G, B of index 0 and on.
        suffix: of the mask files.

    Raises:
        ValueError: one of these is outside what is listed here.
    """

    kind: EncodingKind
    values: tuple[Value, ...]
    class_names: tuple[str, ...]
    ignore: tuple[Value, ...] = ()
    dtype: str = "uint8"
    palette: tuple[int, ...] | None = None
    suffix: str = ".png"

    def __post_init__(self) -> None:
        check_types(self)
        every = self.values + self.ignore
        if len(self.values) < 2:
            raise ValueError(f"data.values is {list(self.values)}; expected at least two classes")
        if len(set(every)) < len(every):
            raise ValueError(f"data.values {list(self.values)} and data.ignore {list(self.ignore)} repeat a value")
        if len(self.class_names) != len(self.values):
            raise ValueError(
                f"data.class_names has {len(self.class_names)} names; expected {len(self.values)}, one per class"
            )
        lengths = {len(value) if isinstance(value, tuple) else 0 for value in every}
        if len(lengths) > 1 or (0 in lengths) != (self.kind in ("values", "palette")):
            form = "whole numbers" if self.kind in ("values", "palette") else "lists of one length"
            raise ValueError(f"data.values or data.ignore does not fit masks of kind {self.kind}; expected {form}")
        if self.dtype not in DTYPES:
            raise ValueError(f"masks have dtype {self.dtype}; expected one of {', '.join(DTYPES)}")
        if not np.array_equal(self._table, np.array(every).astype(self.dtype)):
            raise ValueError(f"data.values {list(every)} do not fit masks of dtype {self.dtype}")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.values)

    @property
    def channels(self) -> int:
        """Numbers per position: 0 where masks have no channel axis."""
        return len(self.values[0]) if isinstance(self.values[0], tuple) else 0

    @property
    def _table(self) -> np.ndarray:
        return np.array(self.values + self.ignore)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return plain(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MaskEncoding:
        """The inverse of `to_dict`."""
        return from_json(cls, {name: as_tuples(value) for name, value in fields.items()})

    def undeclared(self, codes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some `mask_codes` that stand for nothing, sorted."""
        return np.setdiff1d(np.asarray(codes, dtype=np.int64), mask_codes(self._table, self.kind))

    def labels_of(self, codes: np.ndarray) -> np.ndarray:
        """Class numbers of `mask_codes`: int64 of the same shape, 0 ... K-1 and `IGNORE`.

        Raises:
            ValueError: a code stands for nothing.
        """
        known = mask_codes(self._table, self.kind)
        order = np.argsort(known)
        places = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        wrong = known[places] != codes
        if wrong.any():
            values = show_codes(np.unique(codes[wrong]), self.kind, self.channels)
            raise ValueError(f"has values {values}; expected {self.expected}")
        return np.where(places < self.num_classes, places, IGNORE)

    def encode(self, array: np.ndarray) -> np.ndarray:
        """A mask as class numbers.

        Args:
            array: (*space) numbers, or (*space, C) for `colours` and `one_hot`.

        Returns:
            int64 (*space), 0 ... K-1 and `IGNORE`.

        Raises:
            ValueError: values that stand for nothing, or another number of channels.
        """
        if self.channels and array.shape[-1] != self.channels:
            raise ValueError(f"has {array.shape[-1]} channels; expected {self.channels}")
        return self.labels_of(mask_codes(array, self.kind))

    @property
    def expected(self) -> str:
        """The declared values, for messages."""
        ignored = f", and {show_values(self.ignore)} for what is ignored" if self.ignore else ""
        return f"{show_values(self.values)} for the {self.num_classes} classes{ignored}"

    def decode(self, labels: np.ndarray) -> np.ndarray:
        """The inverse of `encode`: int64 (*space) to an array of `dtype`, (*space) or (*space, C).

        Raises:
            ValueError: a position is ignored and no value stands for that, or there is no such class.
        """
        least, most = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if least < IGNORE or most >= self.num_classes:
            raise ValueError(f"labels go from {least} to {most}; expected 0 to {self.num_classes - 1}, or {IGNORE}")
        if least == IGNORE and not self.ignore:
            raise ValueError(f"labels hold {IGNORE}, and the masks have no value for what is ignored: set data.ignore")
        table = np.array([*self.values, *self.ignore[:1]]).astype(self.dtype)
        places = np.where(labels == IGNORE, self.num_classes, labels)
        return table[places]

    def colours(self) -> np.ndarray:
        """A colour per class for pictures, uint8 (K, 3): the masks' own where they have any, else `class_colours`."""
        if self.palette is not None:
            rows = np.array(self.palette, dtype=np.uint8).reshape(-1, 3)
            places = np.array(self.values)
            if places.max() < len(rows):
                return rows[places]
        table = np.array(self.values)
        if self.kind == "colours" and self.channels >= 3 and table.min() >= 0 and table.max() <= 255:
            return table[:, :3].astype(np.uint8)
        return class_colours(self.num_classes)


def class_colours(count: int) -> np.ndarray:
    """A dark grey for the first class, then hues that colour-blind readers tell apart: uint8 (count, 3).

    After the ten hues come their shades and tints, halfway to black and to white, then ever finer (van der Corput's
    sequence), so that every class has a colour of its own.
    """
    rounds, hues = np.divmod(np.arange(count - 1), len(HUES))
    shares = np.array([_van_der_corput((number + 1) // 2) for number in rounds]).reshape(-1, 1)
    ends = np.where(rounds % 2, 0, 255)[:, None]
    shown = (1 - shares) * np.array(HUES)[hues] + shares * ends
    return np.concatenate([[BACKGROUND], shown]).round().astype(np.uint8)


def _van_der_corput(number: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: the binary digits mirrored at the point."""
    digits = f"{number:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)


def as_tuples(value: Any) -> Any:
    """Lists as tuples, to any depth."""
    return tuple(as_tuples(entry) for entry in value) if isinstance(value, list) else value


def mask_codes(array: np.ndarray, kind: EncodingKind) -> np.ndarray:
    """One int64 number per position of a mask, different for different values.

    Args:
        array: (*space), or (*space, C) for `colours` (packed into one number) and `one_hot` (bit c is set where
            channel c is not 0).

    Raises:
        ValueError: numbers that are not whole or do not fit, several values beside 0 in `one_hot`, too many channels.
    """
    whole = array.astype(np.int64)
    if array.dtype.kind == "f" and not np.array_equal(whole, array):
        raise ValueError("holds numbers that are not whole; expected class values")
    if kind in ("values", "palette"):
        return whole
    channels = whole.shape[-1]
    bits = _bits(kind, channels)
    if channels * bits > 62:
        raise ValueError(f"has {channels} channels; expected at most {62 // bits}")
    if kind == "one_hot":
        if len(several := np.setdiff1d(whole, [0])) > 1:
            raise ValueError(f"holds {show_values(several.tolist())}; expected 0 and one other value, since one-hot")
        whole = (whole != 0).astype(np.int64)
    if whole.size and not (whole.min() >= 0 and whole.max() < 2**bits):
        raise ValueError(f"has colours from {whole.min()} to {whole.max()}; expected 0 to {2**bits - 1}")
    return (whole << (bits * np.arange(channels))).sum(-1)


def _bits(kind: EncodingKind, channels: int) -> int:
    """Bits per channel in a packed code."""
    return 1 if kind == "one_hot" else 16 if channels <= 3 else 8


def code_value(code: int, kind: EncodingKind, channels: int) -> Value:
    """The value that `mask_codes` made a code of; the entries of one-hot values are 0 and 1."""
    if kind in ("values", "palette"):
        return code
    bits = _bits(kind, channels)
    return tuple(code >> (bits * channel) & (2**bits - 1) for channel in range(channels))


def show_values(values: Sequence[Value]) -> str:
    """Values as messages list them."""
    listed = ", ".join(str(list(value) if isinstance(value, tuple) else value) for value in values[:MOST_SHOWN])
    return listed + (f", ... ({len(values)} in all)" if len(values) > MOST_SHOWN else "")


def show_codes(codes: Sequence[int] | np.ndarray, kind: EncodingKind, channels: int) -> str:
    """Codes as messages list them: by their values."""
    return show_values([code_value(int(code), kind, channels) for code in codes])


def write_mask(labels: np.ndarray, encoding: MaskEncoding, path: Path, affine: np.ndarray | None = None) -> None:
    """Writes class numbers in the form of the masks that a network learned from.

    Args:
        labels: int64 (*space), 0 ... K-1, or `IGNORE`.
        encoding: how masks are written.
        path: its suffix tells the form: .png (2-D, 8 or 16 bits), .tif, .nii, .nii.gz, else .npy.
        affine: (4, 4) of a NIfTI file; none: one millimetre per voxel.

    Raises:
        ValueError: an image file cannot hold these masks.
    """
    array = encoding.decode(labels)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        _write_nifti(array, path, affine)
    elif name.endswith(".npy"):
        np.save(path, array)
    else:
        _write_image(array, encoding, path)


def mask_suffix(encoding: MaskEncoding, dims: int) -> str:
    """The suffix of predicted masks: that of the masks learned from, where such a file can hold them exactly."""
    if encoding.suffix in (".npy", ".nii", ".nii.gz"):
        return encoding.suffix if encoding.suffix == ".npy" or dims == 3 else ".npy"
    writable = encoding.dtype in ("bool", "uint8", "uint16") and encoding.channels in (0, 3, 4)
    if not writable or dims == 1 or (encoding.dtype == "uint16" and encoding.channels):
        return ".npy"
    return ".tif" if dims == 3 or encoding.suffix in (".tif", ".tiff") else ".png"


def _write_image(array: np.ndarray, encoding: MaskEncoding, path: Path) -> None:
    from PIL import Image

    dims = array.ndim - bool(encoding.channels)
    if mask_suffix(encoding, dims) == ".npy" or (dims == 3 and path.suffix.lower() not in (".tif", ".tiff")):
        raise ValueError(
            f"{path} cannot hold {dims}-D masks of {encoding.dtype}; expected {mask_suffix(encoding, dims)}"
        )
    pages = [Image.fromarray(page) for page in (array if dims == 3 else array[None])]
    if encoding.palette is not None:
        # Pillow stores as many bits as the palette needs, so that it must reach the largest number in use.
        missing = 3 * (int(array.max(initial=0)) + 1) - len(encoding.palette)
        for page in pages:
            page.putpalette([*encoding.palette, *[0] * missing])  # grey pages become indexed, their numbers kept
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(path, **more)


def _write_nifti(array: np.ndarray, path: Path, affine: np.ndarray | None) -> None:
    """(Z, Y, X[, C]) as NIfTI's (X, Y, Z[, C]); bool, which NIfTI lacks, as uint8."""
    import nibabel

    stored = np.swapaxes(array.astype(np.uint8) if array.dtype == bool else array, 0, 2)
    nibabel.save(nibabel.Nifti1Image(stored, np.eye(4) if affine is None else affine, dtype=stored.dtype), path)
