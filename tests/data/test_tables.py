from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from unetdiff.config import DataConfig
from unetdiff.data.sources import open_source

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """What `datasets` converts stays out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


PIXELS = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write(path: Path, columns: dict[str, Sequence[Any]], features: dict[str, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=features and datasets.Features(features))
    table.to_parquet(path)


def write_images(path: Path, labels: Sequence[Any] = (0, 1, 2, 0, 1, 2), label_type: Any = None) -> None:
    features = {"picture": datasets.Image(), "class": label_type or datasets.Value("int64")}
    cells = [{"bytes": png(pixels), "path": None} for pixels in PIXELS[: len(labels)]]
    write(path, {"picture": cells, "class": list(labels)}, features)


def parquet(path: Path, **fields) -> DataConfig:
    columns = {"image_column": "picture", "label_column": "class", "validation_fraction": 0.0}
    return DataConfig(**{"source": "dataset", "path": str(path)} | columns | fields)


@pytest.mark.parametrize(
    ("labels", "label_type", "names", "numbers"),
    [
        ((2, 1, 0, 0, 1, 2), datasets.ClassLabel(names=["x", "y", "z"]), ("x", "y", "z"), [2, 1, 0, 0, 1, 2]),
        ((2, 1, 0, 0, 1, 2), datasets.Value("int64"), ("0", "1", "2"), [2, 1, 0, 0, 1, 2]),
        (("b", "a", "c", "c", "a", "b"), datasets.Value("string"), ("a", "b", "c"), [1, 0, 2, 2, 0, 1]),
    ],
)
def test_images_and_labels_of_one_file(tmp_path: Path, labels: Sequence, label_type: Any, names: tuple, numbers: list):
    write_images(tmp_path / "data.parquet", labels, label_type)
    source = open_source(parquet(tmp_path / "data.parquet"))
    assert source.format.class_names == names
    batch = source.read([5, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(batch["sample"], PIXELS[[5, 0, 1, 2, 3, 4]])
    assert batch["label"].tolist() == [numbers[i] for i in (5, 0, 1, 2, 3, 4)]
    assert "label" not in open_source(parquet(tmp_path / "data.parquet", label_column=None)).read([0])


@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "val/a.parquet"])
def test_splits_by_file_name(tmp_path: Path, name: str):
    write_images(tmp_path / "train-00000-of-00001.parquet")
    write_images(tmp_path / name, [2])
    settings = parquet(tmp_path)
    assert len(open_source(settings)) == 6
    validation = open_source(settings, "validation")
    assert len(validation) == 1
    assert validation.read([0])["label"].tolist() == [2]


def test_bytes_without_the_feature_of_an_image(tmp_path: Path):
    write(tmp_path / "a.parquet", {"picture": [png(pixels) for pixels in PIXELS], "class": [0] * 6})
    np.testing.assert_array_equal(open_source(parquet(tmp_path)).read(range(6))["sample"], PIXELS)


@pytest.mark.parametrize(
    ("feature", "shape"),
    [
        (datasets.Array2D((8, 6), "uint8"), (8, 6)),
        (datasets.Array3D((8, 6, 3), "float32"), (8, 6, 3)),
        (datasets.List(datasets.Value("float32")), (9,)),
    ],
)
def test_array_columns_keep_their_type(tmp_path: Path, feature: Any, shape: tuple[int, ...]):
    dtype = "uint8" if "uint8" in str(feature) else "float32"
    arrays = np.random.default_rng(0).integers(0, 255, (4, *shape)).astype(dtype)
    write(tmp_path / "a.parquet", {"picture": arrays.tolist()}, {"picture": feature})
    source = open_source(parquet(tmp_path, label_column=None))
    assert source.format.dtype == dtype
    np.testing.assert_array_equal(source.read(range(4))["sample"].reshape(arrays.shape), arrays)


def test_columns_that_are_not_there_are_listed(tmp_path: Path):
    write_images(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'img'; expected data.image_column .* picture, class\.$"):
        open_source(parquet(tmp_path, image_column="img"))
    with pytest.raises(ValueError, match=r"no column 'label'; expected data.label_column .*null for none\.$"):
        open_source(parquet(tmp_path, label_column="label"))


def test_what_cannot_be_decoded_is_named_with_its_row(tmp_path: Path):
    cells = [png(PIXELS[0]), png(PIXELS[1])[:60], None]
    for last, words in (
        (2, "row 1 (cannot be decoded|is not a readable)"),
        (3, "row 1 holds no image in column 'picture'"),
    ):
        chosen = cells[:last] if last == 2 else [cells[0], None]
        write(tmp_path / f"{last}.parquet", {"picture": chosen})
        with pytest.raises(ValueError, match=words):
            open_source(parquet(tmp_path / f"{last}.parquet", label_column=None))


def test_unreadable_parquet_is_named(tmp_path: Path):
    write_images(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read as parquet"):
        open_source(parquet(tmp_path))


def test_files_of_different_columns(tmp_path: Path):
    write_images(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", {"other": [1]})
    with pytest.raises(ValueError, match="do not form one table"):
        open_source(parquet(tmp_path))


def test_only_test_files(tmp_path: Path):
    write_images(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="no training split; it has test"):
        open_source(parquet(tmp_path))


@pytest.mark.parametrize(
    ("labels", "words"), [((0, -1, 0, 0, 0, 0), "row 1 has label -1"), ((0, 0, None, 0, 0, 0), "row 2 has no label")]
)
def test_bad_labels_are_named(tmp_path: Path, labels: Sequence, words: str):
    write_images(tmp_path / "a.parquet", labels)
    with pytest.raises(ValueError, match=words):
        open_source(parquet(tmp_path))


def test_a_class_that_training_lacks(tmp_path: Path):
    write_images(tmp_path / "train.parquet")
    write_images(tmp_path / "val.parquet", (0, 0, 0, 7, 0, 0))
    with pytest.raises(ValueError, match=r"row 3 has label 7; expected one of the 3 classes"):
        open_source(parquet(tmp_path), "validation")


def test_hub_names_are_loaded_and_their_failures_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = datasets.Dataset.from_dict({"picture": [png(pixels) for pixels in PIXELS]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=table))
    settings = parquet(Path("someone/pictures"), label_column=None)
    np.testing.assert_array_equal(open_source(settings).read([3])["sample"][0], PIXELS[3])

    def offline(name: str) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"someone/pictures is neither .* \(Couldn't reach the hub\)\.$"):
        open_source(settings)


@pytest.mark.skipif(not CIFAR.exists(), reason="shared/data/cifar10_jpeg is not there")
def test_cifar10():
    rows = datasets.load_dataset("parquet", data_files=str(CIFAR / "test-00000-of-00001.parquet"), split="train")
    settings = DataConfig(source="dataset", path=str(CIFAR), image_column="img")
    validation = open_source(settings, "validation")
    assert len(validation) == 10_000
    assert validation.format.class_names is not None
    assert validation.format.class_names[:2] == ("airplane", "automobile")
    np.testing.assert_array_equal(validation.read([77])["sample"][0], np.asarray(rows[77]["img"]))  # pyright: ignore
