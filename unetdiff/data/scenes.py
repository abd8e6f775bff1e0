"""`digit_scenes`: real handwritten digits on cluttered canvases, with masks; small, and needing no download."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from unetdiff.data.generated import digits
from unetdiff.data.images import resize
from unetdiff.data.order import key
from unetdiff.data.records import Arrays
from unetdiff.data.splits import Splits

if TYPE_CHECKING:
    from unetdiff.config import DataConfig

COUNTS = {"train": 2000, "validation": 100, "test": 200}
"""Scenes per split; each split has digits of its own."""

SCENE_GROUPS: dict[str, dict[str, tuple[int, ...]]] = {
    "digits": {str(digit): (digit,) for digit in range(10)},
    "groups": {"0 to 3": (0, 1, 2, 3), "4 to 6": (4, 5, 6), "7 to 9": (7, 8, 9)},
    "foreground": {"digit": tuple(range(10))},
}
"""The classes beside the background and the digits of each, for every value of `data.scene_classes`."""


def scene_classes(groups: str = "digits") -> tuple[str, ...]:
    """The names of the classes of one of `SCENE_GROUPS`, the background first."""
    return ("background", *SCENE_GROUPS[groups])


SCENE_CLASSES = scene_classes()

SIDE = 32
SIZES = (14, 20)
"""Smallest and largest side of a digit's frame, in pixels."""

INK = 0.4
"""Where a digit's opacity is above this, its class is in the mask."""

MOST_OVERLAP, TRIES = 0.15, 8
"""Share of a digit's ink that may lie on other digits, and how many places are tried for one that fits."""


def digit_scenes(settings: DataConfig) -> Splits:
    """The scenes without their masks, for denoising: 32x32, uint8, 1 channel.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    return {split: partial(_unlabelled, split) for split in COUNTS}


def _unlabelled(split: str) -> Arrays:
    return Arrays(scenes(split)[0], origin="digit_scenes")


def grouped(masks: np.ndarray, groups: str) -> np.ndarray:
    """Masks of `scenes`, whose classes are the digits, with those of one of `SCENE_GROUPS`; uint8, any shape."""
    table = np.zeros(len(SCENE_CLASSES), np.uint8)
    for label, members in enumerate(SCENE_GROUPS[groups].values(), start=1):
        table[np.array(members) + 1] = label
    return table[masks]


@cache
def scenes(split: str) -> tuple[np.ndarray, np.ndarray]:
    """All scenes of a split; scene i is a function of split and i alone.

    A scene has up to four digits of 14 to 20 pixels, each of one brightness, which may lie partly outside and cover
    a part of an earlier one; behind them are a slope of grey and clutter (pieces of other digits, too small to be
    read); noise lies over all.

    Args:
        split: "train", "validation" or "test", from disjoint sets of handwritten digits.

    Returns:
        images uint8 (n, 32, 32, 1), and masks uint8 (n, 32, 32): 0 is background and 1 + d the digit d.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    records = digits(None)[split]()  # pyright: ignore[reportArgumentType] # the embedded digits have no settings
    assert isinstance(records.labels, np.ndarray)
    assert isinstance(records, Arrays)
    glyphs = np.asarray(records.samples)
    drawn = [_scene(split, number, glyphs, records.labels) for number in range(COUNTS[split])]
    return np.stack([image for image, _ in drawn])[..., None], np.stack([mask for _, mask in drawn])


def _scene(split: str, number: int, glyphs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One scene: uint8 image and mask (32, 32)."""
    draw = np.random.Generator(np.random.PCG64(key(0, f"digit_scenes {split}", number)))
    first, last = draw.uniform(0, 0.2, (2, 2))  # of the slope, along either axis
    image = np.add.outer(*np.linspace(first, last, SIDE).T)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(draw.integers(4, 9)):
        piece = _opacity(glyphs[draw.integers(len(glyphs))], 16)
        top, left = draw.integers(0, 11, 2)
        piece = piece[top : top + 6, left : left + 6]
        _paint(image, _placed(piece, draw.integers(0, SIDE - 5, 2)), draw.uniform(0.2, 0.6))
    for _ in range(draw.integers(2, 5)):
        chosen, size = draw.integers(len(glyphs)), int(draw.integers(*SIZES, endpoint=True))
        opacity = _opacity(glyphs[chosen], size)
        for where in draw.integers(-size // 4, SIDE - size + size // 4, (TRIES, 2), endpoint=True):
            layer = _placed(opacity, where)
            ink = layer > INK
            if (mask[ink] > 0).mean() <= MOST_OVERLAP:
                _paint(image, layer, draw.uniform(0.65, 1))
                mask[ink] = labels[chosen] + 1
                break
    image = image + draw.normal(0, 0.04, image.shape)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8), mask


def _opacity(glyph: np.ndarray, size: int) -> np.ndarray:
    """A digit (16, 16, 1) of uint8 at another size, as opacity 0 ... 1."""
    return resize(glyph, (size, size))[..., 0] / 255


def _placed(opacity: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A canvas that is 0 but for `opacity` with its corner at `where`, cut at the border."""
    margin = SIDE
    canvas = np.zeros((3 * margin, 3 * margin))
    top, left = where + margin
    canvas[top : top + len(opacity), left : left + opacity.shape[1]] = opacity
    return canvas[margin : 2 * margin, margin : 2 * margin]


def _paint(image: np.ndarray, layer: np.ndarray, grey: float) -> None:
    """Paints one grey over an image, in place, as opaque as `layer` says."""
    image += layer * (grey - image)
