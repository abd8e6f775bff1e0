"""Image files to arrays, exactly: 8 and 16 bits and float, 1 to 4 channels; resizing and cropping."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from unetdiff.data.errors import first_line

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".tga", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""File names that count as images."""

MODES = {
    "1": ("L", "uint8"),
    "L": ("L", "uint8"),
    "LA": ("LA", "uint8"),
    "P": ("RGB", "uint8"),
    "PA": ("RGBA", "uint8"),
    "RGB": ("RGB", "uint8"),
    "RGBA": ("RGBA", "uint8"),
    "RGBX": ("RGB", "uint8"),
    "CMYK": ("RGB", "uint8"),
    "YCbCr": ("RGB", "uint8"),
    "I;16": ("I;16", "uint16"),
    "I;16B": ("I;16B", "uint16"),
    "I;16L": ("I;16L", "uint16"),
    "F": ("F", "float32"),
}
"""Pillow mode of a file: the mode that holds its values, and their dtype. 16 bits are never converted."""

DEEP_RGB = (";16B", ";16L", ";16N")
"""Raw modes that pillow cuts to 8 bits when it has no mode for them, as in a 16-bit RGB PNG."""

ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 exchange width and height
CAMERA_FORMATS = ("JPEG", "MPO")


@dataclass(frozen=True)
class Header:
    """What a sample will decode to: its shape (*space, C) and dtype."""

    shape: tuple[int, ...]
    dtype: str


@contextmanager
def _pillow(name: str) -> Iterator[None]:
    """For calls of pillow alone: whatever they raise becomes a ValueError that names the image."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a readable image; it is damaged or of an unknown format.") from error
    except Exception as error:  # each of pillow's plugins raises its own kinds
        raise ValueError(f"{name} cannot be decoded ({first_line(error)}); expected a whole image file.") from error


def _opened(file: Path | bytes, name: str) -> Image.Image:
    with _pillow(name):
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)


def _target(image: Image.Image, name: str) -> tuple[str, str]:
    """The entry of MODES for an open image, refused when pillow would lose bits."""
    if image.mode not in MODES:
        raise ValueError(f"{name} has pillow mode {image.mode!r}; expected one of {', '.join(MODES)}.")
    target, dtype = MODES[image.mode]
    tiles = getattr(image, "tile", [])
    codec_args = tiles[0].args if tiles else ""
    raw = codec_args if isinstance(codec_args, str) else (codec_args or ("",))[0]
    if dtype == "uint8" and str(raw).endswith(DEEP_RGB):
        raise ValueError(f"{name} holds 16 bits in several channels, which pillow cuts to 8; save it as .npy.")
    return target, dtype


def image_header(file: Path | bytes, name: str) -> Header:
    """Shape and dtype of an image from its header alone, without decoding.

    Args:
        file: a path, or the bytes of an encoded image.
        name: what messages call it.

    Raises:
        ValueError: not an image, or one that cannot be held exactly.
    """
    with _opened(file, name) as image:
        target, dtype = _target(image, name)
        width, height = image.size
        with _pillow(name):
            turned = image.format in CAMERA_FORMATS and image.getexif().get(ORIENTATION, 1) > 4
        if turned:
            width, height = height, width
    return Header((height, width, len(Image.new(target, (1, 1)).getbands())), dtype)


def decode_image(file: Path | bytes, name: str) -> np.ndarray:
    """An image as (H, W, C) in the dtype of MODES: C is 1 for grey, 2 with alpha, 3 for RGB, 4 for RGBA.

    Palettes become RGB, and a camera's rotation flag is obeyed.

    Args:
        file: a path, or the bytes of an encoded image.
        name: what messages call it.

    Raises:
        ValueError: not an image, truncated, or one that cannot be held exactly.
    """
    with _opened(file, name) as image:
        target, dtype = _target(image, name)
        with _pillow(name):
            upright = ImageOps.exif_transpose(image) if image.format in CAMERA_FORMATS else image
            converted = upright if upright.mode == target else upright.convert(target)
            array = np.asarray(converted).astype(dtype, copy=False)
    return array.reshape(*array.shape[:2], -1)


def page_count(file: Path | bytes, name: str) -> int:
    """How many images a file holds: above 1 for TIFF stacks."""
    with _opened(file, name) as image, _pillow(name):
        return getattr(image, "n_frames", 1)


def decode_pages(file: Path | bytes, name: str) -> np.ndarray:
    """All images of a file, a TIFF stack, as (D, H, W, C) in the dtype of MODES; see `decode_image`."""
    with _opened(file, name) as image:
        pages = [_page(image, number, name) for number in range(getattr(image, "n_frames", 1))]
    shapes = {page.shape for page in pages}
    if len(shapes) > 1:
        raise ValueError(f"{name} holds pages of shapes {sorted(map(list, shapes))}; expected one shape.")
    return np.stack(pages)


def _page(image: Image.Image, number: int, name: str) -> np.ndarray:
    """One page of an open file as (H, W, C)."""
    with _pillow(name):
        image.seek(number)
    target, dtype = _target(image, name)
    with _pillow(name):
        array = np.asarray(image if image.mode == target else image.convert(target)).astype(dtype, copy=False)
    return array.reshape(*array.shape[:2], -1)


def decode_numbers(file: Path | bytes, name: str) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """The numbers that an image file stores, as masks need them: bits stay bits and indices stay indices.

    Returns:
        (H, W) or (H, W, C), with the pages of a TIFF stack first; and the palette of an indexed file, R, G, B of
        index 0 and on, or None.

    Raises:
        ValueError: not an image, truncated, or one that cannot be held exactly.
    """
    with _opened(file, name) as image:
        if image.mode not in ("1", "P", "I"):
            _target(image, name)
        with _pillow(name):
            palette = image.getpalette("RGB") if image.mode == "P" else None
            pages = [np.asarray(page) for page in ImageSequence.Iterator(image)]
    return (np.stack(pages) if len(pages) > 1 else pages[0]), (None if palette is None else tuple(palette))


def resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic resampling, antialiased when shrinking: (H, W, C) to (*size, C), the same dtype."""
    width_height = (size[1], size[0])
    if array.dtype == np.uint8 and array.shape[-1] in (1, 3):
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        return np.asarray(image.resize(width_height, Image.Resampling.BICUBIC)).reshape(*size, -1)
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(width_height, Image.Resampling.BICUBIC))
        for plane in np.moveaxis(array, -1, 0)
    ]
    resized = np.stack(planes, axis=-1)
    if array.dtype == np.float32:
        return resized
    return np.rint(resized).clip(0, np.iinfo(array.dtype).max).astype(array.dtype)


def cover(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Scales an image (H, W, C), aspect kept, to the smallest that covers `size`; signals and volumes pass."""
    if len(size) != 2:
        return array
    scale = max(target / have for target, have in zip(size, array.shape[:2], strict=True))
    height, width = (max(target, round(have * scale)) for target, have in zip(size, array.shape[:2], strict=True))
    return array if array.shape[:2] == (height, width) else resize(array, (height, width))


def crop(array: np.ndarray, size: tuple[int, ...], place: np.ndarray | None) -> np.ndarray:
    """A window of shape `size` from (*space, C); see `crop_window`."""
    return array[crop_window(array.shape[:-1], size, place)]


def crop_window(space: tuple[int, ...], size: tuple[int, ...], place: np.ndarray | None) -> tuple[slice, ...]:
    """Where a window of shape `size` lies.

    Args:
        space: at least `size` along every axis.
        size: spatial shape of the window.
        place: where, along each axis, in [0, 1) from first to last possible offset; None is the centre.
    """
    room = np.array(space) - size
    assert (room >= 0).all(), (space, size)
    offsets = room // 2 if place is None else np.floor(place * (room + 1)).astype(int)
    return tuple(slice(o, o + s) for o, s in zip(offsets.tolist(), size, strict=True))
