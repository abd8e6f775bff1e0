"""In which form a network trains: compiled or not, its weights channels-last or not; decided once, where it pays."""

from __future__ import annotations

import copy
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unetdiff.precision import WORTH
from unetdiff.run_config import Switch

Loss = Callable[[nn.Module], Tensor]

LONG, LONGER = 600.0, 3600.0
"""Seconds that a run must last for `auto` to try channels-last, and to compile, which takes minutes itself."""

MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
"""By the number of spatial axes."""


@dataclass(frozen=True)
class Choice:
    """Whether a form was taken, and why, in words for the log; `told`: whether that is news to whoever set it."""

    on: bool
    reason: str
    told: bool = False


@dataclass(frozen=True)
class Trial:
    """What forms are tried out with.

    unet: the network, untouched. dims: its spatial axes. loss: a scalar loss of a network on one real batch. low:
    whether it trains in bf16. passes: how many such batches the run will see. repeats: timed pairs; the fastest counts.
    """

    unet: nn.Module
    dims: int
    loss: Loss
    device: torch.device
    low: bool
    passes: int
    repeats: int = 3

    def seconds(self, module: nn.Module) -> float:
        """Of a forward and backward pass."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        start = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            value = self.loss(module)
        value.backward()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        module.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def twin(self) -> nn.Module:
        """A copy in training mode."""
        return copy.deepcopy(self.unet).train()

    def whole(self) -> float:
        """Seconds that the run will take, roughly; the first pass is for warming up."""
        twin = self.twin()
        return min(self.seconds(twin) for _ in range(2)) * self.passes

    def beside(self, other: nn.Module, name: str) -> Choice:
        """Time another form and the network as it is, in turn; take the other where it pays."""
        twin = self.twin()
        pairs = [(self.seconds(other), self.seconds(twin)) for _ in range(self.repeats + 1)][1:]
        form, plain = (min(times) for times in zip(*pairs, strict=True))
        return Choice(
            form <= WORTH * plain, f"a pass takes {form * 1e3:.0f} ms {name}, {plain * 1e3:.0f} ms without", True
        )


def is_set(switch: Switch) -> bool | None:
    """A switch as a truth value; None for `auto`."""
    return switch if isinstance(switch, bool) else {"on": True, "off": False}.get(switch)


def choose_forms(channels_last: Switch, compiled: Switch, make_trial: Callable[[], Trial]) -> tuple[Choice, Choice]:
    """Whether the weights are kept channels-last and whether the network is compiled, in that form.

    Args:
        channels_last, compiled: `train.channels_last` and `train.compile`.
        make_trial: called where something is tried out.
    """
    wanted = [is_set(switch) for switch in (channels_last, compiled)]
    if wanted[0] is not None and wanted[1] is False:
        return _as_set(wanted[0], "channels_last"), _as_set(wanted[1], "compile")
    trial = make_trial()
    whole = trial.whole() if None in wanted else 0.0
    layout = _layout(wanted[0], trial, whole)
    held = to_channels_last(trial.twin(), trial.dims) if layout.on else trial.unet
    return layout, _compiled(wanted[1], replace(trial, unet=held), whole)


def to_channels_last(module: nn.Module, dims: int) -> nn.Module:
    """The module, its convolutions' weights (and so what comes out of them) with channels last."""
    if dims in MEMORY_FORMATS:
        module.to(memory_format=MEMORY_FORMATS[dims])  # pyright: ignore[reportCallIssue]
    return module


def no_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled here, or None."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch's inductor looks for it
    missing = device.type == "cpu" and shutil.which(name) is None
    return f"there is no C++ compiler {name} here" if missing else None


def _as_set(on: bool, setting: str) -> Choice:
    return Choice(on, f"set by train.{setting}")


def _too_short(limit: float) -> Choice:
    return Choice(False, f"not tried: the run takes less than {limit / 60:.0f} minutes")


def _layout(wanted: bool | None, trial: Trial, whole: float) -> Choice:
    if wanted is not None:
        return _as_set(wanted, "channels_last")
    if trial.dims not in MEMORY_FORMATS:
        return Choice(False, "there is no such form of signals")
    if whole < LONG:
        return _too_short(LONG)
    return trial.beside(to_channels_last(trial.twin(), trial.dims), "channels-last")


def _compiled(wanted: bool | None, trial: Trial, whole: float) -> Choice:
    if wanted is False:
        return _as_set(False, "compile")
    if wanted is None and whole < LONGER:
        return _too_short(LONGER)
    missing = no_compiler(trial.device)
    if missing is not None:
        return Choice(False, missing, told=wanted is True)
    twin = trial.twin()
    try:
        twin.compile()
        trial.seconds(twin)
        return _as_set(True, "compile") if wanted else trial.beside(twin, "compiled")
    except Exception as error:  # a compiler has many ways to fail, and a run does not need it
        words = str(error).strip().splitlines() or [type(error).__name__]
        return Choice(False, f"compiling failed ({words[0][:200]})", told=True)
    finally:
        torch.compiler.reset()
