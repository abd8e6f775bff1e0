"""Tiles and strips of TIFF files in compressions that tifffile has no codec for: pillow decodes them, one by one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

WIDTH, LENGTH, OFFSETS, ROWS, COUNTS, PLANES = 256, 257, 273, 278, 279, 284
BITS, MEANING, CHANNELS, GREY = 258, 262, 277, 1

COPIED = (259, 317, 347, 530)
"""Tags that say how a tile is packed: compression, predictor, JPEG's tables and its coarser colours."""

OF_CHANNELS = (BITS, MEANING, CHANNELS, 338, 339)
"""Tags that hold for all channels together: bits, meaning, how many, alpha, kind of number."""


def decode_alone(page: Any, data: bytes, size: tuple[int, int]) -> np.ndarray:
    """A tile or strip of a page as a TIFF file of its own, (h, w, channels) as it holds them.

    Args:
        page: of tifffile.
        data: what the file holds of the tile or strip.
        size: (h, w) of it.

    Raises:
        ValueError: pillow does not hold these numbers exactly.
    """
    order = page.parent.byteorder
    tags = ImageFileDirectory_v2(prefix=b"MM" if order == ">" else b"II")
    separate = page.planarconfig == 2  # each tile then holds one channel
    for tag in COPIED if separate else (*COPIED, *OF_CHANNELS):
        if tag in page.tags:
            tags[tag] = page.tags[tag].value
    if separate:
        tags[BITS], tags[MEANING], tags[CHANNELS] = page.bitspersample, GREY, 1
    tags[LENGTH], tags[WIDTH] = size
    tags[ROWS], tags[COUNTS], tags[PLANES] = size[0], len(data), 1
    tags[OFFSETS] = 0  # from where the list of tags ends
    file = io.BytesIO()
    tags.save(file)
    file.write(data)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        values = np.asarray(image)
    channels = 1 if separate else page.samplesperpixel
    if values.dtype.newbyteorder("=") != page.dtype or values.size != size[0] * size[1] * channels:
        raise ValueError(f"pillow makes {values.dtype} of {page.dtype}")
    return values.reshape(*size, channels).astype(page.dtype, copy=False)
