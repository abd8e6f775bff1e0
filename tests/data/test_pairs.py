from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.data import pairs as pairs_module
from unetdiff.data import weights as weights_module
from unetdiff.data.augment import crop_places
from unetdiff.data.loader import training_loader
from unetdiff.data.mask_options import MaskDataConfig, WarpConfig
from unetdiff.data.pairs import PairData, open_pairs
from unetdiff.segmentation.options import IGNORE

CLASSES = 3


def image_and_mask(shape: tuple[int, ...] = (12, 10), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random grey image and the mask that its values imply, so that a crop shows whether both were cut alike."""
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return image, image % CLASSES


def write_folder(root: Path, count: int = 4, shape: tuple[int, ...] = (12, 10), factor: int = 1) -> Path:
    """images/ and masks/ with `count` PNGs, masks written with `factor` times the class."""
    for number in range(count):
        image, mask = image_and_mask(shape, number)
        for name, array in (("images", image), ("masks", mask * np.uint8(factor))):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / name / f"case{number // 2}_{number}.png")
    return root


def opened(root: Path, **settings) -> PairData:
    return open_pairs(MaskDataConfig(source=settings.pop("source", "folder"), path=str(root), **settings))


def check_alike(batch: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(batch["sample"][..., 0] % CLASSES, batch["mask"])


def names(source) -> list[str]:
    return [Path(source.name(index)).stem for index in range(len(source))]


# ---------------------------------------------------------------- sources


def test_folder_pairs_by_stem_and_cuts_both_alike(tmp_path: Path):
    data = opened(write_folder(tmp_path), size=[5, 7])
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 0, 0)
    places = crop_places(0, np.arange(4), 2)
    batch = data.train.read(np.arange(4), places)
    assert (batch["sample"].shape, batch["mask"].shape) == ((4, 5, 7, 1), (4, 5, 7))
    assert (batch["sample"].dtype, batch["mask"].dtype) == (np.uint8, np.int64)
    check_alike(batch)
    image = image_and_mask(seed=2)[0]
    top, left = np.floor(places[2] * (8, 4)).astype(int)
    np.testing.assert_array_equal(batch["sample"][2, ..., 0], image[top : top + 5, left : left + 7])


def test_metadata_lists_pairs(tmp_path: Path):
    write_folder(tmp_path / "all")
    lines = [
        {"file_name": f"images/case{n // 2}_{n}.png", "mask_file_name": f"masks/case{n // 2}_{n}.png"} for n in (3, 1)
    ]
    (tmp_path / "all" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    data = opened(tmp_path / "all")
    assert names(data.train) == ["case1_3", "case0_1"]
    check_alike(data.train.read([0, 1]))
    (tmp_path / "all" / "images" / "case0_1.png").unlink()
    with pytest.raises(ValueError, match=r"line 2, names images/case0_1\.png, which is not there"):
        opened(tmp_path / "all")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_image_held_out_twice_is_named(tmp_path: Path, split: str):
    write_folder(tmp_path)
    twice = [{"file_name": f"images/case0_{n}.png", "mask_file_name": f"masks/case0_{n}.png"} for n in (0, 1, 1)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, twice)))
    with pytest.raises(ValueError, match=rf"images/case0_1\.png is twice in {split}; expected it once"):
        opened(tmp_path, split="names", train=["case0_0"], **{split: ["case0_1"]})
    assert len(opened(tmp_path).train) == 3  # in training, that is a weight


def test_masks_elsewhere_with_a_suffix(tmp_path: Path):
    write_folder(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a" / "masks" / "case0_0.png", tmp_path / "b" / "case0_0_mask.png")
    data = opened(tmp_path / "a" / "images", mask_path=str(tmp_path / "b"), mask_suffix="_mask")
    check_alike(data.train.read([0]))


def test_split_folders_are_the_own_splits(tmp_path: Path):
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        write_folder(tmp_path / split, count)
    data = opened(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 1, 2)
    assert "exact copies" in data.report()  # all were drawn from the same seeds
    write_folder(tmp_path / "alone", 2)
    assert "exact copies" not in opened(tmp_path / "alone").report()


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_npy_images_of_any_channels(tmp_path: Path, channels: int):
    images = np.random.default_rng(0).normal(0, 1, (5, 8, 9, channels)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "masks.npy", (images[..., 0] > 0).astype(np.int64))
    data = opened(tmp_path, source="npy", dims=2)
    assert (data.train.format.channels, data.train.format.dtype) == (channels, "float32")
    assert (data.train.format.low, data.train.format.high) == (float(images.min()), float(images.max()))
    batch = data.train.read([1, 4])
    np.testing.assert_array_equal(batch["sample"], images[[1, 4]])
    np.testing.assert_array_equal(batch["mask"], images[[1, 4], ..., 0] > 0)
    assert data.train.encoding.dtype == "int64"


@pytest.mark.parametrize("channels", [(), (2,)])
def test_tracks(tmp_path: Path, channels: tuple[int, ...]):
    tracks = np.random.default_rng(0).normal(0, 1, (6, 50, *channels))
    labels = (tracks.reshape(6, 50, -1)[..., 0] > 0).astype(np.uint8)
    np.save(tmp_path / "images.npy", tracks)
    np.save(tmp_path / "masks.npy", labels)
    data = opened(tmp_path, source="npy", size=16, augment=WarpConfig(flips=[0], scale=0.1, elastic=1))
    assert (data.train.format.dims, data.train.size) == (1, (16,))
    batch = data.train.read(np.arange(6), crop_places(0, np.arange(6), 1))
    np.testing.assert_array_equal(batch["sample"][..., 0] > 0, batch["mask"])
    drawn = data.train.draw(np.arange(6), np.arange(6), 0, MaskDataConfig(augment=WarpConfig(elastic=1)))
    assert (drawn["sample"].shape, drawn["mask"].shape) == ((6, 16, *(channels or (1,))), (6, 16))


@pytest.mark.parametrize("form", ["slices", "tif", "nii.gz", "npy"])
def test_volumes(tmp_path: Path, form: str):
    image, mask = image_and_mask((6, 12, 10))
    if form == "slices":
        for name, array in (("images", image), ("masks", mask)):
            (tmp_path / name).mkdir()
            for depth, page in enumerate(array):
                Image.fromarray(page).save(tmp_path / name / f"{depth:03d}.png")
        data = opened(tmp_path, dims=3, split="depth", train=["0-3"], test=["5"])
    else:
        for name, array in (("image", image), ("mask", mask)):
            write_volume(tmp_path / f"{name}.{form}", array)
        settings = {"mask_path": str(tmp_path / f"mask.{form}"), "split": "depth", "train": ["0-3"], "test": ["5"]}
        data = opened(tmp_path / f"image.{form}", dims=3, **settings)
    assert data.train.format.dims == 3
    batch = data.train.read([0])
    np.testing.assert_array_equal(batch["sample"][0, ..., 0], image[:4])
    np.testing.assert_array_equal(batch["mask"][0], mask[:4])
    check_alike(data.test.read([0]))
    assert data.test.spaces == [(1, 12, 10)]


def write_volume(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        first, *rest = [Image.fromarray(page) for page in array]
        first.save(path, save_all=True, append_images=rest)
    else:
        import nibabel

        nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), path)


def test_hounsfield_units_become_floats(tmp_path: Path):
    import nibabel

    volume = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii")
    nibabel.save(nibabel.Nifti1Image((volume > 0).astype(np.uint8), np.eye(4)), tmp_path / "organ.nii")
    data = opened(tmp_path / "ct.nii", mask_path=str(tmp_path / "organ.nii"))
    batch = data.train.read([0])
    assert data.train.format.dtype == "float32"
    np.testing.assert_array_equal(batch["sample"][0, ..., 0], volume.transpose(2, 1, 0))
    np.testing.assert_array_equal(batch["mask"][0], volume.transpose(2, 1, 0) > 0)


def test_parquet_columns_keep_the_indices_of_palettes(tmp_path: Path):
    import datasets

    palette = [0, 0, 0, 9, 9, 9, 200, 0, 0]
    rows = []
    for number in range(3):
        image, mask = image_and_mask(seed=number)
        indexed = Image.fromarray(mask)
        indexed.putpalette(palette)
        rows.append({"scan": Image.fromarray(image), "truth": indexed})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    data = opened(tmp_path / "train.parquet", source="dataset", image_column="scan", mask_column="truth")
    check_alike(data.train.read([0, 1, 2]))
    assert data.train.encoding.kind == "palette"
    assert (data.train.encoding.palette or ())[:9] == tuple(palette)
    with pytest.raises(ValueError, match=r"no column 'mask'; expected data\.mask_column to be one of scan, truth"):
        opened(tmp_path / "train.parquet", source="dataset", image_column="scan")


def test_colour_tables(tmp_path: Path):
    write_folder(tmp_path, 2)
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(table[np.asarray(Image.open(path))]).save(path)
    with pytest.raises(ValueError, match=r"hold colours .*; expected data\.values"):
        opened(tmp_path)
    data = opened(tmp_path, values=table.tolist())
    check_alike(data.train.read([0, 1]))
    assert data.train.encoding.kind == "colours"


# ---------------------------------------------------------------- what is wrong is said


def test_files_without_a_partner_are_named(tmp_path: Path):
    write_folder(tmp_path)
    (tmp_path / "masks" / "case0_1.png").unlink()
    (tmp_path / "images" / "case1_2.png").unlink()
    with pytest.raises(ValueError, match=r"1 images have no mask \(.*case0_1\.png\), and 1 masks have no image \(.*_2"):
        opened(tmp_path)


def test_sizes_that_differ_are_named(tmp_path: Path):
    write_folder(tmp_path)
    Image.fromarray(np.zeros((9, 10), np.uint8)).save(tmp_path / "masks" / "case0_1.png")
    expected = r"masks/case0_1\.png has size \[9, 10\]; expected that of its image, \[12, 10\] .*images/case0_1\.png"
    with pytest.raises(ValueError, match=expected):
        opened(tmp_path)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_truncated_files_are_named(tmp_path: Path, folder: str):
    path = write_folder(tmp_path, shape=(80, 80)) / folder / "case0_1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{folder}/case0_1\.png cannot be decoded"):
        opened(tmp_path)


def test_channels_that_differ_are_named(tmp_path: Path):
    write_folder(tmp_path)
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(tmp_path / "images" / "case1_2.png")
    with pytest.raises(ValueError, match=r"case1_2\.png has 3 channels of uint8 in 2-D; expected 1"):
        opened(tmp_path)


def test_images_of_several_sizes_need_a_crop(tmp_path: Path):
    write_folder(tmp_path, 2)
    write_folder(tmp_path / "wide", 1, (12, 14))
    for name in ("images", "masks"):
        shutil.move(tmp_path / "wide" / name / "case0_0.png", tmp_path / name / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png has size \[12, 14\].*data\.size set"):
        opened(tmp_path)
    check_alike(opened(tmp_path, size=8).train.read([0, 1, 2]))


def test_nan_is_named(tmp_path: Path):
    images = np.zeros((2, 4, 4), np.float32)
    images[1, 2, 2] = np.nan
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "masks.npy", np.eye(4, dtype=np.uint8)[None].repeat(2, 0))
    with pytest.raises(ValueError, match=r"images\.npy, sample 1 holds NaN"):
        opened(tmp_path, source="npy", dims=2)


def test_undeclared_values_name_the_file(tmp_path: Path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match=r"case0_0\.png, .*hold values 2 \(.*% of all positions\); expected 0, 1 for"):
        opened(tmp_path, values=[0, 1])


# ---------------------------------------------------------------- splits


def test_splits_by_glob_and_by_list(tmp_path: Path):
    write_folder(tmp_path)
    (tmp_path / "held.txt").write_text("case1_3\n\n")
    data = opened(tmp_path, split="names", train=["case0_*"], test=["held.txt"])
    assert (names(data.train), names(data.validation), names(data.test)) == (["case0_0", "case0_1"], [], ["case1_3"])
    with pytest.raises(ValueError, match=r"case0_1\.png is in train and in test"):
        opened(tmp_path, split="names", train=["case0_*"], test=["*_1"])
    with pytest.raises(ValueError, match=r"data\.test has other, which matches none of"):
        opened(tmp_path, split="names", train=["case0_*"], test=["other"])


def test_splits_by_group(tmp_path: Path):
    write_folder(tmp_path, 6)
    data = opened(tmp_path, split="names", group=r"case(\d+)", train=["0", "2"], test=["1"])
    assert names(data.train) == ["case0_0", "case0_1", "case2_4", "case2_5"]
    assert names(data.test) == ["case1_2", "case1_3"]
    with pytest.raises(ValueError, match=r"data\.group 'x\(\.\)' does not match case0_0\.png"):
        opened(tmp_path, split="names", group="x(.)", train=["0"])
    whole = opened(tmp_path, split="fraction", group=r"case\d+", test_fraction=0.34)
    assert (len(whole.test), len({name[:5] for name in names(whole.test)})) == (2, 1)


def test_splits_by_depth_take_images_in_order(tmp_path: Path):
    write_folder(tmp_path)
    data = opened(tmp_path, split="depth", train=["0-1"], test=["3"])
    assert (names(data.train), names(data.test)) == (["case0_0", "case0_1"], ["case1_3"])
    for train, expected in ((["0-3"], "do not overlap"), (["0-4"], "at most 3"), (["b"], "such as 0-21")):
        with pytest.raises(ValueError, match=expected):
            opened(tmp_path, split="depth", train=train, **({"test": ["3"]} if train == ["0-3"] else {}))


def write_slices(root: Path, count: int) -> Path:
    """images/ and masks/ with slice_0.png and on, each of one grey, listed in another order."""
    names = [f"slice_{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        for folder, value in (("images", 20 * number), ("masks", number % 2)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), value, np.uint8)).save(root / folder / name)
    lines = [{"file_name": f"images/{name}", "mask_file_name": f"masks/{name}"} for name in reversed(names)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


@pytest.mark.parametrize("listed", [True, False])
def test_slices_are_ordered_by_their_numbers(tmp_path: Path, listed: bool):
    root = write_slices(tmp_path, 12)
    if not listed:
        (root / "metadata.jsonl").unlink()
    data = opened(root, split="depth", train=["0-2"], test=["9-11"])
    assert (names(data.train), names(data.test)) == (
        [f"slice_{n}" for n in (0, 1, 2)],
        [f"slice_{n}" for n in (9, 10, 11)],
    )
    stack = opened(root, dims=3).train.read([0])
    np.testing.assert_array_equal(stack["sample"][0, :, 0, 0, 0], 20 * np.arange(12))
    np.testing.assert_array_equal(stack["mask"][0, :, 0, 0], np.arange(12) % 2)


def test_rows_of_arrays_keep_their_order(tmp_path: Path):
    np.save(tmp_path / "images.npy", np.repeat(8 * np.arange(30, dtype=np.uint8), 16).reshape(30, 4, 4))
    np.save(tmp_path / "masks.npy", np.repeat(np.arange(30, dtype=np.uint8) % 2, 16).reshape(30, 4, 4))
    data = opened(tmp_path, source="npy", split="depth", train=["0-21"], validation=["22-29"])
    assert data.train.read(np.arange(22))["sample"][:, 0, 0, 0].tolist() == list(range(0, 176, 8))
    assert data.validation.read(np.arange(8))["sample"][:, 0, 0, 0].tolist() == list(range(176, 240, 8))


def test_a_stated_fraction_is_drawn_from_its_seed(tmp_path: Path):
    write_folder(tmp_path, 10)
    drawn = [opened(tmp_path, split="fraction", test_fraction=0.3, split_seed=seed) for seed in (0, 0, 1)]
    assert [len(data.test) for data in drawn] == [3, 3, 3]
    assert names(drawn[0].test) == names(drawn[1].test) != names(drawn[2].test)
    assert not set(names(drawn[0].test)) & set(names(drawn[0].train))
    with pytest.raises(ValueError, match="which is none"):
        opened(tmp_path, split="fraction", test_fraction=0.01)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"test_fraction": 0.2}, r"data\.test_fraction is 0\.2, .* data\.split is own; expected data\.split fraction"),
        ({"train": ["a"]}, r"data\.train is \['a'\], which .* data\.split is own; expected data\.split names or depth"),
        ({"split": "names"}, r"data\.train is empty"),
        ({"split": "depth", "train": ["0"], "group": "a"}, r"data\.group is 'a', .* data\.split is depth"),
        (
            {"source": "npy", "mask_suffix": "_m"},
            r"data\.mask_suffix is '_m', .* data\.source is npy; expected .* folder",
        ),
        ({"source": "dataset", "mask_path": "m"}, r"data\.mask_path is 'm', .* expected data\.source folder or npy"),
        ({"path": "somewhere"}, r"data\.path is 'somewhere', .* data\.source is digit_scenes"),
        ({"source": "folder", "image_column": "x"}, r"data\.image_column is 'x', .* expected data\.source dataset"),
        ({"split_seed": 3}, r"data\.split_seed is 3, .* expected data\.split fraction"),
        (
            {"crop_probability": 0.2, "size": 16},
            r"data\.crop_probability is 0\.2, .* without data\.crop_classes; expected both",
        ),
        ({"crop_classes": [1]}, r"data\.crop_classes is \[1\], .* without data\.size; expected both"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5, "split": "fraction"}, "leave no training"),
        ({"source": "nowhere"}, "one of digit_scenes"),
        ({"range": [3.0, 3.0], "source": "npy"}, r"data\.range is \[3\.0, 3\.0\]; expected a lower and a higher value"),
        ({"range": [3.0], "source": "npy"}, r"expected a lower and a higher value"),
        ({"range": [0.0, float("inf")], "source": "npy"}, r"expected a lower and a higher value"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(settings: dict, expected: str):
    with pytest.raises(ValueError, match=expected):
        MaskDataConfig(**settings)


# ---------------------------------------------------------------- crops


def rare_class(root: Path) -> Path:
    """One 40x40 image of which 4 pixels are of class 1, and one without any."""
    masks = np.zeros((2, 40, 40), np.uint8)
    masks[0, 30:32, 3:5] = 1
    np.save(root / "images.npy", 20 * np.arange(2 * 40 * 40, dtype=np.uint16).reshape(2, 40, 40))
    np.save(root / "masks.npy", masks)
    return root


def test_crops_hold_a_wanted_class_with_the_stated_probability(tmp_path: Path):
    source = opened(rare_class(tmp_path), source="npy", dims=2, size=8).train
    positions = np.arange(400)
    indices = np.zeros(400, np.int64)

    def share(probability: float, index: int = 0) -> float:
        places = source.places(indices + index, positions, 0, [1], probability)
        assert ((places >= 0) & (places < 1)).all()
        return (source.read(indices + index, places)["mask"] == 1).any(axis=(1, 2)).mean()

    by_chance = share(0)
    assert by_chance < 0.1
    assert share(1) == 1
    assert abs(share(0.5) - 0.5 - by_chance / 2) < 0.08
    assert share(1, index=1) == 0  # has none: placed at random
    np.testing.assert_array_equal(source.places(indices, positions, 0, [1], 0), crop_places(0, positions, 2))
    some = np.array([3, 77, 20])
    np.testing.assert_array_equal(
        source.places(indices[some], positions[some], 0, [1], 0.5), source.places(indices, positions, 0, [1], 0.5)[some]
    )


def test_positions_of_classes_are_kept_for_some_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = opened(write_folder(tmp_path, 6)).train
    entries = [(index, label) for index in range(6) for label in range(CLASSES)]
    found = [source.class_positions(*entry) for entry in entries]
    for (index, label), at in zip(entries, found, strict=True):
        np.testing.assert_array_equal(at, np.argwhere(image_and_mask(seed=index)[1] == label))
    monkeypatch.setattr(pairs_module, "KEPT_ENTRIES", 4)
    few = opened(tmp_path).train
    for entry, at in zip([*entries, entries[0]], [*found, found[0]], strict=True):
        np.testing.assert_array_equal(few.class_positions(*entry), at)
        assert few.class_positions(*entries[0]).shape == found[0].shape  # asked for all the time, and so kept
        assert entries[0] in few._positions
        assert len(few._positions) <= 4
    assert {(flat.dtype, flat.ndim) for flat in source._positions.values()} == {(np.dtype(np.uint8), 1)}


@pytest.mark.parametrize("size, moves", [(8, {"rotation": 30, "elastic": 4}), ([60, 8], {"rotation": 10})])
def test_warped_crops_hold_a_wanted_class(tmp_path: Path, size: int | list[int], moves: dict):
    """What moves out of a crop is aimed at nonetheless, in images that are continued too."""
    warp = WarpConfig(flips=[0, 1], **moves)
    data = opened(rare_class(tmp_path), source="npy", dims=2, size=size, crop_classes=[1], augment=warp)
    settings = MaskDataConfig(size=size, crop_classes=[1], crop_probability=1, augment=warp)
    drawn = data.train.draw(np.zeros(200, np.int64), np.arange(200), 0, settings)
    assert (drawn["mask"] == 1).any(axis=(1, 2)).mean() > 0.97


def test_wanted_classes_are_known_by_name_or_number(tmp_path: Path):
    write_folder(tmp_path)
    opened(tmp_path, size=4, crop_classes=[2, "b"], class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"data\.crop_classes has 'd'; expected numbers below 3 or names of a, b, c"):
        opened(tmp_path, size=4, crop_classes=["d"], class_names=["a", "b", "c"])


def test_images_smaller_than_the_crop_are_continued_and_ignored_there(tmp_path: Path):
    source = opened(write_folder(tmp_path, 1, (3, 20)), size=8).train
    batch = source.read([0], np.array([[0.9, 0.9]]))
    assert batch["sample"].shape == (1, 8, 8, 1)
    np.testing.assert_array_equal((batch["mask"] == IGNORE).all(axis=2)[0], [1, 1, 0, 0, 0, 1, 1, 1])
    check_alike({"sample": batch["sample"][:, 2:5], "mask": batch["mask"][:, 2:5]})


def test_evaluation_keeps_images_whole(tmp_path: Path):
    write_folder(tmp_path / "train", 2, (12, 10))
    write_folder(tmp_path / "test", 2, (30, 17))
    data = opened(tmp_path, size=8)
    assert data.train.read([0])["sample"].shape == (1, 8, 8, 1)
    assert data.test.read([0])["sample"].shape == (1, 30, 17, 1)
    assert data.test.spaces == [(30, 17)] * 2


def test_an_all_ignored_mask_reads_as_such(tmp_path: Path):
    np.save(tmp_path / "images.npy", np.arange(32, dtype=np.uint8).reshape(2, 4, 4))
    np.save(tmp_path / "masks.npy", np.full((2, 4, 4), 255, np.uint8))
    data = opened(tmp_path, source="npy", values=[0, 1], ignore=[255])
    assert (data.train.read([0, 1])["mask"] == IGNORE).all()
    assert data.class_counts().tolist() == [0, 0]
    assert "100.00%" in data.report()


# ---------------------------------------------------------------- training batches, report


SETTINGS = {"size": 8, "crop_classes": [1], "augment": WarpConfig(flips=[0, 1], rotation=10, noise=0.1)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_workers_and_after_a_resume(tmp_path: Path, workers: int):
    data = opened(write_folder(tmp_path), **SETTINGS)
    settings = MaskDataConfig(source="folder", path=str(tmp_path), workers=workers, **SETTINGS)
    stream = training_loader(data.train, settings, batch_size=4, seed=3, start_step=1)
    alone = training_loader(data.train, settings, batch_size=4, seed=3, workers=0)
    next(alone)
    batch, expected = next(stream), next(alone)
    stream.close()
    assert (batch["sample"].shape, batch["mask"].shape) == ((4, 1, 8, 8), (4, 8, 8))
    for name in ("sample", "mask", "position"):
        np.testing.assert_array_equal(batch[name].numpy(), expected[name].numpy())
    halves = [
        next(
            training_loader(
                data.train, settings, batch_size=4, seed=3, start_step=1, rank=rank, world_size=2, workers=0
            )
        )
        for rank in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate([half["mask"].numpy() for half in halves]), expected["mask"].numpy())


def counting(weigh, counts: list[int]):
    """`weigh`, with a note of each call."""

    def noted(labels: np.ndarray) -> np.ndarray:
        counts.append(labels.size)
        return weigh(labels)

    return noted


def weights_of(labels: np.ndarray) -> np.ndarray:
    """A weight that the label implies, so that a crop shows whether both were cut and warped alike."""
    return np.where(labels == IGNORE, 1.0, 2.0 + labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [2**30, 0], ids=["memory", "file"])
def test_weights_are_computed_once_and_go_with_their_masks(tmp_path, workers: int, limit: int, monkeypatch):
    monkeypatch.setattr(weights_module, "MEMORY_LIMIT", limit)
    settings = {**SETTINGS, "size": [8, 14]}  # wider than the images
    counts: list[int] = []
    source = opened(write_folder(tmp_path), **settings).train.weighted(counting(weights_of, counts))
    assert counts == [120] * 4
    given = MaskDataConfig(source="folder", path=str(tmp_path), workers=workers, **settings)
    stream = training_loader(source, given, batch_size=4, seed=3)
    for _ in range(3):
        batch = next(stream)
        assert batch["weight"].dtype == torch.float32
        assert (batch["mask"] == IGNORE).any()
        np.testing.assert_array_equal(batch["weight"].numpy(), weights_of(batch["mask"].numpy()))
    stream.close()
    assert len(counts) == 4
    assert "weight" not in source.read([0])


def test_weights_change_nothing_else(tmp_path: Path):
    source = opened(write_folder(tmp_path), **SETTINGS).train
    arguments = (np.arange(4), np.arange(4), 0, MaskDataConfig(**SETTINGS))
    plain, weighted = source.draw(*arguments), source.weighted(weights_of).draw(*arguments)
    for name in ("sample", "mask"):
        np.testing.assert_array_equal(plain[name], weighted[name])


def test_data_too_large_for_memory_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path)
    held = opened(tmp_path, **SETTINGS)
    monkeypatch.setattr(pairs_module, "MEMORY_LIMIT", 0)
    streamed = opened(tmp_path, **SETTINGS)
    shutil.move(tmp_path / "images", tmp_path / "moved")
    with pytest.raises(ValueError):
        streamed.train.read([0])
    shutil.move(tmp_path / "moved", tmp_path / "images")
    arguments = (np.arange(4), np.arange(4), 0, MaskDataConfig(**SETTINGS))
    for name in ("sample", "mask"):
        np.testing.assert_array_equal(held.train.draw(*arguments)[name], streamed.train.draw(*arguments)[name])


def test_report_tells_sizes_channels_values_and_shares(tmp_path: Path):
    np.save(tmp_path / "images.npy", 8 * np.arange(32, dtype=np.uint8).reshape(2, 4, 4))
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, 0] = 255
    np.save(tmp_path / "masks.npy", masks)
    data = opened(tmp_path, source="npy", class_names=["cell", "membrane"], split="depth", train=["0"], test=["1"])
    rows = [line.split() for line in data.report().splitlines()]
    assert ["images", "1", "1"] in rows
    assert ["size", "4", "x", "4", "4", "x", "4"] in rows
    assert ["lowest", "0", "128"] in rows
    assert ["highest", "120", "248"] in rows
    assert ["cell", "0", "75.00%", "100.00%"] in rows
    assert ["membrane", "255", "25.00%", "0.00%"] in rows
    assert data.class_counts().tolist() == [12, 4]


def test_quarter_turns_of_unequal_sides_are_refused_before_training(tmp_path: Path):
    turning = {"augment": WarpConfig(quarter_turns="plane")}
    with pytest.raises(ValueError, match=r"quarter_turns is plane and crops are \[12, 10\]; expected equal sides"):
        opened(write_folder(tmp_path), **turning)
    with pytest.raises(ValueError, match=r"crops are \[4, 5\]"):
        opened(tmp_path, size=[4, 5], **turning)
    assert opened(tmp_path, size=4, **turning).train.size == (4, 4)


def write_values(root: Path, images: np.ndarray) -> Path:
    np.save(root / "images.npy", images)
    np.save(root / "masks.npy", np.arange(images.size, dtype=np.uint8).reshape(images.shape) % 2)
    return root


def outlier() -> np.ndarray:
    """Two images of values from 0 to 1, one of which has a voxel of 5000."""
    images = np.random.default_rng(0).uniform(0, 1, (2, 40, 40)).astype(np.float32)
    images[0, 3, 4] = 5000
    return images


def test_a_range_may_be_stated(tmp_path: Path):
    write_values(tmp_path, outlier())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who states a range needs no note
        form = opened(tmp_path, source="npy", dims=2, range=[0.0, 1.0]).train.format
    assert (form.low, form.high, form.clip) == (0, 1, True)
    encoded = form.encode(outlier()[..., None])
    torch.testing.assert_close(encoded, torch.from_numpy(2 * outlier()[:, None].clip(0, 1) - 1))
    write_values(tmp_path, np.arange(32, dtype=np.uint16).reshape(2, 4, 4) * 100)
    form = opened(tmp_path, source="npy", dims=2, range=[0, 4095]).train.format
    assert (form.low, form.high, form.clip) == (0, 4095, True)
    with pytest.raises(
        ValueError, match=r"data\.range is \[-1, 4095\]; expected it within 0 to 65535, since .* uint16"
    ):
        opened(tmp_path, source="npy", dims=2, range=[-1, 4095])


@pytest.mark.parametrize(
    "images", [outlier(), np.arange(3200, dtype=np.uint16).reshape(2, 40, 40)], ids=["float", "12 bits"]
)
def test_a_range_that_flattens_the_images_is_noted(tmp_path: Path, images: np.ndarray):
    write_values(tmp_path, images)
    with pytest.warns(UserWarning, match=r"99% of the training values lie from .* a tenth of .*data\.range") as caught:
        data = opened(tmp_path, source="npy", dims=2)
    assert len(caught) == 1
    assert not data.train.format.clip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(write_values(tmp_path, outlier().clip(0, 1)), source="npy", dims=2)


def test_fingerprint_changes_with_any_mask(tmp_path: Path):
    write_folder(tmp_path)
    first = opened(tmp_path).fingerprint()
    assert opened(tmp_path).fingerprint() == first
    path = tmp_path / "masks" / "case1_3.png"
    mask = np.asarray(Image.open(path))
    Image.fromarray(mask[::-1]).save(path)  # no class has more or fewer positions
    assert opened(tmp_path).fingerprint() != first
    Image.fromarray(mask).save(path)
    assert opened(tmp_path).fingerprint() == first
    json.dumps(first)
