"""Which precision a run trains in: decided once, by the first process, from a few timed steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unetdiff.run_config import Precision

WORTH = 0.95  # a lower precision must take at most this share of float32's time: it costs accuracy


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision and why it was taken, in words that go to the log and the report."""

    precision: Precision
    reason: str


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `ValueError` for a precision that the device does not train in."""
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("train.precision fp16 does not train on a CPU; expected float32, bf16 or auto")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("train.precision bf16 is not supported by this GPU; expected float32, fp16 or auto")


def choose_precision(
    module: nn.Module, loss: Callable[[nn.Module], Tensor], device: torch.device, *, repeats: int = 3
) -> PrecisionChoice:
    """Time forward and backward in float32 and in bf16, in turn, on a copy of `module`; take bf16 where it pays.

    Args:
        module: the network, untouched.
        loss: a scalar loss of the network on one real batch.
        device: where it trains.
        repeats: timed pairs; the fastest of each counts, since other work only ever slows a step.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return PrecisionChoice("float32", "this GPU has no bf16")
    twin = copy.deepcopy(module).train()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats + 1):
        for low in (False, True):
            seconds[low].append(_time_step(twin, loss, device, low))
    full, half = (min(times[1:]) for times in (seconds[False], seconds[True]))
    measured = f"a forward and backward pass takes {half * 1e3:.0f} ms in bf16, {full * 1e3:.0f} ms in float32"
    return PrecisionChoice("bf16" if half <= WORTH * full else "float32", measured)


def _time_step(module: nn.Module, loss: Callable[[nn.Module], Tensor], device: torch.device, low: bool) -> float:
    """Seconds for one forward and backward pass."""
    _wait(device)
    start = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
        value = loss(module)
    value.backward()
    _wait(device)
    module.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
