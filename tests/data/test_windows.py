"""Files read by windows: the same numbers as read whole, from no more of the file than is needed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetdiff.data.volumes import open_image, open_mask, read_image
from unetdiff.data.windows import NpyWindows, TiffWindows, thinned, tiff_windows

SHAPE = (70, 101)
WINDOWS = [
    (slice(0, 70), slice(0, 101)),
    (slice(3, 50), slice(31, 97)),
    (slice(16, 32), slice(32, 64)),
    (slice(69, 70), slice(100, 101)),
]
FORMS: dict[str, dict[str, Any]] = {
    "an array": {},
    "strips": {"rowsperstrip": 8, "compression": "zlib"},
    "differences in strips": {"rowsperstrip": 8, "compression": "zlib", "predictor": True},
    "tiles": {"tile": (16, 32)},
    "packed tiles": {"tile": (16, 32), "compression": "zlib"},
    "big": {"tile": (32, 16), "compression": "zlib", "bigtiff": True},
    "the other byte order": {"tile": (16, 32), "compression": "zlib", "byteorder": ">"},
    "an array in the other byte order": {"byteorder": ">"},
}


def numbers(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def tiff(path: Path, form: str, image: np.ndarray, planes: bool = False) -> Path:
    """An image (H, W, C) as a TIFF file."""
    channels = image.shape[-1]
    stored = np.moveaxis(image, -1, 0) if planes else image if channels > 1 else image[..., 0]
    order = {"planarconfig": "separate" if planes else "contig"} if channels > 1 else {}
    meaning = "rgb" if channels in (3, 4) else "minisblack"
    tifffile.imwrite(path, stored, photometric=meaning, **order, **FORMS[form])
    return path


def opened(path: Path, dims: int = 2) -> TiffWindows:
    found = tiff_windows(path, dims)
    assert found is not None
    return found


@pytest.mark.parametrize(("channels", "planes"), [(1, False), (3, False), (3, True), (7, True)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("form", FORMS)
def test_windows_equal_the_whole(form: str, dtype: str, channels: int, planes: bool, tmp_path: Path) -> None:
    image = numbers(*SHAPE, channels, dtype=dtype)
    found = opened(tiff(tmp_path / "a.tif", form, image, planes))
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    for window in WINDOWS:
        np.testing.assert_array_equal(found[window], image[window])


PACKED = {
    "grey": ("tiff_lzw", "uint8", 1),
    "colours": ("tiff_lzw", "uint8", 3),
    "colours and alpha": ("tiff_lzw", "uint8", 4),
    "16 bits": ("tiff_lzw", "uint16", 1),
    "JPEG": ("jpeg", "uint8", 3),
    "grey JPEG": ("jpeg", "uint8", 1),
    "runs": ("packbits", "uint8", 3),
}


@pytest.mark.parametrize("name", PACKED)
def test_compressions_of_pillow_alone(name: str, tmp_path: Path) -> None:
    """tifffile has no codec of its own for most of them."""
    compression, dtype, channels = PACKED[name]
    image = numbers(400, 200, channels, dtype=dtype) // 3 + np.arange(200, dtype=dtype)[:, None] // 2
    shown = Image.fromarray(image[..., 0] if channels == 1 else image)
    shown.save(tmp_path / "a.tif", compression=compression, strip_size=2**13)
    found, whole = opened(tmp_path / "a.tif"), read_image(tmp_path / "a.tif", 2)
    assert found.tile[0] < 400
    for window in ((slice(0, 400), slice(0, 200)), (slice(39, 390), slice(7, 100))):
        np.testing.assert_array_equal(found[window], whole[window])


def test_tiles_by_pillow_alone(tmp_path: Path, monkeypatch) -> None:
    """Its way of decoding tiles, planes and the other byte order, on files that tifffile can write."""
    for planes, order in ((False, "<"), (True, "<"), (False, ">")):
        monkeypatch.setitem(FORMS, "these", {"tile": (16, 32), "compression": "zlib", "byteorder": order})
        for channels, dtype in ((1, "uint16"), (3, "uint8")):
            image = numbers(*SHAPE, channels, dtype=dtype)
            found = opened(tiff(tmp_path / "a.tif", "these", image, planes and channels > 1))
            monkeypatch.setattr(found, "_by_pillow", True)
            found._segment.cache_clear()
            for window in WINDOWS:
                np.testing.assert_array_equal(found[window], image[window])


@pytest.mark.parametrize("form", ["an array", "packed tiles", "strips"])
def test_stacks_are_read_by_windows_too(form: str, tmp_path: Path) -> None:
    stack = numbers(5, *SHAPE)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **FORMS[form])
    found = opened(tmp_path / "a.tif", 3)
    window = (slice(1, 4), *WINDOWS[1])
    np.testing.assert_array_equal(found[window], stack[window][..., None])
    assert tiff_windows(tmp_path / "a.tif", 2) is None  # pages are channels there, and read whole


def test_only_the_tiles_of_a_window_are_decoded_and_each_once(tmp_path: Path, monkeypatch) -> None:
    image = numbers(*SHAPE, 3)
    found = opened(tiff(tmp_path / "a.tif", "packed tiles", image))
    decoded: list[int] = []
    decode = found._page.decode
    monkeypatch.setattr(found._page, "decode", lambda data, index, **more: decoded.append(index) or decode(data, index))
    found[slice(17, 30), slice(33, 65)]
    assert decoded == [1 * 4 + 1, 1 * 4 + 2]  # the second row of four tiles
    found[slice(17, 33), slice(33, 64)]
    assert decoded == [5, 6, 9]


def test_tiles_that_are_kept_are_bounded(tmp_path: Path, monkeypatch) -> None:
    from unetdiff.data import windows

    monkeypatch.setattr(windows, "CACHED_BYTES", 2 * 16 * 32)
    found = opened(tiff(tmp_path / "a.tif", "packed tiles", numbers(*SHAPE, 1)))
    found[WINDOWS[0]]
    assert found._segment.cache_info().currsize == 2


def test_what_is_held_does_not_grow_with_the_file(tmp_path: Path, monkeypatch) -> None:
    """4 million positions of three channels, read in rows of tiles: the whole is 12.6 MB, a row 0.8 MB."""
    from unetdiff.data import windows

    monkeypatch.setattr(windows, "CACHED_BYTES", 2**20)
    monkeypatch.setattr(windows, "BAND", 2**17)
    side, tile = 2048, 128
    row = numbers(tile, side, 3)
    tiles = (row[:, at : at + tile] for _ in range(side // tile) for at in range(0, side, tile))
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(side, side, 3), dtype="uint8", tile=(tile, tile),
                     compression="zlib", photometric="rgb")  # fmt: skip
    np.save(tmp_path / "a.npy", np.tile(row, (side // tile, 1, 1)))
    for file in ("a.tif", "a.npy"):
        image = open_image(tmp_path / file, 2, least=2**22)
        tracemalloc.start()
        for start in range(0, side, tile):
            assert (image[slice(start, start + tile), slice(0, side)] == row).all()
        assert thinned(image, 16).shape == (128, 128, 3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 2**20 + 3 * row.nbytes, (file, peak)


def test_arrays_by_windows(tmp_path: Path) -> None:
    for name, array in {"a": numbers(*SHAPE), "b": numbers(*SHAPE, 6), "c": np.asfortranarray(numbers(*SHAPE))}.items():
        np.save(tmp_path / f"{name}.npy", array)
        found = open_image(tmp_path / f"{name}.npy", 2, least=0)
        assert isinstance(found, NpyWindows)
        whole = read_image(tmp_path / f"{name}.npy", 2)
        for window in WINDOWS:
            np.testing.assert_array_equal(found[window], whole[window])


def test_other_whole_numbers_become_floats_where_exact(tmp_path: Path) -> None:
    array = numbers(*SHAPE, dtype="int64") - 100
    array[-1, -1] = 2**24 + 1
    np.save(tmp_path / "a.npy", array)
    found = open_image(tmp_path / "a.npy", 2, least=0)
    assert found.dtype == np.float32
    assert found[slice(0, 5), slice(0, 5)].min() < 0
    with pytest.raises(ValueError, match=r"a\.npy holds numbers beyond 16777216"):
        found[slice(60, 70), slice(0, 101)]


@pytest.mark.parametrize("least", [0, 10**6])
def test_small_files_and_odd_forms_are_read_whole(least: int, tmp_path: Path) -> None:
    """What `read_image` makes of them: inverted grey, a palette as colours, and all that is below `least`."""
    image = numbers(*SHAPE)
    tifffile.imwrite(tmp_path / "plain.tif", image, tile=(16, 32))
    tifffile.imwrite(tmp_path / "inverted.tif", image, photometric="miniswhite", tile=(16, 32))
    palette = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256) * 64
    tifffile.imwrite(tmp_path / "palette.tif", image, photometric="palette", colormap=palette)
    for name in ("plain", "inverted", "palette"):
        path = tmp_path / f"{name}.tif"
        found = open_image(path, 2, least)
        assert isinstance(found, TiffWindows) == (name == "plain" and least == 0)
        whole = read_image(path, 2)
        np.testing.assert_array_equal(found[tuple(slice(0, length) for length in whole.shape[:2])], whole)
    mask = open_mask(tmp_path / "palette.tif", 2, least=0)
    np.testing.assert_array_equal(mask[WINDOWS[0]].reshape(SHAPE), image)


def test_a_damaged_tile_is_named_with_its_file(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", "packed tiles", numbers(*SHAPE, 1))
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[-1]  # pyright: ignore
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"\0" * 8
    path.write_bytes(content)
    found = opened(path)
    np.testing.assert_array_equal(found[WINDOWS[2]].shape, (16, 32, 1))
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as TIFF"):
        found[WINDOWS[0]]


@pytest.mark.parametrize("step", [1, 3, 40])
def test_thinned_keeps_every_so_many_positions(step: int, monkeypatch) -> None:
    from unetdiff.data import windows

    monkeypatch.setattr(windows, "BAND", 1000)
    image = numbers(*SHAPE, 2)
    np.testing.assert_array_equal(thinned(image, step), image[::step, ::step])
