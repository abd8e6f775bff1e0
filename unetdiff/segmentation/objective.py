"""What a segmentation network is trained on: losses between class scores and labels, and the 2015 border weights.

Every sample counts the same: a loss is a mean within each sample first, so that a batch split over processes has the
loss of the whole. Positions with the label IGNORE take no part in any of them; a sample of nothing else has loss 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.segmentation.options import IGNORE, LossName

NEGLIGIBLE = 1e-6
"""Of a border weight: float32 holds no less beside 1."""


@dataclass(frozen=True)
class MaskObjective:
    """The loss of class scores.

    Attributes:
        loss: `cross_entropy`; `dice` (Milletari et al. 2016, soft); `dice_cross_entropy`, their sum (Isensee et al.
            2021); `focal` (Lin et al. 2017); or `tversky` (Salehi et al. 2017).
        class_weights: one factor per class in cross-entropy and focal loss, or None.
        label_smoothing: share of the target spread over all classes, in cross-entropy.
        gamma: of the focal loss. alpha, beta: weights of false positives and of false negatives in the Tversky loss.

    Dice and Tversky are means over the classes that occur in the truth of a sample: a class that does not occur has
    no overlap to speak of, and false positives of it lower the overlap of those that do.
    """

    loss: LossName = "dice_cross_entropy"
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    gamma: float = 2.0
    alpha: float = 0.3
    beta: float = 0.7

    def loss_per_sample(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Losses (N,), float32.

        Args:
            logits: (N, K, *space), any float type.
            labels: (N, *space) int64 in 0 .. K - 1, or IGNORE.
            weight: (N, *space), a factor per position in cross-entropy and focal loss, such as `border_weights`.

        Raises:
            ValueError: shapes do not fit, or there is another number of class weights than of classes.
        """
        if logits.ndim != labels.ndim + 1 or logits.shape[2:] != labels.shape[1:]:
            raise ValueError(f"scores of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}")
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            held = f"class_weights has {len(self.class_weights)} entries"
            raise ValueError(f"{held}; expected {logits.shape[1]}, one per class")
        return LOSSES[self.loss](self, logits.float(), labels, weight)


def _class_weights(objective: MaskObjective, logits: Tensor) -> Tensor | None:
    """(K,), beside the scores; None without."""
    return None if objective.class_weights is None else logits.new_tensor(objective.class_weights)


def cross_entropy(objective: MaskObjective, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean within each sample, (N,); the weights are those of classes times those of positions."""
    classes = _class_weights(objective, logits)
    losses = F.cross_entropy(
        logits, labels, classes, ignore_index=IGNORE, reduction="none", label_smoothing=objective.label_smoothing
    )
    return _weighted_mean(losses, labels, classes, weight)


def focal(objective: MaskObjective, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """(1 - p)^gamma times the cross-entropy, where p is the probability of the true class."""
    classes = _class_weights(objective, logits)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    losses = (1 - (-losses).exp()) ** objective.gamma * losses
    if classes is not None:
        losses = losses * classes[labels.clamp(min=0)]
    return _weighted_mean(losses, labels, classes, weight)


def _weighted_mean(losses: Tensor, labels: Tensor, classes: Tensor | None, weight: Tensor | None) -> Tensor:
    """Losses (N, *space), which hold the class weights already, as a weighted mean per sample; 0 without positions."""
    share = (labels != IGNORE).float()
    if weight is not None:
        share = share * weight
        losses = losses * weight
    if classes is not None:
        share = share * classes[labels.clamp(min=0)]
    return losses.flatten(1).sum(1) / share.flatten(1).sum(1).clamp(min=torch.finfo(torch.float32).tiny)


def dice(objective: MaskObjective, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """1 - soft Dice."""
    return _overlap(_dice_loss(), logits, labels)


def tversky(objective: MaskObjective, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """1 - soft Tversky index."""
    return _overlap(_tversky_loss(objective.alpha, objective.beta), logits, labels)


def dice_cross_entropy(objective: MaskObjective, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """The two together."""
    return dice(objective, logits, labels, weight) + cross_entropy(objective, logits, labels, weight)


LOSSES: dict[LossName, Callable[[MaskObjective, Tensor, Tensor, Tensor | None], Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "dice_cross_entropy": dice_cross_entropy,
    "focal": focal,
    "tversky": tversky,
}


@cache
def _dice_loss() -> Any:
    from monai.losses.dice import DiceLoss  # a second to import

    return DiceLoss(reduction="none")


@cache
def _tversky_loss(alpha: float, beta: float) -> Any:
    from monai.losses.tversky import TverskyLoss

    return TverskyLoss(alpha=alpha, beta=beta, reduction="none")


def _overlap(loss: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """A loss of MONAI per sample and class, as a mean over the classes that a sample has, (N,); 0 where it has none."""
    valid = (labels != IGNORE)[:, None].float()
    truth = one_hot(labels, logits.shape[1])
    # Behind the softmax: masked scores would still have probabilities.
    losses = loss(logits.softmax(1) * valid, truth).flatten(1)
    present = truth.flatten(2).any(2).float()
    return (losses * present).sum(1) / present.sum(1).clamp(min=1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (N, *space) as (N, K, *space) float32; zero in every class where they are IGNORE."""
    hot = F.one_hot(labels.clamp(min=0), classes).movedim(-1, 1).float()
    return hot * (labels != IGNORE)[:, None]


def inverse_frequency(shares: np.ndarray) -> tuple[float, ...]:
    """Class weights 1 / share with a mean of 1 over the classes that occur; those that do not occur get 1.

    Args:
        shares: (K,) of positions per class, of any total.
    """
    shares = np.asarray(shares, dtype=np.float64)
    occurs = shares > 0
    inverse = 1 / shares[occurs]
    weights = np.ones(len(shares))
    weights[occurs] = inverse * len(inverse) / inverse.sum()
    return tuple(map(float, weights))


def border_weights(labels: np.ndarray, *, w0: float = 10.0, sigma: float = 5.0, background: int = 0) -> np.ndarray:
    """Weights that make a network keep touching objects apart (Ronneberger et al. 2015, Eq. 2, without its w_c).

    1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on the background, where d1 and d2 are the distances to the nearest and the
    second nearest object in positions; 1 elsewhere, and everywhere where there are fewer than two objects. Objects are
    the connected regions of each class but the background. What stays below 1e-6 counts as nothing, so that distances
    are only measured around each object.

    Args:
        labels: (*space) of a whole image, in one to three dimensions: objects that a crop cuts would look smaller.

    Returns:
        (*space) float32.
    """
    from scipy.ndimage import distance_transform_edt, find_objects
    from skimage.measure import label

    objects = np.asarray(label(np.where(labels == IGNORE, background, labels), background=background))
    reach = math.ceil(sigma * math.sqrt(2 * math.log(max(w0 / NEGLIGIBLE, 1))))
    nearest = np.full((2, *labels.shape), np.inf, dtype=np.float32)
    for number, box in enumerate(find_objects(objects), start=1):
        around = tuple(slice(max(along.start - reach, 0), along.stop + reach) for along in box)
        distance = np.asarray(distance_transform_edt(objects[around] != number), dtype=np.float32)
        first, second = nearest[(slice(None), *around)]
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    closeness = np.exp(-(nearest.sum(0) ** 2) / (2 * sigma**2))
    return np.where(labels == background, 1 + w0 * closeness, 1).astype(np.float32)
