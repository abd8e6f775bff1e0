"""Gradient norm at the first layer of networks as they start, with and without skips, over depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.functional import mse_loss

from benchmarks.skip_study.fitting import ARMS, build
from benchmarks.skip_study.study import Measurement
from unetdiff.models.statistics import default_start
from unetdiff.models.unet import UNet


@dataclass(frozen=True)
class Start:
    """How networks are placed and started.

    title: in tables and plots. norm: the placement. activation: of the network. prepare: changes the weights that the
    network was given.
    """

    title: str
    norm: Mapping[str, Any]
    activation: str = "silu"
    prepare: Callable[[UNet], None] | None = None


_POST: dict[str, Any] = {"pos": "post", "norm": {"kind": "group"}}
_UNTIMED: dict[str, Any] = {"time": "none"}

# The output convolution never starts at zero here: the gradient of everything before it would be exactly zero.
STARTS: dict[str, Start] = {
    "ddpm": Start("DDPM, branches start at zero", {**_UNTIMED, "preset": "ddpm", "zero_init": ["branch"]}),
    "ddpm_full": Start("DDPM, nothing starts at zero", {**_UNTIMED, "preset": "ddpm", "zero_init": []}),
    "post": Start(
        "post-norm, no shortcuts",
        {**_UNTIMED, "preset": "nnunet", "encoder": _POST, "decoder": _POST},
    ),
    "bare": Start("2015: no norm, no shortcuts", {**_UNTIMED, "preset": "unet2015"}, "relu"),
    "bare_torch": Start("2015, torch's first weights", {**_UNTIMED, "preset": "unet2015"}, "relu", default_start),
}


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Settings: all that decides the results.

    Args:
        starts: which of STARTS.
        depths: numbers of levels.
        channels: width of every level.
        network: further settings of `UNet`.
        size, batch_size: of the input, which is white noise, as is the target of the squared error.
        seeds: how many networks, each with its own weights and noise; the same for both arms.
    """

    starts: Sequence[str] = tuple(STARTS)
    depths: Sequence[int] = (2, 3, 4, 5, 6)
    channels: int = 16
    network: Mapping[str, Any] = field(
        default_factory=lambda: {
            "blocks": 1,
            "decoder_blocks": 1,
            "middle_attention": False,
            "in_channels": 1,
            "time_embedding": "none",
        }
    )
    size: int = 64
    batch_size: int = 4
    seeds: int = 8

    def measurements(self) -> Iterator[Measurement]:
        """One per start."""
        for name in self.starts:
            yield Measurement("gradient", f"gradient-{name}", self.conditions(name), partial(self.run, name))

    def conditions(self, start: str) -> dict[str, Any]:
        """What decides the result of a start, as JSON."""
        names = ("channels", "size", "batch_size", "seeds")
        placed = {"norm": dict(STARTS[start].norm), "activation": STARTS[start].activation}
        held = {name: getattr(self, name) for name in names}
        return {**held, "depths": list(self.depths), "network": {**self.network, **placed}}

    def run(self, start: str) -> dict[str, Any]:
        """The gradient norms of every arm at every depth, one per seed."""
        norms = {
            arm: [[self.norm(start, arm, depth, seed) for seed in range(self.seeds)] for depth in self.depths]
            for arm in ARMS
        }
        return {"start": start, "title": STARTS[start].title, "gradient_norms": norms}

    def norm(self, start: str, arm: str, depth: int, seed: int) -> float:
        """The norm of the gradient of the mean squared error with respect to the stem's filters."""
        settings = {**self.conditions(start)["network"], "channels": [self.channels] * depth}
        network = build(settings, arm, seed)
        prepare = STARTS[start].prepare
        if prepare is not None:
            prepare(network)
        images, target = torch.randn(2, self.batch_size, 1, self.size, self.size)
        mse_loss(network(images).sample, target).backward()
        return stem_gradient(network)


def stem_gradient(network: UNet) -> float:
    """The norm of the gradient at the filters of the first convolution."""
    stem = network.encoder["stem"]
    filters = next(parameter for parameter in stem.parameters() if parameter.ndim > 1)
    assert filters.grad is not None, "call backward first"
    return filters.grad.norm().item()
