"""The losses of segmentation against MONAI, torch and hand-computed cases; the border weights of 2015."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from skimage.measure import label
from torch import Tensor
from torch.testing import assert_close

from unetdiff.segmentation.objective import LOSSES, MaskObjective, border_weights, inverse_frequency, one_hot
from unetdiff.segmentation.options import IGNORE

SPACES = [(12,), (6, 7), (3, 4, 5)]
every_loss = pytest.mark.parametrize("loss", LOSSES)


def scores(space: tuple[int, ...], classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits and labels in which every sample has every class."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(classes, (2, *space), generator=generator)
    labels.flatten(1)[:, :classes] = torch.arange(classes)
    return torch.randn(2, classes, *space, generator=generator), labels


@pytest.mark.parametrize("space", SPACES)
def test_equal_to_monai_and_torch_where_every_class_occurs(space: tuple[int, ...]) -> None:
    logits, labels = scores(space)
    truth = labels[:, None]
    expected = {
        "cross_entropy": F.cross_entropy(logits, labels),
        "dice": DiceLoss(softmax=True, to_onehot_y=True)(logits, truth),
        "dice_cross_entropy": DiceCELoss(softmax=True, to_onehot_y=True)(logits, truth),
        "focal": 3 * FocalLoss(use_softmax=True, to_onehot_y=True)(logits, truth),  # MONAI's mean is over classes too
        "tversky": TverskyLoss(softmax=True, to_onehot_y=True, alpha=0.3, beta=0.7)(logits, truth),
    }
    for loss, value in expected.items():
        assert_close(MaskObjective(loss).loss_per_sample(logits, labels).mean(), value, rtol=1e-5, atol=1e-5)


def test_class_weights_and_smoothing_are_those_of_torch() -> None:
    logits, labels = scores((6, 7))
    weights = (0.2, 1.0, 3.0)
    for sample in range(2):
        expected = F.cross_entropy(
            logits[sample : sample + 1], labels[sample : sample + 1], torch.tensor(weights), label_smoothing=0.1
        )
        objective = MaskObjective("cross_entropy", class_weights=weights, label_smoothing=0.1)
        assert_close(objective.loss_per_sample(logits, labels)[sample], expected, rtol=1e-5, atol=1e-5)


@every_loss
@pytest.mark.parametrize("space", SPACES)
def test_ignored_positions_take_no_part(loss: str, space: tuple[int, ...]) -> None:
    """Neither their scores nor their number matter: the loss is that of the other positions alone."""
    logits, labels = scores(space)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    ignored.flatten(1)[:, -4:] = True
    labels[ignored] = IGNORE
    wild = torch.where(ignored[:, None], 50 * torch.randn_like(logits), logits).requires_grad_()
    objective = MaskObjective(loss)
    value = objective.loss_per_sample(wild, labels)
    kept = ~ignored.flatten(1)
    flat = torch.stack([entry.flatten(1)[:, keep] for entry, keep in zip(logits, kept, strict=True)])
    rest = torch.stack([entry.flatten()[keep] for entry, keep in zip(labels, kept, strict=True)])
    assert_close(value, objective.loss_per_sample(flat, rest), rtol=1e-5, atol=1e-5)
    value.sum().backward()
    assert wild.grad.movedim(1, -1)[ignored].abs().max() == 0


@every_loss
def test_nothing_but_ignored_positions_is_no_loss(loss: str) -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    value = MaskObjective(loss).loss_per_sample(logits, torch.full((2, 5), IGNORE))
    assert value.tolist() == [0.0, 0.0]
    value.sum().backward()
    assert logits.grad.abs().max() == 0


@every_loss
def test_a_batch_in_parts_has_the_loss_of_the_whole(loss: str) -> None:
    logits, labels = scores((6, 7))
    labels[0, :3] = IGNORE
    labels[1][labels[1] == 2] = 0
    objective = MaskObjective(loss, class_weights=(1.0, 2.0, 0.5))
    whole = objective.loss_per_sample(logits, labels)
    parts = [objective.loss_per_sample(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    assert_close(torch.cat(parts), whole)


@every_loss
def test_a_class_that_does_not_occur_gives_a_finite_loss_and_falls_with_its_scores(loss: str) -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    certain = 20.0 * one_hot(labels, 3)
    wrong = certain.clone()
    wrong[0, 2, 0] = 40.0  # the absent class, claimed once
    objective = MaskObjective(loss)
    right, mistaken = (float(objective.loss_per_sample(entry, labels)[0]) for entry in (certain, wrong))
    assert right == pytest.approx(0, abs=1e-3)
    assert mistaken > right + 0.05


def test_dice_by_hand() -> None:
    """Two of three positions are found with certainty, none is claimed wrongly: Dice 4 / 5; the other class 2 / 3."""
    labels = torch.tensor([[1, 1, 1, 0]])
    logits = 30.0 * one_hot(torch.tensor([[1, 1, 0, 0]]), 2)
    expected = 1 - (4 / 5 + 2 / 3) / 2
    assert_close(MaskObjective("dice").loss_per_sample(logits, labels), torch.tensor([expected]), rtol=1e-4, atol=1e-4)


def test_position_weights_are_a_weighted_mean() -> None:
    logits, labels = scores((6,))
    weight = torch.tensor([[1.0, 2, 0, 0, 5, 1]]).expand(2, -1)
    plain = F.cross_entropy(logits, labels, reduction="none")
    expected = (plain * weight).sum(1) / weight.sum(1)
    assert_close(MaskObjective("cross_entropy").loss_per_sample(logits, labels, weight), expected)


def test_inverse_frequency() -> None:
    assert inverse_frequency(np.array([0.5, 0.25, 0.0, 0.25])) == pytest.approx((0.6, 1.2, 1.0, 1.2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inverse_frequency(np.zeros(2, np.int64)) == (1.0, 1.0)


def test_border_weights_by_hand() -> None:
    """Two objects with three free positions between: d1 + d2 = 4 everywhere between them (1 + 3, 2 + 2, 3 + 1)."""
    labels = np.array([0, 1, 1, 0, 0, 0, 1, 0])
    between = 1 + 10 * math.exp(-16 / 50)
    beside = [1 + 10 * math.exp(-((1 + 6) ** 2) / 50), 1 + 10 * math.exp(-((1 + 5) ** 2) / 50)]
    expected = [beside[0], 1, 1, between, between, between, 1, beside[1]]
    assert_close(torch.from_numpy(border_weights(labels)), torch.tensor(expected, dtype=torch.float32))


def test_border_weights_need_two_objects_and_tell_touching_classes_apart() -> None:
    assert (border_weights(np.array([[0, 1], [1, 1]])) == 1).all()
    touching = np.zeros((5, 6), dtype=int)
    touching[1:4, 1:3], touching[1:4, 3:5] = 1, 2
    weights = border_weights(touching)
    assert (weights[touching > 0] == 1).all()
    assert weights[0, 2] > weights[0, 0] > 1


def border_weights_by_definition(labels: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    """Eq. 2 of Ronneberger et al. 2015 word by word: the distance to every object at every position."""
    objects = np.asarray(label(np.where(labels == IGNORE, 0, labels), background=0))
    places = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij"), axis=-1).reshape(-1, labels.ndim)
    distances = [
        np.linalg.norm(places[:, None] - np.argwhere(objects == number)[None], axis=-1).min(1)
        for number in range(1, objects.max() + 1)
    ]
    weights = np.ones(labels.size)
    if len(distances) > 1:
        first, second = np.sort(distances, axis=0)[:2]
        free = labels.ravel() == 0
        weights[free] += w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))[free]
    return weights.reshape(labels.shape)


@pytest.mark.parametrize("sigma", [2.0, 5.0])
@pytest.mark.parametrize(("space", "grain"), [((300,), 4), ((60, 70), 6), ((14, 24, 30), 4)])
def test_border_weights_are_those_of_their_definition(space: tuple[int, ...], grain: int, sigma: float) -> None:
    """Objects of all forms, some at the border, some touching one of another class, some beside ignored positions."""
    draw = np.random.default_rng(0)
    coarse = draw.choice([0, 0, 0, 1, 2, IGNORE], [-(-side // grain) for side in space])
    labels = np.kron(coarse, np.ones([grain] * len(space), int))[tuple(slice(0, side) for side in space)]
    found, expected = border_weights(labels, sigma=sigma), border_weights_by_definition(labels, 10.0, sigma)
    assert_close(torch.from_numpy(found), torch.from_numpy(expected).float(), rtol=0, atol=4e-6)
    assert found.max() > 1.3


@pytest.mark.parametrize("classes", [[0], [0, 1], [IGNORE], [1], [0, IGNORE]])
def test_border_weights_of_fewer_than_two_objects_are_one(classes: list[int]) -> None:
    labels = np.resize(np.repeat(classes, 4), 8).reshape(2, 4) if len(classes) > 1 else np.full((2, 4), classes[0])
    assert (border_weights(labels) == 1).all()


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        ((1, 2, 4), (1, 5), "do not fit labels of shape"),
        ((1, 2, 4), (1, 2, 4), "do not fit labels of shape"),
        ((1, 2, 4), (1, 4), "class_weights has 3 entries; expected 2"),
    ],
)
def test_what_does_not_fit_is_refused(logits: tuple[int, ...], labels: tuple[int, ...], expected: str) -> None:
    objective = MaskObjective(class_weights=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=expected):
        objective.loss_per_sample(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))
