"""Records from parquet files and from the hub, through the `datasets` library."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetdiff.data.errors import first_line
from unetdiff.data.files import list_files
from unetdiff.data.images import Header, decode_image, image_header
from unetdiff.data.records import Labels, array_header, as_sample
from unetdiff.data.splits import SPLIT_NAMES, Splits

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from unetdiff.config import DataConfig

SEVERAL_CONFIGURATIONS = re.compile(r"Config name is missing.*?(\[.*?\])", re.DOTALL)
"""How `datasets` says that a data set has several configurations; the group lists them."""


class Table:
    """Records in the rows of a `datasets.Dataset`: encoded images, or arrays.

    Args:
        rows: the data set.
        origin: its path or hub name and split, which messages give.
        settings: `image_column`, `label_column` (None for unlabelled) and `dims` are read.

    Raises:
        ValueError: a column is missing.
    """

    in_memory = False

    def __init__(self, rows: Dataset, origin: str, settings: DataConfig) -> None:
        import datasets

        self.origin = origin
        self.dims = settings.dims
        for key in ("image_column", "label_column"):
            column = getattr(settings, key)
            if column is not None and column not in rows.column_names:
                null = ", or null for none" if key == "label_column" else ""
                raise ValueError(
                    f"{origin} has no column {column!r}; expected data.{key} to be one of "
                    f"{', '.join(rows.column_names)}{null}."
                )
        self.labels: Labels | None = None
        self.class_names: tuple[str, ...] | None = None
        if settings.label_column is not None:
            self.labels = list(rows[settings.label_column])
            self.class_names = _class_names(rows.features[settings.label_column])

        self.column = settings.image_column
        feature = rows.features[self.column]
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(self.column, datasets.Image(decode=False))
        cells = rows.select_columns([self.column])
        dtype = _number_type(feature)
        self.cells = cells.with_format("numpy", dtype=dtype) if dtype else cells

    def __len__(self) -> int:
        return len(self.cells)

    def name(self, index: int) -> str:
        return f"{self.origin}, row {index}"

    def header(self, index: int) -> Header:
        cell = self.cells[int(index)][self.column]
        if isinstance(cell, np.ndarray):
            return array_header(cell.shape, cell.dtype, self.dims, self.name(index))
        return image_header(self._encoded(cell, index), self.name(index))

    def load(self, indices: np.ndarray) -> list[np.ndarray]:
        cells = self.cells[[int(i) for i in indices]][self.column]
        return [self._sample(cell, int(i)) for cell, i in zip(cells, indices, strict=True)]

    def _sample(self, cell: Any, index: int) -> np.ndarray:
        if isinstance(cell, np.ndarray):
            return as_sample(cell, self.dims, self.name(index))
        return decode_image(self._encoded(cell, index), self.name(index))

    def _encoded(self, cell: Any, index: int) -> bytes | Path:
        """The encoded image in a cell: bytes, or a dict of bytes or path as `datasets.Image` stores it."""
        encoded, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(encoded, bytes):
            return encoded
        if path:
            return Path(path)
        raise ValueError(f"{self.name(index)} holds no image in column {self.column!r}; expected one in each row.")


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names that a `ClassLabel` column brings along."""
    return tuple(feature.names) if hasattr(feature, "names") else None


def _number_type(feature: Any) -> np.dtype | None:
    """The dtype of a column of (nested) numbers, None for other columns."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    try:
        return np.dtype(getattr(feature, "dtype", "none"))
    except TypeError:  # "none", "string", "binary" and the like
        return None


def data_set(settings: DataConfig) -> Splits:
    """`data.source: dataset`: a .parquet file, a folder of them, or the name of a data set on the hub.

    Files belong to the split that their name or folder says (train-00000.parquet, val/a.parquet), else to
    training. A hub name is owner/name, or owner/name:configuration where there are several configurations.

    Raises:
        ValueError: nothing is there, or a file is not parquet.
    """
    return {
        split: partial(Table, rows, origin, settings) for split, (rows, origin) in open_tables(settings.path).items()
    }


def open_tables(path_or_name: str | None) -> dict[str, tuple[Dataset, str]]:
    """The rows of each split of `data.path`, "train" among them, and what messages call them; see `data_set`."""
    if not path_or_name:
        raise ValueError("data.path is not set; expected a .parquet file, a folder of them or a hub name.")
    path = Path(path_or_name).expanduser()
    local = path.exists() or path.is_absolute() or path.suffix == ".parquet" or path.parts[0] in (".", "..")
    tables = _load_parquet(path) if local else _load_hub(path_or_name)
    names = [str(name) for name in tables]
    splits = {split: name for name in reversed(names) if (split := _split_of(name))}
    if "train" not in splits:
        raise ValueError(f"data.path {path_or_name} has no training split; it has {', '.join(names)}.")
    return {split: (tables[name], f"{path_or_name} ({name})") for split, name in splits.items()}


def _split_of(text: str) -> str | None:
    """The split that a file or split name speaks of, if any."""
    words = set(re.split(r"[^a-z]+", text.lower()))
    return next((split for split, names in SPLIT_NAMES.items() if words & set(names)), None)


def _load_parquet(path: Path) -> DatasetDict:
    import datasets
    import pyarrow.parquet
    from datasets.exceptions import DatasetGenerationError

    if not path.exists():
        raise ValueError(f"data.path {path} does not exist; expected a .parquet file or a folder of them.")
    files = list_files(path, (".parquet",)) if path.is_dir() else [path]
    grouped: dict[str, list[str]] = {}
    for file in files:
        try:
            pyarrow.parquet.read_schema(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file} cannot be read as parquet; expected a whole parquet file.") from error
        relative = file.relative_to(path) if path.is_dir() else Path(file.name)
        split = _split_of(str(relative)) if path.is_dir() else "train"
        grouped.setdefault(split or "train", []).append(str(file))
    try:
        tables = datasets.load_dataset("parquet", data_files=grouped)
    except DatasetGenerationError as error:
        cause = first_line(error.__cause__ or error)
        raise ValueError(f"The parquet files of {path} do not form one table ({cause}).") from error
    assert isinstance(tables, datasets.DatasetDict)
    return tables


def _load_hub(path: str) -> DatasetDict:
    """Loads owner/name, or one configuration of it as owner/name:configuration."""
    import datasets

    name, _, configuration = path.partition(":")
    try:
        tables = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the hub's client raises many kinds: offline, unknown, gated, no such file
        if several := SEVERAL_CONFIGURATIONS.match(str(error)):
            raise ValueError(
                f"data.path {path} has several configurations; expected one of {several[1]} after a colon, "
                f"as in {name}:configuration."
            ) from error
        raise ValueError(
            f"data.path {path} is neither a local path nor a data set that the hub gives ({first_line(error)})."
        ) from error
    assert isinstance(tables, datasets.DatasetDict)
    return tables
