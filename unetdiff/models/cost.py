"""Operations per step, counted by running a copy of the network that has shapes but no storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from unetdiff.models.unet import UNet


def step_operations(unet: UNet, size: Sequence[int]) -> dict[str, int]:
    """Multiplications and additions of each step, by step key, for one sample of `size` (matrix products only)."""
    with torch.device("meta"):
        twin = type(unet).from_config(unet.config)
        assert isinstance(twin, type(unet))
        sample = torch.empty(1, unet.config["in_channels"], *size)
        timed = unet.config["time_embedding"] != "none"
        timestep = torch.zeros(1) if timed else None
        labels = torch.zeros(1, dtype=torch.long) if unet.config["num_classes"] else None
    counter = FlopCounterMode(display=False)
    operations: dict[str, int] = {}
    for key, module in twin.step_modules().items():
        _count(module, key, counter, operations)
    with torch.no_grad(), counter:
        twin(sample, timestep, labels)
    return operations


def _count(module: nn.Module, key: str, counter: FlopCounterMode, operations: dict[str, int]) -> None:
    """Have `module` note the operations between its start and its end."""

    def start(_module: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        operations[key] = -counter.get_total_flops()

    def end(_module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        operations[key] += counter.get_total_flops()

    module.register_forward_pre_hook(start)
    module.register_forward_hook(end)
