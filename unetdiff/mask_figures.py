"""Pictures of masks: an image beside its truth and its prediction, overlays, and maps with a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from unetdiff.data.formats import DataFormat
from unetdiff.figures import (
    COLOURS,
    GROUND,
    INK,
    PANEL,
    PAPER,
    SEQUENTIAL,
    TEXT_SIZE,
    plot_style,
    shorten,
    text_font,
    to_display,
)
from unetdiff.segmentation.options import IGNORE

TRACK_HEIGHT = 24  # pixels of a 1-D sample's picture
OPACITY = 0.55  # of classes over an image
VOID = (120, 120, 120)
LARGEST_PLANE = 512  # pixels of the longer side of an image's planes
PAGE = 1120  # pixels: where pictures are this wide, captions have the size of a page's text
MOST_ENLARGED = (1000, 1100)  # pixels: small panels are enlarged up to this width and height
WIDE = 3  # times as wide as high: from here on, panels stand one below another
GAP = 6  # pixels between panels


def as_plane(array: np.ndarray, dims: int) -> np.ndarray:
    """A sample (*space, ...) as a plane (H, W, ...): the middle slice of a volume, a 1-D track as a band."""
    if dims == 3:
        return array[len(array) // 2]
    return np.repeat(array[None], TRACK_HEIGHT, axis=0) if dims == 1 else array


def image_plane(image: np.ndarray, format: DataFormat) -> np.ndarray:
    """An image (*space, C) in the form of the data as RGB (H, W, 3) uint8."""
    shown = as_plane(to_display(image[None], format)[0], format.dims)
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def label_plane(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels (*space) as RGB (H, W, 3) uint8; IGNORE is grey. colours: (K, 3) uint8."""
    table = np.concatenate([colours, [VOID]]).astype(np.uint8)
    return table[as_plane(np.where(labels == IGNORE, len(colours), labels), labels.ndim)]


def overlay(image: np.ndarray, labels: np.ndarray, format: DataFormat, colours: np.ndarray) -> np.ndarray:
    """Classes but the first in colour over the image, (H, W, 3) uint8."""
    ground, classes = image_plane(image, format).astype(np.float32), label_plane(labels, colours).astype(np.float32)
    share = OPACITY * (as_plane(labels, labels.ndim) > 0)[..., None]
    return np.rint((1 - share) * ground + share * classes).astype(np.uint8)


def error_plane(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where a prediction is wrong, (H, W, 3) uint8: wrong positions coloured, right ones pale, ignored ones grey."""
    wrong, right = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (COLOURS[1], PANEL))
    state = np.where(truth == IGNORE, 2, labels != truth)
    return np.array([right, wrong, VOID], dtype=np.uint8)[as_plane(state.astype(int), labels.ndim)]


def entropy_plane(probabilities: np.ndarray) -> np.ndarray:
    """The entropy of class probabilities (K, *space) from 0 to log K, in colours (H, W, 3) uint8."""
    import matplotlib
    from scipy.special import entr

    share = entr(probabilities).sum(0) / math.log(len(probabilities))
    table = matplotlib.colormaps[SEQUENTIAL](np.arange(256), bytes=True)[:, :3]
    return table[np.rint(255 * as_plane(share, share.ndim).clip(0, 1)).astype(int)]


def case_planes(
    image: np.ndarray,
    truth: np.ndarray,
    probabilities: np.ndarray,
    format: DataFormat,
    colours: np.ndarray,
    place: int | None = None,
) -> list[np.ndarray]:
    """What one image shows: itself, truth, prediction, error and entropy, (H, W, 3) uint8 each; see `case_captions`.

    Args:
        image: (*space, C) in the form of the data. truth: (*space). probabilities: (K, *space).
        format: of the image. colours: (K, 3) uint8.
        place: of a volume's slice; None: the middle one.

    Returns:
        planes with at most 512 positions along the longer side, larger ones averaged down.
    """
    if format.dims == 3:
        one = slice(place := len(image) // 2 if place is None else place, place + 1)
        image, truth, probabilities = image[one], truth[one], probabilities[:, one]
    found = probabilities.argmax(0)
    planes = [
        image_plane(image, format),
        label_plane(truth, colours),
        label_plane(found, colours),
        error_plane(found, truth),
        entropy_plane(probabilities),
    ]
    return [_reduced(plane, keep_height=format.dims == 1) for plane in planes]


def case_captions(classes: int) -> list[str]:
    """Over each of `case_planes`, for so many classes; the entropy's with its scale."""
    return ["image", "truth", "prediction", "error", f"entropy\n0 to {math.log(classes):.2f} nats"]


def most_wrong_slice(found: np.ndarray, truth: np.ndarray) -> int:
    """The slice of a volume's labels (D, H, W) with the most wrong positions; the middle one where none is wrong."""
    wrong = ((found != truth) & (truth != IGNORE)).sum(axis=(1, 2))
    return int(wrong.argmax()) if wrong.any() else len(wrong) // 2


def _reduced(plane: np.ndarray, keep_height: bool) -> np.ndarray:
    """A plane (H, W, 3) averaged down to `LARGEST_PLANE` along the longer side."""
    height, width = plane.shape[:2]
    share = min(1, LARGEST_PLANE / max(height, width))
    size = (max(1, round(width * share)), height if keep_height else max(1, round(height * share)))
    if size == (width, height):
        return plane
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BOX))


def panels(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str]) -> Image.Image:
    """RGB planes (H, W, 3) as a table with a caption over each column; small ones are enlarged by whole factors.

    Planes much wider than high stand one below another, each beside its caption. Captions may have two lines.
    """
    height, width = (max(plane.shape[axis] for row in rows for plane in row) for axis in (0, 1))
    stacked = width >= WIDE * height
    across, down = (1, len(rows) * len(captions)) if stacked else (len(captions), len(rows))
    scale = max(1, min(MOST_ENLARGED[0] // (across * width), MOST_ENLARGED[1] // (down * height)))
    width, height = width * scale, height * scale
    font = text_font(max(TEXT_SIZE, round(TEXT_SIZE * across * (width + GAP) / PAGE)))
    lines = [caption.replace("\n", " ") if stacked else caption for caption in captions]
    left = math.ceil(max(map(font.getlength, lines))) + GAP if stacked else 0
    top = 0 if stacked else round(1.3 * font.size * max(line.count("\n") + 1 for line in lines)) + GAP
    size = (left + across * (width + GAP) - GAP, top + down * (height + GAP) - GAP)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        for column, plane in enumerate(row):
            place = (0, number * len(captions) + column) if stacked else (column, number)
            x, y = left + place[0] * (width + GAP), top + place[1] * (height + GAP)
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill=GROUND)
            shown = Image.fromarray(np.ascontiguousarray(plane))
            shown = shown.resize((plane.shape[1] * scale, plane.shape[0] * scale), Image.Resampling.NEAREST)
            picture.paste(shown, (x, y))
            if stacked:
                draw.text((left - GAP, y + height / 2), lines[column], fill=INK, font=font, anchor="rm")
            elif number == 0:
                text = "\n".join(shorten(line, width, font) for line in lines[column].split("\n"))
                draw.text((x, y - GAP), text, fill=INK, font=font, anchor="ld", spacing=font.size / 5)
    return picture


def map_picture(values: np.ndarray, name: str, most: float) -> Image.Image:
    """A map (*space) of numbers from 0 to `most` in colours, with its scale, such as an entropy in nats."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plane = as_plane(values, values.ndim)
    with plot_style():
        figure = Figure(figsize=(5.2, 4.2), dpi=120)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.set_axis_off()
        shown = axes.imshow(plane, cmap="viridis", vmin=0, vmax=most, interpolation="nearest", aspect="auto"
                            if values.ndim == 1 else "equal")  # fmt: skip
        figure.colorbar(shown, ax=axes, label=name)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
