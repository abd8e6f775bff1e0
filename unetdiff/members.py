"""Who answers when runs are asked for masks: each network as functions of images alone, by its kind of run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.drawing import by_votes
from unetdiff.runs import Run
from unetdiff.segmentation.flips import with_flips
from unetdiff.segmentation.noise_input import TimedScores, make_noise_input, probabilities_at, timesteps_of
from unetdiff.segmentation.tiles import Predict


def members_of(run: Run, flips: tuple[int, ...], passes: int, seed: int) -> list[Predict]:
    """The answers that a run gives to an image: functions of images (n, C, *space) in [-1, 1] to class probabilities.

    An answer is (n, K, *space), or that of several members side by side, (n, M K, *space).

    Args:
        run: of any kind of segmentation network.
        flips: the spatial axes whose mirrorings each answer averages.
        passes: how many answers, reproducible in their order.
        seed: of the first; the next ones count on from it.
    """
    answers = MEMBERS[run.beside.settings.get("kind", "logits")](run, passes, seed)
    return [with_flips(answer, flips) if flips else answer for answer in answers]


def scores_of(run: Run) -> TimedScores:
    """The class scores of a run's network as a function of images and the timestep that it is told."""
    head = run.beside.settings.get("head")
    if head is None:
        return lambda images, timestep: run.unet(images, timestep, return_dict=False)[0]
    return lambda images, timestep: run.unet(images, timestep).heads[head]


def _by_scores(run: Run, passes: int, seed: int) -> list[Predict]:
    """Softmax of the scores, a mean over timesteps where there are several; more than one pass has dropout on."""
    held = run.beside.settings
    noise, timesteps = make_noise_input(held.get("noise_input")), timesteps_of(held.get("timestep"))
    predict = probabilities_at(scores_of(run), timesteps, run.unet.device, noise)
    if passes == 1:
        return [predict]
    return [_with_dropout(predict, run.unet, seed + number) for number in range(passes)]


def _by_ensemble(run: Run, passes: int, seed: int) -> list[Predict]:
    """One answer with all members of the network, since they share what costs most; nothing in it is random."""
    network: Any = run.unet
    return [lambda images: torch.cat([one.exp() for one in network.answers(images.to(network.device))], dim=1)]


MEMBERS: dict[str, Callable[[Run, int, int], list[Predict]]] = {
    "logits": _by_scores,
    "joint": _by_scores,
    "features": _by_ensemble,
    "diffusion": by_votes,
}
"""By kind: (run, passes, seed) -> that many answers."""


def _with_dropout(predict: Predict, network: Any, seed: int) -> Predict:
    """With dropout on for each call, and all else as in evaluation; calls are reproducible in their order."""
    layers = _dropout_layers(network)
    generator = torch.Generator().manual_seed(seed)
    devices = [network.device] if network.device.type == "cuda" else []  # the CPU's is always among them

    def dropped(images: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for layer in layers:
                layer.train()
            try:
                return predict(images)
            finally:
                for layer in layers:
                    layer.eval()

    return dropped


def _dropout_layers(network: nn.Module) -> list[nn.Dropout]:
    """The layers that drop anything."""
    return [module for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0]


def has_dropout(run: Run) -> bool:
    """Whether passes of a network with dropout on would differ."""
    return bool(_dropout_layers(run.unet))
