from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from unetdiff.data.images import cover, crop, decode_image, image_header, resize


def test_sixteen_bits_stay_exact(tmp_path: Path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        read = decode_image(tmp_path / name, name)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read[..., 0], values)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4), ("CMYK", 3), ("F", 1)]
)
def test_modes(tmp_path: Path, mode: str, channels: int):
    path = tmp_path / "a.tif"
    image = Image.new("RGB", (6, 4), (0, 204, 51)).convert(mode)
    image.save(path)
    array, header = decode_image(path, "a"), image_header(path, "a")
    assert array.shape == header.shape == (4, 6, channels)
    assert array.dtype == header.dtype == ("float32" if mode == "F" else "uint8")
    if channels == 3:
        assert array[0, 0].tolist() == pytest.approx([0, 204, 51], abs=2)
    elif mode == "1":
        assert set(np.unique(array)) <= {0, 255}


def test_camera_rotation_is_obeyed(tmp_path: Path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    array = decode_image(tmp_path / "a.jpg", "a")
    assert array.shape == image_header(tmp_path / "a.jpg", "a").shape == (32, 16, 3)
    assert array[:, 12].mean() > 240 > 15 > array[:, 3].mean()


def test_truncated_and_foreign_files_are_named(tmp_path: Path):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    content = whole.read_bytes()
    with pytest.raises(ValueError, match=r"^half\.png cannot be decoded .*expected a whole image file\.$"):
        decode_image(content[: len(content) // 2], "half.png")
    for junk in (b"", b"no image"):
        with pytest.raises(ValueError, match=r"^junk\.png is not a readable image"):
            image_header(junk, "junk.png")
    with pytest.raises(ValueError, match=r"gone\.png cannot be decoded .*No such file"):
        decode_image(tmp_path / "gone.png", "gone.png")


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(file, form)
    return file.getvalue()


@pytest.mark.skipif(not features.check("avif"), reason="pillow without AVIF")
def test_damaged_avif_is_named():
    content = bytearray(encoded("avif"))
    start = content.index(b"mdat") + 4
    content[start:] = bytes(len(content) - start)
    with pytest.raises(
        ValueError, match=r"^a\.avif cannot be decoded \(.*Decoding .*\); expected a whole image file\.$"
    ):
        decode_image(bytes(content), "a.avif")


@pytest.mark.parametrize("read", [decode_image, image_header])
def test_damaged_ppm_is_named(read: Callable[[bytes, str], object]):
    content = encoded("ppm").replace(b"32 32", b"3\xcd 32", 1)
    with pytest.raises(ValueError, match=r"^a\.ppm cannot be decoded \(.*\); expected a whole image file\.$"):
        read(content, "a.ppm")


def test_an_error_without_words_is_told_by_its_type(monkeypatch: pytest.MonkeyPatch):
    def exhausted(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", exhausted)
    with pytest.raises(ValueError, match=r"^a\.ppm cannot be decoded \(MemoryError\)"):
        decode_image(encoded("ppm"), "a.ppm")


def test_deep_rgb_is_refused_not_cut_to_eight_bits(tmp_path: Path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)  # 2x1, 16 bits, RGB
    pixels = zlib.compress(b"\0" + bytes(12))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    for read in (decode_image, image_header):
        with pytest.raises(ValueError, match=r"^deep\.png holds 16 bits in several channels"):
            read(png, "deep.png")


@pytest.mark.parametrize(
    ("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1), ("float32", 2)]
)
def test_resize_keeps_dtype_and_constants(dtype: str, channels: int):
    array = np.full((9, 6, channels), 200, dtype)
    resized = resize(array, (6, 4))
    assert resized.shape == (6, 4, channels)
    assert resized.dtype == array.dtype
    np.testing.assert_allclose(resized, 200, rtol=1e-6)


def test_resize_agrees_with_interpolation_of_a_ramp():
    ramp = np.linspace(0, 65535, 16).astype(np.uint16)
    array = np.tile(ramp[:, None, None], (1, 8, 1))
    halved = resize(array, (8, 4))[2:-2, 0, 0]
    np.testing.assert_allclose(halved, ramp.reshape(8, 2).mean(1)[2:-2], atol=40)


@pytest.mark.parametrize(
    ("shape", "size", "covering"),
    [((20, 10), (5, 5), (10, 5)), ((10, 20), (5, 5), (5, 10)), ((5, 5), (5, 5), (5, 5)), ((3, 4), (6, 6), (6, 8))],
)
def test_cover(shape: tuple[int, int], size: tuple[int, int], covering: tuple[int, int]):
    array = np.zeros((*shape, 3), np.uint8)
    once = cover(array, size)
    assert once.shape == (*covering, 3)
    assert cover(once, size) is once


def test_crop_reaches_centre_and_corners():
    array = np.arange(5 * 7).reshape(5, 7, 1)
    np.testing.assert_array_equal(crop(array, (3, 3), None), array[1:4, 2:5])
    np.testing.assert_array_equal(crop(array, (3, 3), np.array([0.0, 0.0])), array[:3, :3])
    np.testing.assert_array_equal(crop(array, (3, 3), np.array([0.999, 0.999])), array[2:, 4:])
