"""What the command that makes masks reads: images by name, truth by rows, classes by name or number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import MaskEncoding
from unetdiff.masks.inputs import check_output, class_of, find_images, header_size, open_truth

GREY = DataFormat(dims=2, channels=1, dtype="uint8", low=0, high=255)
ENCODING = MaskEncoding(kind="values", values=(0, 7), class_names=("ground", "0"), ignore=(255,))
COLOURS = MaskEncoding(kind="colours", values=((0, 0, 0), (255, 0, 0)), class_names=("a", "b"))


def test_images_are_found_by_name_and_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        find_images(tmp_path / "none", GREY)
    with pytest.raises(ValueError, match="holds no files"):
        find_images(tmp_path, GREY)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.png")
    found = find_images(tmp_path, GREY)
    assert [(image.name, image.open().shape, image.affine) for image in found] == [("a", (3, 4, 1), None)]
    assert find_images(tmp_path / "a.png", GREY) == found
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="2 files called a"):
        find_images(tmp_path, GREY)


def test_slices_of_a_folder_are_a_volume(tmp_path: Path) -> None:
    """Images and masks alike, the masks in a folder of the volume's name or in the folder that is given."""
    volume = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    labels = np.where(volume > 99, 7, 0).astype(np.uint8)
    for number, name in enumerate(("2", "8", "10")):
        for place, array in (("brain", volume), ("truth/brain", labels), ("flat", labels)):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array[number]).save(tmp_path / place / f"{name}.png")
    cubes = DataFormat(dims=3, channels=1, dtype="uint8", low=0, high=255)
    (found,) = find_images(tmp_path / "brain", cubes)
    assert found.name == "brain"
    np.testing.assert_array_equal(found.open()[:][..., 0], volume)
    for folder in ("truth", "flat"):
        np.testing.assert_array_equal(open_truth(tmp_path / folder, "brain", ENCODING, (3, 4, 5)).whole(), labels > 0)
    with pytest.raises(ValueError, match="has size"):
        open_truth(tmp_path / "flat", "brain", ENCODING, (2, 4, 5))
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "brain" / "9.png")
    with pytest.raises(ValueError, match=r"9\.png has shape \[4, 6, 1\].*slices of one volume"):
        found = find_images(tmp_path / "brain", cubes)[0].open()


def test_truth_is_read_by_rows(tmp_path: Path) -> None:
    values = np.array([0, 7, 255])[np.random.default_rng(0).integers(0, 3, (9, 5))].astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    truth = open_truth(tmp_path, "a", ENCODING, (9, 5))
    labels = ENCODING.encode(values)
    np.testing.assert_array_equal(truth.whole(), labels)
    np.testing.assert_array_equal(truth.rows(4, 3), labels[4:7])


def test_truth_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no mask called b; expected b\.png"):
        open_truth(tmp_path, "b", ENCODING, (3, 4))
    Image.fromarray(np.full((3, 4, 3), 9, np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png has 3 channels; expected 1"):
        open_truth(tmp_path, "b", ENCODING, (3, 4))
    with pytest.raises(ValueError, match=r"b\.png has size \[3, 4, 3\]; the image has \[4, 4\]"):
        open_truth(tmp_path, "b", COLOURS, (4, 4))
    with pytest.raises(ValueError, match=r"b\.png has values \[9, 9, 9\]; expected"):
        open_truth(tmp_path, "b", COLOURS, (3, 4)).rows(1, 1)


def test_classes_by_number_or_else_by_name() -> None:
    assert [class_of(text, ENCODING, "--x") for text in ("0", "1", "ground", "none")] == [0, 1, 0, None]
    with pytest.raises(ValueError, match=r"--x names '2'; the classes are 0 to 1, or ground, 0"):
        class_of("2", ENCODING, "--x")


def test_nothing_that_was_given_is_overwritten(tmp_path: Path) -> None:
    images, truth, other = (tmp_path / name for name in ("images", "truth", "other"))
    images.mkdir()
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(images / "a.png")
    check_output(other, images, [truth])
    check_output(images / "out", images / "a.png", [])
    for out, given in ((images, images), (images / "out", images), (images, images / "a.png"), (truth, images)):
        with pytest.raises(ValueError, match="lies in the folder of"):
            check_output(out, given, [truth])


def test_sizes_are_read_from_headers_where_those_say_them(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.tif")
    stack = [Image.fromarray(np.zeros((3, 4), np.uint8))] * 2
    stack[0].save(tmp_path / "b.tif", save_all=True, append_images=stack[1:])
    np.save(tmp_path / "c.npy", np.zeros((5, 6, 7), np.uint8))
    (tmp_path / "d.png").write_bytes(b"no image")
    assert [header_size(tmp_path / name, 2) for name in ("a.png", "a.tif", "c.npy")] == [(3, 4), (3, 4), (5, 6)]
    assert header_size(tmp_path / "c.npy", 3) == (5, 6, 7)
    assert [header_size(tmp_path / name, 2) for name in ("b.tif", "d.png")] == [None, None]
    assert [header_size(tmp_path / name, dims) for name, dims in (("c.npy", 1), ("a.png", 3))] == [None, None]
