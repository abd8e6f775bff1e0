"""Which images with masks are for training, validation and test: by name, group, depth, or a stated draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from unetdiff.data.files import natural_key
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.order import epoch_permutation
from unetdiff.data.pair_files import Pair, Pairs, some
from unetdiff.data.splits import SPLIT_NAMES
from unetdiff.data.volumes import RawMask, stem_of

Range = tuple[int, int]
"""First and last, both included."""


def split_pairs(own: Pairs, settings: MaskDataConfig) -> Pairs:
    """The pairs of "train", "validation" and "test"; the last two may be empty.

    Args:
        own: what the source holds, by its own splits; all of it is divided anew unless `data.split` is `own`.
        settings: `split` and what belongs to it.

    Raises:
        ValueError: two splits share an image, or something that `settings` names matches nothing.
    """
    every = [pair for pairs in own.values() for pair in pairs]
    if not every:
        raise ValueError(f"data.path {settings.path} holds no images with masks; expected at least one.")
    splits = RULES[settings.split](own, every, settings)
    splits = {split: splits.get(split, []) for split in SPLIT_NAMES}
    _check_overlap(splits)
    if not splits["train"]:
        raise ValueError("The split leaves no training data; expected at least one image.")
    if settings.train_limit is not None:
        splits["train"] = _spread(splits["train"], settings.train_limit)
    return splits


def _own(own: Pairs, every: list[Pair], settings: MaskDataConfig) -> Pairs:
    return own


def _patterns(settings: MaskDataConfig) -> dict[str, list[str]]:
    return {split: getattr(settings, split) for split in SPLIT_NAMES}


def _by_name(own: Pairs, every: list[Pair], settings: MaskDataConfig) -> Pairs:
    """Pairs whose name, or group, matches one of the split's globs or listed names."""
    groups = group_of(every, settings.group)
    splits: Pairs = {}
    for split, patterns in _patterns(settings).items():
        chosen: list[int] = []
        for pattern in _listed(patterns, settings.path):
            found = [index for index, group in enumerate(groups) if _matches(group, pattern)]
            if not found:
                raise ValueError(f"data.{split} has {pattern}, which matches none of {some(set(groups))}.")
            chosen += found
        splits[split] = [every[index] for index in sorted(set(chosen))]
    return splits


def _listed(patterns: Iterable[str], root: str | None) -> list[str]:
    """Globs as they are, and the lines of .txt files (as they lie, or below `data.path`)."""
    found: list[str] = []
    for pattern in patterns:
        if not pattern.endswith(".txt"):
            found.append(pattern)
            continue
        files = [Path(pattern).expanduser(), Path(root or ".").expanduser() / pattern]
        file = next((path for path in files if path.is_file()), None)
        if file is None:
            raise ValueError(f"data.train, validation or test names {pattern}, which does not exist; expected a list.")
        found += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return found


def _matches(key: str, pattern: str) -> bool:
    """Whether a glob fits a key as a whole, its last part, or that without a suffix."""
    path = PurePosixPath(key)
    return any(fnmatchcase(name, pattern) for name in (key, path.name, stem_of(Path(path.name))))


def group_of(pairs: list[Pair], group: str | None) -> list[str]:
    """The group of each pair: what `data.group` captures in its name, or the name itself.

    Raises:
        ValueError: the expression is none, or does not match a name.
    """
    if group is None:
        return [pair.key for pair in pairs]
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"data.group is {group!r}; expected a regular expression ({error})") from error
    found = []
    for pair in pairs:
        match = pattern.search(pair.key)
        if match is None or match[1 if pattern.groups else 0] is None:
            raise ValueError(f"data.group {group!r} does not match {pair.key}; expected a group in every name.")
        found.append(match[1 if pattern.groups else 0])
    return found


def _by_depth(own: Pairs, every: list[Pair], settings: MaskDataConfig) -> Pairs:
    """Ranges along the first axis: of every volume, or of the 2-D images: files by name, rows as they lie."""
    ranges = {split: [depth_range(text) for text in texts] for split, texts in _patterns(settings).items()}
    _check_disjoint(ranges)
    files = settings.source == "folder"
    ordered = sorted(every, key=lambda pair: natural_key(pair.key)) if files else every
    volumes = every[0].image().ndim == 4
    cut = _slabs if volumes else _slices
    return {split: [pair for one in wanted for pair in cut(ordered, one, split)] for split, wanted in ranges.items()}


def depth_range(text: str) -> Range:
    """`12` or `0-21` as first and last.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ValueError(f"data.split is depth and a range is {text!r}; expected one such as 0-21, or a number")
    return int(match[1]), int(match[2] or match[1])


def _check_disjoint(ranges: dict[str, list[Range]]) -> None:
    every = sorted((first, last, split) for split, listed in ranges.items() for first, last in listed)
    for (first, last, split), (start, end, other) in pairwise(every):
        if start <= last:
            raise ValueError(
                f"data.{split} has {first}-{last} and data.{other} {start}-{end}; expected ranges that do not overlap."
            )


def _slices(pairs: list[Pair], wanted: Range, split: str) -> list[Pair]:
    first, last = wanted
    if last >= len(pairs):
        raise ValueError(f"data.{split} has {first}-{last}; expected at most {len(pairs) - 1}, the last image.")
    return pairs[first : last + 1]


def _slabs(pairs: list[Pair], wanted: Range, split: str) -> list[Pair]:
    """The part of every volume from the first to the last slice."""
    first, last = wanted
    return [
        replace(
            pair,
            key=f"{pair.key}[{first}-{last}]",
            name=f"{pair.name}, slices {first}-{last}",
            mask_name=f"{pair.mask_name}, slices {first}-{last}",
            image=partial(_image_slab, pair.image, wanted, f"data.{split} has {first}-{last} and {pair.name}"),
            mask=partial(_mask_slab, pair.mask, wanted),
        )
        for pair in pairs
    ]


def _image_slab(open_image: Callable[[], np.ndarray], wanted: Range, name: str) -> np.ndarray:
    image = open_image()
    if wanted[1] >= len(image):
        raise ValueError(f"{name} has {len(image)} slices; expected at most {len(image) - 1}, the last slice.")
    return image[wanted[0] : wanted[1] + 1]


def _mask_slab(open_mask: Callable[[], RawMask], wanted: Range) -> RawMask:
    mask = open_mask()
    return RawMask(mask.array[wanted[0] : wanted[1] + 1], mask.palette)


def _by_fraction(own: Pairs, every: list[Pair], settings: MaskDataConfig) -> Pairs:
    """Stated shares of the images, or of the groups, in an order drawn from `data.split_seed`."""
    groups = group_of(every, settings.group)
    names = sorted(set(groups))
    order = epoch_permutation(settings.split_seed, 0, len(names))
    counts = {split: round(getattr(settings, f"{split}_fraction") * len(names)) for split in ("validation", "test")}
    for split, count in counts.items():
        if getattr(settings, f"{split}_fraction") and not count:
            raise ValueError(
                f"data.{split}_fraction is {getattr(settings, f'{split}_fraction')} of {len(names)} images or groups, "
                "which is none; expected a larger one."
            )
    of_name = dict.fromkeys(names, "train")
    drawn = ["validation"] * counts["validation"] + ["test"] * counts["test"]
    of_name.update({names[place]: split for place, split in zip(order, drawn, strict=False)})
    splits: Pairs = {split: [] for split in SPLIT_NAMES}
    for pair, group in zip(every, groups, strict=True):
        splits[of_name[group]].append(pair)
    return splits


RULES: dict[str, Callable[[Pairs, list[Pair], MaskDataConfig], Pairs]] = {
    "own": _own,
    "names": _by_name,
    "depth": _by_depth,
    "fraction": _by_fraction,
}
"""The values of `data.split`."""


def _check_overlap(splits: Pairs) -> None:
    """No image in two splits, and none twice where figures are taken, whatever names lead to it."""
    seen: dict[str, str] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            path = Path(pair.name)
            identity = str(path.resolve()) if path.is_file() else pair.name
            other = seen.get(identity, split)
            if other != split:
                raise ValueError(f"{pair.name} is in {other} and in {split}; expected it in one split.")
            if identity in seen and split != "train":
                raise ValueError(f"{pair.name} is twice in {split}; expected it once, since figures count it once.")
            seen[identity] = split


def _spread(pairs: list[Pair], count: int) -> list[Pair]:
    """`count` of the pairs, evenly spaced; all where there are fewer."""
    count = min(count, len(pairs))
    return [pairs[(2 * number + 1) * len(pairs) // (2 * count)] for number in range(count)]
