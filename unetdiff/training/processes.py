"""Processes: starting accelerate on whatever there is, and agreeing on when to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from unetdiff.config import Precision

_MIXED = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


def start_processes(expected: int | None) -> PartialState:
    """Join the processes that were launched, on GPUs where there are any, else on the CPU (gloo).

    Raises:
        ValueError: fewer processes came together than `expected`, or than the launcher announced.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    state = PartialState(cpu=on_cpu)
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = max(announced, expected or 1)
    if state.num_processes != wanted or (expected is not None and expected != state.num_processes):
        raise ValueError(
            f"{state.num_processes} process(es) came together, {expected or announced} were asked for: start them with "
            f"torchrun --nproc-per-node {expected or announced} (accelerate launch --cpu starts one only)"
        )
    return state


def device_of(state: PartialState) -> torch.device:
    """The device of this process."""
    assert state.device is not None
    return state.device


def share(value: Any) -> Any:
    """The first process's value, in every process."""
    return broadcast_object_list([value])[0]


def make_accelerator(precision: Precision, tracker: str, project_dir: str) -> Accelerator:
    """accelerate with the decided precision, on the processes that `start_processes` joined."""
    on_cpu = device_of(PartialState()).type == "cpu"
    AcceleratorState._reset_state()  # another run of this process may have had another precision
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=_MIXED[precision],
        log_with=None if tracker == "none" else tracker,
        project_dir=project_dir,
        # Group norm has no buffers to keep equal, and evaluation must not wait for other processes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if accelerator.mixed_precision != _MIXED[precision]:
        raise ValueError(f"train.precision {precision} is not available here; accelerate fell back to float32")
    return accelerator


class Agreement:
    """Small facts that all processes must agree on at every step, summed over the CPU so that no GPU waits."""

    def __init__(self) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend="gloo") if several else None

    def totals(self, *facts: int) -> list[int]:
        """The sum of each number over the processes."""
        if self.group is None:
            return list(facts)
        tensor = torch.tensor(facts)
        dist.all_reduce(tensor, group=self.group)
        return tensor.tolist()

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, in order."""
        if self.group is None:
            return [value]
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self.group)
        return values


class StopRequest:
    """Whether SIGTERM or SIGINT has arrived; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            sys.exit(128 + number)
        self.signal = number


@contextmanager
def catching_stop() -> Iterator[StopRequest]:
    """Within, SIGTERM and SIGINT only leave a note, so that the step in hand can be finished and saved."""
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
