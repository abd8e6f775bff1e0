"""The table of cases: what each says, and where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.speed.results import Found


@dataclass(frozen=True)
class Options:
    """How cases are run.

    device: where. quick: smaller networks and fewer rounds, to see that everything runs; its figures say little.
    data: a folder with the parquet files of CIFAR-10, or none: pictures are then generated.
    """

    device: torch.device
    quick: bool
    data: Path | None = None

    def rounds(self, count: int) -> int:
        """How many rounds of `count` are made."""
        return 2 if self.quick else count


@dataclass(frozen=True)
class Case:
    """module: holds `run(options) -> Found`, and is imported only where the case is run."""

    module: str
    says: str

    @property
    def run(self) -> Callable[[Options], Found]:
        """What measures it."""
        return import_module(self.module).run


CASES: dict[str, Case] = {
    "train_step": Case(
        "benchmarks.speed.train_step",
        "One training step (forward, backward, clip, AdamW, average of the weights) beside the same network of another "
        "library with the same weights, or its nearest.",
    ),
    "sample": Case(
        "benchmarks.speed.sample",
        "Images per second: DDIM with 50 steps and DPM-Solver++ with 20, beside diffusers' pipelines.",
    ),
    "segment": Case(
        "benchmarks.speed.segment",
        "A tiled image beside MONAI's `sliding_window_inference` around the same network; an image in one piece.",
    ),
    "loop": Case(
        "benchmarks.speed.loop",
        "`train/denoise.py` (data, draws, checks, averages, logging) beside the bare step (forward, backward, clip, "
        "AdamW on batches that are there); the data pipeline alone.",
    ),
    "scale": Case(
        "benchmarks.speed.scale",
        "Time and memory of forward and backward against batch, resolution and depth, and time against processes.",
    ),
    "start": Case(
        "benchmarks.speed.start",
        "What a command costs before it does anything: wall-clock seconds of new processes.",
    ),
}
"""By name, in the order in which they are run and shown."""
