"""Records from the file system: folders of images, folders of .npy arrays, and one .npy array of all."""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from unetdiff.data.images import SUFFIXES
from unetdiff.data.records import Arrays, Files, array_header, open_npy
from unetdiff.data.splits import SPLIT_NAMES, Splits

if TYPE_CHECKING:
    from unetdiff.config import DataConfig

LABELS_FILE = "labels.npy"


def existing_paths(settings: DataConfig) -> list[Path]:
    """`data.path` and `data.more_paths`, which must be there.

    Raises:
        ValueError: the first is not set, or nothing is at one.
    """
    if not settings.path:
        raise ValueError(f"data.path is not set; expected a path for data.source {settings.source!r}.")
    named = [("data.path", settings.path), *(("data.more_paths", path) for path in settings.more_paths)]
    for name, path in named:
        if not Path(path).expanduser().exists():
            raise ValueError(f"{name} {path} does not exist; expected a file or folder.")
    return [Path(path).expanduser() for _, path in named]


def natural_key(path: PurePath | str) -> tuple[list[list[str | int]], str]:
    """What paths are sorted by so that numbers count as numbers: slice_2 before slice_10.

    Folder by folder, runs of digits are compared by value and all else as text; equal ones (2 and 02) as text.
    """
    parts = [re.split(r"(\d+)", part) for part in PurePath(path).parts]  # text and digits take turns
    return [[int(run) if place % 2 else run for place, run in enumerate(part)] for part in parts], str(path)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """All files with one of the suffixes below a folder, by `natural_key`; hidden ones and label files left out.

    Linked folders are followed, but each folder is read once, whatever links lead to it.

    Raises:
        ValueError: there are none.
    """
    found: list[Path] = []
    others: list[Path] = []
    for path in _walk(folder):
        if path.name != LABELS_FILE:
            (found if path.name.lower().endswith(suffixes) else others).append(path)
    if not found:
        expected = f"expected files such as {', '.join(suffixes[:4])}"
        if not others:
            raise ValueError(f"{folder} holds no files; {expected}.")
        kinds = Counter(path.suffix or path.name for path in others)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
        raise ValueError(f"{folder} holds only other files ({listed}; {min(others).name} is one); {expected}.")
    return sorted(found, key=natural_key)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden: first of real folders, then of those only links lead to."""
    pending, visited = deque([folder]), set()
    while pending:
        for parent, folders, names in os.walk(pending.popleft()):
            real = os.path.realpath(parent)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            pending += [path for name in folders if (path := Path(parent, name)).is_symlink()]
            yield from (Path(parent, name) for name in names if not name.startswith("."))


def class_folders(paths: list[Path], root: Path) -> list[str] | None:
    """The first folder below `root` of each path, when there are two or more; None for a flat folder.

    Raises:
        ValueError: some files lie in folders and some do not, so that these have no class.
    """
    parts = [path.relative_to(root).parts for path in paths]
    direct = [path for path, part in zip(paths, parts, strict=True) if len(part) == 1]
    folders = {part[0] for part in parts if len(part) > 1}
    if direct and folders:
        raise ValueError(
            f"{direct[0]} lies beside the folder {min(folders)}, so it has no class; expected all files in "
            "one folder per class, or data.label_column null."
        )
    return [part[0] for part in parts] if len(folders) > 1 else None


def _file_records(roots: list[Path], suffixes: tuple[str, ...], settings: DataConfig) -> Files:
    """The files of several folders, one folder after the other."""
    paths: list[Path] = []
    labels: list[Any] = []
    for root in roots:
        found = _chosen_files(root, suffixes, settings.exclude)
        theirs = None if settings.label_column is None else _labels(root, found)
        if paths and (theirs is None) != (not labels):
            raise ValueError(
                f"{root if labels else roots[0]} has no labels, other folders do; expected data.label_column null."
            )
        paths += found
        labels += [] if theirs is None else list(theirs)
    return Files(paths, labels or None, settings.dims)


def _chosen_files(root: Path, suffixes: tuple[str, ...], excluded: list[str]) -> list[Path]:
    """The files below a folder that no glob of `data.exclude` leaves out."""
    found = list_files(root, suffixes)
    kept = [path for path in found if not any(fnmatch(path.relative_to(root).as_posix(), glob) for glob in excluded)]
    if not kept:
        raise ValueError(f"data.exclude {excluded} leaves none of the {len(found)} files of {root}; expected some.")
    return kept


def _labels(root: Path, paths: list[Path]) -> np.ndarray | list[str] | None:
    labels_path = root / LABELS_FILE
    return read_labels(labels_path, len(paths)) if labels_path.exists() else class_folders(paths, root)


def _folder_splits(settings: DataConfig, suffixes: tuple[str, ...]) -> Splits:
    """Records per split: of subfolders named train, validation (or val) and test, or all as train."""
    roots: dict[str, list[Path]] = {}
    for root in existing_paths(settings):
        if not root.is_dir():
            raise ValueError(f"data.path {root} is a file; expected a folder for data.source {settings.source!r}.")
        for split, path in _split_folders(root).items():
            roots.setdefault(split, []).append(path)
    return {split: partial(_file_records, paths, suffixes, settings) for split, paths in roots.items()}


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; `train` is all where there is none for it."""
    named = {
        split: next((root / name for name in names if (root / name).is_dir()), None)
        for split, names in SPLIT_NAMES.items()
    }
    return {split: path for split, path in named.items() if path} if named["train"] else {"train": root}


def image_folder(settings: DataConfig) -> Splits:
    """`data.source: folder`: images, flat or in one folder per class, nested to any depth below."""
    return _folder_splits(settings, SUFFIXES)


def npy_arrays(settings: DataConfig) -> Splits:
    """`data.source: npy`: one file (N, *space[, C]), or a folder like `image_folder` with .npy files.

    Labels come from a `labels.npy` (N,) beside the file or in the folder, in the order of the files by `natural_key`.
    """
    path = existing_paths(settings)[0]
    return {"train": partial(_npy_file, path, settings)} if path.is_file() else _folder_splits(settings, (".npy",))


def _npy_file(path: Path, settings: DataConfig) -> Arrays:
    array = open_npy(path)
    if array.ndim < 2 or not len(array):
        raise ValueError(f"{path} has shape {list(array.shape)}; expected samples first, as in (N, *space, C).")
    header = array_header(array.shape[1:], array.dtype, settings.dims, str(path))
    labels_path = path.with_name(LABELS_FILE)
    wanted = settings.label_column is not None and labels_path.exists()
    labels = read_labels(labels_path, len(array)) if wanted else None
    return Arrays(array.reshape(len(array), *header.shape), labels, origin=str(path))


def read_labels(path: Path, length: int) -> np.ndarray:
    """Labels from a .npy file: one whole number or name per sample.

    Raises:
        ValueError: their number or type is another.
    """
    labels = np.array(open_npy(path))
    if labels.shape != (length,) or labels.dtype.kind not in "iuU":
        raise ValueError(
            f"{path} has shape {list(labels.shape)} and dtype {labels.dtype}; expected {length} whole numbers or names."
        )
    return labels
