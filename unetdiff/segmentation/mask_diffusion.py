"""Masks as data of a diffusion model: their encoding as numbers, the loss, and drawing them, given the image.

A mask is x0 = scale * code of its class at every position, code in {-1, 1} per channel, so it lies in
[-scale, scale], which is also what predictions are clipped to. x_t = alpha x0 + sigma epsilon as for images, so that a
scale b lowers every signal-to-noise ratio by b^2 (Chen et al. 2023, https://arxiv.org/abs/2208.04202, section 3). At
positions with the label IGNORE x0 is 0, which stands for no class, and there is no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from unetdiff.diffusion.guidance import Denoiser, clip_x0
from unetdiff.diffusion.objective import DiffusionObjective, Draws
from unetdiff.diffusion.options import SamplerName
from unetdiff.diffusion.sampler import make_sampler, sample
from unetdiff.diffusion.schedule import alpha_sigma, make_schedule, target_value
from unetdiff.mask_diffusion_options import CodeName, MaskDiffusionConfig
from unetdiff.segmentation.objective import MaskObjective
from unetdiff.segmentation.options import IGNORE

_POSITIONS_AT_ONCE = 2**17  # of the masks that are drawn together, unless it is one mask


def _one_hot(classes: int) -> Tensor:
    return 2 * torch.eye(classes) - 1


def _bits(classes: int) -> Tensor:
    digits = torch.arange(max((classes - 1).bit_length(), 1))
    return 2.0 * (torch.arange(classes)[:, None] >> digits & 1) - 1


CODES: dict[CodeName, Callable[[int], Tensor]] = {"one_hot": _one_hot, "bits": _bits}
"""By encoding: number of classes K -> codes (K, channels) of 1 and -1."""


@dataclass(frozen=True)
class LabelCodes:
    """Labels as numbers and back.

    Attributes:
        encoding: a key of `CODES`: K channels, or ceil(log2 K).
        classes: K.
        scale: the magnitude of every number.
    """

    encoding: CodeName
    classes: int
    scale: float = 1.0

    @cached_property
    def table(self) -> Tensor:
        """(K, channels) float32 of scale and -scale."""
        return self.scale * CODES[self.encoding](self.classes)

    @property
    def channels(self) -> int:
        """Of an encoded mask."""
        return self.table.shape[1]

    def encode(self, labels: Tensor) -> Tensor:
        """Labels (N, *space) int64 in 0 .. K-1 or IGNORE as (N, channels, *space) float32; 0 where ignored."""
        numbers = self.table.to(labels.device)[labels.clamp(min=0)].movedim(-1, 1)
        return numbers * (labels != IGNORE)[:, None]

    def expected(self, probabilities: Tensor) -> Tensor:
        """The mean (N, channels, *space) of the codes under class probabilities (N, K, *space)."""
        return torch.einsum("nk...,kc->nc...", probabilities, self.table.to(probabilities))

    def labels(self, numbers: Tensor) -> Tensor:
        """The class (N, *space) int64 whose code is nearest to (N, channels, *space); never a code of no class."""
        return torch.einsum("nc...,kc->nk...", numbers, self.table.to(numbers)).argmax(1)


class MaskNetwork(Protocol):
    """What drawing asks of a network; `unetdiff.models.mask_denoiser.MaskDenoiser` is one."""

    @property
    def device(self) -> torch.device: ...

    def features(self, images: Tensor) -> Tensor:
        """Images (n, C, *space) in [-1, 1] to what `denoise` is told of them, (n, F, *space)."""
        ...

    def denoise(self, features: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
        """The prediction for noisy masks (n, channels, *space) at timesteps (n,)."""
        ...


@dataclass(frozen=True)
class MaskDiffusion:
    """The diffusion of masks: what is learned, and how masks are drawn.

    Attributes:
        codes: of labels.
        objective: the noise, and for targets of squared error the loss.
        by_classes: the loss of class scores where the network says those; None: it says the objective's target.
    """

    codes: LabelCodes
    objective: DiffusionObjective
    by_classes: MaskObjective | None = None

    @classmethod
    def of(
        cls, settings: MaskDiffusionConfig, classes: int, class_weights: tuple[float, ...] | None = None,
        label_smoothing: float = 0.0,
    ) -> MaskDiffusion:  # fmt: skip
        """As settings say; class weights and label smoothing are of the cross-entropy."""
        target = "x0" if settings.target == "cross_entropy" else settings.target
        scheduler = make_schedule(
            settings.schedule, num_train_timesteps=settings.num_train_timesteps, target=target
        )  # fmt: skip
        scores = MaskObjective("cross_entropy", class_weights, label_smoothing) if settings.by_classes else None
        codes = LabelCodes(settings.encoding, classes, settings.scale)
        return cls(codes, DiffusionObjective(scheduler, target, settings.weighting), scores)

    @property
    def out_channels(self) -> int:
        """Of the network."""
        return self.codes.channels if self.by_classes is None else self.codes.classes

    def draw(self, keys: Sequence[int], space: Sequence[int]) -> Draws:
        """Noise (N, channels, *space) and timesteps (N,), each sample's a function of its key alone."""
        return self.objective.draw(keys, (self.codes.channels, *space))

    def noisy(self, labels: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (N, channels, *space) of labels (N, *space)."""
        return self.objective.noisy(self.codes.encode(labels), noise, timesteps)

    def seen(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """x_t as the network sees it: with a mean square of 1 whatever the scale (Chen 2023, section 2.2 of
        https://arxiv.org/abs/2301.10972)."""
        alpha, sigma = alpha_sigma(self.objective.scheduler, timesteps, x_t.ndim)
        return x_t / ((self.codes.scale * alpha) ** 2 + sigma**2).sqrt()

    def loss_per_sample(
        self,
        output: Tensor,
        labels: Tensor,
        x_t: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Losses (N,), means over the positions that are not ignored, 0 where there are none.

        Args:
            output: of the network for x_t, (N, out_channels, *space).
            labels: (N, *space) int64 in 0 .. K-1 or IGNORE.
            x_t, noise: (N, channels, *space). timesteps: (N,).
            weight: (N, *space), of positions in the cross-entropy.
        """
        if self.by_classes is not None:
            return self.by_classes.loss_per_sample(output, labels, weight)
        scheduler, target = self.objective.scheduler, self.objective.target
        x0, counted = self.codes.encode(labels), (labels != IGNORE)[:, None]
        truth = target_value(scheduler, target, x0, noise.float(), timesteps)
        output = torch.where(counted, output.float(), truth)
        share = counted.float().flatten(1).mean(1)
        loss = self.objective.score(output, x0, x_t, noise, timesteps).loss
        return loss / share.clamp(min=torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def masks(
        self,
        network: MaskNetwork,
        images: Tensor,
        *,
        seeds: Sequence[int],
        steps: int,
        sampler: SamplerName,
        batch: int | None = None,
    ) -> Tensor:
        """Masks of images, one of every image per seed: (n, len(seeds), *space) int64, on the CPU.

        The mask of an image and a seed is the same, to rounding, beside any others. Features are made once per image.

        Args:
            network: in evaluation mode.
            images: (n, C, *space) in [-1, 1].
            seeds: of the noise.
            steps: of the sampler, from 1 to the number of timesteps.
            batch: masks that are drawn at a time; None: as many as hold 2^17 positions, at least one.

        Raises:
            ValueError: another sampler or number of steps than there is.
        """
        count, most = len(images), self.objective.scheduler.config["num_train_timesteps"]
        if not 1 <= steps <= most:
            raise ValueError(f"steps is {steps}; expected 1 to {most}, the timesteps of the mask's noise")
        features = network.features(images.to(network.device))
        shape = (self.codes.channels, *images.shape[2:])
        solver = make_sampler(sampler, self.objective.scheduler)
        pairs = [(image, seed) for image in range(count) for seed in seeds]
        batch = batch or max(_POSITIONS_AT_ONCE // prod(shape[1:]), 1)
        drawn = []
        for first in range(0, len(pairs), batch):
            part = pairs[first : first + batch]
            known = features[[image for image, _ in part]]
            found = sample(
                self._denoiser(network, known), solver, shape=shape, seeds=[seed for _, seed in part], steps=steps,
                device=network.device,
            )  # fmt: skip
            drawn.append(self.codes.labels(found).cpu())
        return torch.cat(drawn).unflatten(0, (count, len(seeds)))

    def _denoiser(self, network: MaskNetwork, features: Tensor) -> Denoiser:
        """The network, told of images, as a denoiser whose x0 stays in the range of the codes."""

        def predict(x_t: Tensor, timestep: Tensor, _labels: Tensor | None) -> Tensor:
            output = network.denoise(features, self.seen(x_t, timestep), timestep).float()
            return output if self.by_classes is None else self.codes.expected(output.softmax(1))

        return predict if self.by_classes is not None else clip_x0(predict, self.objective.scheduler, self.codes.scale)
