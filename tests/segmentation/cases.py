"""Random predictions and truths, and what the metrics make of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.segmentation.options import IGNORE

SHAPES = [(40,), (13, 17), (7, 8, 9)]
"""One of each number of axes."""


def random_case(shape: tuple[int, ...], images: int = 5, classes: int = 4, void: float = 0.2) -> tuple[Tensor, Tensor]:
    """Probabilities (N, K, *shape) float32, right more often than not, and labels (N, *shape), some ignored."""
    labels = torch.randint(classes, (images, *shape))
    logits = torch.randn(images, classes, *shape) + 1.5 * one_hot(labels, classes)
    labels[torch.rand(labels.shape) < void] = IGNORE
    return logits.softmax(1), labels


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(N, *space) in 0..K-1 to (N, K, *space) float32."""
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def options(classes: int, **settings: Any) -> MetricOptions:
    return MetricOptions(class_names=tuple(f"class {place}" for place in range(classes)), **settings)


def evaluate(probabilities: Tensor, labels: Tensor, spacing: Any = None, **settings: Any) -> dict[str, Any]:
    """The metrics of one batch."""
    metrics = SegmentationMetrics(options(probabilities.shape[1], **settings))
    metrics.update(probabilities, labels, spacing)
    return metrics.compute()


def evaluate_hard(prediction: Any, labels: Any, classes: int = 2, **settings: Any) -> dict[str, Any]:
    """The metrics of one image of predicted labels, given as nested lists or tensors (*space)."""
    prediction, labels = torch.as_tensor(prediction)[None], torch.as_tensor(labels)[None]
    return evaluate(one_hot(prediction, classes), labels, **settings)
