"""Test-time flips: what a network equivariant to them says stays, what is not is averaged as by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unetdiff.nn.dims import FUNCTIONAL_CONV
from unetdiff.segmentation.flips import with_flips


@pytest.mark.parametrize("shape", [(12,), (7, 9), (4, 5, 6)])
def test_a_network_equivariant_to_flips_is_unchanged(shape: tuple[int, ...]) -> None:
    dims = len(shape)
    kernel = torch.rand(3, 2, *[3] * dims)
    for axis in range(2, dims + 2):
        kernel = kernel + kernel.flip(axis)

    def network(x: Tensor) -> Tensor:
        return FUNCTIONAL_CONV[dims](x, kernel, padding=1).softmax(1)

    images = torch.randn(2, 2, *shape)
    torch.testing.assert_close(with_flips(network)(images), network(images))


def test_a_shift_becomes_the_mean_of_both_its_directions() -> None:
    image = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    averaged = with_flips(lambda x: x.roll(1, 2))(image)  # [8, 1, 2, 4] and [2, 4, 8, 1]
    torch.testing.assert_close(averaged, torch.tensor([[[5.0, 2.5, 5.0, 2.5]]]))


def test_weights_of_positions_are_averaged_over_their_orbits() -> None:
    weights = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    image = torch.ones(1, 1, 2, 2)

    def average(*axes: int) -> Tensor:
        return with_flips(lambda x: x * weights, axes)(image)[0, 0]

    torch.testing.assert_close(with_flips(lambda x: x * weights)(image)[0, 0], torch.full((2, 2), 3.0))
    torch.testing.assert_close(average(0), torch.tensor([[2.0, 4.0], [2.0, 4.0]]))
    torch.testing.assert_close(average(1), torch.tensor([[1.5, 1.5], [4.5, 4.5]]))
    torch.testing.assert_close(average(), weights)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_combination_of_flips_is_seen_once(dims: int) -> None:
    images, seen = torch.rand(1, 1, *[3] * dims), []

    def predict(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    with_flips(predict)(images)
    assert len({tuple(x.flatten().tolist()) for x in seen}) == len(seen) == 2**dims


def test_neither_the_images_nor_what_the_network_keeps_is_changed() -> None:
    images = torch.rand(2, 3, 5, 5)
    before, kept = images.clone(), torch.rand(2, 3, 5, 5)
    kept_before = kept.clone()
    torch.testing.assert_close(with_flips(lambda x: x)(images), images)
    for axes in ((), (0,), None):
        with_flips(lambda _: kept, axes)(images)
    assert torch.equal(images, before)
    assert torch.equal(kept, kept_before)


def test_smaller_predictions_are_flipped_as_their_images_are() -> None:
    images = torch.rand(1, 1, 8, 9)
    torch.testing.assert_close(with_flips(lambda x: x[..., 2:-2, 1:-1])(images), images[..., 2:-2, 1:-1])


def test_axes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="each once"):
        with_flips(lambda x: x, (0, 0))
    for axis in (-1, 2):
        with pytest.raises(ValueError, match="from 0 to 1 of 2-D"):
            with_flips(lambda x: x, (axis,))(torch.rand(1, 1, 3, 3))
