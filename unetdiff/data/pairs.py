"""Images with masks, ready for training and evaluation: one `PairSource` per split, cut at one place in both."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from unetdiff.data.annotators import Annotators, annotators_of
from unetdiff.data.augment import crop_places
from unetdiff.data.crops import pad_to, place_around
from unetdiff.data.formats import DataFormat
from unetdiff.data.images import crop_window
from unetdiff.data.mask_options import MaskDataConfig, WarpConfig
from unetdiff.data.mask_scan import (
    MaskScan,
    Scanned,
    as_mask,
    check_report,
    common_format,
    find_encoding,
    mask_kind,
    range_note,
    scan_pair,
)
from unetdiff.data.masks import MaskEncoding
from unetdiff.data.order import keys, uniforms
from unetdiff.data.pair_files import KINDS, Pair, Pairs, held
from unetdiff.data.pair_splits import split_pairs
from unetdiff.data.sources import MEMORY_LIMIT, target_size
from unetdiff.data.splits import SPLIT_NAMES
from unetdiff.data.volumes import RawMask
from unetdiff.data.warp import Arrays, Window, change_values, source_coordinates, warped_crop
from unetdiff.data.weights import position_weights

KEPT_POSITIONS = 1000
"""Positions of a class that are remembered per image, for crops that hold it."""

KEPT_ENTRIES = 2**14
"""For how many pairs of image and class at once, the latest that were asked for: at most 64 MiB per process."""


@dataclass(frozen=True)
class PairSource:
    """The images with masks of one split.

    Args:
        pairs: how to open them.
        spaces: the spatial shape of each.
        format: what images look like; its `size` is None, since whole images differ.
        encoding: how masks are written.
        size: what `read` cuts from each; None keeps images whole.
        weights: of every position of each image, (*space) float16, which `draw` cuts with it; None: none.
        annotators: whose masks `draw` takes in place of these; None: these.
    """

    pairs: list[Pair]
    spaces: list[tuple[int, ...]]
    format: DataFormat
    encoding: MaskEncoding
    size: tuple[int, ...] | None = None
    weights: list[np.ndarray] | None = field(default=None, repr=False, compare=False)
    annotators: Annotators | None = field(default=None, repr=False, compare=False)
    _positions: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.encoding.num_classes

    def name(self, index: int) -> str:
        """What messages and tables call an image."""
        return self.pairs[index].name

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A whole image (*space, C) and its mask as its file stores it, (*space) or (*space, C).

        Raises:
            ValueError: one of them cannot be read, or they do not fit the format or each other.
        """
        pair = self.pairs[index]
        image = pair.image()
        form = self.format
        if (image.ndim - 1, image.shape[-1], image.dtype.name) != (form.dims, form.channels, form.dtype):
            raise ValueError(
                f"{pair.name} has {image.shape[-1]} channels of {image.dtype} in {image.ndim - 1}-D; expected "
                f"{form.channels} of {form.dtype} in {form.dims}-D as in the rest."
            )
        with_mask = pair.mask()
        try:
            return image, as_mask(with_mask.array, image.shape[:-1])
        except ValueError as error:
            raise ValueError(f"{pair.mask_name} {error} ({pair.name}).") from error

    def read(self, indices: Sequence[int] | np.ndarray, places: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Loads images with masks, cut at the same place.

        Where an image is smaller than `size`, it is continued by reflection and its mask by `IGNORE`.

        Args:
            indices: n of them, at least one; of images of one size where `size` is None.
            places: (n, dims) in [0, 1), where to cut; None is the centre.

        Returns:
            "sample" (n, *size, C) in the images' dtype, and "mask" int64 (n, *size), 0 ... K-1 and `IGNORE`.

        Raises:
            ValueError: one of them cannot be read, or does not fit the rest.
        """
        where = [None] * len(indices) if places is None else places
        parts = [
            self._window(int(index), self._crop(int(index), place))[:2]
            for index, place in zip(indices, where, strict=True)
        ]
        shapes = {mask.shape for _, mask in parts}
        if len(shapes) > 1:
            raise ValueError(f"Images of sizes {sorted(map(list, shapes))} cannot be read whole at once.")
        return {"sample": np.stack([image for image, _ in parts]), "mask": np.stack([mask for _, mask in parts])}

    def _space(self, index: int) -> tuple[int, ...]:
        """The spatial shape of an image, continued to `size` where it is smaller."""
        space = self.spaces[index]
        return space if self.size is None else tuple(map(max, space, self.size))

    def _crop(self, index: int, place: np.ndarray | None) -> Window:
        space = self._space(index)
        return crop_window(space, space if self.size is None else self.size, place)

    def weighted(self, weigh: Callable[[np.ndarray], np.ndarray]) -> PairSource:
        """The same images with weights for their positions, computed here and now; see `position_weights`.

        Args:
            weigh: the weights (*space) of whole labels (*space).

        Raises:
            ValueError: a mask cannot be read.
        """
        annotators = None if self.annotators is None else self.annotators.weighted(weigh)
        weights = position_weights(self.whole_labels, self.spaces, weigh)
        return replace(self, weights=weights, annotators=annotators)

    def _window(self, index: int, window: Window) -> Arrays:
        """A part of an image, its labels and weights, read from the file where that can be done by parts."""
        image, mask = self.load(index)
        weights = () if self.weights is None else (self.weights[index],)
        space = self._space(index)
        if space == self.spaces[index]:
            parts = image[window], self._labels(index, mask[window]), *(each[window] for each in weights)
        else:
            whole = pad_to(space, image, self._labels(index, mask), *weights)
            parts = tuple(part[window] for part in whole)
        return *parts[:2], *(each.astype(np.float32) for each in parts[2:])

    def _labels(self, index: int, mask: np.ndarray) -> np.ndarray:
        try:
            return self.encoding.encode(mask)
        except ValueError as error:
            raise ValueError(f"{self.pairs[index].mask_name} {error}.") from error

    def whole_labels(self, index: int) -> np.ndarray:
        """The mask of an image as int64 (*space), 0 ... K-1 and `IGNORE`."""
        return self._labels(index, self.load(index)[1])

    def class_positions(self, index: int, label: int) -> np.ndarray:
        """Up to `KEPT_POSITIONS` positions of a class in an image, always the same: int64 (m, dims), m may be 0."""
        flat = self._positions.pop((index, label), None)
        if flat is None:
            flat = np.flatnonzero(self.whole_labels(index) == label)
            if len(flat) > KEPT_POSITIONS:
                flat = flat[keys(label, "class positions", np.arange(KEPT_POSITIONS)) % len(flat)]
            flat = flat.astype(np.min_scalar_type(math.prod(self.spaces[index])))
        self._positions[index, label] = flat  # last again: the first is the one that was asked for longest ago
        if len(self._positions) > KEPT_ENTRIES:
            del self._positions[next(iter(self._positions))]
        return np.stack(np.unravel_index(flat, self.spaces[index]), axis=-1)

    def places(
        self,
        indices: np.ndarray,
        positions: np.ndarray,
        seed: int,
        classes: Sequence[int] = (),
        probability: float = 0,
        warp: WarpConfig | None = None,
    ) -> np.ndarray:
        """Where training crops lie: uniformly at random, and, with a probability, so that they hold a class.

        Such a crop holds a position drawn from one of those `classes` that its image has, at a random place within.

        Args:
            indices: (n,) images. positions: (n,) positions in the run.
            seed: of the run.
            classes: numbers of the wanted classes.
            probability: share of the crops that are placed by them.
            warp: what moves them afterwards; such a crop is placed so that it holds its position then.

        Returns:
            (n, dims) in [0, 1), for `read`.
        """
        dims = self.format.dims
        places = crop_places(seed, positions, dims)
        if self.size is None or not classes:
            return places
        aimed = uniforms(seed, "crop aimed", positions) < probability
        which = keys(seed, "crop class", positions)
        target = keys(seed, "crop target", positions)
        for row in np.flatnonzero(aimed):
            found = [at for label in classes if len(at := self.class_positions(int(indices[row]), label))]
            if found:
                candidates = found[which[row] % len(found)]
                at = candidates[target[row] % len(candidates)]
                places[row] = self._aimed(int(indices[row]), at, places[row], int(positions[row]), seed, warp)
        return places

    def _aimed(
        self, index: int, at: np.ndarray, draw: np.ndarray, position: int, seed: int, warp: WarpConfig | None
    ) -> np.ndarray:
        """The place of a crop that holds the position `at` of an image, after its warp if there is any."""
        assert self.size is not None
        space = self._space(index)
        at = at + (np.array(space) - self.spaces[index]) // 2  # where `pad_to` puts it
        moved = source_coordinates(self.size, position, seed, warp) if warp is not None and warp.moves else None
        return place_around(at, space, self.size, draw, moved)

    def draw(self, indices: np.ndarray, positions: np.ndarray, seed: int, settings: MaskDataConfig) -> dict[str, Any]:
        """A training batch: cut and changed, a function of indices, positions and seed alone.

        Returns:
            What `read` does; and "weight" float32 (n, *size), where positions have weights.
        """
        if self.annotators is not None:
            return self.annotators.draw(indices, positions, seed, settings)
        wanted = class_numbers(settings.crop_classes, self.encoding)
        places = self.places(indices, positions, seed, wanted, settings.crop_probability, settings.augment)
        parts = [
            warped_crop(
                partial(self._window, index),
                self._space(index),
                self._crop(index, place),
                position,
                seed=seed,
                settings=settings.augment,
            )
            for index, place, position in zip(indices.tolist(), places, positions.tolist(), strict=True)
        ]
        stacks = [np.stack(arrays) for arrays in zip(*parts, strict=True)]
        stacks[0] = change_values(stacks[0], positions, seed, settings.augment, self.format.low, self.format.high)
        return dict(zip(("sample", "mask", "weight"), stacks, strict=False))


def class_numbers(classes: Sequence[int | str], encoding: MaskEncoding) -> list[int]:
    """Classes given by name or number as numbers.

    Raises:
        ValueError: there is no such class.
    """
    numbers = {name: number for number, name in enumerate(encoding.class_names)}
    found = [numbers.get(entry) if isinstance(entry, str) else entry for entry in classes]
    for entry, number in zip(classes, found, strict=True):
        if number is None or not 0 <= number < encoding.num_classes:
            raise ValueError(
                f"data.crop_classes has {entry!r}; expected numbers below {encoding.num_classes} or names of "
                f"{', '.join(encoding.class_names[:10])}."
            )
    return [number for number in found if number is not None]


@dataclass(frozen=True)
class PairData:
    """All splits of a data set, scanned; `validation` and `test` may be empty.

    Args:
        train: cut to `data.size`. validation, test: whole images.
        scan: what they hold.
    """

    train: PairSource
    validation: PairSource
    test: PairSource
    scan: MaskScan

    def report(self) -> str:
        """What `--check` prints."""
        annotators = self.train.annotators
        said = "" if annotators is None else f"\n{annotators.report()}"
        return check_report(self.scan) + said

    def class_counts(self) -> np.ndarray:
        """Positions of each class in the training masks: int64 (K,)."""
        return self.scan.class_counts["train"][:-1]

    def fingerprint(self) -> dict[str, Any]:
        """What a run's data are: how many, their form, how masks are written, and a hash of all images and masks."""
        digest = hashlib.sha256()
        for entry in self.scan.entries:
            digest.update(f"{entry.split} {entry.digest} {entry.mask_digest}".encode())
        counts = {"training": len(self.train), "validation": len(self.validation), "test": len(self.test)}
        forms = {"format": self.train.format.to_dict(), "encoding": self.train.encoding.to_dict()}
        return {**counts, **forms, "hash": digest.hexdigest()[:16]}


def open_pairs(settings: MaskDataConfig) -> PairData:
    """Opens and scans a data set; what fits in `MEMORY_LIMIT` is decoded here, once.

    Raises:
        ValueError: whatever is wrong with the settings or the data: one sentence with the file, column or value.
    """
    splits = split_pairs(KINDS[settings.source](settings), settings)
    splits, entries, kind, first = _scanned(splits, settings)
    encoding, note = find_encoding(entries, kind, first, splits["train"][0].suffix, settings)
    scan = MaskScan(tuple(entries), encoding, note)
    form = common_format(entries, settings.range)
    if settings.range is None and (note := range_note(scan, form.low, form.high)):
        warnings.warn(note, stacklevel=2)
    class_numbers(settings.crop_classes, encoding)
    sources = {
        split: PairSource(pairs, [entry.space for entry in scan.of(split)], form, encoding)
        for split, pairs in splits.items()
    }
    size = _crop_size(scan, settings)
    settings.augment.check_size(size)
    sources["train"] = replace(sources["train"], size=size)
    annotated = {
        split: replace(source, annotators=annotators_of(source, settings.annotators))
        for split, source in sources.items()
    }
    return PairData(**annotated, scan=scan)


def _scanned(splits: Pairs, settings: MaskDataConfig) -> tuple[Pairs, list[Scanned], Any, np.ndarray]:
    """All pairs looked at once: the pairs, in memory where they fit; their entries; the kind of mask, and a mask."""
    lead = splits["train"][0]
    space, mask = lead.image().shape[:-1], lead.mask()
    kind = mask_kind(mask, space, settings, lead.suffix)
    every = [(split, pair) for split in SPLIT_NAMES for pair in splits[split]]
    entries: list[Scanned] = []
    kept: Pairs = {split: [] for split in SPLIT_NAMES}
    held_bytes = 0
    for split, pair in tqdm(every, desc="scanning", unit="image", delay=2, disable=None):
        image, raw = pair.image(), pair.mask()
        entries.append(scan_pair(pair, split, kind, image, raw))
        held_bytes += image.nbytes + raw.array.nbytes
        if held_bytes < MEMORY_LIMIT:
            kept[split].append(_in_memory(pair, image, raw))
    return (kept if held_bytes < MEMORY_LIMIT else splits), entries, kind, as_mask(mask.array, space)


def _in_memory(pair: Pair, image: np.ndarray, mask: RawMask) -> Pair:
    opened: list[Callable[[], Any]] = [partial(held, np.asarray(image)), partial(held, mask)]
    return replace(pair, image=opened[0], mask=opened[1])


def _crop_size(scan: MaskScan, settings: MaskDataConfig) -> tuple[int, ...]:
    """`data.size`, or the size that all training images have.

    Raises:
        ValueError: it is not set, and they differ.
    """
    training = scan.of("train")
    lead = training[0]
    other = next((entry for entry in training if entry.space != lead.space), None)
    if settings.size is None and other is not None:
        raise ValueError(
            f"{other.name} has size {list(other.space)} and {lead.name} {list(lead.space)}; expected one size, or "
            "data.size set, to which training images are cut."
        )
    return target_size(settings.size, lead.space)
