"""Networks with and without skips, and how one is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from unetdiff.models.unet import UNet

ARMS = {"unet": "concat", "added": "add", "autoencoder": "none"}
"""The networks that are compared, by their `skip_fusion`. Where all levels are of one width, that with added skips
learns exactly as many numbers as that without."""

NARROW: dict[str, Any] = {
    "channels": [16, 16, 16, 16],
    "blocks": 1,
    "decoder_blocks": 1,
    "middle_attention": False,
    "time_embedding": "none",
}
"""A network of one width, without a timestep."""

CLIP = 1.0  # of the gradient's norm

Batch = tuple[Tensor, Tensor | None, Tensor]  # input (N, C, *space), timesteps (N,), target (N, C, *space)
Loss = Callable[[Tensor, Tensor], Tensor]


def build(settings: Mapping[str, Any], arm: str, seed: int) -> UNet:
    """The network of an arm, on weights drawn from `seed`."""
    torch.manual_seed(seed)
    return UNet(**{**settings, "skip_fusion": ARMS[arm]})


def count(network: UNet) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def fit(
    network: UNet,
    draw: Callable[[], Batch],
    *,
    steps: int,
    learning_rate: float,
    loss: Loss = mse_loss,
    watch: Callable[[], float] | None = None,
    watched: int = 8,
) -> list[tuple[int, float]]:
    """Train with AdamW, without weight decay, at a rate that falls linearly to zero.

    Args:
        network: trained in place, and left in evaluation mode.
        draw: the next batch.
        loss: of prediction and target.
        watch: measures the network; called `watched` times at even distances, the last time at the end.

    Returns:
        (steps taken, what `watch` said), in order.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.0)
    seen: list[tuple[int, float]] = []
    moments = {round(steps * (part + 1) / watched) for part in range(watched)} if watch else set()
    for step in range(steps):
        network.train()
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        inputs, timesteps, target = draw()
        loss(network(inputs, timesteps).sample, target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step + 1 in moments and watch is not None:
            network.eval()
            seen.append((step + 1, watch()))
    network.eval()
    return seen
