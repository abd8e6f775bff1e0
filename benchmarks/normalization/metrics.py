"""What is measured of a denoiser, as functions of its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

GAIN_STEP = 0.05  # relative change of the input's amplitude in the finite difference of `transmission`


def calibration(target: Tensor, prediction: Tensor) -> dict[str, float]:
    """How well the amplitude of a prediction, (N, C, H, W) as its target, fits; over all elements.

    Returns:
        beta: <target, prediction> / <prediction, prediction>, the factor that would lessen the squared error most:
            1 if calibrated, however good the prediction. amplitude_share: (1 - beta)^2 E[prediction^2] / MSE, the part
            of the error that this factor would remove, 0 to 1. nmse: MSE / E[target^2]; 1 is what predicting 0 has.
    """
    target, prediction = target.double(), prediction.double()
    error = (prediction - target).square().mean().item()
    power = prediction.square().mean().item()
    beta = (target * prediction).mean().item() / power if power > 0 else math.nan
    share = (1 - beta) ** 2 * power / error if error > 0 else 0.0
    return {"beta": beta, "amplitude_share": share, "nmse": error / target.square().mean().item()}


def transmission(network: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """d log RMS(f(s x)) / d log s at s = 1: 1 for a linear network, 0 for one blind to its input's amplitude.

    x: (N, C, H, W). A central difference over s = 1 +- `GAIN_STEP`.
    """
    above, below = (network(x * gain).double().square().mean().sqrt().log() for gain in (1 + GAIN_STEP, 1 - GAIN_STEP))
    return (above - below).item() / math.log((1 + GAIN_STEP) / (1 - GAIN_STEP))


def frechet(samples: np.ndarray, reference: np.ndarray) -> float:
    """Squared Frechet distance between normal distributions fitted to features (N, D) and (M, D), float64.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) (Dowson & Landau 1982).
    """
    means = samples.mean(0) - reference.mean(0)
    first, second = (np.cov(features, rowvar=False).reshape(features.shape[1], -1) for features in (samples, reference))
    root = _square_root(first)
    cross = np.linalg.eigvalsh(root @ second @ root).clip(0)
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * np.sqrt(cross).sum())


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def principal_components(images: Tensor, count: int) -> np.ndarray:
    """The `count` directions in which the pixels of images (N, C, H, W) vary most: (C H W, count), orthonormal."""
    pixels = images.flatten(1).double().numpy()
    _, vectors = np.linalg.eigh(np.cov(pixels, rowvar=False))
    return vectors[:, ::-1][:, :count]


def brightness_spread(images: Tensor) -> float:
    """Standard deviation over images (N, C, H, W) of their mean value."""
    return images.double().mean(dim=(1, 2, 3)).std().item()


def sample_quality(samples: Tensor, reference: Tensor, components: int) -> dict[str, float]:
    """Samples beside held-out images, both (N, C, H, W) in [-1, 1].

    Returns:
        pixel_frechet: `frechet` over the reference's first principal components of the pixels. brightness_ratio:
        `brightness_spread` over that of the reference.
    """
    basis = principal_components(reference, components)
    features = [images.flatten(1).double().numpy() @ basis for images in (samples, reference)]
    ratio = brightness_spread(samples) / brightness_spread(reference)
    return {"pixel_frechet": frechet(*features), "brightness_ratio": ratio}


@torch.no_grad()
def in_batches(network: Callable[..., Tensor], size: int, *inputs: Tensor | None) -> Tensor:
    """The network's output for inputs (N, ...), computed `size` at a time; an input may be None throughout."""
    parts = [None if entry is None else entry.split(size) for entry in inputs]
    count = max(len(part) for part in parts if part is not None)
    return torch.cat([network(*(None if part is None else part[i] for part in parts)) for i in range(count)])
