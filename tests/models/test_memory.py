"""The forms of `memory`: equal outputs and gradients, less memory where it says so."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.testing import assert_close

from benchmarks.speed.memory import allocated, bytes_kept
from tests.networks import NETWORKS, every_output, inputs, network
from unetdiff import UNet
from unetdiff.models import cost

EQUAL = [
    "1d",
    "adm",
    "asymmetric",
    "three_levels",  # dropout
    "post_norm",
    "main_norm",
    "normed_skips",
    "ncsnpp",
    "edm2",
    "nnunet",
    "gated_skips",
    "pointwise_skips",
    "nested",
    "transformer",
    "separable",
    "supervised_3d",
    "adm_64",  # down to a single position
]


def trained_once(unet: UNet, call: dict[str, Any], memory: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Outputs, and the gradients of the input and of every parameter, in one form."""
    unet.set_memory(memory)
    unet.zero_grad()
    torch.manual_seed(3)
    sample = call["sample"].clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs = every_output(unet(**{**call, "sample": sample}))
    generator = torch.Generator().manual_seed(4)
    sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs).backward()
    held = [parameter.grad for parameter in unet.parameters() if parameter.requires_grad]
    return [*(output.detach() for output in outputs), sample.grad, *held]  # pyright: ignore


def in_training(name: str, dtype: torch.dtype = torch.float32) -> tuple[UNet, dict[str, Any]]:
    unet = network(name).train().to(dtype)  # pyright: ignore
    unet._forced = []  # weights that are forced anew differ by rounding
    call = inputs(unet)
    return unet, {**call, "sample": call["sample"].to(dtype)}


@pytest.mark.parametrize("name", EQUAL)
def test_lean_changes_no_output_and_no_gradient(name: str) -> None:
    unet, call = in_training(name, torch.float64)
    plain, lean = (trained_once(unet, call, memory) for memory in ("plain", "lean"))
    assert_close(lean, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["2d", "adm", "nnunet", "edm2", "supervised_3d"])
def test_lean_under_autocast(name: str) -> None:
    unet, call = in_training(name)
    plain, lean = (trained_once(unet, call, memory, torch.bfloat16) for memory in ("plain", "lean"))
    assert_close(lean, plain, rtol=1e-3, atol=1e-3)


def test_lean_channels_last() -> None:
    unet, call = in_training("2d")
    unet.to(memory_format=torch.channels_last)  # pyright: ignore
    call["sample"] = call["sample"].to(memory_format=torch.channels_last)
    plain, lean = (trained_once(unet, call, memory) for memory in ("plain", "lean"))
    assert_close(lean, plain, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_get_no_gradient() -> None:
    unet, call = in_training("2d", torch.float64)
    for parameter in unet.encoder.parameters():
        parameter.requires_grad_(False)
    plain, lean = (trained_once(unet, call, memory) for memory in ("plain", "lean"))
    assert_close(lean, plain, rtol=1e-10, atol=1e-10)
    assert all(parameter.grad is None for parameter in unet.encoder.parameters())


def test_compiled_networks_run_plain_and_are_equal() -> None:
    unet, call = in_training("average_pool")
    lean = trained_once(unet, call, "lean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet.compile(backend="aot_eager", fullgraph=True)
        assert_close(trained_once(unet, call, "lean"), lean, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_functional_transforms_see_the_layers_one_by_one() -> None:
    unet, call = in_training("2d")
    parameters = dict(unet.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(unet, values, kwargs=call).sample.square().sum()

    transformed = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    assert_close(transformed, {name: parameter.grad for name, parameter in parameters.items()}, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_need_the_plain_form() -> None:
    unet, call = in_training("average_pool")  # of the fused attention there are none
    sample = call["sample"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"set_memory\('plain'\)"):
        torch.autograd.grad(unet(**call).sample.sum(), sample, create_graph=True)
    unet.set_memory("plain")
    (first,) = torch.autograd.grad(unet(**call).sample.sum(), sample, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), sample)[0].abs().max() > 0


def small_pair() -> tuple[UNet, UNet2DModel]:
    """The networks of `the bench's `train_step``, an eighth as wide, and with less attention."""
    ours = UNet.from_preset("ddpm_cifar10", channels=[32, 64, 64, 64])
    theirs = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,  # pyright: ignore
        downsample_padding=0,
        dropout=0.1,
    )
    return ours.train(), theirs.train()


def forward(unet: Any, batch: int, size: int = 32) -> Callable[[], Tensor]:
    """A call that returns the output's sum."""
    sample = torch.randn(batch, 3, size, size)
    return lambda: unet(sample, torch.full((batch,), 10)).sample.sum()


def test_lean_keeps_less_than_half_of_what_diffusers_keeps() -> None:
    ours, theirs = small_pair()
    lean = bytes_kept(forward(ours, 2)) - bytes_kept(forward(ours, 1))
    assert lean == cost.bytes_kept(ours, (32, 32))
    assert lean < 0.45 * (bytes_kept(forward(theirs, 2)) - bytes_kept(forward(theirs, 1)))


def test_the_preset_keeps_less_than_half_of_what_diffusers_keeps_without_dropout() -> None:
    """47.7 MiB per image for the network of the same shape."""
    assert cost.bytes_kept(UNet.from_preset("ddpm_cifar10"), (32, 32)) < 0.45 * 47.7 * 2**20


def test_the_peak_falls_likewise_and_nothing_is_kept_in_secret() -> None:
    ours, theirs = small_pair()
    peaks: dict[str, float] = {}
    for name, unet in (("lean", ours), ("plain", ours), ("theirs", theirs)):
        if name != "theirs":
            ours.set_memory(name)  # pyright: ignore
        step = [forward(unet, batch, 16) for batch in (4, 8)]
        step[0]().backward()  # so that gradients of the weights are there
        peak = [allocated(lambda each=each: each().backward(), torch.device("cpu"))[0] for each in step]
        peaks[name] = peak[1] - peak[0]
        if name != "theirs":
            kept = bytes_kept(step[1]) - bytes_kept(step[0])
            left = [allocated(each, torch.device("cpu"))[1] for each in step]
            assert left[1] - left[0] < 1.02 * kept
    assert peaks["lean"] < 0.45 * peaks["theirs"]
    assert peaks["lean"] < 0.5 * peaks["plain"]


def steps_run(unet: UNet, call: dict[str, Any]) -> Counter[str]:
    """How often each step ran in a forward and backward pass."""
    counts: Counter[str] = Counter()
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, key=key: counts.update([key]))
        for key, module in unet.step_modules().items()
    ]
    unet.zero_grad()
    unet(**call).sample.sum().backward()
    for hook in hooks:
        hook.remove()
    return counts


def test_checkpoints_by_level() -> None:
    unet, call = in_training("three_levels")
    plain = [tensor.clone() for tensor in trained_once(unet, call, "plain")]
    levels = {step.key: step.level for step in unet.layout.steps if step.side != "head"}
    for chosen in ([0], [1, 2], None):
        unet.set_memory("checkpoint", chosen)
        counts = steps_run(unet, call)
        assert {key for key, count in counts.items() if count == 2} == {
            key for key, level in levels.items() if chosen is None or level in chosen
        }
    unet.set_memory("lean")
    assert set(steps_run(unet, call).values()) == {1}
    assert_close(trained_once(unet, call, "checkpoint"), plain, rtol=1e-5, atol=1e-5)


def test_wrong_settings() -> None:
    unet = UNet(**NETWORKS["2d"])
    with pytest.raises(ValueError, match="memory is 'small'; expected one of lean, plain, checkpoint"):
        unet.set_memory("small")  # pyright: ignore
    with pytest.raises(ValueError, match=r"checkpoint_levels is \[2\]; expected levels of 0 to 1"):
        unet.set_memory("checkpoint", [2])
