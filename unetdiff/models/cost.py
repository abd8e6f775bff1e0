"""What a network costs, counted by running a copy of it that has shapes but no storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from unetdiff.models.unet import UNet


def step_operations(unet: UNet, size: Sequence[int]) -> dict[str, int]:
    """Multiplications and additions of each step, by step key, for one sample of `size` (matrix products only)."""
    with torch.device("meta"):
        twin, call = _twin(unet).eval(), _arguments(unet, size, batch=1)
    counter = FlopCounterMode(display=False)
    operations: dict[str, int] = {}
    for key, module in twin.step_modules().items():
        operations[key] = 0  # heads that only training needs do not run
        _count(module, key, counter, operations)
    with torch.no_grad(), counter:
        twin(**call)
    return operations


def bytes_kept(
    unet: UNet, size: Sequence[int], dtype: torch.dtype = torch.float32, memory: Literal["lean", "plain"] = "lean"
) -> int:
    """Bytes that one more sample of `size` in the batch keeps in training, from the forward to the backward pass.

    What autograd saves of the network as its settings build it: activations, the input among them, each storage once.
    Weights and what is computed from weights alone are there once per batch and do not count, nor does what a loss
    saves. As on a CPU; other devices have other kernels.

    Args:
        unet: the network; its weights are not read.
        size: positions along each axis, such as (height, width); without padding, a size that fits.
        dtype: float32, or a lower type for autocast to compute in.
        memory: `lean`, as networks train, or `plain` (see `UNet.set_memory`).
    """
    # Not the meta device, on which attention saves its logits: no fused kernel is chosen there.
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        twin = _twin(unet).train()
        twin.set_memory(memory)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            # Batch norm refuses to train on a single value, which a batch of 1 can come down to.
            two, three = (_bytes_saved(twin, _arguments(unet, size, batch)) for batch in (2, 3))
    return three - two


def _twin(unet: UNet) -> UNet:
    """A new network of the same settings, on the device at hand."""
    twin = type(unet).from_config(unet.config)
    assert isinstance(twin, type(unet))
    return twin


def _arguments(unet: UNet, size: Sequence[int], batch: int) -> dict[str, Tensor]:
    """Arguments for one call of a network, on the device at hand."""
    arguments = {"sample": torch.empty(batch, unet.config["in_channels"], *size)}
    if unet.config["time_embedding"] != "none":
        arguments["timestep"] = torch.zeros(batch)
    if unet.config["num_classes"]:
        # On meta in any case: the values of labels on a CPU are looked at, and these have none.
        arguments["class_labels"] = torch.zeros(batch, dtype=torch.long, device="meta")
    return arguments


class _Saved:
    """The memory of a tensor that autograd saved: it is there as long as the graph that holds it."""

    def __init__(self, tensor: Tensor):
        # Not the tensor, which would hold the graph in turn where it is what the saving operation returned.
        self.storage = tensor.untyped_storage()


def _bytes_saved(network: nn.Module, arguments: dict[str, Tensor]) -> int:
    """Bytes of the distinct storages that the graph of a network's output holds for the backward pass."""
    held: WeakSet[_Saved] = WeakSet()  # weak: what leads to no output is gone when the network returns

    def save(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        held.add(saved)
        return saved

    def restore(_saved: _Saved) -> Tensor:
        raise AssertionError("there is no backward pass")

    with torch.autograd.graph.saved_tensors_hooks(save, restore):
        output = network(**arguments)
    sizes = {saved.storage._cdata: saved.storage.nbytes() for saved in held}
    del output  # which held the graph until here
    return sum(sizes.values())


def _count(module: nn.Module, key: str, counter: FlopCounterMode, operations: dict[str, int]) -> None:
    """Have `module` note the operations between its start and its end."""

    def start(_module: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        operations[key] = -counter.get_total_flops()

    def end(_module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        operations[key] += counter.get_total_flops()

    module.register_forward_pre_hook(start)
    module.register_forward_hook(end)
