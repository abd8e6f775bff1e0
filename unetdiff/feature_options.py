"""Settings of a frozen denoiser that is read for segmentation, and of the probe of its steps. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from unetdiff.typed import check_at_least, check_types


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """How a frozen denoiser is read, and the ensemble of per-pixel networks that reads it (Baranchuk et al. 2022).

    Args:
        timesteps: noise levels at which the denoiser is asked.
        blocks: steps of its plan whose outputs are read, as side.name, such as decoder.level1_block0; none: the
            decoder's blocks. train/probe.py ranks them.
        members: networks in the ensemble.
        hidden: widths of the hidden layers of each.
        positions: of each training crop that each of them learns from, drawn at random.
        bootstrap: whether each learns from its own draw of the training images, with replacement.
        random: the control: random weights instead of the denoiser's, drawn from the run's seed.
    """

    timesteps: list[int] = field(default_factory=lambda: [50, 150, 250])
    blocks: list[str] = field(default_factory=list)
    members: int = 10
    hidden: list[int] = field(default_factory=lambda: [128, 32])
    positions: int = 64
    bootstrap: bool = True
    random: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "members", "positions")
        _check_timesteps("features.timesteps", self.timesteps)
        if not self.hidden or min(self.hidden) < 2:
            raise ValueError(f"features.hidden is {self.hidden}; expected widths of at least 2")
        if len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"features.blocks is {self.blocks}; expected each once")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What train/probe.py tries, and how each cell of its grid is measured.

    Args:
        timesteps: noise levels at which the denoiser is asked.
        blocks: steps of its plan whose outputs are measured, as side.name; none: every block.
        positions: labelled positions in all, shared out evenly over the labelled images.
        folds: of the cross-validation over images (at most as many as there are images). A single image is cut into
            two halves along its longest axis.
        hidden: width of the hidden layer of the classifier.
        steps: optimizer steps of each classifier, always as many.
        learning_rate: of those.
        out: folder of the results; none: the run folder's name and _probe.
    """

    timesteps: list[int] = field(default_factory=lambda: [10, 50, 100, 200, 400, 600])
    blocks: list[str] = field(default_factory=list)
    positions: int = 4096
    folds: int = 5
    hidden: int = 32
    steps: int = 100
    learning_rate: float = 1e-2
    out: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 2, "folds")
        check_at_least(self, 1, "positions", "hidden", "steps")
        _check_timesteps("probe.timesteps", self.timesteps)
        if self.learning_rate <= 0:
            raise ValueError(f"probe.learning_rate is {self.learning_rate}; expected more than 0")


def _check_timesteps(name: str, timesteps: list[int]) -> None:
    if not timesteps or min(timesteps) < 0 or len(set(timesteps)) < len(timesteps):
        raise ValueError(f"{name} is {timesteps}; expected timesteps of at least 0, each once")
