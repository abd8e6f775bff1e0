from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.config import DataConfig
from unetdiff.data import sources
from unetdiff.data.files import list_files, natural_key
from unetdiff.data.images import cover
from unetdiff.data.sources import open_source
from unetdiff.data.splits import held_out

from .conftest import SaveImage


def folder(path: Path, **fields) -> DataConfig:
    return DataConfig(**{"source": "folder", "path": str(path), "validation_fraction": 0.0} | fields)


def test_class_folders(image_folder: Path):
    source = open_source(folder(image_folder))
    assert source.format.class_names == ("ant", "bee")
    assert (source.format.dims, source.format.channels, source.format.size) == (2, 3, (8, 8))
    assert (source.format.low, source.format.high) == (0, 255)
    batch = source.read([11, 0])
    assert batch["label"].tolist() == [1, 0]
    np.testing.assert_array_equal(batch["sample"][1], np.asarray(Image.open(image_folder / "ant" / "0.png")))


def test_nested_and_flat_folders(tmp_path: Path, save_image: SaveImage):
    for name in ("cat/deep/a.png", "cat/b.jpg", "dog/deeper/down/c.bmp"):
        save_image(tmp_path / "nested" / name)
    save_image(tmp_path / "nested" / ".hidden" / "x.png", (3, 3))
    (tmp_path / "nested" / "notes.txt").write_text("not an image")
    assert open_source(folder(tmp_path / "nested")).read([0, 1, 2])["label"].tolist() == [0, 0, 1]
    assert open_source(folder(tmp_path / "nested", label_column=None)).labels is None
    flat = open_source(folder(tmp_path / "nested" / "cat" / "deep"))
    assert flat.format.class_names is None
    assert "label" not in flat.read([0])


def test_files_are_ordered_as_people_count(tmp_path: Path):
    wanted = ["a2/9.npy", "a2/10.npy", "a2/10b1.npy", "a10/02.npy", "a10/2.npy", "a10/x.npy"]
    for name in reversed(wanted):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.zeros(4))
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path, (".npy",))] == wanted
    assert sorted(sorted(wanted), key=natural_key) == wanted


def test_linked_folders_are_read_once(tmp_path: Path, save_image: SaveImage):
    for name in ("data/cat/a.png", "data/dog/b.png", "elsewhere/c.png"):
        save_image(tmp_path / name)
    (tmp_path / "data" / "ant").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "bee").symlink_to(tmp_path / "data" / "cat", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data", target_is_directory=True)
    found = list_files(tmp_path / "data", (".png",))
    assert found == [tmp_path / "data" / name for name in ("ant/c.png", "cat/a.png", "dog/b.png")]
    assert open_source(folder(tmp_path / "data")).format.class_names == ("ant", "cat", "dog")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_depth_is_kept(tmp_path: Path, save_image: SaveImage, dtype: str):
    pixels = [save_image(tmp_path / f"{i}.png", (6, 5), dtype, seed=i) for i in range(3)]
    source = open_source(folder(tmp_path))
    assert (source.format.dtype, source.format.high) == (dtype, np.iinfo(dtype).max)
    sample = source.read([0, 1, 2])["sample"]
    np.testing.assert_array_equal(sample, pixels)
    np.testing.assert_array_equal(source.format.decode(source.format.encode(sample)), sample)


def test_validation_is_cut_from_training_and_never_changes(folder_settings: DataConfig):
    training, validation = (open_source(folder_settings, split) for split in ("train", "validation"))
    assert (len(training), len(validation)) == (9, 3)
    both = np.concatenate([training.read(range(9))["sample"], validation.read(range(3))["sample"]])
    assert len(np.unique(both.reshape(12, -1), axis=0)) == 12
    again = open_source(folder_settings, "validation")
    np.testing.assert_array_equal(again.read(range(3))["sample"], both[9:])
    with pytest.raises(ValueError, match="no test split"):
        open_source(folder_settings, "test")
    assert len(open_source(replace(folder_settings, validation_fraction=0.0), "validation")) == 0


@pytest.mark.parametrize(("length", "fraction", "count"), [(100, 0.02, 2), (10, 0.02, 1), (1, 0.5, 0), (10, 0.0, 0)])
def test_held_out(length: int, fraction: float, count: int):
    kept, held = held_out(length, fraction)
    assert len(held) == count
    assert sorted([*kept, *held]) == list(range(length))


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_own_splits_are_used(tmp_path: Path, save_image: SaveImage, name: str):
    for i in range(5):
        save_image(tmp_path / "train" / f"{i}.png", seed=i)
    held = save_image(tmp_path / name / "0.png", seed=9)
    settings = folder(tmp_path, validation_fraction=0.4)
    assert len(open_source(settings)) == 5
    np.testing.assert_array_equal(open_source(settings, "validation").read([0])["sample"][0], held)


def test_size_scales_the_short_side_and_crops(tmp_path: Path, save_image: SaveImage):
    shapes = [(16, 32, 3), (40, 20, 3), (8, 8, 3)]
    pixels = [save_image(tmp_path / f"{i}.png", shape, seed=i) for i, shape in enumerate(shapes)]
    source = open_source(folder(tmp_path, size=8))
    sample = source.read([0, 1, 2])["sample"]
    assert sample.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(sample[0], cover(pixels[0], (8, 8))[:, 4:12])
    np.testing.assert_array_equal(sample[1], cover(pixels[1], (8, 8))[4:12])
    np.testing.assert_array_equal(sample[2], pixels[2])
    first = source.read([0, 1], places=np.zeros((2, 2)))["sample"]
    np.testing.assert_array_equal(first[0], cover(pixels[0], (8, 8))[:, :8])
    np.testing.assert_array_equal(first[1], cover(pixels[1], (8, 8))[:8])


def test_decoding_beforehand_or_on_access_is_the_same(
    tmp_path: Path, save_image: SaveImage, monkeypatch: pytest.MonkeyPatch
):
    for i in range(4):
        save_image(tmp_path / f"{i}.png", (9, 12 + i % 2, 3), seed=i)
    settings = folder(tmp_path, size=[6, 6])
    kept = open_source(settings)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    read = open_source(settings)
    assert kept.records.in_memory
    assert not read.records.in_memory
    places = np.random.default_rng(0).random((4, 2))
    for where in (None, places):
        np.testing.assert_array_equal(kept.read(range(4), where)["sample"], read.read(range(4), where)["sample"])
    (tmp_path / "3.png").unlink()
    kept.read([3])
    with pytest.raises(ValueError, match=r"3\.png"):
        read.read([3])


@pytest.mark.parametrize(
    ("shape", "dims", "channels"),
    [
        ((5, 32), 1, 1),
        ((5, 32, 2), 1, 2),
        ((5, 6, 7), 2, 1),
        ((5, 6, 7, 3), 2, 3),
        ((5, 6, 7, 8), 3, 1),
        ((5, 6, 7, 8, 2), 3, 2),
    ],
)
def test_npy_file(tmp_path: Path, shape: tuple[int, ...], dims: int, channels: int):
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "labels.npy", np.arange(5) % 3)
    source = open_source(folder(tmp_path / "x.npy", source="npy"))
    form = source.format
    assert (form.dims, form.channels, form.dtype, form.class_names) == (dims, channels, "float32", ("0", "1", "2"))
    assert (form.low, form.high) == pytest.approx((array.min(), array.max()))
    batch = source.read([3, 1])
    np.testing.assert_array_equal(batch["sample"].reshape(2, *shape[1:]), array[[3, 1]].astype(np.float32))
    assert batch["label"].tolist() == [0, 1]


@pytest.mark.parametrize(("dims", "space", "channels"), [(2, (6, 7), 8), (3, (6, 7, 8), 1)])
def test_dims_tell_channels_from_space(tmp_path: Path, dims: int, space: tuple[int, ...], channels: int):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 6, 7, 8)))
    form = open_source(folder(tmp_path / "x.npy", source="npy", dims=dims)).format
    assert (form.dims, form.size, form.channels) == (dims, space, channels)


def test_npy_folder(tmp_path: Path):
    arrays = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 6), np.uint8)
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    np.save(tmp_path / "labels.npy", np.array(["b", "a", "a", "b"]))
    source = open_source(folder(tmp_path, source="npy"))
    assert (source.format.dims, source.format.class_names) == (3, ("a", "b"))
    np.testing.assert_array_equal(source.read(range(4))["sample"][..., 0], arrays)
    assert source.read(range(4))["label"].tolist() == [1, 0, 0, 1]


def test_signals_and_volumes_are_cropped_not_scaled(tmp_path: Path):
    array = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    source = open_source(folder(tmp_path / "x.npy", source="npy", size=6))
    np.testing.assert_array_equal(source.read([1])["sample"][0, :, 0], array[1, 2:8])
    with pytest.raises(ValueError, match="only images are scaled"):
        open_source(folder(tmp_path / "x.npy", source="npy", size=11))


def test_images_are_cut_as_they_are_where_nothing_is_resized(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 255, (2, 20, 30), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    settings = folder(tmp_path, size=[8, 12], resize=False, random_flip=[0, 1])
    source = open_source(settings)
    np.testing.assert_array_equal(source.read([1])["sample"][0, ..., 0], images[1, 6:14, 9:21])
    drawn = source.draw(np.zeros(64, np.int64), np.arange(64), 0, settings)["sample"][..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(images[0], (8, 12))
    turned = [windows, windows[..., ::-1, :], windows[..., ::-1], windows[..., ::-1, ::-1]]
    kinds = [next(kind for kind, each in enumerate(turned) if (each == one).all((2, 3)).any()) for one in drawn]
    assert min(np.bincount(kinds, minlength=4)) > 5
    assert len({one.tobytes() for one in drawn}) > 50
    with pytest.raises(ValueError, match=r"data\.resize"):
        open_source(replace(settings, size=25))


def test_several_folders_without_what_is_excluded(tmp_path: Path, save_image: SaveImage):
    for name in ("one/image/00.png", "one/image/22.png", "one/mask/00.png", "two/22.png", "two/10.png"):
        save_image(tmp_path / name)
    settings = folder(tmp_path / "one", more_paths=[str(tmp_path / "two")], exclude=["mask/*", "image/2[2-9].png"])
    source = open_source(settings)
    found = sources.KINDS["folder"](settings)["train"]()
    names = [Path(found.name(index)).relative_to(tmp_path).as_posix() for index in range(len(source))]
    assert names == ["one/image/00.png", "two/10.png", "two/22.png"]
    assert source.labels is None
    with pytest.raises(ValueError, match="leaves none of the 2 files"):
        open_source(replace(settings, exclude=["*.png"], path=str(tmp_path / "two"), more_paths=[]))
    with pytest.raises(ValueError, match=r"data\.more_paths .*missing does not exist"):
        open_source(replace(settings, more_paths=[str(tmp_path / "missing")]))
    with pytest.raises(ValueError, match=r"data\.exclude is .* which nothing reads where data\.source is npy"):
        folder(tmp_path, source="npy", exclude=["x"])


def test_labels_of_several_folders_are_put_together(tmp_path: Path, save_image: SaveImage):
    for name in ("one/ant/a.png", "one/bee/b.png", "two/bee/c.png", "two/cat/d.png", "flat/e.png"):
        save_image(tmp_path / name)
    source = open_source(folder(tmp_path / "one", more_paths=[str(tmp_path / "two")]))
    assert source.format.class_names == ("ant", "bee", "cat")
    assert source.read(range(4))["label"].tolist() == [0, 1, 1, 2]
    for first, second in (("one", "flat"), ("flat", "one")):
        settings = folder(tmp_path / first, more_paths=[str(tmp_path / second)])
        with pytest.raises(ValueError, match="flat has no labels, other folders do"):
            open_source(settings)
        assert open_source(replace(settings, label_column=None)).labels is None


def test_range_of_floats_is_that_of_the_training_split(tmp_path: Path):
    _, held = held_out(10, 0.2)
    array = np.random.default_rng(0).uniform(-1, 1, (10, 8)).astype(np.float32)
    array[held[0], 0] = 50
    np.save(tmp_path / "x.npy", array)
    settings = folder(tmp_path / "x.npy", source="npy", validation_fraction=0.2)
    for split in ("train", "validation"):
        assert open_source(settings, split).format.high < 1
