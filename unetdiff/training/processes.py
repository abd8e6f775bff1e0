"""Processes: starting accelerate on whatever there is, and agreeing on when to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from unetdiff.run_config import Precision

T = TypeVar("T")

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
    if tracker != "none" and tracker not in {entry.value for entry in get_available_trackers()}:
        raise ValueError(f"train.tracker {tracker} is not installed: pip install 'unetdiff[track]' (or wandb)")
    on_cpu = device_of(PartialState()).type == "cpu"
    AcceleratorState._reset_state()  # another run of this process may have had another precision
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=_MIXED[precision],
        log_with=None if tracker == "none" else tracker,
        project_dir=project_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.mixed_precision != _MIXED[precision]:
        raise ValueError(f"train.precision {precision} is not available here; accelerate fell back to float32")
    return accelerator


def together(act: Callable[[], T]) -> T:
    """What `act` returns; where it fails in some process, the same `ValueError` in all of them, and none waits.

    Every process must call this, with whatever is its own part.
    """
    outcome, failure = None, None
    try:
        outcome = act()
    except (ValueError, OSError) as error:
        failure = str(error) or type(error).__name__
    failures = Agreement().collect(failure)
    if any(failures):
        rank = next(place for place, text in enumerate(failures) if text)
        raise ValueError(failures[rank] if rank == 0 else f"process {rank}: {failures[rank]}")
    return cast(T, outcome)


def first_alone(act: Callable[[], T]) -> T:
    """What `act` returns in the first process, in every process; its failure is everyone's."""
    return share(together(lambda: act() if PartialState().is_main_process else None))


kept_to_the_end: list[Any] = []
"""What must not be destroyed before `run_command` ends the process: see there."""


class Agreement:
    """Small facts that all processes must agree on, exchanged between CPUs."""

    _beside: ClassVar[Any] = None  # a gloo group beside NCCL's, which exchanges what is on GPUs only

    def __init__(self) -> None:
        self.several = dist.is_initialized() and dist.get_world_size() > 1
        if self.several and dist.get_backend() != "gloo" and Agreement._beside is None:
            Agreement._beside = dist.new_group(backend="gloo")

    def totals(self, *facts: int) -> list[int]:
        """The sum of each number over the processes."""
        if not self.several:
            return list(facts)
        tensor = torch.tensor(facts)
        dist.all_reduce(tensor, group=self._beside)
        return tensor.tolist()

    def collect(self, value: T) -> list[T]:
        """The values of all processes, in order."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._beside)
        return values

    @classmethod
    def close(cls) -> None:
        """Give the group back; a group that outlives its world can block the end of the process."""
        if cls._beside is not None:
            dist.destroy_process_group(cls._beside)
            cls._beside = None


class StopRequest:
    """Whether SIGTERM or SIGINT has arrived; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            sys.exit(128 + number)
        self.signal = number


@contextmanager
def catching_stop(request: StopRequest) -> Iterator[None]:
    """Within, SIGTERM and SIGINT only leave a note in `request`, so that the step in hand is finished and saved."""
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
