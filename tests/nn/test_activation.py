"""What each nonlinearity makes of a unit normal input, by numerical integration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unetdiff.nn.activation import ACTIVATIONS, UnitActivation, make_activation

POINTS = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
DENSITY = torch.exp(-POINTS.square() / 2) / math.sqrt(2 * math.pi)


def expectation(function: Callable[[Tensor], Tensor]) -> float:
    """E[f(x)] for x ~ N(0, 1)."""
    return float(torch.trapezoid(function(POINTS) * DENSITY, POINTS))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_responses_are_moments_under_a_unit_normal(name: Any) -> None:
    response = ACTIVATIONS[name]
    module = response.module()
    mean, square = expectation(module), expectation(lambda x: module(x).square())
    assert response.mean == pytest.approx(mean, abs=1e-6)
    assert response.rms == pytest.approx(math.sqrt(square), abs=1e-6)
    assert response.std == pytest.approx(math.sqrt(square - mean**2), abs=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_unit_activation_has_unit_mean_square(name: Any) -> None:
    module = UnitActivation(name)
    # The SiLU is divided by a rounded figure, as the published networks are.
    tolerance = 2e-3 if name == "silu" else 1e-5
    assert expectation(lambda x: module(x).square()) == pytest.approx(1, abs=tolerance)


def test_magnitude_preserving_silu_is_that_of_the_paper() -> None:
    """Karras et al. 2024, Eq. 81."""
    x = torch.randn(50)
    assert_close(make_activation("silu", "mp_forced")(x), torch.nn.functional.silu(x) / 0.596)


@pytest.mark.parametrize("weights", ["plain", "standardized"])
def test_other_weights_have_the_activation_itself(weights: Any) -> None:
    x = torch.randn(50)
    assert_close(make_activation("relu", weights)(x), x.clamp(min=0))
