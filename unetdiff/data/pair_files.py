"""Images with their masks as the sources hold them: folders, tables, arrays, and the embedded scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from unetdiff.config import DataConfig
from unetdiff.data.files import list_files, natural_key
from unetdiff.data.images import decode_numbers
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.records import array_header, open_npy
from unetdiff.data.scenes import COUNTS, grouped, scene_classes, scenes
from unetdiff.data.splits import SPLIT_NAMES
from unetdiff.data.tables import Table, open_tables
from unetdiff.data.volumes import (
    ARRAY_SUFFIXES,
    RawMask,
    holds_slice,
    read_image,
    read_mask,
    stack_slices,
    stem_of,
    suffix_of,
)

if TYPE_CHECKING:
    from datasets import Dataset

METADATA = "metadata.jsonl"
IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
MOST_NAMED = 3
"""Files that a message names."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask, opened when asked for.

    Args:
        key: the name that splits and groups are matched with: a path below the folder of images, or a row.
        name, mask_name: what messages call the two.
        image: opens it as (*space, C) in uint8, uint16 or float32.
        mask: opens it as its file stores it.
        suffix: of the mask's file.
    """

    key: str
    name: str
    mask_name: str
    image: Callable[[], np.ndarray]
    mask: Callable[[], RawMask]
    suffix: str = ".npy"


Pairs = dict[str, list[Pair]]
"""The pairs of each split that a source has of its own, "train" always among them."""


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    listed = sorted(names)
    return ", ".join(listed[:MOST_NAMED]) + (
        f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    )


def _existing(path: str | None, key: str) -> Path:
    """A path of the settings, which must be there."""
    if not path:
        raise ValueError(f"{key} is not set; expected a file or folder.")
    found = Path(path).expanduser()
    if not found.exists():
        raise ValueError(f"{key} {path} does not exist; expected a file or folder.")
    return found


def _by_split(root: Path, open_one: Callable[[Path], list[Pair]]) -> Pairs:
    """The pairs of subfolders named train, validation (or val) and test; of the folder itself without them."""
    named = {
        split: next((root / name for name in names if (root / name).is_dir()), None)
        for split, names in SPLIT_NAMES.items()
    }
    roots = {split: path for split, path in named.items() if path} if named["train"] else {"train": root}
    return {split: open_one(path) for split, path in roots.items()}


def folder_pairs(settings: MaskDataConfig) -> Pairs:
    """`data.source: folder`: images/ and masks/ matched by stem, metadata.jsonl, or one file and its mask.

    Raises:
        ValueError: files without a partner, or no such folders, by name.
    """
    root = _existing(settings.path, "data.path")
    if root.is_file():
        mask = _existing(settings.mask_path, "data.mask_path")
        if mask.is_dir():
            raise ValueError(f"data.mask_path {mask} is a folder and data.path {root} a file; expected its mask.")
        return {"train": [_file_pair(root.name, root, mask, settings.dims)]}
    if settings.mask_path:
        masks = _existing(settings.mask_path, "data.mask_path")
        images = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root)
        return {"train": _stacked(_matched(images, masks, settings), settings.dims)}
    return _by_split(root, lambda folder: _stacked(_folder(folder, settings), settings.dims))


def _folder(root: Path, settings: MaskDataConfig) -> list[Pair]:
    if (root / METADATA).is_file():
        return _listed(root, settings)
    images, masks = (
        next((root / name for name in names if (root / name).is_dir()), None) for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    if images is None or masks is None:
        raise ValueError(f"{root} has no images/ and masks/ and no {METADATA}; expected these, or data.mask_path.")
    return _matched(images, masks, settings)


def _file_pair(key: str, image: Path, mask: Path, dims: int | None) -> Pair:
    return Pair(key, str(image), str(mask), partial(read_image, image, dims), partial(read_mask, mask), suffix_of(mask))


def _matched(images: Path, masks: Path, settings: MaskDataConfig) -> list[Pair]:
    """Files of two folders that have one stem, subfolders included."""
    by_stem = _stems(images, ""), _stems(masks, settings.mask_suffix)
    alone = [[str(path) for stem, path in one.items() if stem not in other] for one, other in (by_stem, by_stem[::-1])]
    wanting = [
        f"{len(paths)} {what} ({some(paths)})"
        for paths, what in zip(alone, ("images have no mask", "masks have no image"), strict=True)
        if paths
    ]
    if wanting:
        raise ValueError(f"{', and '.join(wanting)}; expected a mask of the same stem in {masks} for each image.")
    return [
        _file_pair(path.relative_to(images).as_posix(), path, by_stem[1][stem], settings.dims)
        for stem, path in by_stem[0].items()
    ]


def _stems(folder: Path, ending: str) -> dict[str, Path]:
    """Files by their path below the folder without suffix and `ending`."""
    found: dict[str, Path] = {}
    for path in list_files(folder, ARRAY_SUFFIXES):
        stem = str(path.relative_to(folder).parent / stem_of(path))
        if not stem.endswith(ending):
            raise ValueError(f"{path} does not end in {ending!r}; expected data.mask_suffix at every mask's stem.")
        stem = stem.removesuffix(ending)
        if stem in found:
            raise ValueError(f"{found[stem]} and {path} have one stem; expected one file for each.")
        found[stem] = path
    return found


def _listed(root: Path, settings: MaskDataConfig) -> list[Pair]:
    """The pairs that metadata.jsonl lists, a JSON object with file_name and mask_file_name per line."""
    pairs = []
    for number, line in enumerate((root / METADATA).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{root / METADATA}, line {number},"
        try:
            entry = json.loads(line)
            names = [str(entry[key]) for key in ("file_name", "mask_file_name")]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} is no JSON object with file_name and mask_file_name.") from error
        for name in names:
            if not (root / name).is_file():
                raise ValueError(f"{where} names {name}, which is not there; expected a file in {root}.")
        pairs.append(_file_pair(names[0], root / names[0], root / names[1], settings.dims))
    return pairs


def _stacked(pairs: list[Pair], dims: int | None) -> list[Pair]:
    """For 3-D data in files of 2-D images: one stack per folder, its slices in the order of their names."""
    path = Path(pairs[0].name) if pairs else None
    if dims != 3 or path is None or not holds_slice(path):
        return pairs
    folders: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: natural_key(pair.key)):
        folders.setdefault(str(PurePosixPath(pair.key).parent), []).append(pair)
    return [_stack(key, slices) for key, slices in folders.items()]


def _stack(key: str, slices: list[Pair]) -> Pair:
    """Pairs of 2-D images as one volume, slices first."""
    images = [partial(read_image, Path(pair.name), 2) for pair in slices]
    names = [pair.name for pair in slices]
    return replace(
        slices[0],
        key=key,
        name=f"{Path(names[0]).parent} ({len(names)} slices)",
        mask_name=f"{Path(slices[0].mask_name).parent} ({len(names)} slices)",
        image=partial(stack_slices, images, names),
        mask=partial(_stack_masks, [pair.mask for pair in slices], [pair.mask_name for pair in slices]),
    )


def _stack_masks(masks: list[Callable[[], RawMask]], names: list[str]) -> RawMask:
    slices = [mask() for mask in masks]
    return RawMask(stack_slices([partial(held, one.array) for one in slices], names), slices[0].palette)


def held(value: Any) -> Any:
    """What opens a part of a pair that is in memory, as a `partial`."""
    return value


def npy_pairs(settings: MaskDataConfig) -> Pairs:
    """`data.source: npy`: images (N, *space[, C]) and masks (N, *space), one array each.

    `data.path` and `data.mask_path` name the two files; or `data.path` is a folder with images.npy and masks.npy, or
    with such folders named train, validation and test.
    """
    root = _existing(settings.path, "data.path")
    if root.is_file():
        return {"train": _rows(root, _existing(settings.mask_path, "data.mask_path"), settings.dims)}
    return _by_split(root, lambda folder: _rows(folder / "images.npy", folder / "masks.npy", settings.dims))


def _rows(images: Path, masks: Path, dims: int | None) -> list[Pair]:
    """The samples of two arrays."""
    for path in (images, masks):
        if not path.is_file():
            raise ValueError(f"{path} does not exist; expected images and masks as .npy arrays, samples first.")
    samples, labels = open_npy(images), open_npy(masks)
    if samples.ndim < 2 or len(samples) != len(labels):
        raise ValueError(
            f"{images} has shape {list(samples.shape)} and {masks} {list(labels.shape)}; expected as many samples "
            "first in both."
        )
    if samples.shape == labels.shape:  # no channels, which the shape alone may not tell
        dims = dims or samples.ndim - 1
    return [
        Pair(
            str(number),
            f"{images}, sample {number}",
            f"{masks}, sample {number}",
            partial(_image_row, samples, number, dims, str(images)),
            partial(_mask_row, labels, number),
        )
        for number in range(len(samples))
    ]


def _image_row(samples: np.ndarray, number: int, dims: int | None, name: str) -> np.ndarray:
    header = array_header(samples.shape[1:], samples.dtype, dims, name)
    return samples[number].astype(header.dtype, copy=False).reshape(header.shape)


def _mask_row(labels: np.ndarray, number: int) -> RawMask:
    return RawMask(labels[number])


def table_pairs(settings: MaskDataConfig) -> Pairs:
    """`data.source: dataset`: parquet files or a hub data set with a column of images and one of masks."""
    return {split: _table(rows, origin, settings) for split, (rows, origin) in open_tables(settings.path).items()}


class _MaskTable(Table):
    """A column of masks: arrays of any whole numbers, or encoded images whose numbers are taken as they are."""

    def mask(self, index: int) -> RawMask:
        cell = self.cells[index][self.column]
        if isinstance(cell, np.ndarray):
            return RawMask(cell)
        return RawMask(*decode_numbers(self._encoded(cell, index), self.name(index)))


def _table(rows: Dataset, origin: str, settings: MaskDataConfig) -> list[Pair]:
    for key in ("image_column", "mask_column"):
        if getattr(settings, key) not in rows.column_names:
            raise ValueError(
                f"{origin} has no column {getattr(settings, key)!r}; expected data.{key} to be one of "
                f"{', '.join(rows.column_names)}."
            )
    images = Table(rows, origin, DataConfig(image_column=settings.image_column, label_column=None, dims=settings.dims))
    masks = _MaskTable(rows, origin, DataConfig(image_column=settings.mask_column, label_column=None))
    suffix = ".npy" if isinstance(masks.cells[0][masks.column], np.ndarray) else ".png"
    return [
        Pair(
            f"{origin}/{number}",
            images.name(number),
            f"{masks.name(number)}, column {settings.mask_column}",
            partial(_image_cell, images, number),
            partial(masks.mask, number),
            suffix,
        )
        for number in range(len(rows))
    ]


def _image_cell(table: Table, number: int) -> np.ndarray:
    return table.load(np.array([number]))[0]


def scene_pairs(settings: MaskDataConfig) -> Pairs:
    """`data.source: digit_scenes`: see `unetdiff.data.scenes`."""
    found: Pairs = {}
    for split in COUNTS:
        images, masks = scenes(split)
        found[split] = [
            Pair(
                f"{split}/{number}",
                f"digit_scenes ({split}), scene {number}",
                f"digit_scenes ({split}), mask {number}",
                partial(held, image),
                partial(held, RawMask(grouped(mask, settings.scene_classes))),
                ".png",
            )
            for number, (image, mask) in enumerate(zip(images, masks, strict=True))
        ]
    return found


KINDS: dict[str, Callable[[MaskDataConfig], Pairs]] = {
    "digit_scenes": scene_pairs,
    "folder": folder_pairs,
    "dataset": table_pairs,
    "npy": npy_pairs,
}
"""The values of `data.source`."""

CLASS_NAMES: dict[str, Callable[[MaskDataConfig], Sequence[str]]] = {
    "digit_scenes": lambda settings: scene_classes(settings.scene_classes)
}
"""What sources that define their classes call them."""
