"""Masks that a run of kind `diffusion` draws of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unetdiff.diffusion.options import SamplerName
from unetdiff.mask_diffusion_options import MaskDiffusionConfig
from unetdiff.runs import Run
from unetdiff.segmentation.mask_diffusion import MaskDiffusion
from unetdiff.segmentation.predict import Inference
from unetdiff.segmentation.tiles import Predict
from unetdiff.segmentation.uncertainty import decompose_votes
from unetdiff.typed import check_at_least, from_json

SETTINGS = "mask_diffusion"

ADVICE = (
    "masks drawn by one network vary as the masks of its training data do; what the network does not know shows "
    "between several trained networks"
)
"""What has to be said beside figures of uncertainty."""


@dataclass(frozen=True)
class Drawing:
    """How masks are drawn; None: as the run's settings say.

    masks: how many of each image; mask i follows from `seed + i` and the image alone, whatever their number.
    """

    masks: int | None = None
    steps: int | None = None
    sampler: SamplerName | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "masks", "steps")

    @property
    def given(self) -> list[str]:
        """The names of what is not left to the run."""
        return [name for name in ("masks", "steps", "sampler") if getattr(self, name) is not None]


def draws(run: Run) -> bool:
    """Whether a run draws masks, rather than saying what classes are probable."""
    return SETTINGS in run.beside.settings


def draw(run: Run, images: Tensor, drawing: Drawing) -> Tensor:
    """Masks of images (n, C, *space) in [-1, 1]: (masks, n, *space) int64, on the CPU.

    Raises:
        ValueError: another sampler or number of steps than there is.
    """
    settings = from_json(MaskDiffusionConfig, run.beside.settings[SETTINGS])
    network: Any = run.unet
    return (
        MaskDiffusion.of(settings, run.masks.num_classes)
        .masks(
            network,
            images,
            seeds=[drawing.seed + number for number in range(drawing.masks or settings.masks)],
            steps=drawing.steps or settings.steps,
            sampler=drawing.sampler or settings.sampler,
        )
        .transpose(0, 1)
    )


def by_votes(run: Run, passes: int, seed: int) -> list[Predict]:
    """The shares of the votes of the masks that are drawn, as many as the run's settings say, as one answer."""
    drawing = Drawing(seed=seed)
    return [lambda images: decompose_votes(draw(run, images, drawing), run.masks.num_classes).probabilities]


def check_drawing(runs: Sequence[Run], drawing: Drawing, passes: int) -> None:
    """Whether runs can be asked for masks together in this way.

    Raises:
        ValueError: some draw masks and others do not, or are told what they do not read.
    """
    kinds = {draws(run) for run in runs}
    if len(kinds) > 1:
        drawn, other = (next(run.folder for run in runs if draws(run) == kind) for kind in (True, False))
        raise ValueError(f"{drawn} draws masks and {other} does not; expected runs of one kind")
    if not kinds.pop() and drawing.given:
        raise ValueError(
            f"{drawing.given[0]} is of runs that draw masks, which {runs[0].folder} does not: leave it out"
        )
    if draws(runs[0]) and passes > 1:
        raise ValueError(f"{runs[0].folder} draws masks; expected how many by masks, not {passes} passes")


def check_whole(inference: Inference, space: Sequence[int], name: str) -> None:
    """Whether masks can be drawn of an image (*space): whole, since tiles would be drawn each by itself.

    Raises:
        ValueError: it is asked for tiles that are smaller, or for flips.
    """
    if inference.tile is not None and max(space) > inference.tile:
        raise ValueError(f"{name} has size {list(space)}; masks are drawn of whole images: expected no tile")
    if inference.flips:
        raise ValueError("masks are drawn, each another one, and are not averaged over flips: expected more masks")
