"""Entropies by hand and beside scipy; the parts add up; hard samples are all disagreement."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from tests.segmentation.cases import SHAPES, one_hot
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.uncertainty import decompose, decompose_votes

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=len)


def ensemble(shape: tuple[int, ...], members: int = 6, classes: int = 4) -> torch.Tensor:
    """(M, N, K, *shape) with N = 2."""
    return (3 * torch.randn(members, 2, classes, *shape)).softmax(2)


@each_shape
def test_scipy_and_numpy_agree(shape: tuple[int, ...]) -> None:
    members = ensemble(shape)
    found, given = decompose(members), members.double().numpy()
    total, expected = entropy(given.mean(0), axis=1), entropy(given, axis=2).mean(0)
    choices = given.argmax(2)
    shares = np.stack([(choices == place).mean(0) for place in range(4)], 1)
    oracles = {
        "probabilities": given.mean(0),
        "total": total,
        "expected": expected,
        "mutual_information": total - expected,
        "variance": given.var(0).sum(1),
        "vote_entropy": entropy(shares, axis=1),
        "disagreement": 1 - shares.max(1),
    }
    for name, oracle in oracles.items():
        torch.testing.assert_close(getattr(found, name).double(), torch.from_numpy(oracle), atol=1e-5, rtol=1e-5)


def test_by_hand() -> None:
    found = decompose(torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]], [[[0.0, 0.5]], [[1.0, 0.5]]]]).flatten(2, 3)[:, None])
    # The first position: certain and opposed; the second: both undecided.
    ln2 = math.log(2)
    torch.testing.assert_close(found.total, torch.tensor([[ln2, ln2]]))
    torch.testing.assert_close(found.expected, torch.tensor([[0.0, ln2]]))
    torch.testing.assert_close(found.mutual_information, torch.tensor([[ln2, 0.0]]))
    torch.testing.assert_close(found.variance, torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(found.disagreement, torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(found.shares["total"], torch.ones(1, 2))


def test_members_that_agree_have_no_mutual_information_and_none_is_negative() -> None:
    member = ensemble((50, 50), members=1)[0]
    found = decompose(member for _ in range(7))
    torch.testing.assert_close(found.total, found.expected)
    assert (found.mutual_information >= 0).all()
    assert found.mutual_information.max() < 1e-5
    assert (found.variance >= 0).all()
    torch.testing.assert_close(found.disagreement, torch.zeros(2, 50, 50))


def test_zeros_and_half_precision_make_no_nan() -> None:
    certain = one_hot(torch.randint(3, (2, 9)), 3)
    assert all(value.isfinite().all() for value in decompose([certain]).maps.values())
    soft = ensemble((9,)).bfloat16()
    assert all(value.isfinite().all() for value in decompose(soft).maps.values())


@each_shape
def test_hard_samples_are_all_disagreement(shape: tuple[int, ...]) -> None:
    samples = torch.randint(3, (8, 2, *shape))
    found = decompose_votes(samples, 3)
    shares = torch.stack([(samples == place).float().mean(0) for place in range(3)], 1)
    torch.testing.assert_close(found.expected, torch.zeros(2, *shape))
    torch.testing.assert_close(found.mutual_information, found.vote_entropy)
    torch.testing.assert_close(found.vote_entropy, torch.special.entr(shares).sum(1))
    torch.testing.assert_close(found.variance, 1 - shares.square().sum(1))
    torch.testing.assert_close(found.probabilities, shares)


def test_members_stream_through() -> None:
    alive: list[weakref.ref] = []
    most = 0

    def stream() -> Iterator[torch.Tensor]:
        nonlocal most
        for _ in range(20):
            member = ensemble((9, 8), members=1)[0]
            alive.append(weakref.ref(member))
            most = max(most, sum(entry() is not None for entry in alive))
            yield member
            del member

    decompose(stream())
    assert most <= 2


def test_void_is_masked() -> None:
    found, labels = decompose(ensemble((9, 8))), torch.randint(-1, 3, (2, 9, 8))
    void = labels == IGNORE
    for name, value in found.masked(labels).maps.items():
        assert torch.equal(value.isnan(), void), name
        assert found.means(labels)[name] == pytest.approx(float(found.maps[name][~void].double().mean()))
    assert set(found.means(torch.full_like(labels, IGNORE)).values()) == {None}
    assert found.means()["total"] == pytest.approx(float(found.total.double().mean()))


def test_an_ensemble_has_members() -> None:
    with pytest.raises(ValueError, match="0 members"):
        decompose([])


def test_what_are_not_probabilities_is_noticed() -> None:
    with pytest.raises(AssertionError):
        decompose(torch.randn(3, 2, 4, 9))
