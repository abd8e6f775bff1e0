"""What a frozen denoiser computes on its way: the outputs of chosen steps at chosen noise levels, of any image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdiff.models.plan import Plan
from unetdiff.models.step import Step
from unetdiff.models.unet import UNet
from unetdiff.nn.dims import INTERPOLATION, crop

NOISE_SEED = 0
"""Of the noise that all images share."""


class FrozenFeatures(nn.Module):
    """The outputs of steps of a denoiser, asked about noisy images (Baranchuk et al. 2022, section 3).

    The denoiser has no gradients and stays in evaluation mode, whatever mode is asked for: dropout is off, and
    statistics of norms are those of its training. All images are given the same noise, so that what an output says
    depends on the image alone.

    Args:
        denoiser: trained, or not; frozen here.
        blocks: keys of steps of its plan. timesteps: of its noise schedule, T of them.
        alpha_bars: the signal's share of the variance at each of those, in [0, 1].

    Raises:
        ValueError: a block is no step of the plan, or sizes are not kept.
    """

    def __init__(self, denoiser: UNet, blocks: Sequence[str], timesteps: Sequence[int], alpha_bars: Sequence[float]):
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.steps = chosen_steps(denoiser.layout, blocks)
        self.timesteps, self.alpha_bars = tuple(timesteps), tuple(alpha_bars)

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map that `forward` returns."""
        return [len(self.timesteps) * step.out_channels for step in self.steps]

    def train(self, mode: bool = True) -> FrozenFeatures:
        """The mode of this module alone: the denoiser stays in evaluation mode."""
        super().train(mode)
        self.denoiser.eval()
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (n, C, *space) in [-1, 1] to feature maps, one per step, at the step's own resolution.

        Returns:
            float32 (n, T * channels, *size) each, timestep by timestep; of images that were padded at the end of
            each axis to a multiple of the network's strides, see `padded_size`.
        """
        noise = shared_noise(images)
        parts: list[list[Tensor]] = [[] for _ in self.steps]
        for timestep, signal in zip(self.timesteps, self.alpha_bars, strict=True):
            seen = self._outputs(signal**0.5 * images + (1 - signal) ** 0.5 * noise, timestep)
            for part, step in zip(parts, self.steps, strict=True):
                part.append(seen[step.key].float())
        return [torch.cat(part, dim=1) for part in parts]

    def _outputs(self, noisy: Tensor, timestep: int) -> dict[str, Tensor]:
        """What the chosen steps return on one pass, by their keys."""
        modules, seen = self.denoiser.step_modules(), {}

        def keep(key: str) -> Any:
            def hook(module: nn.Module, given: Any, output: Tensor) -> None:
                seen[key] = output

            return hook

        with ExitStack() as hooks:
            for step in self.steps:
                handle = modules[step.key].register_forward_hook(keep(step.key))
                hooks.callback(handle.remove)
            self.denoiser(noisy, timestep)
        return seen

    def padded_size(self, space: Sequence[int]) -> tuple[int, ...]:
        """The size of an image (*space) as the denoiser's steps see it."""
        return tuple(length + -length % factor for length, factor in zip(space, self.denoiser.multiple, strict=True))


def chosen_steps(plan: Plan, blocks: Sequence[str]) -> tuple[Step, ...]:
    """The steps of a plan by key, in its order and level by level; `ValueError` where there is none of that name."""
    by_key = {step.key: step for step in plan.steps}
    unknown = [key for key in blocks if key not in by_key]
    if unknown:
        known = ", ".join(by_key)
        raise ValueError(f"the denoiser has no step {unknown[0]!r} (features.blocks, probe.blocks); it has: {known}")
    if not plan.pads:
        raise ValueError("model.init_from has convolutions without padding; expected a denoiser that keeps sizes")
    return tuple(sorted((by_key[key] for key in by_key if key in set(blocks)), key=lambda step: step.level))


def blocks_of(plan: Plan, *sides: str) -> list[str]:
    """The keys of the blocks on these sides of a plan."""
    return [step.key for step in plan.steps if step.kind == "block" and step.side in sides]


def shared_noise(images: Tensor) -> Tensor:
    """Standard normal noise (1, C, *space) for images (n, C, *space): the same for all images of one size."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    return torch.randn((1, *images.shape[1:]), generator=generator).to(images)


def at_full_size(maps: Tensor, padded: Sequence[int], space: Sequence[int]) -> Tensor:
    """Feature maps (n, C, *size) interpolated linearly to the `padded` size, cut to the image's: (n, C, *space)."""
    if tuple(maps.shape[2:]) != tuple(padded):
        maps = F.interpolate(maps, size=list(padded), mode=INTERPOLATION[len(padded)], align_corners=False)
    return crop(maps, space)


def at_positions(maps: Tensor, places: Tensor, padded: Sequence[int], space: Sequence[int]) -> Tensor:
    """What `at_full_size` has at some positions, without making the rest.

    Args:
        maps: (n, C, *size).
        places: (n, P) int64, positions of each image, counted along the flattened `space`.
        padded: the size that the maps are of. space: of the images.

    Returns:
        (n, P, C).
    """
    at = torch.stack(torch.unravel_index(places, tuple(space)), dim=-1)
    size = torch.tensor(padded, device=maps.device)
    grid = ((2 * at + 1) / size - 1).flip(-1).to(maps.dtype)  # torch's order: the last axis first
    dims = len(padded)
    if dims == 1:  # as images of one row
        maps, grid = maps[:, :, None], torch.cat([grid, torch.zeros_like(grid)], dim=-1)
    grid = grid.reshape(len(grid), -1, *[1] * (maps.ndim - 3), grid.shape[-1])
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.flatten(2).movedim(1, 2)
