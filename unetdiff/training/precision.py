"""Which precision a run trains in: decided once, by the first process, from a few timed steps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unetdiff.precision import PrecisionChoice, faster_precision, has_bf16
from unetdiff.run_config import Precision


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `ValueError` for a precision that the device does not train in."""
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("train.precision fp16 does not train on a CPU; expected float32, bf16 or auto")
    if precision == "bf16" and not has_bf16(device):
        raise ValueError("train.precision bf16 is not supported by this GPU; expected float32, fp16 or auto")


def choose_precision(
    module: nn.Module, loss: Callable[[nn.Module], Tensor], device: torch.device, *, repeats: int = 3
) -> PrecisionChoice:
    """Time forward and backward in float32 and in bf16, in turn, on a copy of `module`; take bf16 where it pays.

    Args:
        module: the network, untouched.
        loss: a scalar loss of the network on one real batch.
        device: where it trains.
        repeats: timed pairs, see `faster_precision`.
    """
    twin = copy.deepcopy(module).train()

    def step(low: bool) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            value = loss(twin)
        value.backward()
        twin.zero_grad(set_to_none=True)

    return faster_precision(step, device, "a forward and backward pass", repeats)
