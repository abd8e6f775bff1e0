"""A network as a denoiser, and how it is called fast: in bf16, compiled, with deep features of an earlier call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from unetdiff.diffusion.guidance import Denoiser
from unetdiff.diffusion.network import Network
from unetdiff.diffusion.options import SamplingPrecision
from unetdiff.precision import PrecisionChoice, faster_precision

TIMED_BATCH = 16  # samples that decide on the precision


class Fast(TypedDict, total=False):
    """How a network is called in sampling.

    cache_interval: compute the deep part of a `UNet` in every so manieth call only, and reuse in between what it gave
        then (Ma et al. 2024, https://arxiv.org/abs/2312.00858): faster, at a price in quality; 1 by default.
    cache_step: a step of the encoder with a skip, by its key (`encoder.level0_block0`) or its name in
        `print(unet.plan)`, down to which every call computes all; by default the deepest for which that takes at most
        a quarter of the network's operations.
    precision: `float32` by default; `bf16` differs by more than rounding. `choose_sampling_precision` times both.
    compiled: compile the network, on a GPU as CUDA graphs. That takes a minute or more, for every size of batch.
    """

    cache_interval: int
    cache_step: str | None
    precision: SamplingPrecision
    compiled: bool


def denoisers(
    unet: nn.Module,
    *,
    cache_interval: int = 1,
    cache_step: str | None = None,
    precision: SamplingPrecision = "float32",
    compiled: bool = False,
) -> Callable[[], Denoiser]:
    """What makes the denoiser of one batch on its way from noise to x0, which returns float32. Settings: see `Fast`.

    Raises:
        ValueError: an interval below 1; a network without deep features to reuse, or without such a step.
    """
    if cache_interval < 1:
        raise ValueError(f"cache_interval is {cache_interval}; it must be at least 1.")
    prepared = _Prepared(unet, precision, compiled)
    if cache_interval == 1:
        if cache_step is not None:
            raise ValueError(f"cache_step {cache_step!r} needs a cache_interval above 1.")
        call = prepared(lambda x_t, timestep, labels: unet(x_t, timestep, class_labels=labels).sample)
        return lambda: lambda x_t, timestep, labels: call(x_t, timestep, labels).float()
    divide = getattr(unet, "divide", None)
    if divide is None:
        raise ValueError(f"cache_interval {cache_interval} needs a UNet of unetdiff, this is {type(unet).__name__}.")
    divided = divide(cache_step)
    full, shallow = prepared(divided.full), prepared(divided.shallow)
    return lambda: _reusing(full, shallow, cache_interval)


def _reusing(full: Callable[..., Any], shallow: Callable[..., Any], interval: int) -> Denoiser:
    """A denoiser that computes the deep features in its first call and in every `interval`-th after it."""
    calls, deep = 0, None

    def denoise(x_t: Tensor, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        nonlocal calls, deep
        if calls % interval:
            prediction = shallow(x_t, timestep, class_labels, deep)
        else:
            prediction, deep = full(x_t, timestep, class_labels)
        calls += 1
        return prediction.float()

    return denoise


class _Prepared:
    """Turns a function of (x_t, ...) into one in the chosen precision, compiled if wanted."""

    def __init__(self, unet: nn.Module, precision: SamplingPrecision, compiled: bool):
        weight = next(unet.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        self.low, self.compiled = precision == "bf16", compiled

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        inner = _compiled(function, self.device) if self.compiled else function

        def call(x_t: Tensor, *conditions: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
                return inner(x_t.to(self.dtype), *conditions)

        return call


def _compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A function compiled, on a GPU as CUDA graphs; where that fails, itself, with a warning that says so."""
    from torch._dynamo.exc import TorchDynamoException  # a second to import

    graphs = device.type == "cuda"
    fast: Callable[..., Any] | None = torch.compile(function, mode="reduce-overhead" if graphs else None)

    def call(*arguments: Any) -> Any:
        nonlocal fast
        if fast is None:
            return function(*arguments)
        try:
            if not graphs:
                return fast(*arguments)
            torch.compiler.cudagraph_mark_step_begin()
            result = fast(*arguments)  # in memory that the next call writes to
            return tuple(part.clone() for part in result) if isinstance(result, tuple) else result.clone()
        except TorchDynamoException as error:
            fast = None
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"the network was not compiled, and runs as it is: {reason}", stacklevel=2)
            return function(*arguments)

    return call


@contextmanager
def weights_cast_once(device: torch.device) -> Iterator[None]:
    """Within, autocast keeps its copies of the weights in bf16 from one call of a network to the next."""
    with torch.autocast(device.type, torch.bfloat16, enabled=False):  # autocast drops them when the outermost ends
        yield


@torch.no_grad()
def choose_sampling_precision(
    unet: nn.Module, *, size: int | Sequence[int] | None = None, batch_size: int = 32, guided: bool = False
) -> PrecisionChoice:
    """Time a network in float32 and in bf16, in turn; take bf16 where it pays.

    Args: as of `sample_images`; guided: whether guidance doubles the batch.
    """
    network, device = Network.of(unet), next(unet.parameters()).device
    count = min(batch_size * (2 if guided else 1), TIMED_BATCH)
    x = torch.zeros(count, network.channels, *network.space(size), device=device)
    time = torch.ones(count, device=device)
    labels = torch.zeros(count, dtype=torch.int64, device=device) if network.num_classes else None
    calls = {low: denoisers(unet, precision="bf16" if low else "float32")() for low in (False, True)}
    with weights_cast_once(device):
        return faster_precision(lambda low: calls[low](x, time, labels), device, "a call of the network", repeats=2)
