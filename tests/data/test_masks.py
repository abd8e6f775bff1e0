from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.mask_scan import check_declared, find_encoding, scan_pair
from unetdiff.data.masks import MaskEncoding, class_colours, mask_codes, mask_suffix, write_mask
from unetdiff.data.pair_files import Pair
from unetdiff.data.volumes import RawMask, nifti_affine, read_mask
from unetdiff.segmentation.options import IGNORE

RGB = ((0, 0, 0), (255, 0, 0), (0, 128, 255))
PALETTE = (0, 0, 0, 200, 10, 10, 10, 200, 10)
ENCODINGS = {
    "binary": MaskEncoding(kind="values", values=(0, 255), class_names=("a", "b"), ignore=(128,)),
    "reversed": MaskEncoding(kind="values", values=(255, 0), class_names=("cell", "membrane"), ignore=(7, 9)),
    "deep": MaskEncoding(kind="values", values=(0, 1000, 65535), class_names=tuple("abc"), ignore=(5,), dtype="uint16"),
    "negative": MaskEncoding(kind="values", values=(0, 1), class_names=("a", "b"), ignore=(-1,), dtype="int64"),
    "bits": MaskEncoding(kind="values", values=(0, 1), class_names=("a", "b"), dtype="bool"),
    "palette": MaskEncoding(kind="palette", values=(0, 1, 2), class_names=tuple("abc"), ignore=(255,), palette=PALETTE),
    "colours": MaskEncoding(kind="colours", values=RGB, class_names=tuple("abc"), ignore=((1, 2, 3),)),
    "one_hot": MaskEncoding(
        kind="one_hot", values=((9, 0, 0), (0, 9, 0), (0, 0, 9)), class_names=tuple("abc"), ignore=((0, 0, 0),)
    ),
}
each = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)


def random_labels(encoding: MaskEncoding, shape: tuple[int, ...] = (6, 7)) -> np.ndarray:
    least = IGNORE if encoding.ignore else 0
    return np.random.default_rng(0).integers(least, encoding.num_classes, shape)


@each
@pytest.mark.parametrize("shape", [(5,), (6, 7), (2, 3, 4)])
def test_encode_undoes_decode(encoding: MaskEncoding, shape: tuple[int, ...]):
    labels = random_labels(encoding, shape)
    array = encoding.decode(labels)
    assert array.dtype == encoding.dtype
    assert array.shape == (*shape, *([3] if encoding.channels else []))
    found = encoding.encode(array)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, labels)


@each
def test_encoding_survives_json(encoding: MaskEncoding):
    assert MaskEncoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding


def test_labels_by_hand():
    reversed_ = ENCODINGS["reversed"]
    np.testing.assert_array_equal(reversed_.encode(np.array([[0, 255], [7, 9]], np.uint8)), [[1, 0], [-1, -1]])
    np.testing.assert_array_equal(reversed_.decode(np.array([1, 0, -1])), [0, 255, 7])
    colours = ENCODINGS["colours"].encode(np.array([[[0, 128, 255], [0, 0, 0]]], np.uint8))
    np.testing.assert_array_equal(colours, [[2, 0]])


@pytest.mark.parametrize(
    "name, array, expected",
    [
        ("binary", np.array([0, 255, 3], np.uint8), "has values 3; expected 0, 255 for the 2 classes, and 128"),
        ("binary", np.array([0, 0.5]), "not whole"),
        ("colours", np.array([[255, 0, 1]], np.uint8), r"has values \[255, 0, 1\]; expected \[0, 0, 0\]"),
        ("colours", np.zeros((2, 4), np.uint8), "has 4 channels; expected 3"),
        ("one_hot", np.array([[9, 9, 0]], np.uint8), r"has values \[1, 1, 0\]"),
        ("one_hot", np.array([[9, 0, 0], [0, 4, 0]], np.uint8), "holds 4, 9; expected 0 and one other"),
    ],
)
def test_values_that_stand_for_nothing_are_named(name: str, array: np.ndarray, expected: str):
    with pytest.raises(ValueError, match=expected):
        ENCODINGS[name].encode(array)


def test_decode_refuses_what_it_cannot_write():
    with pytest.raises(ValueError, match=r"data\.ignore"):
        ENCODINGS["bits"].decode(np.array([0, IGNORE]))
    with pytest.raises(ValueError, match="0 to 2; expected 0 to 1"):
        ENCODINGS["bits"].decode(np.array([0, 2]))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"values": (0,)}, "at least two"),
        ({"values": (0, 0)}, "repeat"),
        ({"ignore": (1,)}, "repeat"),
        ({"class_names": ("a",)}, "expected 2, one per class"),
        ({"values": ((0, 0), (1, 1))}, "whole numbers"),
        ({"values": (0, 256)}, "do not fit masks of dtype uint8"),
        ({"dtype": "complex64"}, "dtype"),
    ],
)
def test_wrong_encodings_are_refused(changes: dict, expected: str):
    with pytest.raises(ValueError, match=expected):
        MaskEncoding(**{"kind": "values", "values": (0, 1), "class_names": ("a", "b"), **changes})


def test_codes_tell_colours_apart():
    colours = np.random.default_rng(0).integers(0, 256, (500, 4))
    assert len(np.unique(mask_codes(colours, "colours"))) == len(np.unique(colours, axis=0))


@each
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".nii.gz"])
def test_what_is_written_reads_as_it_was(encoding: MaskEncoding, suffix: str, tmp_path: Path):
    shape = (3, 6, 7) if suffix in (".nii.gz", ".tif") else (6, 7)
    labels = random_labels(encoding, shape)
    path = tmp_path / f"mask{suffix}"
    if suffix in (".png", ".tif") and mask_suffix(encoding, len(shape)) == ".npy":
        with pytest.raises(ValueError, match=r"mask\.\w+ cannot hold"):
            write_mask(labels, encoding, path)
        return
    write_mask(labels, encoding, path)
    mask = read_mask(path)
    np.testing.assert_array_equal(encoding.encode(mask.array), labels)
    if encoding.kind == "palette" and suffix in (".png", ".tif"):
        assert mask.palette is not None
        assert mask.palette[: len(PALETTE)] == PALETTE


def test_image_files_hold_the_numbers_themselves(tmp_path: Path):
    write_mask(np.array([[0, 1], [1, 0]]), ENCODINGS["bits"], tmp_path / "bits.png")
    assert Image.open(tmp_path / "bits.png").mode == "1"
    write_mask(np.array([[0, 2]]), ENCODINGS["deep"], tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep.png")), [[0, 65535]])
    write_mask(np.array([[1, 2]]), ENCODINGS["palette"], tmp_path / "indexed.png")
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "indexed.png").convert("RGB"))[0], [[200, 10, 10], [10, 200, 10]]
    )


def test_nifti_keeps_axes_and_affine(tmp_path: Path):
    import nibabel

    affine = np.diag([2.0, 3, 4, 1])
    labels = random_labels(ENCODINGS["binary"], (2, 3, 4))
    write_mask(labels, ENCODINGS["binary"], tmp_path / "a.nii.gz", affine)
    stored = nibabel.load(tmp_path / "a.nii.gz")
    assert stored.shape == (4, 3, 2)
    np.testing.assert_array_equal(nifti_affine(tmp_path / "a.nii.gz"), affine)


@each
def test_every_class_has_a_colour_of_its_own(encoding: MaskEncoding):
    colours = encoding.colours()
    assert (colours.shape, colours.dtype) == ((encoding.num_classes, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == encoding.num_classes
    if encoding.kind == "palette":
        np.testing.assert_array_equal(colours.ravel(), PALETTE)


SIGHT = {
    "all cones": np.eye(3).tolist(),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""What readers see of linear RGB: Machado et al. 2009, https://doi.org/10.1109/TVCG.2009.113, severity 1."""


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("count", [2, 3, 8, 11])
def test_default_colours_are_told_apart(count: int, sight: str):
    from skimage.color import deltaE_ciede2000, rgb2lab

    shares = class_colours(count) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SIGHT[sight]).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen[None])[0]
    apart = deltaE_ciede2000(lab[:, None], lab[None])[np.triu_indices(count, k=1)]
    assert apart.min() > 10  # 1 can just be seen, side by side


def test_default_colours_go_on():
    colours = class_colours(256)
    assert len(np.unique(colours, axis=0)) == 256
    assert (colours[:11] == class_colours(11)).all()
    assert np.ptp(colours[0].astype(int)) < 16  # the background is grey


def scanned(masks: list[np.ndarray], kind, palette=None, **settings):
    """The encoding found for some masks, with its note."""
    channels = kind in ("colours", "one_hot")
    entries = []
    for number, mask in enumerate(masks):
        image = np.zeros((*mask.shape[: mask.ndim - channels], 1), np.uint8)
        pair = Pair(str(number), f"{number}.png", f"{number}_mask.png", lambda: image, lambda: RawMask(mask))  # noqa: B023
        entries.append(scan_pair(pair, "train", kind, image, RawMask(mask, palette)))
    return find_encoding(entries, kind, masks[0], ".png", MaskDataConfig(source="folder", **settings)), entries


@pytest.mark.parametrize(
    "seen, kind, values, ignore",
    [
        ([0, 1], "values", (0, 1), ()),
        ([0, 255], "values", (0, 255), ()),
        ([0, 1, 2, 3], "values", (0, 1, 2, 3), ()),
        ([0, 255], "palette", (0, 255), ()),
        ([0, 1, 255], "palette", (0, 1), (255,)),
        ([[0, 0, 0], [255, 255, 255]], "colours", ((0, 0, 0), (255, 255, 255)), ()),
        ([[0, 3], [3, 0]], "one_hot", ((3, 0), (0, 3)), ()),
    ],
)
def test_unambiguous_encodings_are_read_from_the_masks(seen, kind, values, ignore):
    (encoding, note), _ = scanned([np.array([seen, seen], np.uint8)], kind, PALETTE if kind == "palette" else None)
    assert (encoding.values, encoding.ignore, encoding.palette) == (
        values,
        ignore,
        PALETTE if kind == "palette" else None,
    )
    assert note.startswith("read from the masks")


@pytest.mark.parametrize("seen", [[0], [0, 2], [1, 2], [0, 1, 255], [3, 200]])
def test_ambiguous_values_are_an_error_that_lists_them(seen: list[int]):
    listed = ", ".join(map(str, seen))
    with pytest.raises(ValueError, match=f"hold values {listed}, which can be read in several ways"):
        scanned([np.array([seen], np.uint8)], "values")


def test_what_is_ignored_leaves_the_rest_unambiguous():
    (encoding, _), _ = scanned([np.array([[0, 1, 255]], np.uint8)], "values", ignore=[255])
    assert (encoding.values, encoding.ignore) == ((0, 1), (255,))


def test_undeclared_values_name_files_and_values():
    masks = [np.array([[0, 1]]), np.array([[0, 7]]), np.array([[9, 1]])]
    with pytest.raises(ValueError, match=r"1_mask\.png, 2_mask\.png hold values 7, 9 \(33\.33% of all positions\)"):
        scanned([mask.astype(np.uint8) for mask in masks], "values", values=[0, 1])


def test_declared_encodings_take_names_and_order():
    (encoding, note), entries = scanned(
        [np.array([[0, 255]], np.uint8)], "values", values=[255, 0], class_names=["cell", "membrane"]
    )
    assert (encoding.values, encoding.class_names, note) == ((255, 0), ("cell", "membrane"), "declared")
    check_declared(entries, encoding)


def test_palettes_must_agree_where_they_are_used():
    mask = np.array([[0, 1]], np.uint8)
    _, entries = scanned([mask], "palette", PALETTE)
    _, others = scanned([mask], "palette", (0, 0, 0, 1, 1, 1))
    with pytest.raises(ValueError, match="another palette"):
        find_encoding([*entries, *others], "palette", mask, ".png", MaskDataConfig())
