"""Synthetic annotators of masks: each changes whole masks in one way, with a known probability.

What a sampler of masks learns can so be judged: it should draw every annotator's mask as often as that annotator drew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from unetdiff.data.mask_options import AnnotatorConfig, MaskDataConfig
from unetdiff.data.mask_scan import as_mask
from unetdiff.data.masks import MaskEncoding
from unetdiff.data.order import uniforms
from unetdiff.data.volumes import RawMask
from unetdiff.segmentation.options import IGNORE

if TYPE_CHECKING:
    from unetdiff.data.pair_files import Pair
    from unetdiff.data.pairs import PairSource

MOST_COUNTED = 100
"""Annotators of an image at most, where probabilities are written as numbers of them."""

TOLERANCE = 1e-6
"""How far such shares may be from the probabilities."""


def _as_it_is(labels: np.ndarray, settings: AnnotatorConfig) -> np.ndarray:
    return labels


def _dilated(labels: np.ndarray, settings: AnnotatorConfig) -> np.ndarray:
    """Background within the radius takes the nearest class; ignored positions stay, and nothing grows from them."""
    from skimage.segmentation import expand_labels

    free = settings.background
    held = np.where((labels == free) | (labels == IGNORE), 0, labels + 1)
    if not held.any():
        return labels
    grown = expand_labels(held, settings.radius)  # pyright: ignore[reportArgumentType] # any number will do
    return np.where((labels == free) & (grown > 0), grown - 1, labels)


def _eroded(labels: np.ndarray, settings: AnnotatorConfig) -> np.ndarray:
    """Positions within the radius of the background become background; the border of the image is none."""
    from scipy.ndimage import distance_transform_edt

    free = labels == settings.background
    if not free.any():
        return labels
    near = np.asarray(distance_transform_edt(~free)) <= settings.radius
    return np.where(near & (labels != IGNORE), settings.background, labels)


def _without_largest(labels: np.ndarray, settings: AnnotatorConfig) -> np.ndarray:
    """Without the largest connected region (diagonals count) of one class; the first in the image among equals."""
    from skimage.measure import label

    held = np.where((labels == settings.background) | (labels == IGNORE), 0, labels + 1)
    regions = np.asarray(label(held, background=0, connectivity=labels.ndim))
    sizes = np.bincount(regions.ravel())[1:]
    return np.where(regions == 1 + sizes.argmax(), settings.background, labels) if len(sizes) else labels


CHANGES: dict[str, Callable[[np.ndarray, AnnotatorConfig], np.ndarray]] = {
    "none": _as_it_is,
    "dilate": _dilated,
    "erode": _eroded,
    "delete": _without_largest,
}
"""What the annotators of `AnnotatorConfig` make of whole labels, int64 (*space) of any number of axes."""


def annotated(labels: np.ndarray, settings: AnnotatorConfig) -> np.ndarray:
    """The masks of all annotators: int64 (A, *space), in the order of `settings.probabilities`.

    Args:
        labels: (*space) int64, 0 ... K-1 and `IGNORE`, whole: nothing of it may be cut away yet.
        settings: who they are.
    """
    return np.stack([CHANGES[name](labels, settings) for name in settings.probabilities])


def as_counts(probabilities: Sequence[float]) -> list[int]:
    """Probabilities as the smallest numbers of annotators in these proportions: .4 .3 .2 .1 as 4 3 2 1.

    Raises:
        ValueError: more than `MOST_COUNTED` would be needed.
    """
    for total in range(1, MOST_COUNTED + 1):
        counts = [round(total * value) for value in probabilities]
        if all(abs(count / total - value) < TOLERANCE for count, value in zip(counts, probabilities, strict=True)):
            return counts
    listed = ", ".join(f"{value:g}" for value in probabilities)
    raise ValueError(
        f"the annotators' probabilities are {listed}; expected shares of at most {MOST_COUNTED} annotators"
    )


@dataclass(frozen=True)
class Annotators:
    """Who drew the masks of a source.

    Args:
        probabilities: of each of the A annotators, by name.
        masks: every image with the mask of every annotator: image i by annotator a is entry i A + a.
    """

    probabilities: dict[str, float]
    masks: PairSource

    def report(self) -> str:
        """A line on who draws the training masks."""
        listed = ", ".join(f"{name} {share:g}" for name, share in self.probabilities.items())
        return f"training masks are changed by annotators with probabilities: {listed}; the classes above are unchanged"

    def labels(self, index: int) -> np.ndarray:
        """The masks of an image by all annotators: int64 (A, *space), whole."""
        count = len(self.probabilities)
        return np.stack([self.masks.whole_labels(count * index + place) for place in range(count)])

    def drawn(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """The annotator of each position of a run, by number: int64 of the shape of `positions`."""
        upper = np.cumsum(list(self.probabilities.values()))[:-1]
        return np.searchsorted(upper, uniforms(seed, "annotator", positions), side="right")

    def draw(self, indices: np.ndarray, positions: np.ndarray, seed: int, settings: MaskDataConfig) -> dict[str, Any]:
        """As `PairSource.draw`, each mask by an annotator who is drawn for its position in the run."""
        chosen = len(self.probabilities) * indices + self.drawn(positions, seed)
        return self.masks.draw(chosen, positions, seed, settings)

    def weighted(self, weigh: Callable[[np.ndarray], np.ndarray]) -> Annotators:
        """As `PairSource.weighted`, of the masks of all annotators."""
        return replace(self, masks=self.masks.weighted(weigh))


def annotators_of(source: PairSource, settings: AnnotatorConfig) -> Annotators | None:
    """The annotators of a source's images, whose masks are made when asked for; None where the settings have none.

    Raises:
        ValueError: the background is no class.
    """
    names = settings.probabilities
    if not names:
        return None
    if settings.background >= source.num_classes:
        raise ValueError(
            f"data.annotators.background is {settings.background}; expected a class, 0 to {source.num_classes - 1}."
        )
    pairs = [
        _by_annotator(pair, space, source.encoding, name, settings)
        for pair, space in zip(source.pairs, source.spaces, strict=True)
        for name in names
    ]
    spaces = [space for space in source.spaces for _ in names]
    return Annotators(names, replace(source, pairs=pairs, spaces=spaces))


def _by_annotator(
    pair: Pair, space: tuple[int, ...], encoding: MaskEncoding, name: str, settings: AnnotatorConfig
) -> Pair:
    mask = partial(_changed, pair.mask, space, encoding, name, settings)
    return replace(pair, mask_name=f"{pair.mask_name} ({name})", mask=mask)


def _changed(
    mask: Callable[[], RawMask], space: tuple[int, ...], encoding: MaskEncoding, name: str, settings: AnnotatorConfig
) -> RawMask:
    """A mask as an annotator drew it, in the form of its file."""
    raw = mask()
    labels = encoding.encode(as_mask(raw.array, space))
    return RawMask(encoding.decode(CHANGES[name](labels, settings)), raw.palette)
