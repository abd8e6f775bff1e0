from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from unetdiff.config import DataConfig
from unetdiff.data.sources import open_source
from unetdiff.data.tables import _load_hub

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


@pytest.mark.parametrize(
    ("path", "asked"),
    [("someone/pictures", ("someone/pictures", None)), ("someone/pictures:large", ("someone/pictures", "large"))],
)
def test_hub_names_with_and_without_configuration(
    path: str, asked: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
):
    table = datasets.Dataset.from_dict({"picture": [png(pixels) for pixels in PIXELS]})

    def load(name: str, configuration: str | None = None) -> datasets.DatasetDict:
        assert (name, configuration) == asked
        return datasets.DatasetDict(train=table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source(parquet(Path(path), label_column=None))
    np.testing.assert_array_equal(source.read([3])["sample"][0], PIXELS[3])


SEVERAL = """Config name is missing.
Please pick one among the available configs: ['small', 'large']
Example of usage:
\t`load_dataset('someone/pictures', 'small')`"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Couldn't reach the hub\nand more"), r"is neither .* \(Couldn't reach the hub\)\.$"),
        (TimeoutError(), r"is neither .* \(TimeoutError\)\.$"),
        (
            ValueError(SEVERAL),
            r"has several configurations; expected one of \['small', 'large'\] after a colon, "
            r"as in someone/pictures:configuration\.$",
        ),
    ],
)
def test_failures_of_the_hub_are_told(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch):
    def fail(name: str, configuration: str | None = None) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=f"^data.path someone/pictures {words}"):
        open_source(parquet(Path("someone/pictures")))


def test_datasets_still_says_so_of_several_configurations(tmp_path: Path):
    """The words of `datasets` by which several configurations are told from other failures."""
    for name in ("small", "large"):
        write_images(tmp_path / name / "train.parquet")
    configurations = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("small", "large")]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configurations)}\n---\n")
    with pytest.raises(ValueError, match=r"has several configurations; expected one of \['small', 'large'\]"):
        _load_hub(str(tmp_path))
    assert len(_load_hub(f"{tmp_path}:large")["train"]) == 6


@pytest.mark.skipif(not CIFAR.exists(), reason="shared/data/cifar10_jpeg is not there")
def test_cifar10():
    rows = datasets.load_dataset("parquet", data_files=str(CIFAR / "test-00000-of-00001.parquet"), split="train")
    settings = DataConfig(source="dataset", path=str(CIFAR), image_column="img")
    validation = open_source(settings, "validation")
    assert len(validation) == 10_000
    assert validation.format.class_names is not None
    assert validation.format.class_names[:2] == ("airplane", "automobile")
    np.testing.assert_array_equal(validation.read([77])["sample"][0], np.asarray(rows[77]["img"]))  # pyright: ignore
