"""Bytes: what autograd keeps, what tensors take at their peak, what a process takes at its peak."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

MEBI = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def bytes_kept(forward: Callable[[], object]) -> int:
    """Bytes of the distinct storages that autograd saves while `forward` runs."""
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


def allocated(act: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Bytes of tensors that `act` adds on a device: at the peak, and left while its result is held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = act()
        torch.cuda.synchronize()
        peak, left = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
        del result
        return peak, left
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = act()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return peak, now


def resident_peak(act: Callable[[], object]) -> int:
    """Bytes of this process at its peak while `act` runs, beyond those before: tensors, arrays and workspaces alike.

    Freed memory that the process still holds hides what `act` takes, so call it once in a process of its own; see
    `in_own_process`.
    """
    gc.collect()
    before = _resident("VmRSS")
    CLEAR.write_text("5")  # the peak starts anew
    result = act()
    peak = _resident("VmHWM")
    del result
    return peak - before


def _resident(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def in_own_process(module: str, *words: str) -> str:
    """What `python -m module words` prints last."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", module, *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]
