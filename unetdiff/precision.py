"""Whether bf16 pays: a few timed calls in either precision, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unetdiff.run_config import Precision

WORTH = 0.95  # a lower precision must take at most this share of float32's time: it costs accuracy


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision and why it was taken, in words that go to the log and the report."""

    precision: Precision
    reason: str


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 itself."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def faster_precision(act: Callable[[bool], object], device: torch.device, what: str, repeats: int) -> PrecisionChoice:
    """bf16 where it pays, else float32, from timing both in turn.

    Args:
        act: does the work, in bf16 if its argument is true.
        device: where it does so.
        what: the work by name, for the reason.
        repeats: timed pairs, behind one to warm up; the fastest of each counts, since other work only ever slows.
    """
    if not has_bf16(device):
        return PrecisionChoice("float32", "this GPU has no bf16")
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats + 1):
        for low in (False, True):
            seconds[low].append(_timed(act, low, device))
    full, half = (min(times[1:]) for times in (seconds[False], seconds[True]))
    measured = f"{what} takes {half * 1e3:.0f} ms in bf16, {full * 1e3:.0f} ms in float32"
    return PrecisionChoice("bf16" if half <= WORTH * full else "float32", measured)


def _timed(act: Callable[[bool], object], low: bool, device: torch.device) -> float:
    """Seconds that it takes."""
    _wait(device)
    start = time.perf_counter()
    act(low)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
