from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unetdiff.config import DataConfig
from unetdiff.data import sources
from unetdiff.data.check import check_source

from .conftest import SaveImage


def folder(path: Path, **fields) -> DataConfig:
    return DataConfig(**{"source": "folder", "path": str(path)} | fields)


def refused(settings: DataConfig, words: str, batch_size: int = 1) -> None:
    """The check ends in one sentence that matches `words`."""
    with pytest.raises(ValueError, match=words) as caught:
        check_source(settings, batch_size)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


def test_good_data_pass(folder_settings: DataConfig):
    training, validation = check_source(folder_settings, batch_size=9)
    assert (len(training), len(validation)) == (9, 3)
    assert training.format == validation.format


def test_paths(tmp_path: Path):
    refused(folder(tmp_path / "gone"), r"data\.path .*gone does not exist")
    refused(DataConfig(source="folder"), r"data\.path is not set")
    refused(DataConfig(source="dataset"), r"data\.path is not set")
    refused(DataConfig(source="dataset", path=str(tmp_path / "x.parquet")), r"x\.parquet does not exist")
    (tmp_path / "file").write_text("")
    refused(folder(tmp_path / "file"), "is a file; expected a folder")


def test_folders_without_images(tmp_path: Path):
    refused(folder(tmp_path), "holds no files")
    for name in ("b.txt", "a.txt", "c.csv"):
        (tmp_path / name).write_text("text")
    refused(
        folder(tmp_path), r"holds only other files \(2 \.txt, 1 \.csv; a\.txt is one\); expected files such as \.png"
    )


def test_images_beside_class_folders(image_folder: Path, save_image: SaveImage):
    save_image(image_folder / "stray.png")
    refused(folder(image_folder), r"stray\.png lies beside the folder ant.*label_column null")
    check_source(folder(image_folder, label_column=None))


@pytest.mark.parametrize("limit", [0, 2**30])
class TestImages:
    """Each with data decoded beforehand, and with data checked by their headers."""

    @pytest.fixture(autouse=True)
    def memory(self, limit: int, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)

    def test_damaged(self, image_folder: Path):
        (image_folder / "bee" / "3.png").write_bytes(b"\x89PNG junk")
        refused(folder(image_folder), r"bee/3\.png is not a readable image")

    def test_mixed_channels(self, image_folder: Path, save_image: SaveImage):
        save_image(image_folder / "bee" / "3.png", (8, 8))
        refused(folder(image_folder), r"bee/3\.png has 1 channels.*expected 3 .*ant/0\.png")

    def test_mixed_depth(self, tmp_path: Path, save_image: SaveImage):
        for i, dtype in enumerate(["uint8", "uint8", "uint16"]):
            save_image(tmp_path / f"{i}.png", (8, 8), dtype)
        refused(folder(tmp_path), r"/2\.png has 1 channels of uint16.*expected 1 of uint8.*/0\.png")

    def test_mixed_sizes(self, image_folder: Path, save_image: SaveImage):
        save_image(image_folder / "bee" / "3.png", (8, 9, 3))
        refused(
            folder(image_folder), r"bee/3\.png has size \[8, 9\]; expected \[8, 8\] .*ant/0\.png, or data\.size set"
        )
        check_source(folder(image_folder, size=8))


def test_truncated_image_of_a_small_set(tmp_path: Path, save_image: SaveImage):
    for name in ("0.jpg", "1.jpg"):
        save_image(tmp_path / name, (64, 64, 3))
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    refused(folder(tmp_path), r"1\.jpg cannot be decoded .*truncated")


def test_sizes_of_the_wrong_form(image_folder: Path):
    refused(folder(image_folder, size=[8]), r"data\.size is \[8\]; expected one positive number or 2")
    refused(folder(image_folder, size=0), r"data\.size is 0")


def test_fewer_samples_than_a_batch(folder_settings: DataConfig):
    refused(folder_settings, r"hold 9 samples; expected at least train\.batch_size 10", batch_size=10)


class TestArrays:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> DataConfig:
        return DataConfig(source="npy", path=str(tmp_path / "x.npy"))

    @pytest.mark.parametrize("shape", [(5,), (5, 6, 7, 8, 9), (0, 8)])
    def test_wrong_shape(self, settings: DataConfig, shape: tuple[int, ...]):
        assert settings.path
        np.save(settings.path, np.zeros(shape, np.float32))
        refused(settings, r"x\.npy has .*shape .*expected")

    def test_wrong_dtype(self, settings: DataConfig):
        assert settings.path
        np.save(settings.path, np.zeros((5, 8), np.int64))
        refused(settings, r"x\.npy has dtype int64; expected uint8, uint16 or a float")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("index", range(5))
    def test_not_finite(self, settings: DataConfig, value: float, index: int):
        """In whichever split the sample falls."""
        assert settings.path
        array = np.random.default_rng(0).normal(size=(5, 8))
        array[index, 3] = value
        np.save(settings.path, array)
        refused(replace(settings, validation_fraction=0.4), rf"x\.npy, sample {index} holds NaN or infinity")

    def test_constant(self, settings: DataConfig):
        assert settings.path
        np.save(settings.path, np.ones((5, 8)))
        refused(settings, r"x\.npy.* are 1\.0; expected data that vary")

    def test_no_array(self, settings: DataConfig):
        assert settings.path
        Path(settings.path).write_bytes(b"junk")
        refused(settings, r"x\.npy cannot be read as \.npy")
        np.save(settings.path, np.array([{}], dtype=object), allow_pickle=True)
        refused(settings, r"x\.npy cannot be read as \.npy")

    @pytest.mark.parametrize(("index", "byte"), [(8, b"("), (22, b"0")])  # brackets left open, a number as in 08
    def test_damaged_header(self, settings: DataConfig, index: int, byte: bytes):
        assert settings.path
        np.save(settings.path, np.zeros((3, 4)))
        content = Path(settings.path).read_bytes()
        Path(settings.path).write_bytes(content[:index] + byte + content[index + 1 :])
        refused(settings, r"x\.npy cannot be read as \.npy")

    @pytest.mark.parametrize("length", [None, 40])
    def test_archive(self, tmp_path: Path, length: int | None):
        """Whole or cut, on its own or as labels."""
        archive = tmp_path / "x.npz"
        np.savez(archive, x=np.zeros((5, 8)))
        archive.write_bytes(archive.read_bytes()[:length])
        refused(DataConfig(source="npy", path=str(archive)), r"x\.npz .*; expected .*\.npy")

    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            (np.arange(4), r"labels\.npy has shape \[4\].*expected 5"),
            (np.ones(5), r"labels\.npy has .*float64"),
            (np.array([0, 1, -1, 0, 0]), r"sample 2 has label .*-1.*; expected a class name or a whole number"),
        ],
    )
    def test_labels(self, settings: DataConfig, labels: np.ndarray, words: str):
        assert settings.path
        np.save(settings.path, np.random.default_rng(0).normal(size=(5, 8)))
        np.save(Path(settings.path).with_name("labels.npy"), labels)
        refused(settings, words)

    def test_mixed_sizes_in_a_folder(self, tmp_path: Path):
        for i, length in enumerate((8, 8, 9)):
            np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).normal(size=length))
        settings = DataConfig(source="npy", path=str(tmp_path))
        refused(settings, r"2\.npy has size \[9\]; expected \[8\] as in .*0\.npy")
        refused(replace(settings, size=9), r"npy has size \[8\]; expected data\.size \[9\] to be no larger")
        check_source(replace(settings, size=8))
