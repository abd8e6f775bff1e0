"""Where a network stops being finite, and which precision it trains in."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from unetdiff.training.health import first_non_finite
from unetdiff.training.precision import check_precision, choose_precision


class Exploding(nn.Module):
    """Returns infinity."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


def test_first_module_with_a_non_finite_output_is_named() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Exploding()), Exploding())
    assert first_non_finite(module, lambda: module(torch.ones(1, 2))).text.endswith("1.1 (Exploding)")


def test_parameters_and_gradients_are_looked_at_too() -> None:
    module = nn.Linear(2, 2)
    assert "every output" in first_non_finite(module, lambda: module(torch.ones(1, 2))).text
    module.weight.grad = torch.full((2, 2), torch.inf)
    assert first_non_finite(module, lambda: module(torch.ones(1, 2))).text.endswith("the gradient of weight is not")
    with torch.no_grad():
        module.bias[0] = torch.nan
    assert first_non_finite(module, lambda: module(torch.ones(1, 2))).text == "parameter bias is not finite"


class Slow(nn.Module):
    """Takes longer under autocast, or longer without."""

    def __init__(self, seconds: dict[bool, float]):
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds[torch.is_autocast_enabled("cpu")])
        return self.weight * x


@pytest.mark.parametrize(("low", "full", "chosen"), [(0.01, 0.03, "bf16"), (0.03, 0.01, "float32")])
def test_precision_is_what_pays(low: float, full: float, chosen: str) -> None:
    module = Slow({True: low, False: full})
    choice = choose_precision(module, lambda network: network(torch.ones(1)).sum(), torch.device("cpu"))
    assert choice.precision == chosen
    assert "ms in bf16" in choice.reason
    assert module.weight.grad is None


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="fp16 does not train on a CPU"):
        check_precision("fp16", torch.device("cpu"))
