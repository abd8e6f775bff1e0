"""Pictures of masks: an image beside its truth and its prediction, overlays, and maps with a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from unetdiff.data.formats import DataFormat
from unetdiff.figures import COLOURS, GROUND, INK, PAPER, SMALLEST_PICTURE, plot_style, to_display
from unetdiff.segmentation.options import IGNORE

TRACK_HEIGHT = 24  # pixels of a 1-D sample's picture
OPACITY = 0.55  # of classes over an image
VOID = (120, 120, 120)
LINE = 18  # pixels of a caption


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
    wrong, right = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (COLOURS[1], PAPER))
    state = np.where(truth == IGNORE, 2, labels != truth)
    return np.array([right, wrong, VOID], dtype=np.uint8)[as_plane(state.astype(int), labels.ndim)]


def panels(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str]) -> Image.Image:
    """RGB planes (H, W, 3) as a table with a caption over each column; small ones are enlarged by whole factors."""
    columns = len(captions)
    height, width = (max(plane.shape[axis] for row in rows for plane in row) for axis in (0, 1))
    scale = max(1, SMALLEST_PICTURE // (columns * width))
    cell = (width * scale + 6, height * scale + 6)
    picture = Image.new("RGB", (columns * cell[0] + 6, len(rows) * cell[1] + LINE + 6), PAPER)
    draw = ImageDraw.Draw(picture)
    for column, caption in enumerate(captions):
        draw.text((6 + column * cell[0], 3), caption, fill=INK)
    for number, row in enumerate(rows):
        for column, plane in enumerate(row):
            at = (6 + column * cell[0], LINE + 6 + number * cell[1])
            draw.rectangle((*at, at[0] + cell[0] - 7, at[1] + cell[1] - 7), fill=GROUND)
            shown = Image.fromarray(np.ascontiguousarray(plane))
            picture.paste(shown.resize((plane.shape[1] * scale, plane.shape[0] * scale), Image.Resampling.NEAREST), at)
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
