"""Pictures: what value becomes which pixel, and where."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageColor

from unetdiff.data.formats import DataFormat
from unetdiff.figures import (
    CHECKS,
    COLOURS,
    GAP,
    GROUND,
    LINE_HEIGHT,
    SAMPLE_GAP,
    animation,
    evenly_spaced,
    grid,
    to_display,
)

GREY = DataFormat(dims=2, channels=1, dtype="uint8", low=0, high=255, class_names=("zero", "one"))
SIGNAL = DataFormat(dims=1, channels=1, dtype="float32", low=-1, high=1, class_names=("sine", "square"))
VOLUME = DataFormat(dims=3, channels=1, dtype="float32", low=0, high=1)


def images(count: int, height: int = 5, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1), dtype=np.uint8)


def display(values: list[float], **format: object) -> list:
    """Pixels of a 1x1 image with these channels."""
    fields = {"dims": 2, "channels": len(values), "dtype": "float32", "low": 0, "high": 1, **format}
    return to_display(np.array(values).reshape(1, 1, 1, -1), DataFormat(**fields))[0, 0, 0].tolist()  # pyright: ignore


@pytest.mark.parametrize(
    "dtype, low, high, values",
    [
        ("uint8", 0, 255, {0: 0, 100: 100, 255: 255}),
        ("uint16", 0, 65535, {0: 0, 257: 1, 32768: 128, 65535: 255}),
        ("float32", -2, 3, {-2: 0, 0.5: 128, 3: 255, -9: 0, 9: 255, float("nan"): 0, float("inf"): 255}),
    ],
)
def test_range_becomes_0_to_255(dtype, low, high, values):
    format = DataFormat(dims=1, channels=1, dtype=dtype, low=low, high=high)
    pixels = to_display(np.array(list(values)).reshape(1, -1, 1), format)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, len(values), 1))
    assert pixels.ravel().tolist() == list(values.values())


def test_channels_become_colours():
    assert display([0.2]) == [51]
    assert display([0.2, 0.6]) == [153, 51, 153]  # green is the first, magenta the second
    assert display([0.2, 0.4, 0.6]) == [51, 102, 153]
    assert display([0.2, 0.4, 0.6, 0.8]) == [51, 102, 153]  # features, not transparency
    assert display([0.2, 0.4, 0.6, 0.8, 1.0]) == [51, 102, 153]


def test_transparency_shows_a_checkerboard():
    format = DataFormat(dims=2, channels=4, dtype="uint8", low=0, high=255)
    pixels = np.zeros((3, 8, 8, 4), np.uint8)
    pixels[..., :3] = (10, 20, 30)
    pixels[..., 3] = np.array([0, 255, 51]).reshape(3, 1, 1)
    clear, opaque, fifth = to_display(pixels, format)
    assert clear[0, 0].tolist() == [CHECKS[0]] * 3
    assert clear[0, 4].tolist() == clear[4, 0].tolist() == [CHECKS[1]] * 3
    assert clear[4, 4].tolist() == [CHECKS[0]] * 3
    assert (opaque == (10, 20, 30)).all()
    assert fifth[0, 0].tolist() == [206, 208, 210]  # 0.2 of the colour over 0.8 of white


def test_grid_of_images_places_every_pixel():
    samples = images(5)
    picture = np.asarray(grid(samples, GREY, columns=3, scale=2))
    assert picture.shape == (SAMPLE_GAP + 2 * (10 + SAMPLE_GAP), SAMPLE_GAP + 3 * (8 + SAMPLE_GAP), 3)
    for i, sample in enumerate(samples):
        y, x = SAMPLE_GAP + i // 3 * (10 + SAMPLE_GAP), SAMPLE_GAP + i % 3 * (8 + SAMPLE_GAP)
        tile = picture[y : y + 10, x : x + 8]
        assert (tile == sample.repeat(2, 0).repeat(2, 1)).all()


@pytest.mark.parametrize("count, height, width", [(1, 8, 8), (64, 16, 16), (64, 32, 32), (10, 100, 30), (3, 299, 299)])
def test_small_images_are_enlarged(count, height, width):
    picture = grid(images(count, height, width), GREY)
    assert 600 <= max(picture.size) <= 1250


def test_large_images_keep_their_size():
    assert grid(images(2, 700, 700), GREY, columns=2).size == (1400 + 3 * SAMPLE_GAP, 700 + 2 * SAMPLE_GAP)


@pytest.mark.parametrize("samples, format", [(images(4), GREY), (np.zeros((4, 16, 1), np.float32), SIGNAL)])
def test_labels_name_rows_or_samples(samples, format):
    def size(labels: list | None) -> tuple[int, int]:
        return grid(samples, format, columns=2, labels=labels).size

    plain, rows, each = size(None), size([0, 0, 1, 1]), size([0, 1, 0, 1])
    assert rows[0] > plain[0]
    assert rows[1] == plain[1]
    assert each[1] == pytest.approx(plain[1] + 2 * LINE_HEIGHT, abs=2)
    assert each[0] == pytest.approx(plain[0], abs=2)


def test_class_numbers_are_named_by_the_format():
    samples = images(4)
    by_name = grid(samples, GREY, columns=2, labels=["zero", "one", "one", ""])
    by_number = grid(samples, GREY, columns=2, labels=np.array([0, 1, 1, 2]))  # 2 is the null class
    assert by_name.tobytes() == by_number.tobytes()
    assert by_name.tobytes() != grid(samples, GREY, columns=2, labels=["one", "zero", "one", ""]).tobytes()


def test_long_names_stay_within_their_tile():
    samples = images(2, 40, 40)
    short = grid(samples, GREY, columns=2, scale=1, labels=["a", "b"])
    long = grid(samples, GREY, columns=2, scale=1, labels=["a", "b" * 100])
    assert long.size == short.size
    narrow = grid(images(2), GREY, columns=2, scale=1, labels=["wide", "names"])
    assert narrow.size[0] == 2 * 4 + 3 * SAMPLE_GAP
    assert (np.asarray(narrow)[:LINE_HEIGHT] == ImageColor.getrgb(GROUND)).all()


def test_grid_of_volumes_shows_slices_and_maximum():
    volume = np.random.default_rng(0).random((2, 15, 6, 6, 1), np.float32)
    picture = np.asarray(grid(volume, VOLUME, columns=1, scale=3))[..., 0]
    left = (picture.shape[1] - 9 * (18 + GAP) + GAP) // 2
    expected = [*(volume[1, depth] for depth in (0, 2, 4, 6, 8, 10, 12, 14)), volume[1].max(axis=0)]
    below = picture[-18 - 6 : -6]
    for k, panel in enumerate(expected):
        x = left + k * (18 + GAP)
        pixels = np.rint(255 * panel[..., 0].repeat(3, 0).repeat(3, 1))
        assert (below[:, x : x + 18] == pixels).all(), k


def test_volumes_of_few_slices_show_them_all():
    assert grid(np.zeros((1, 3, 20, 20, 1)), VOLUME, scale=1).size[0] == 4 * (20 + GAP) - GAP + 2 * 6


def where(picture: Image.Image, colour: str) -> np.ndarray:
    """Rows and columns of the pixels that have this colour, (n, 2), soft edges and some text included."""
    far = np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(colour)).max(axis=-1)
    return np.argwhere(far < 110)


def test_signals_are_drawn_by_value_and_channel():
    format = DataFormat(dims=1, channels=2, dtype="float32", low=-1, high=1)
    samples = np.stack([np.full((1, 20), 0.8), np.full((1, 20), -0.8)], axis=-1)
    with_legend = grid(samples, format)
    picture = with_legend.crop((0, 60, *with_legend.size))  # the legend has the colours too
    high, low = where(picture, COLOURS[0]), where(picture, COLOURS[1])
    assert len(high) > 200
    assert len(low) > 200
    assert np.median(high[:, 0]) < np.median(low[:, 0]) - 50


def test_signals_beyond_the_range_are_drawn_at_its_edge():
    wild = grid(np.full((1, 20, 1), 50.0), SIGNAL)
    assert wild.size == grid(np.zeros((1, 20, 1)), SIGNAL).size
    assert len(where(wild, COLOURS[0])) > 200
    assert where(wild, COLOURS[0])[:, 0].mean() < where(grid(np.full((1, 20, 1), 1.0), SIGNAL), COLOURS[0])[:, 0].mean()


def test_signals_of_a_grid_share_one_scale():
    quiet, loud = np.full((16, 1), 0.1), np.full((16, 1), 0.9)
    lines = where(grid(np.stack([quiet, loud]), SIGNAL, columns=2), COLOURS[0])
    middle = np.median(lines[:, 1])
    left, right = lines[lines[:, 1] < middle], lines[lines[:, 1] > middle]
    assert right[:, 0].mean() < left[:, 0].mean() - 50


def test_animation_holds_its_last_frame(tmp_path):
    frames = [np.full((2, 4, 4, 1), value, np.uint8) for value in (0, 60, 120, 180)]
    path = animation(frames, GREY, tmp_path / "denoising.gif", seconds=2)
    durations, shown = [], []
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        for i in range(gif.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            gif.seek(i)
            durations.append(gif.info["duration"])
            shown.append(np.asarray(gif.convert("RGB")))
    assert durations == [500, 500, 500, 2000]
    assert all((pixels == np.asarray(grid(frame, GREY))).all() for pixels, frame in zip(shown, frames, strict=True))


def test_animation_of_many_steps_is_thinned(tmp_path):
    frames = [np.full((1, 2, 2, 1), i, np.uint8) for i in range(150)]
    with Image.open(animation(frames, GREY, tmp_path / "long.gif", seconds=3)) as gif:
        assert gif.n_frames == 60  # pyright: ignore[reportAttributeAccessIssue]
        assert gif.info["duration"] == 50
        gif.seek(59)
        assert gif.convert("RGB").getpixel((300, 300)) == (149, 149, 149)


def test_evenly_spaced():
    assert evenly_spaced(0, 3) == []
    assert evenly_spaced(2, 8) == [0, 1]
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced(10, 1) == [9]


def test_the_users_matplotlib_is_left_alone():
    code = """
import sys, numpy, matplotlib
matplotlib.rcParams.update({"lines.linewidth": 9.0, "savefig.facecolor": "black"})
before = matplotlib.rcParams.copy()
from unetdiff.figures import grid
from unetdiff.data.formats import DataFormat
format = DataFormat(dims=1, channels=1, dtype="float32", low=-1, high=1)
assert grid(numpy.zeros((1, 8, 1)), format).getpixel((1, 1)) == (255, 255, 255)
assert matplotlib.rcParams.copy() == before
assert not {"matplotlib.pyplot", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
