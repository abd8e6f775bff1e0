"""Test-time augmentation by flips: the mean of what a network says of an image and of its mirror images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

from torch import Tensor

from unetdiff.segmentation.tiles import Predict


def with_flips(predict: Predict, axes: Sequence[int] | None = None) -> Predict:
    """`predict`, averaged over every combination of flips along the axes, each undone before the mean.

    2 ** len(axes) calls, one after another: a running sum and one prediction are held at a time. Classes that a flip
    exchanges (the left and the right hand) must not be averaged over it: leave its axis out.

    Args:
        predict: a function of images of any size, tiles included.
        axes: spatial axes, 0 the first after the channels; None: all of the images'.

    Raises:
        ValueError: an axis is named twice, or (when called) is not one of the images'.
    """
    if axes is not None and len(set(axes)) != len(axes):
        raise ValueError(f"The flips' axes are {list(axes)}; expected each once.")

    def averaged(images: Tensor) -> Tensor:
        total: Tensor | None = None
        chosen = _chosen(axes, images.ndim - 2)
        for flipped in _subsets(chosen):
            prediction = predict(images.flip(flipped)).flip(flipped)
            total = prediction if total is None else total.add_(prediction)
        assert total is not None
        return total.div_(2 ** len(chosen))

    return averaged


def _chosen(axes: Sequence[int] | None, dims: int) -> list[int]:
    """The tensor's axes to flip."""
    axes = range(dims) if axes is None else axes
    if any(not 0 <= axis < dims for axis in axes):
        raise ValueError(f"The flips' axes are {list(axes)}; expected axes from 0 to {dims - 1} of {dims}-D images.")
    return [axis + 2 for axis in axes]


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets, none first."""
    return list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))
