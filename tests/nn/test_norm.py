"""Each norm against its definition or torch's own, in every dimension and precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unetdiff.nn.norm import GroupNorm, group_count, make_norm
from unetdiff.spec import Norm

SPACES = {1: (7,), 2: (5, 6), 3: (3, 4, 5)}


def sample(dims: int, channels: int = 12, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(2, channels, *SPACES[dims]) * scale + 1


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["group", "instance", "layer"])
def test_centred_norms_equal_torch(kind: str, dims: int) -> None:
    x = sample(dims)
    norm = make_norm(12, Norm(kind, groups=4, min_group_channels=1), dims)  # pyright: ignore
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    expected = {
        "group": lambda: nn.functional.group_norm(x, 4, norm.weight, norm.bias),
        "instance": lambda: nn.functional.group_norm(x, 12, norm.weight, norm.bias),
        "layer": lambda: nn.functional.layer_norm(x.movedim(1, -1), (12,), norm.weight, norm.bias).movedim(-1, 1),
    }[kind]()
    assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_rms_norms_give_unit_mean_square(dims: int) -> None:
    x = sample(dims)
    groups = make_norm(12, Norm("rms", groups=3, eps=0), dims)(x).reshape(2, 3, -1)
    assert_close(groups.square().mean(-1), torch.ones(2, 3))
    pixel = make_norm(12, Norm("pixel", eps=0), dims)(x)
    assert_close(pixel.square().mean(1), torch.ones(2, *SPACES[dims]))
    assert not any(name.endswith("bias") for name, _ in make_norm(12, Norm("pixel"), dims).named_parameters())


def test_affine_and_center_are_settings() -> None:
    def names(norm: Norm) -> list[str]:
        return [name for name, _ in make_norm(8, norm, 2).named_parameters()]

    assert names(Norm()) == ["weight", "bias"]
    assert names(Norm(center=False)) == ["weight"]
    assert names(Norm(affine=False)) == []
    assert names(Norm("none")) == []


def test_group_count_is_the_largest_divisor() -> None:
    assert group_count(128, 32, 4) == 32
    assert group_count(48, 32, 1) == 24
    assert group_count(132, 32, 4) == 22  # min(32, 132 // 4) does not divide
    assert group_count(7, 32, 4) == 1


@pytest.mark.parametrize("kind", ["group", "instance", "layer", "rms", "pixel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_of_float32_in_low_precision(kind: str, dtype: torch.dtype) -> None:
    """Values of 300 overflow a mean square in float16, and a mean of many is lost in bfloat16."""
    x = (sample(2, scale=1.0) + 300).to(dtype)
    norm = make_norm(12, Norm(kind, groups=3), 2)  # pyright: ignore
    low = norm(x)
    assert low.dtype == dtype
    assert_close(low.float(), norm(x.float()), rtol=1e-2, atol=2e-2)


def test_batch_norm_warns() -> None:
    with pytest.warns(UserWarning, match="mixes the samples"):
        make_norm(8, Norm("batch"), 2)


def test_batch_of_one_is_the_same_as_in_a_batch() -> None:
    x = sample(2)
    norm = GroupNorm(12, Norm(groups=4))
    assert_close(norm(x[:1]), norm(x)[:1])


def test_group_norm_of_a_channels_last_input_without_gradient_has_a_backward_pass() -> None:
    """torch 2.13 alone crashes there, on a CPU: what comes from a frozen network is often laid out so."""
    x = torch.randn(2, 8, 14, 14).to(memory_format=torch.channels_last)
    norm = make_norm(8, Norm("group", groups=4), 2)
    norm(x).square().sum().backward()
    expected = torch.autograd.grad(norm(x.contiguous().requires_grad_()).square().sum(), norm.weight)[0]
    assert_close(norm.weight.grad, expected)
