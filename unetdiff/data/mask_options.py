"""Settings of images with masks: where they are, how masks are written, the splits, the augmentation. No torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from itertools import combinations
from math import inf
from typing import Any, Literal

from unetdiff.typed import check_at_least, check_types

EncodingKind = Literal["values", "palette", "colours", "one_hot"]


def check_read(settings: Any, group: str, readers: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    """Raise `ValueError` for a setting that nothing would read: the user means something that is not done.

    Args:
        settings: a dataclass. group: what messages call it.
        readers: for a setting, the settings of which one must differ from its default, or have one of some values,
            so that it is read.
    """
    defaults = {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(settings)
    }
    for name, (others, values) in readers.items():
        given = {other: getattr(settings, other) for other in others}
        read = any(held in values if values else held != defaults[other] for other, held in given.items())
        if read or (value := getattr(settings, name)) == defaults[name]:
            continue
        said = f"{group}.{name} is {value!r}, which nothing reads"
        if values:
            wanted = f"{group}.{others[0]}"
            raise ValueError(f"{said} where {wanted} is {given[others[0]]}; expected {wanted} {' or '.join(values)}")
        listed = " or ".join(filter(None, (", ".join(others[:-1]), others[-1])))
        raise ValueError(f"{said} without {group}.{listed}; expected both, or neither")


@dataclass(frozen=True, kw_only=True)
class WarpConfig:
    """Random changes of a training image and its mask together; every draw is a function of seed and position.

    Args:
        flips: spatial axes that are mirrored half of the time, counted from 0 (depth first in volumes).
        quarter_turns: `plane` turns in the plane of the last two axes, `all` in every plane; sides must be equal.
        rotation: largest angle in degrees in the plane of the last two axes, either way.
        scale: largest relative change of size, either way: 0.2 is from 1/1.2 to 1.2.
        shear: largest angle in degrees along either of the last two axes.
        elastic: standard deviation in pixels of the displacements of the coarse grid (Ronneberger et al. 2015: 10).
        elastic_grid: points of that grid along each axis.
        fill: masks outside of the image: `reflect` as the image always is, or `ignore`.
        gain: largest relative change of it, where u = 0 ... 1 over the data's range becomes gain u^gamma + offset.
        offset: the largest, as a share of the data's range.
        gamma: largest relative change of it.
        noise: largest standard deviation of Gaussian noise, as a share of the data's range.
    """

    flips: list[int] = field(default_factory=list)
    quarter_turns: Literal["none", "plane", "all"] = "none"
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    elastic_grid: int = 3
    fill: Literal["reflect", "ignore"] = "reflect"
    gain: float = 0.0
    offset: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 0, "rotation", "scale", "shear", "elastic", "gain", "offset", "gamma", "noise")
        check_at_least(self, 2, "elastic_grid")
        if self.shear >= 90:
            raise ValueError(f"data.augment.shear is {self.shear}; expected degrees below 90")
        if not set(self.flips) <= {0, 1, 2}:
            raise ValueError(f"data.augment.flips is {self.flips}; expected spatial axes from 0 to 2")
        check_read(self, "data.augment", WARP_READERS)

    @property
    def moves(self) -> bool:
        """Whether positions are interpolated, not only exchanged."""
        return bool(self.rotation or self.scale or self.shear or self.elastic)

    def planes(self, dims: int) -> list[tuple[int, int]]:
        """The pairs of spatial axes in which quarter turns are made."""
        every = list(combinations(range(dims), 2))
        return {"none": [], "plane": every[-1:], "all": every}[self.quarter_turns]

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise `ValueError` where crops (*size) lack the axes that are asked for, or cannot be turned."""
        dims = len(size)
        if any(axis >= dims for axis in self.flips):
            raise ValueError(f"data.augment.flips is {self.flips}; expected axes below {dims}, since data are {dims}-D")
        if dims == 1 and (self.rotation or self.shear or self.quarter_turns != "none"):
            raise ValueError(
                "data.augment has rotation, shear or quarter_turns, which 1-D data lack; expected 0, 0 and none"
            )
        for first, second in self.planes(dims):
            if size[first] != size[second]:
                raise ValueError(
                    f"data.augment.quarter_turns is {self.quarter_turns} and crops are {list(size)}; expected equal "
                    f"sides along axes {first} and {second} (see data.size)"
                )


WARP_READERS = {"fill": (("rotation", "scale", "shear", "elastic"), ()), "elastic_grid": (("elastic",), ())}
"""What must be set for each of these to be read; see `check_read`."""


@dataclass(frozen=True, kw_only=True)
class AnnotatorConfig:
    """Synthetic annotators, who change the masks as they are stored, each with a known probability.

    For each training sample one is drawn, so that a network learns from masks that disagree. The probabilities sum to
    1, or are all 0: masks are then as they are stored.

    Args:
        none: probability of the mask as it is.
        dilate: of one whose classes have grown into the background, by `radius` positions.
        erode: of one whose classes have shrunk from it by as many.
        delete: of one without its largest object: a connected region of one class but the background.
        radius: positions, Euclidean: 1 reaches a position's neighbours along the axes, 1.5 the diagonal ones too.
        background: the class around objects, by number.
    """

    none: float = 0.0
    dilate: float = 0.0
    erode: float = 0.0
    delete: float = 0.0
    radius: float = 1.0
    background: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 0, *ANNOTATORS, "background")
        check_at_least(self, 1, "radius")
        if self.probabilities and not abs(sum(self.probabilities.values()) - 1) < 1e-6:
            total = sum(self.probabilities.values())
            raise ValueError(f"data.annotators has probabilities that sum to {total:g}; expected 1, or all 0")
        check_read(self, "data.annotators", ANNOTATOR_READERS)

    @property
    def probabilities(self) -> dict[str, float]:
        """The annotators that there are, by name; empty where masks are as they are stored."""
        return {name: value for name in ANNOTATORS if (value := getattr(self, name)) > 0}


ANNOTATORS = ("none", "dilate", "erode", "delete")
"""What annotators do to a mask."""

ANNOTATOR_READERS = {"radius": (("dilate", "erode"), ()), "background": (("dilate", "erode", "delete"), ())}
"""As `WARP_READERS`."""


@dataclass(frozen=True, kw_only=True)
class MaskDataConfig:
    """Where images with masks come from.

    Args:
        source: `digit_scenes` (embedded real digits on clutter), `folder` (images/ and masks/ matched by stem, or
            metadata.jsonl with file_name and mask_file_name; or one file and its mask), `dataset` (parquet files or
            a hub name), `npy` (one array of all images and one of all masks).
        scene_classes: of `digit_scenes`: `digits` (background and the ten digits), `groups` (background and three
            groups of digits), `foreground` (background and digit).
        path: the folder, file or hub name.
        mask_path: masks that are not beside the images: a folder, or the file that belongs to a file.
        mask_suffix: what the stem of a mask has behind the image's, such as _mask.
        image_column: column of a `dataset` with the images.
        mask_column: column of a `dataset` with the masks.
        dims: spatial axes where shapes leave it open; 3 with a folder of 2-D images reads them as one stack.
        range: the lowest and highest value that the network tells apart, which become -1 and 1; values beyond are
            clipped, as those of CT to a window. None: all that integers may hold, or floats do in training images.
        encoding: how masks are written; `auto` reads it from the masks where that is unambiguous.
        values: what stands for each class in the masks: numbers, or a colour per class.
        class_names: names of the classes, in the order of `values`.
        ignore: what stands for positions that count nowhere.
        split: `own` takes the source's splits (folders or tables named train, validation, test; all is training data
            where there are none), `names` matches names or groups, `depth` cuts along the first axis (of volumes, or
            of the sorted images), `fraction` draws at random with `split_seed`.
        train: what is training data: for `names`, globs, or .txt files that list names; for `depth`, ranges such as
            0-21, both ends included.
        validation: what validation data is, likewise.
        test: what test data is, likewise.
        group: regular expression on the name; images with the same (first) group stay in one split, and `names`
            then matches groups.
        validation_fraction: share of all images or groups that is validation data, for `fraction`.
        test_fraction: share that is test data, for `fraction`.
        split_seed: of that draw.
        train_limit: use only this many training images, evenly spaced over their order.
        size: what is cut from training images; none: all must have one size. Other splits are kept whole.
        crop_classes: names or numbers of classes that a crop should hold.
        crop_probability: share of the crops that are placed so as to hold one of them, where the image has any.
        augment: random changes of training images.
        annotators: random changes of training masks, which make them disagree. Other splits keep their masks, and
            know those of all annotators.
        workers: loader processes per training process.
    """

    source: Literal["digit_scenes", "folder", "dataset", "npy"] = "digit_scenes"
    scene_classes: Literal["digits", "groups", "foreground"] = "digits"
    path: str | None = None
    mask_path: str | None = None
    mask_suffix: str = ""
    image_column: str = "image"
    mask_column: str = "mask"
    dims: Literal[1, 2, 3] | None = None
    range: list[float] | None = None
    encoding: Literal["auto", "values", "palette", "colours", "one_hot"] = "auto"
    values: list[int] | list[list[int]] | None = None
    class_names: list[str] | None = None
    ignore: list[int] | list[list[int]] = field(default_factory=list)
    split: Literal["own", "names", "depth", "fraction"] = "own"
    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    group: str | None = None
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    split_seed: int = 0
    train_limit: int | None = None
    size: int | list[int] | None = None
    crop_classes: list[int | str] = field(default_factory=list)
    crop_probability: float = 0.5
    augment: WarpConfig = field(default_factory=WarpConfig)
    annotators: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    workers: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 0, "workers", "validation_fraction", "test_fraction")
        check_at_least(self, 1, "train_limit")
        if not self.validation_fraction + self.test_fraction < 1:
            raise ValueError("data.validation_fraction and data.test_fraction leave no training data; expected less")
        if not 0 <= self.crop_probability <= 1:
            raise ValueError(f"data.crop_probability is {self.crop_probability}; expected 0 to 1")
        if self.range is not None and not (len(self.range) == 2 and -inf < self.range[0] < self.range[1] < inf):
            raise ValueError(f"data.range is {self.range}; expected a lower and a higher value")
        if self.split in ("names", "depth") and not self.train:
            raise ValueError(f"data.split is {self.split} and data.train is empty; expected what to train on")
        check_read(self, "data", READERS)


FILES = (("source",), ("folder", "dataset", "npy"))
LISTS = (("split",), ("names", "depth"))
FRACTION = (("split",), ("fraction",))

READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scene_classes": (("source",), ("digit_scenes",)),
    "path": FILES,
    "dims": FILES,
    "mask_path": (("source",), ("folder", "npy")),
    "mask_suffix": (("source",), ("folder",)),
    "image_column": (("source",), ("dataset",)),
    "mask_column": (("source",), ("dataset",)),
    "train": LISTS,
    "validation": LISTS,
    "test": LISTS,
    "group": (("split",), ("names", "fraction")),
    "validation_fraction": FRACTION,
    "test_fraction": FRACTION,
    "split_seed": FRACTION,
    "crop_classes": (("size",), ()),
    "crop_probability": (("crop_classes",), ()),
}
"""As `WARP_READERS`."""
