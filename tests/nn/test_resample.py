"""Ways down and up against scipy's filters, torch's pooling and their definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import upfirdn
from torch import Tensor
from torch.testing import assert_close

from unetdiff.nn.resample import (
    AsymmetricStridedConv,
    AveragePool,
    Filter,
    Linear,
    Nearest,
    PyramidDown,
    resample_down,
    resample_up,
)

BINOMIAL = [1, 3, 3, 1]
STRIDES = [(2,), (2, 2), (1, 2), (2, 2, 2), (1, 2, 2)]
SIZES = (6, 8, 10)


def filtered_down(x: Tensor, taps: Sequence[int], stride: Sequence[int], padding: int) -> Tensor:
    """Every second entry of the convolution along each axis of stride 2, by scipy; symmetric taps of unit sum."""
    out = x.double().numpy()
    for axis, factor in enumerate(stride, start=2):
        if factor == 2:
            reach = len(taps) - 1 - padding  # of the full convolution, where the first window lies
            whole = np.moveaxis(upfirdn(np.array(taps) / sum(taps), out, axis=axis), axis, 0)
            last = whole.shape[0] - reach
            out = np.moveaxis(whole[reach:last:2], 0, axis)
    return torch.from_numpy(out.copy()).to(x.dtype)


def filtered_up(x: Tensor, taps: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros between the entries, then the filter with a sum of 2, along each axis of stride 2, by scipy."""
    out = x.double().numpy()
    for axis, factor in enumerate(stride, start=2):
        if factor == 2:
            extra = (len(taps) - 2) // 2
            whole = upfirdn(2 * np.array(taps) / sum(taps), out, up=2, axis=axis)
            out = whole.take(range(extra, whole.shape[axis] - extra), axis=axis)
    return torch.from_numpy(out.copy()).to(x.dtype)


def sample(stride: Sequence[int]) -> Tensor:
    """(2, 3, *space) for strides along each axis."""
    return torch.randn(2, 3, *SIZES[: len(stride)])


@pytest.mark.parametrize("taps", [BINOMIAL, [1, 1], [1, 5, 10, 10, 5, 1]])
@pytest.mark.parametrize("stride", STRIDES)
def test_filter_equals_scipy(stride: tuple[int, ...], taps: list[int]) -> None:
    x = sample(stride)
    down, up = Filter(taps, stride)(x), Filter(taps, stride, up=True)(x)
    sizes = list(zip(x.shape[2:], stride, strict=True))
    assert down.shape[2:] == tuple(size // factor for size, factor in sizes)
    assert up.shape[2:] == tuple(size * factor for size, factor in sizes)
    assert_close(down, filtered_down(x, taps, stride, padding=(len(taps) - 1) // 2))
    assert_close(up, filtered_up(x, taps, stride))


@pytest.mark.parametrize("stride", STRIDES)
def test_the_shortest_filter_is_the_mean_and_repetition(stride: tuple[int, ...]) -> None:
    x = sample(stride)
    assert_close(Filter([1, 1], stride)(x), AveragePool(stride)(x))
    assert_close(Filter([1, 1], stride, up=True)(x), Nearest(stride)(x))


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("stride", STRIDES)
def test_filter_keeps_the_mean(stride: tuple[int, ...], up: bool) -> None:
    """Of inputs that are zero at the border, beyond which there are zeros too."""
    x = F.pad(sample(stride), (2, 2) * len(stride))
    axes = tuple(range(2, x.ndim))
    assert_close(Filter(BINOMIAL, stride, up=up)(x).mean(axes), x.mean(axes))


@pytest.mark.parametrize("up", [False, True])
def test_axes_of_stride_one_are_left_alone(up: bool) -> None:
    x = sample((1, 2))
    rows = [Filter(BINOMIAL, (2,), up=up)(row) for row in x.unbind(2)]
    assert_close(Filter(BINOMIAL, (1, 2), up=up)(x), torch.stack(rows, dim=2))


def test_filter_is_a_setting_and_no_weight() -> None:
    assert not Filter(BINOMIAL, (2, 2)).state_dict()
    assert Filter(BINOMIAL, (2,))(torch.ones(1, 1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("stride", STRIDES)
def test_residual_blocks_are_resampled_by_the_mean_or_by_a_filter(stride: tuple[int, ...]) -> None:
    x, dims = sample(stride), len(stride)
    assert_close(resample_down(stride, dims, None)(x), AveragePool(stride)(x))
    assert_close(resample_up(stride, None)(x), Nearest(stride)(x))
    assert_close(resample_down(stride, dims, BINOMIAL)(x), Filter(BINOMIAL, stride)(x))
    assert_close(resample_up(stride, BINOMIAL)(x), Filter(BINOMIAL, stride, up=True)(x))


@pytest.mark.parametrize("taps", [BINOMIAL, [1, 1], None])
@pytest.mark.parametrize("stride", STRIDES)
def test_pyramid_pads_and_convolves_before_it_filters(stride: tuple[int, ...], taps: list[int] | None) -> None:
    """The filter reads convolved zeros beyond the border, and adds none of its own."""
    x, dims = sample(stride), len(stride)
    layer = PyramidDown(3, 4, stride, dims, taps, "plain")
    torch.nn.init.normal_(layer.conv.bias)
    filter_taps = taps or [1, 1]
    beyond = (len(filter_taps) - 1) // 2
    amounts = [1 + beyond * (factor > 1) for factor in reversed(stride) for _ in range(2)]
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    with torch.no_grad():
        convolved = run(F.pad(x, amounts), layer.conv.weight, layer.conv.bias)
        expected = filtered_down(convolved, filter_taps, stride, padding=0)
        assert_close(layer(x), expected)
    assert expected.shape[2:] == tuple(size // factor for size, factor in zip(x.shape[2:], stride, strict=True))


def test_asymmetric_stride_pads_after_the_end() -> None:
    layer = AsymmetricStridedConv(1, (2, 2), 2, "plain")
    x = torch.randn(1, 1, 6, 6)
    padded = F.pad(x, (0, 1, 0, 1))
    assert_close(layer(x), F.conv2d(padded, layer.conv.weight, layer.conv.bias, stride=2))
    assert AsymmetricStridedConv(1, (1, 2), 2, "plain")(x).shape == (1, 1, 6, 3)


def test_nearest_repeats_per_axis() -> None:
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert_close(Nearest((1, 3))(x), x.repeat_interleave(3, dim=3))


@pytest.mark.parametrize("stride", STRIDES)
def test_linear_keeps_a_ramp_and_the_mean(stride: tuple[int, ...]) -> None:
    """Away from the border the values of a linear function lie between, where the finer positions do."""
    axes = [torch.arange(float(length)) for length in SIZES[: len(stride)]]
    ramp = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)[None, None]
    fine = Linear(stride)(ramp)
    centres = [
        (torch.arange(len(axis) * factor) + 0.5) / factor - 0.5 for axis, factor in zip(axes, stride, strict=True)
    ]
    expected = torch.stack(torch.meshgrid(*centres, indexing="ij")).sum(0)[None, None]
    inner = (..., *(slice(factor, -factor) for factor in stride))
    assert_close(fine[inner], expected[inner], rtol=1e-5, atol=1e-4)
    assert_close(fine.mean(), ramp.mean(), rtol=1e-5, atol=1e-4)
