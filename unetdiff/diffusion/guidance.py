"""Functions that turn a denoiser into another one; they compose: `classifier_free(clip_x0(denoise, ...), ...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unetdiff.diffusion.process import process_of
from unetdiff.diffusion.schedule import split_variance

# (x_t (N, C, *space), timestep (N,), class labels (N,) int64 or None) -> prediction (N, C or 2C, *space)
Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _join(prediction: Tensor, variance: Tensor | None) -> Tensor:
    return prediction if variance is None else torch.cat([prediction, variance], dim=1)


def classifier_free(denoise: Denoiser, scale: float, null_class: int) -> Denoiser:
    """Guide towards the labels: unconditional + scale (conditional - unconditional), in one call on a doubled batch.

    Ho & Salimans 2022, https://arxiv.org/abs/2207.12598; `scale` is their 1 + w, so 1 is the conditional denoiser
    itself, at its cost. All three targets are affine in x0 at a given x_t, so guiding any of them is the same.
    A learned variance is that of the conditional half.

    Args:
        denoise: called with labels (2N,), the second half of which are `null_class`.
        scale: 1 for none; larger follows the labels more closely, at the price of variety.
        null_class: the label that was trained to mean "any class".
    """
    if scale == 1:
        return denoise

    def guided(x_t: Tensor, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        assert class_labels is not None, "classifier-free guidance needs labels"
        labels = torch.cat([class_labels, torch.full_like(class_labels, null_class)])
        output = denoise(torch.cat([x_t, x_t]), torch.cat([timestep, timestep]), labels)
        prediction, variance = split_variance(output, x_t.shape[1])
        conditional, unconditional = prediction.chunk(2)
        return _join(
            unconditional + scale * (conditional - unconditional),
            None if variance is None else variance.chunk(2)[0],
        )

    return guided


def clip_x0(denoise: Denoiser, scheduler: Any, bound: float = 1.0) -> Denoiser:
    """Keep the x0 that each prediction stands for within [-bound, bound], the range of the data.

    A network's x0 is a mean over possible data, so it lies in their range and clipping only removes errors (large
    ones where an epsilon prediction meets a small SNR). What guidance extrapolates has no such bound, and clipping
    it at every step spoils samples: clip the denoiser first, then guide it.

    Args:
        denoise: of the target that `scheduler.config.prediction_type` names.
        scheduler: the diffusers scheduler that the network was trained with.
        bound: largest magnitude.
    """
    process = process_of(scheduler)

    def clipped(x_t: Tensor, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        prediction, variance = split_variance(denoise(x_t, timestep, class_labels), x_t.shape[1])
        x0 = process.x0(x_t, timestep, prediction.float()).clamp(-bound, bound)
        return _join(process.prediction(x_t, timestep, x0), variance)

    return clipped
