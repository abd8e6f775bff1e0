"""What a normalization study is made of: one YAML file. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from unetdiff.typed import check_at_least, check_types

RegimeName = Literal["A", "B", "C"]


@dataclass(frozen=True)
class Job:
    """One network to train and measure; its result is one file."""

    placement: str
    regime: RegimeName
    seed: int
    learning_rate: float

    @property
    def file(self) -> str:
        """The name of the result's file."""
        return f"{self.regime}-{self.placement}-seed{self.seed}-lr{self.learning_rate:g}.json"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: placements x regimes x seeds x learning rates, each trained and measured alike.

    Args:
        regimes: for each regime (`A`, `B`, `C`; see `regimes.py`) its placements, by name (see `placements.py`).
        seeds: of weights, order of images and noise; the same for every placement.
        learning_rates: each is trained; the report takes, per placement and regime, the one with the least error on
            held-out training images.
        network: settings of `UNet`, without the placement and what the regime decides.
        groups: of the group norms.
        size: height and width that the images are averaged down to.
        train_images, validation_images, test_images: how many; the validation images are training images that are
            not trained on.
        measured_images: of the test images, those on which errors and amplitudes are measured.
        steps, batch_size, gradient_clip: of training: AdamW without weight decay, and a learning rate that falls
            linearly to zero.
        ema_decay: of an average of the weights, which is then measured; 0: the weights themselves.
        levels: how many noise levels are measured.
        samples, sample_steps: images drawn in regime A, and in how many steps of DPM-Solver++.
        components: principal components of the test images' pixels, over which the Frechet distance is taken.
    """

    regimes: Mapping[RegimeName, list[str]]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    learning_rates: list[float] = field(default_factory=lambda: [1e-3])
    network: Mapping[str, Any] = field(default_factory=dict)
    groups: int = 8
    size: int = 16
    train_images: int = 20000
    validation_images: int = 256
    test_images: int = 2000
    measured_images: int = 256
    steps: int = 600
    batch_size: int = 32
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    levels: int = 8
    samples: int = 512
    sample_steps: int = 15
    components: int = 32

    def __post_init__(self) -> None:
        check_types(self)
        counts = ("train_images", "validation_images", "test_images", "measured_images", "steps", "batch_size")
        check_at_least(self, 1, "groups", "size", "sample_steps", "components", *counts)
        check_at_least(self, 2, "levels", "samples")
        if not self.regimes or not self.seeds or not self.learning_rates:
            raise ValueError("a study needs at least one of regimes, seeds and learning_rates each")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected 0 to below 1")

    def jobs(self) -> Iterator[Job]:
        """Every network of the study: regime by regime, one seed of every placement before the next seed."""
        for regime, placements in self.regimes.items():
            for seed in self.seeds:
                for placement in placements:
                    for rate in self.learning_rates:
                        yield Job(placement, regime, seed, rate)

    @property
    def conditions(self) -> dict[str, Any]:
        """What all networks of a study have in common, as JSON: results under other conditions do not mix."""
        varied = {"regimes", "seeds", "learning_rates"}
        return {name: value for name, value in asdict(self).items() if name not in varied}
