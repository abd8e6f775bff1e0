"""Flood fill across a one-pixel wall: which pixels can be reached from the seed?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d

from benchmarks.skip_study.fitting import ARMS, NARROW, build, count, fit
from benchmarks.skip_study.images import pack
from benchmarks.skip_study.study import Measurement
from unetdiff.models.unet import UNet

CROSS = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
HELD_OUT_SEED = 99  # no network is trained on draws of this seed
SEED_HEIGHT = 4.0  # of the one pixel in the seed's channel: as a single 1 it would hardly move a norm's statistics


def winding_walls(count: int, size: int, stride: int, generator: torch.Generator) -> Tensor:
    """Walls of one pixel from one edge to the opposite one, (count, size, size) bool.

    A wall goes down in steps of two rows. In the first of them it runs sideways by up to `stride` pixels, drawn
    uniformly, in the second it only descends; so runs never touch, and each costs log2(2 stride + 1) bits to know. Half
    of the walls are transposed.
    """
    turns = (size + 1) // 2
    moves = torch.randint(-stride, stride + 1, (count, turns), generator=generator)
    column = torch.randint(size // 4, size - size // 4, (count,), generator=generator)
    walls = torch.zeros(count, size, size, dtype=torch.bool)
    x = torch.arange(size)
    for turn in range(turns):
        after = (column + moves[:, turn]).clamp(1, size - 2)
        low, high = torch.minimum(column, after), torch.maximum(column, after)
        walls[:, 2 * turn] = (x >= low[:, None]) & (x <= high[:, None])
        if 2 * turn + 1 < size:
            walls[:, 2 * turn + 1] = x == after[:, None]
        column = after
    turned = torch.rand(count, generator=generator) < 0.5
    return torch.where(turned[:, None, None], walls.mT, walls)


def random_seeds(walls: Tensor, generator: torch.Generator) -> Tensor:
    """One free pixel per image, each as likely: (N, H, W) bool in and out."""
    draws = torch.rand(walls.shape, generator=generator).masked_fill(walls, -1)
    chosen = draws.flatten(1).argmax(1)
    return torch.zeros_like(walls).flatten(1).scatter(1, chosen[:, None], True).reshape(walls.shape)


def flood_fill(walls: Tensor, seeds: Tensor) -> Tensor:
    """The pixels that a path of side-by-side steps reaches from the seeds without a wall: (N, H, W) bool."""
    reached, free = seeds & ~walls, ~walls
    while True:
        wider = (conv2d(reached[:, None].float(), CROSS, padding=1)[:, 0] > 0) & free
        if torch.equal(wider, reached):
            return reached
        reached = wider


def iou(found: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each image, (N,), for bool masks (N, H, W); 1 where both are empty."""
    both, either = (found & truth).flatten(1).sum(1), (found | truth).flatten(1).sum(1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


@dataclass(frozen=True, kw_only=True)
class FloodFill:
    """Settings: all that decides the results.

    Args:
        network: settings of `UNet`: one width throughout.
        arms: which of ARMS.
        seeds: of weights and images; the same for all arms.
        size, stride: of the images, and how far their walls run sideways.
        steps, batch_size, learning_rate: of training, on new images in every step.
        held_out: images that are measured on.
        watched: how often, at even distances while training.
        shown: how many held-out images the results of the first seed keep.
    """

    network: Mapping[str, Any] = field(
        default_factory=lambda: {
            **NARROW,
            "in_channels": 2,
            "out_channels": 1,
            "norm": {"preset": "ddpm", "time": "none"},
        }
    )
    arms: Sequence[str] = tuple(ARMS)
    seeds: Sequence[int] = (0, 1, 2)
    size: int = 24
    stride: int = 6
    steps: int = 800
    batch_size: int = 16
    learning_rate: float = 2e-3
    held_out: int = 128
    watched: int = 8
    shown: int = 5

    def measurements(self) -> Iterator[Measurement]:
        """One network per seed and arm."""
        varied = {"arms", "seeds", "shown"}
        conditions = {name: value for name, value in asdict(self).items() if name not in varied}
        for seed in self.seeds:
            for arm in self.arms:
                yield Measurement("flood", f"flood-{arm}-seed{seed}", conditions, partial(self.run, arm, seed))

    def run(self, arm: str, seed: int) -> dict[str, Any]:
        """Train one network and measure it on held-out images."""
        network = build(self.network, arm, seed)
        generator = torch.Generator().manual_seed(seed)
        held_out, truth = self.draw(self.held_out, torch.Generator().manual_seed(HELD_OUT_SEED))

        def draw() -> tuple[Tensor, None, Tensor]:
            images, regions = self.draw(self.batch_size, generator)
            return images, None, regions[:, None].float()

        def watch() -> float:
            return iou(logits(network, held_out) > 0, truth).mean().item()

        how = {"steps": self.steps, "learning_rate": self.learning_rate, "watched": self.watched}
        curve = fit(network, draw, loss=binary_cross_entropy_with_logits, watch=watch, **how)
        result = {
            "arm": arm,
            "seed": seed,
            "parameters": count(network),
            "iou": curve[-1][1],
            "iou_of_all_free_pixels": iou(held_out[:, 0] < 0, truth).mean().item(),
            "curve": curve,
        }
        if seed != self.seeds[0]:
            return result
        shown = {
            "walls": held_out[:, 0] > 0,
            "seeds": held_out[:, 1] > 0,
            "truth": truth,
            "found": logits(network, held_out).sigmoid(),
        }
        pictures = {name: [pack(image, 0, 1) for image in images[: self.shown]] for name, images in shown.items()}
        return {**result, "pictures": pictures}

    def draw(self, images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (N, 2, size, size), walls as 1 in -1 and the seed as SEED_HEIGHT in 0, and the regions, bool."""
        walls = winding_walls(images, self.size, self.stride, generator)
        seeds = random_seeds(walls, generator)
        return torch.stack([2.0 * walls - 1, SEED_HEIGHT * seeds], 1), flood_fill(walls, seeds)


@torch.no_grad()
def logits(network: UNet, images: Tensor) -> Tensor:
    """Log odds (N, H, W) that a pixel belongs to the seed's region."""
    return network(images).sample[:, 0]
