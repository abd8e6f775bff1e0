from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetdiff.data.volumes import read_image, read_mask, stem_of, suffix_of


def numbers(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels, dtype", [(3, "uint16"), (4, "uint16"), (7, "uint8"), (5, "float32")])
def test_tiff_images_of_any_channels_and_depth(tmp_path: Path, channels: int, dtype: str, planar: bool):
    image = numbers((6, 9, channels), "uint16").astype(dtype)
    stored = np.moveaxis(image, -1, 0) if planar else image
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="separate" if planar else "contig"
    )
    found = read_image(tmp_path / "a.tif", 2)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_stacks_are_volumes_or_channels(tmp_path: Path, dtype: str):
    stack = numbers((5, 6, 7), "uint16").astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    for dims in (None, 3):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", dims), stack[..., None])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 2), np.moveaxis(stack, 0, -1))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif").array, stack)


def test_tiff_masks_of_several_channels(tmp_path: Path):
    mask = np.eye(5, dtype=np.uint8)[numbers((6, 7)) % 5]
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif").array, mask)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".nii", ".nii.gz", ".png"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"II*\x00 nothing that is any image")
    for read in (lambda: read_image(path, 2), lambda: read_mask(path)):
        with pytest.raises(ValueError, match=r"broken\.[\w.]+ "):
            read()


def test_arrays_stay_on_disk(tmp_path: Path):
    np.save(tmp_path / "a.npy", numbers((20, 30, 40)))
    assert isinstance(read_image(tmp_path / "a.npy", 3), np.memmap)


def test_other_whole_numbers_become_floats_where_exact(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([[-5, 7], [1, 2], [0, 3]] * 3, np.int16))
    found = read_image(tmp_path / "a.npy", 2)
    assert (found.dtype, found.shape, found.min()) == (np.float32, (9, 2, 1), -5)
    np.save(tmp_path / "b.npy", np.full((9, 9), 2**24 + 1))
    with pytest.raises(ValueError, match=r"b\.npy holds numbers beyond 16777216"):
        read_image(tmp_path / "b.npy", 2)


def test_axes_that_do_not_fit_are_named(tmp_path: Path):
    Image.fromarray(numbers((4, 5))).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is 2-D; expected 3-D data"):
        read_image(tmp_path / "a.png", 3)


def test_names_of_files():
    path = Path("scans/Case.01.NII.GZ")
    assert (suffix_of(path), stem_of(path)) == (".nii.gz", "Case.01")
