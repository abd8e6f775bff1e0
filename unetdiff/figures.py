"""Pictures of samples: grids of images, small multiples of signals, slices of volumes, and the denoising as a GIF.

The colours and the style at the top are those of every plot of the project. matplotlib is imported on use, and
only its `Figure` and Agg canvas, under a style that is undone afterwards: a user's own backend and settings stay.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unetdiff.data.formats import DataFormat

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Categories, in order: the palette of Okabe and Ito (2008), told apart by colour-blind readers too."""

SEQUENTIAL = "viridis"
"""The matplotlib colour map of ordered values."""

INK, MUTED, RULE, PANEL, PAPER = "#1f2933", "#616e7c", "#d5dae0", "#f4f6f8", "#ffffff"
"""Text, secondary text, lines, the ground of a panel, the page."""

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "unetdiff",
}

SMALLEST_PICTURE = 600  # pixels of the longer side that small images are enlarged to; the result stays below twice that
SLICES = 8  # of a volume
GAP, SAMPLE_GAP, VOLUME_GAP = 2, 2, 6  # pixels between slices, between images, between volumes
TEXT_SIZE, LINE_HEIGHT = 13, 20  # pixels
GROUND = "#e3e7eb"  # between tiles: seen beside black and beside white images
CHECKS, CHECK_SIZE = (255, 204), 4  # the board behind transparent pixels
SIGNAL_MARGIN = 0.15  # of the value range, above and below
LONGEST_ANIMATION, LAST_FRAME_SECONDS = 60, 1.5  # frames, seconds


@contextmanager
def plot_style() -> Iterator[None]:
    """Within, matplotlib draws in the project's style, whatever the user has set; afterwards all is as before."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def to_display(arrays: np.ndarray, format: DataFormat) -> np.ndarray:
    """Samples as a screen can show them: the format's [low, high] becomes 0 to 255, values beyond are clipped.

    What the channels become: 1 is grey. 2 are overlaid as green and magenta, where both agree grey or white (the
    convention of two-channel microscopy, safe for colour-blind readers). 3 are red, green, blue. 4 of an integer
    2-D image are RGBA, shown on a checkerboard. Of any more, and of 4 otherwise (features, modalities), the first
    three are shown as red, green, blue.

    Args:
        arrays: (N, *space, C) of any real dtype, in the form of the data; NaN is shown as `low`.
        format: the form of the data.

    Returns:
        uint8 of shape (N, *space, 1) for one channel and (N, *space, 3) otherwise.
    """
    assert (arrays.ndim, arrays.shape[-1]) == (format.dims + 2, format.channels), arrays.shape
    scaled = (arrays.astype(np.float32) - np.float32(format.low)) * np.float32(255 / (format.high - format.low))
    pixels = np.rint(np.nan_to_num(scaled, nan=0.0).clip(0, 255)).astype(np.uint8)
    if format.channels == 2:
        return pixels[..., [1, 0, 1]]
    if format.channels == 4 and format.dims == 2 and format.dtype != "float32":
        return _over_checkerboard(pixels)
    return pixels[..., :3]


def _over_checkerboard(pixels: np.ndarray) -> np.ndarray:
    """RGBA (N, H, W, 4) to RGB (N, H, W, 3), both uint8, straight (not premultiplied) alpha."""
    rows, columns = np.indices(pixels.shape[1:3]) // CHECK_SIZE
    board = np.array(CHECKS, np.float32)[(rows + columns) % 2][..., None]
    alpha = pixels[..., 3:] / np.float32(255)
    return np.rint(alpha * pixels[..., :3] + (1 - alpha) * board).astype(np.uint8)


def grid(
    arrays: np.ndarray,
    format: DataFormat,
    columns: int | None = None,
    labels: Sequence[str] | Sequence[int] | np.ndarray | None = None,
    scale: int | None = None,
) -> Image.Image:
    """One picture of many samples, row by row.

    Images (2-D) are tiles. Volumes (3-D) are a row of evenly spaced slices along the first axis, and then the
    maximum over that axis. Signals (1-D) are small plots with one value range, that of the format and a little
    more, at whose edge values beyond it are drawn; channels are colours.

    Args:
        arrays: samples (N, *space, C) in the form of the data, N at least 1.
        format: the form of the data.
        columns: samples per row; None: about as wide as high.
        labels: per sample its class name, or its class as a number, which `format.class_names` names. A row whose
            samples share one class is named on its left, if that holds for all rows; otherwise each sample is named.
        scale: screen pixels per pixel of images and volumes; None: the smallest that brings the picture's longer
            side to 600 pixels. Signals do not use it.

    Returns:
        an RGB image, at its natural size where the samples are large.
    """
    assert len(arrays) > 0
    assert labels is None or len(labels) == len(arrays), (len(labels), len(arrays))
    names = None if labels is None else [_name(label, format) for label in labels]
    if format.dims == 1:
        across = columns or math.ceil(math.sqrt(len(arrays)))
        return _signals(arrays, format, across, _Names.place(names, across))
    panels, titles = _panels(arrays, format)
    count, per_sample, height, width = panels.shape[:4]
    across = columns or min(count, math.ceil(math.sqrt(count * height / (per_sample * width))))
    longest = max(across * per_sample * width, math.ceil(count / across) * height)
    scale = scale or math.ceil(SMALLEST_PICTURE / longest)
    return _tiles(panels, titles, across, scale, _Names.place(names, across))


def animation(
    frames: Sequence[np.ndarray],
    format: DataFormat,
    path: str | Path,
    seconds: float = 4,
    columns: int | None = None,
    labels: Sequence[str] | Sequence[int] | np.ndarray | None = None,
) -> Path:
    """Write a GIF of grids, such as the steps of a denoising, that loops and holds its last frame.

    Args:
        frames: at least one; each (N, *space, C) in the form of the data. Of more than 60, 60 evenly spaced ones
            are shown, the first and the last among them.
        format: the form of the data.
        path: the file.
        seconds: from the first to the last frame; the last one stays for 1.5 s more.
        columns, labels: as in `grid`.
    """
    assert len(frames) > 0
    chosen = evenly_spaced(len(frames), LONGEST_ANIMATION)
    pictures = [grid(frames[i], format, columns, labels).quantize(256, dither=Image.Dither.NONE) for i in chosen]
    # GIF counts in hundredths of a second, and browsers slow down what is faster than two of them.
    each = max(20, round(100 * seconds / len(pictures)) * 10)
    durations = [each] * (len(pictures) - 1) + [each + round(1000 * LAST_FRAME_SECONDS)]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return Path(path)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image | None:
    """Pictures one below another, on the ground of a page; None of none."""
    if not pictures:
        return None
    width, height = max(one.width for one in pictures), sum(one.height for one in pictures)
    whole = Image.new("RGB", (width, height + LINE_HEIGHT * (len(pictures) - 1)), PAPER)
    top = 0
    for one in pictures:
        whole.paste(one, (0, top))
        top += one.height + LINE_HEIGHT
    return whole


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` different indices below `length`, evenly spaced, first and last included (last, if one)."""
    if count == 1:
        return [length - 1]
    return sorted({round(i) for i in np.linspace(0, length - 1, min(length, count))})


@dataclass(frozen=True)
class _Names:
    """What is written beside rows and above samples; None where nothing is.

    rows: one per row. samples: one per sample.
    """

    rows: list[str] | None = None
    samples: list[str] | None = None

    @classmethod
    def place(cls, names: list[str] | None, columns: int) -> _Names:
        """Names beside the rows where every row has a single one, above the samples otherwise."""
        if names is None:
            return cls()
        rows = [names[i : i + columns] for i in range(0, len(names), columns)]
        if all(len(set(row)) == 1 for row in rows):
            return cls(rows=[row[0] for row in rows])
        return cls(samples=names)


def _name(label: Any, format: DataFormat) -> str:
    """A class name; a number beyond the classes, such as that of the null class, has none."""
    if isinstance(label, str):
        return label
    names = format.class_names or ()
    return names[int(label)] if 0 <= int(label) < len(names) else ""


def _panels(arrays: np.ndarray, format: DataFormat) -> tuple[np.ndarray, list[str]]:
    """The K pictures of each sample, uint8 (N, K, H, W, 1 or 3), and their titles: none for images, where K is 1."""
    pixels = to_display(arrays, format)
    if format.dims == 2:
        return pixels[:, None], []
    depths = evenly_spaced(pixels.shape[1], SLICES)
    panels = np.concatenate([pixels[:, depths], pixels.max(axis=1, keepdims=True)], axis=1)
    return panels, [*(f"z {depth}" for depth in depths), "max"]


def _tiles(panels: np.ndarray, titles: list[str], columns: int, scale: int, names: _Names) -> Image.Image:
    """Draw panels (N, K, H, W, 1 or 3): the K of a sample side by side, `titles` above the first row."""
    count, per_sample, height, width = panels.shape[:4]
    width, height = width * scale, height * scale
    gap = SAMPLE_GAP if per_sample == 1 else VOLUME_GAP
    font = text_font()
    left = gap if names.rows is None else 12 + math.ceil(max(font.getlength(name) for name in names.rows))
    top = LINE_HEIGHT if titles else gap
    above = LINE_HEIGHT if names.samples else 0
    step_x, step_y = per_sample * (width + GAP) - GAP + gap, height + gap + above
    rows = math.ceil(count / columns)
    picture = Image.new("RGB", (left + columns * step_x, top + rows * step_y), GROUND)
    draw = ImageDraw.Draw(picture)

    def write(x: float, y: float, text: str, room: float, anchor: str = "mm") -> None:
        draw.text((x, y), shorten(text, room, font), fill=INK, font=font, anchor=anchor)

    for i, sample in enumerate(panels):
        x, y = left + i % columns * step_x, top + i // columns * step_y + above
        for k, panel in enumerate(sample):
            tile = Image.fromarray(panel[..., 0] if panel.shape[-1] == 1 else panel)
            picture.paste(tile.resize((width, height), Image.Resampling.NEAREST), (x + k * (width + GAP), y))
            if titles and i < columns:
                write(x + k * (width + GAP) + width / 2, LINE_HEIGHT / 2, titles[k], width)
        if names.samples:
            write(x, y - LINE_HEIGHT / 2, names.samples[i], step_x - gap, anchor="lm")
    for row, name in enumerate(names.rows or ()):
        write(left - 6, top + row * step_y + height / 2, name, left, anchor="rm")
    return picture


def text_font(size: float = TEXT_SIZE) -> ImageFont.FreeTypeFont:
    """The font of the plots, which comes with matplotlib; size: in pixels."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def shorten(text: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """`text` cut to `room` pixels with an ellipsis; empty where not even one letter fits."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…" if text else ""


@dataclass(frozen=True)
class _Cells:
    """Small multiples in one pair of axes, many times faster than a pair for each: the units are cells.

    columns, rows: of cells. width, height: of a cell in pixels. top: share of a cell that its name takes.
    low, high: the values at the lower and upper edge of every panel.
    """

    columns: int
    rows: int
    width: float
    height: float
    top: float
    low: float
    high: float

    def x(self, column: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Where a share in [0, 1] of the signal's length lies."""
        return column + 0.05 + 0.9 * share

    def y(self, row: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Where a value lies; beyond the panel, at its edge."""
        share = (np.clip(value, self.low, self.high) - self.low) / (self.high - self.low)
        return -row - 0.97 + share * (0.94 - self.top)


def _signals(arrays: np.ndarray, format: DataFormat, columns: int, names: _Names) -> Image.Image:
    """Draw signals (N, L, C) as small plots, row by row."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    count, length, channels = arrays.shape
    column, row = np.arange(count)[:, None] % columns, np.arange(count)[:, None] // columns
    width = min(450, max(90, 900 / columns))
    name_height = LINE_HEIGHT if names.samples else 0
    height = 0.62 * width + name_height
    margin = SIGNAL_MARGIN * (format.high - format.low)
    low, high = format.low - margin, format.high + margin
    cells = _Cells(columns, math.ceil(count / columns), width, height, name_height / height, low, high)
    x = cells.x(column, np.linspace(0, 1, length)[None])
    with plot_style():
        figure = Figure(figsize=(columns * width / 100, cells.rows * height / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(-cells.rows, 0), frame_on=False)
        _draw_cells(axes, cells, column, row, format, length)
        _draw_names(axes, cells, names)
        for channel in range(channels):
            lines = np.stack([x, cells.y(row, arrays[..., channel])], axis=-1)
            colour = COLOURS[channel % len(COLOURS)]
            axes.add_collection(LineCollection(list(lines), colors=colour, linewidths=1.2, label=f"channel {channel}"))
        if channels > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(channels, 2 * columns))
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.1)
    return Image.open(file).convert("RGB")


def _draw_cells(
    axes: Axes, cells: _Cells, column: np.ndarray, row: np.ndarray, format: DataFormat, length: int
) -> None:
    """The panels, a line at the middle of the value range in each, and the ticks at the outer ones."""
    from matplotlib.collections import LineCollection, PolyCollection

    left, right = column[:, 0] + 0.02, column[:, 0] + 0.98
    bottom, top = cells.y(row[:, 0], np.array(cells.low)), cells.y(row[:, 0], np.array(cells.high))
    middle = cells.y(row[:, 0], np.array((format.low + format.high) / 2))
    corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
    axes.add_collection(PolyCollection(np.stack([np.stack(c, -1) for c in corners], 1).tolist(), facecolors=PANEL))
    ends = np.stack([np.stack([left, middle], -1), np.stack([right, middle], -1)], 1)
    axes.add_collection(LineCollection(list(ends), colors=RULE, linewidths=0.8))

    values = np.array([format.low, format.high])
    rows, columns = np.arange(cells.rows)[:, None], np.arange(cells.columns)[:, None]
    axes.grid(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_yticks(cells.y(rows, values).ravel(), [f"{value:.4g}" for value in values] * cells.rows)
    axes.set_xticks(cells.x(columns, np.array([0, 1])).ravel(), ["0", str(length - 1)] * cells.columns)
    for place, text in enumerate(axes.get_xticklabels()):
        text.set_horizontalalignment("right" if place % 2 else "left")


def _draw_names(axes: Axes, cells: _Cells, names: _Names) -> None:
    """The names on the left of the value ticks, or above the panels."""
    for row, name in enumerate(names.rows or ()):
        middle = -row - (0.97 + 0.03 + cells.top) / 2
        axes.annotate(name, (0, middle), (-40, 0), textcoords="offset points", ha="right", va="center")
    font = text_font()
    for i, name in enumerate(names.samples or ()):
        place = (i % cells.columns + 0.02, -(i // cells.columns) - cells.top / 2 - 0.02)
        axes.text(*place, shorten(name, cells.width, font), va="center", fontsize=9)
