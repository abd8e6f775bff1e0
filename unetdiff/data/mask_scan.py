"""The look at all images and masks before training: what they hold, how masks are written, what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np

from unetdiff.data.formats import INTEGER_RANGES, DataFormat
from unetdiff.data.mask_options import EncodingKind, MaskDataConfig
from unetdiff.data.masks import MaskEncoding, Value, as_tuples, code_value, mask_codes, show_codes, show_values
from unetdiff.data.order import keys
from unetdiff.data.pair_files import CLASS_NAMES, Pair, some
from unetdiff.data.volumes import RawMask

VOID = 255
"""What indexed masks call void by convention (PASCAL VOC)."""

KEPT_VALUES = 1000
"""Values that are remembered per image, for their percentiles."""

USUAL = (0.5, 99.5)
"""Percentiles between which most values lie, whatever stray ones there are."""

FLATTENED = 0.1
"""Where `USUAL` values fill less of the range than this, the network sees images that are nearly flat."""


@dataclass(frozen=True)
class Scanned:
    """One image and its mask, as the scan saw them.

    Args:
        split, name, mask_name: where they are.
        space: spatial shape of both.
        channels, dtype: of the image.
        low, high: its smallest and largest value.
        values: up to `KEPT_VALUES` of them, from all over it.
        digest, mask_digest: hashes of the two.
        counts: positions per code of the mask; see `mask_codes`.
        palette: of the mask, if it is indexed.
    """

    split: str
    name: str
    mask_name: str
    space: tuple[int, ...]
    channels: int
    dtype: str
    low: float
    high: float
    digest: str
    mask_digest: str
    counts: dict[int, int]
    palette: tuple[int, ...] | None
    values: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class MaskScan:
    """What the scan of all splits found.

    Args:
        entries: every image with its mask.
        encoding: how masks are written.
        note: where that comes from, in words.
    """

    entries: tuple[Scanned, ...]
    encoding: MaskEncoding
    note: str

    def of(self, split: str) -> list[Scanned]:
        """The entries of one split."""
        return [entry for entry in self.entries if entry.split == split]

    @cached_property
    def class_counts(self) -> dict[str, np.ndarray]:
        """Positions per class and, last, those ignored, for each split: int64 (K + 1,)."""
        found = {entry.split: np.zeros(self.encoding.num_classes + 1, dtype=np.int64) for entry in self.entries}
        for entry in self.entries:
            labels = self.encoding.labels_of(np.array(list(entry.counts)))  # IGNORE = -1 is the last place
            np.add.at(found[entry.split], labels, list(entry.counts.values()))
        return found


def mask_kind(mask: RawMask, space: tuple[int, ...], settings: MaskDataConfig, suffix: str) -> EncodingKind:
    """How a mask is written, as far as its form tells: declared, indexed, one number or several per position."""
    if settings.encoding != "auto":
        return settings.encoding
    if mask.palette is not None:
        return "palette"
    if as_mask(mask.array, space).ndim == len(space):
        return "values"
    return "colours" if settings.values or suffix not in (".npy", ".nii", ".nii.gz") else "one_hot"


def as_mask(array: np.ndarray, space: tuple[int, ...]) -> np.ndarray:
    """A mask as its image is laid out: (*space), or (*space, C) with C > 1; axes of length 1 beside that go.

    Raises:
        ValueError: it has another size.
    """
    if array.shape == space:
        return array
    if array.shape[:-1] == space and array.shape[-1] > 1:
        return array
    if array.size == np.prod(space) and [n for n in array.shape if n > 1] == [n for n in space if n > 1]:
        return array.reshape(space)
    raise ValueError(f"has size {list(array.shape)}; expected that of its image, {list(space)}")


def scan_pair(pair: Pair, split: str, kind: EncodingKind, image: np.ndarray, mask: RawMask) -> Scanned:
    """One entry of the scan.

    Raises:
        ValueError: image and mask have different sizes, the image holds NaN, or the mask numbers that are not whole.
    """
    space = image.shape[:-1]
    try:
        array = as_mask(mask.array, space)
        if kind in ("colours", "one_hot") and array.ndim == len(space):
            raise ValueError(f"has one number per position; expected several, since masks are of kind {kind}")
        if kind in ("values", "palette") and array.ndim > len(space):
            raise ValueError(
                f"has {array.shape[-1]} numbers per position; expected one, since masks are of kind {kind}"
            )
        counts = _counted(mask_codes(array, kind))
    except ValueError as error:
        raise ValueError(f"{pair.mask_name} {error} (its image is {pair.name}).") from error
    low, high = (float(image.min()), float(image.max())) if image.size else (np.nan, np.nan)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{pair.name} holds NaN or infinity, or nothing; expected finite numbers.")
    return Scanned(
        split=split,
        name=pair.name,
        mask_name=pair.mask_name,
        space=space,
        channels=image.shape[-1],
        dtype=image.dtype.name,
        low=low,
        high=high,
        digest=_digest(image),
        mask_digest=_digest(array),
        counts=counts,
        palette=mask.palette,
        values=_some_values(image),
    )


def _some_values(image: np.ndarray) -> np.ndarray:
    """Values from places drawn once for all images of a size, or all where they are few."""
    if image.size <= KEPT_VALUES:
        return image.ravel()
    return image.reshape(-1)[keys(0, "values", np.arange(KEPT_VALUES)) % image.size]


def _digest(array: np.ndarray) -> str:
    """A hash of the values of an array."""
    return blake2b(np.ascontiguousarray(array).data, digest_size=8).hexdigest()


def _counted(codes: np.ndarray) -> dict[int, int]:
    """Positions per code; small numbers are counted without sorting."""
    if codes.size and codes.min() >= 0 and codes.max() < 2**16:
        counts = np.bincount(codes.ravel())
        return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}
    return {int(code): int(count) for code, count in zip(*np.unique(codes, return_counts=True), strict=True)}


def common_format(entries: list[Scanned], stated: list[float] | None) -> DataFormat:
    """What the images have in common; without a stated range, floats take that of the training images.

    Raises:
        ValueError: one has other axes, channels or another dtype than the first, all values are equal, or the range
            is not one of the dtype.
    """
    lead = entries[0]
    for entry in entries:
        if (len(entry.space), entry.channels, entry.dtype) != (len(lead.space), lead.channels, lead.dtype):
            raise ValueError(
                f"{entry.name} has {entry.channels} channels of {entry.dtype} in {len(entry.space)}-D; expected "
                f"{lead.channels} of {lead.dtype} in {len(lead.space)}-D as in {lead.name}."
            )
    training = [entry for entry in entries if entry.split == "train"]
    seen = min(entry.low for entry in training), max(entry.high for entry in training)
    low, high = stated or INTEGER_RANGES.get(lead.dtype, seen)
    least, most = INTEGER_RANGES.get(lead.dtype, (low, high))
    if stated and not (least <= low and high <= most):
        raise ValueError(
            f"data.range is {stated}; expected it within {least:g} to {most:g}, since images are {lead.dtype}."
        )
    if low == high:
        raise ValueError(f"All values of {lead.name} and the rest are {low}; expected data that vary.")
    return DataFormat(
        dims=len(lead.space),
        channels=lead.channels,
        dtype=lead.dtype,
        low=low,
        high=high,
        clip=stated is not None,
    )


def find_encoding(
    entries: list[Scanned], kind: EncodingKind, mask: np.ndarray, suffix: str, settings: MaskDataConfig
) -> tuple[MaskEncoding, str]:
    """The encoding that the settings declare, or that the masks show.

    Args:
        entries: every image with its mask.
        kind: how masks are written.
        mask: one of them, for its dtype and channels.
        suffix: of its file.
        settings: `values`, `class_names`, `ignore`.

    Returns:
        the encoding, and where it comes from, in words.

    Raises:
        ValueError: it is neither declared nor unambiguous, or a mask has a value that stands for nothing.
    """
    seen = sorted(set().union(*(entry.counts for entry in entries)))
    channels = mask.shape[-1] if kind in ("colours", "one_hot") else 0
    ignore = as_tuples(settings.ignore)
    if settings.values is not None:
        values, note = as_tuples(settings.values), "declared"
    else:
        values, ignore, note = _infer(seen, kind, channels, mask, ignore)
    known = CLASS_NAMES.get(settings.source, lambda _: [str(number) for number in range(len(values))])
    encoding = MaskEncoding(
        kind=kind,
        values=values,
        class_names=tuple(settings.class_names or known(settings)),
        ignore=ignore,
        dtype=mask.dtype.name,
        palette=_common_palette(entries) if kind == "palette" else None,
        suffix=suffix,
    )
    if encoding.channels != channels:
        raise ValueError(
            f"data.values holds {encoding.channels or 1} numbers per class; expected {channels or 1}, as masks such as "
            f"{entries[0].mask_name} do."
        )
    check_declared(entries, encoding)
    return encoding, note


def check_declared(entries: list[Scanned], encoding: MaskEncoding) -> None:
    """Raise `ValueError` where masks hold values that stand for nothing, with the files and the values."""
    unknown = set(encoding.undeclared(sorted(set().union(*(entry.counts for entry in entries)))).tolist())
    if not unknown:
        return
    files = {entry.mask_name for entry in entries if unknown & set(entry.counts)}
    share = sum(entry.counts.get(code, 0) for entry in entries for code in unknown)
    total = sum(sum(entry.counts.values()) for entry in entries)
    values = show_codes(sorted(unknown), encoding.kind, encoding.channels)
    raise ValueError(
        f"{some(files)} hold values {values} ({share / total:.2%} of all positions); expected {encoding.expected} "
        "(see data.values and data.ignore)."
    )


def _infer(
    seen: list[int], kind: EncodingKind, channels: int, mask: np.ndarray, ignore: tuple[Value, ...]
) -> tuple[tuple[Value, ...], tuple[Value, ...], str]:
    """Values, ignored values and a note from the codes that occur, where only one reading makes sense."""
    if kind == "one_hot":
        on = int(mask.max()) or 1  # all void
        rows = tuple(tuple(on * (row == column) for column in range(channels)) for row in range(channels))
        return rows, ignore, f"read from the masks: one of {channels} channels is {on}"
    found = [value for code in seen if (value := code_value(code, kind, channels)) not in ignore]
    if kind == "colours":
        if found == [(0,) * channels, (VOID,) * channels]:
            return tuple(found), ignore, "read from the masks: black and white"
        raise ValueError(f"The masks hold colours {show_values(found)}; expected data.values to say which are classes.")
    if kind == "palette" and VOID in found and len(found) > 2:
        found.remove(VOID)
        ignore = (*ignore, VOID)
    numbers = [value for value in found if isinstance(value, int)]
    if numbers == [0, VOID] or (len(numbers) > 1 and numbers == list(range(len(numbers)))):
        void = f", {show_values(ignore)} ignored" if ignore else ""
        return tuple(numbers), ignore, f"read from the masks: {show_values(numbers)}{void}"
    raise ValueError(
        f"The masks hold values {show_values(found)}, which can be read in several ways; expected data.values to say "
        "which are classes, and data.ignore which count nowhere."
    )


def _common_palette(entries: list[Scanned]) -> tuple[int, ...] | None:
    """The longest palette; the others must begin it, or the same index would mean different things."""
    longest = max((entry.palette or () for entry in entries), key=len)
    for entry in entries:
        own = entry.palette or ()
        used = [code for code in entry.counts if 3 * code < len(own)]
        if any(own[3 * code : 3 * code + 3] != longest[3 * code : 3 * code + 3] for code in used):
            raise ValueError(f"{entry.mask_name} has another palette than the rest; expected one for all masks.")
    return longest or None


def shared_images(scan: MaskScan) -> list[str]:
    """Images of which an exact copy is in another split too, by name."""
    splits: dict[str, set[str]] = {}
    for entry in scan.entries:
        splits.setdefault(entry.digest, set()).add(entry.split)
    return sorted(entry.name for entry in scan.entries if len(splits[entry.digest]) > 1)


def range_note(scan: MaskScan, low: float, high: float) -> str | None:
    """What to tell of the range [low, high] of the network's input, where training images fill too little of it."""
    values = np.concatenate([entry.values for entry in scan.of("train")])
    least, most = np.percentile(values, USUAL)
    if most - least >= FLATTENED * (high - low):
        return None
    return (
        f"99% of the training values lie from {least:g} to {most:g}, less than a tenth of {low:g} to {high:g}, which "
        "the network is given as -1 to 1: it sees more where data.range names the values that matter"
    )


def check_report(scan: MaskScan) -> str:
    """What `--check` prints: sizes, channels, values and class shares of each split, as short tables.

    Args:
        scan: what was found.
    """
    splits = list(scan.class_counts)
    lines = [
        _row("", *splits),
        _row("images", *(len(scan.of(split)) for split in splits)),
        _row("size", *(_range([entry.space for entry in scan.of(split)]) for split in splits)),
        _row("lowest", *(f"{min(entry.low for entry in scan.of(split)):g}" for split in splits)),
        _row("highest", *(f"{max(entry.high for entry in scan.of(split)):g}" for split in splits)),
        *(
            _row(what, *(", ".join(map(str, sorted({get(entry) for entry in scan.of(split)}))) for split in splits))
            for what, get in SHOWN.items()
        ),
        "",
        f"masks: {scan.encoding.kind} ({scan.note})",
        _row("class", "value", *splits),
    ]
    shares = {split: counts / max(counts.sum(), 1) for split, counts in scan.class_counts.items()}
    classes = [*zip(scan.encoding.class_names, scan.encoding.values, strict=True)]
    if scan.encoding.ignore:
        classes.append(("(ignored)", scan.encoding.ignore[0]))
    lines += [
        _row(name, show_values([value]), *(f"{shares[split][place]:.2%}" for split in splits))
        for place, (name, value) in enumerate(classes)
    ]
    if copies := shared_images(scan):
        lines.append(f"note: in more than one split, exact copies: {some(copies)}")
    lines.append("every image has its mask, and every mask its image")
    return "\n".join(lines)


SHOWN: dict[str, Callable[[Scanned], str]] = {
    "channels": lambda entry: str(entry.channels),
    "type": lambda entry: entry.dtype,
}
"""Rows of the report that list what occurs."""

WIDTH = 18


def _row(first: str, *cells: object) -> str:
    return (f"{first:<12}" + "".join(f"{cell!s:>{WIDTH}}" for cell in cells)).rstrip()


def _range(spaces: list[tuple[int, ...]]) -> str:
    """One size, or the smallest and the largest along each axis."""
    least, most = np.min(spaces, axis=0), np.max(spaces, axis=0)
    return " x ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(least.tolist(), most.tolist(), strict=True))
