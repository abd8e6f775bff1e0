"""What every network must do, whatever its settings."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.testing import assert_close

from tests.networks import NETWORKS, every_output, inputs, network
from unetdiff import UNet

every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_odd_sizes_come_back_exactly(name: str) -> None:
    unet = network(name)
    size = (7, 5, 3)[: unet.config["dims"]]
    call = inputs(unet, size=size)
    outputs, size = unet(**call).heads, unet.layout.output_size(call["sample"].shape[2:])
    assert {key: tuple(value.shape[1:]) for key, value in outputs.items()} == {
        key: (channels, *size) for key, channels in unet.spec.outputs.items()
    }
    assert all(value.isfinite().all() for value in outputs.values())


@every_network
def test_every_parameter_has_a_gradient(name: str) -> None:
    unet = network(name)
    unet.train(unet.config["deep_supervision"])
    call = inputs(unet)
    if unet.config["null_class"]:
        call["class_labels"][0] = unet.config["num_classes"]
    sum((output * torch.randn_like(output)).sum() for output in every_output(unet(**call))).backward()
    dead = []
    for key, parameter in unet.named_parameters():
        if not parameter.requires_grad:
            continue  # frozen
        assert parameter.grad is not None, key
        if not parameter.grad.abs().max() > 0:
            dead.append(key)
    assert not dead


@every_network
def test_evaluation_is_deterministic_and_the_batch_does_not_matter(name: str) -> None:
    unet = network(name)
    call = inputs(unet)
    first = unet(**call).sample
    assert_close(unet(**call).sample, first, rtol=0, atol=0)
    alone = unet(**{key: value[1:] for key, value in call.items()}).sample
    assert_close(alone, first[1:], rtol=1e-4, atol=1e-4)


@every_network
def test_saved_and_loaded_is_equal(name: str, tmp_path) -> None:
    unet = network(name)
    unet.save_pretrained(tmp_path)
    loaded = UNet.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, UNet)
    assert loaded.spec == unet.spec
    assert_close(loaded.state_dict(), unet.state_dict(), rtol=0, atol=0)
    call = inputs(unet)
    # Loaded tensors lie at other offsets in memory, and BLAS chooses its kernels by that.
    assert_close(loaded(**call).sample, unet(**call).sample, rtol=1e-4, atol=1e-4)


@every_network
def test_compiled_is_equal_and_one_graph(name: str) -> None:
    unet = network(name)
    call = inputs(unet, size=6)
    expected = unet(**call).sample
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
        assert_close(compiled(**call).sample, expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@every_network
def test_bf16_follows_float32(name: str) -> None:
    unet = network(name)
    call = inputs(unet)
    expected = unet(**call).sample
    with torch.autocast("cpu", torch.bfloat16):
        low = unet(**call).sample
    assert low.dtype == torch.bfloat16
    error = (low.float() - expected).norm() / expected.norm()
    assert error < 0.1


@every_network
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    unet = network(name).train()
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    call = inputs(unet)

    def gradients() -> list[torch.Tensor]:
        unet.zero_grad()
        sum(output.square().sum() for output in every_output(unet(**call))).backward()
        return [parameter.grad.clone() for parameter in unet.parameters() if parameter.requires_grad]

    plain = gradients()
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    assert_close(gradients(), plain, rtol=1e-5, atol=1e-5)  # forced weights are forced once more


@every_network
def test_plan_counts_every_parameter(name: str) -> None:
    unet = network(name)
    plan = unet.plan_at(unet.layout.fitting_size((8,) * unet.config["dims"]))
    total = sum(step.parameters for step in plan.steps) + plan.embedding_parameters
    assert total == sum(parameter.numel() for parameter in unet.parameters())
    assert f"{total:,}" in str(plan)


def test_zero_initialised_network_returns_zero() -> None:
    unet = UNet(**NETWORKS["2d"])
    assert unet(**inputs(unet)).sample.abs().max() == 0


@every_network
def test_built_without_storage_and_filled_is_equal(name: str) -> None:
    """As sharded training builds: shapes first, then storage, then weights; nothing else may hold numbers."""
    unet = network(name)
    with torch.device("meta"):
        twin = UNet(**NETWORKS[name])
    twin.to_empty(device="cpu").load_state_dict(unet.state_dict())
    assert_close(twin.eval()(**inputs(unet)).sample, unet(**inputs(unet)).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fourier", "edm2", "ncsnpp", "score"])
@pytest.mark.parametrize("way", ["loaded", "cast"])
def test_frequencies_stay_float32_in_half_precision(name: str, way: str, tmp_path) -> None:
    unet = network(name)
    exact = {key: value.clone() for key, value in unet.named_buffers()}
    unet.save_pretrained(tmp_path)
    half = UNet.from_pretrained(tmp_path, torch_dtype=torch.bfloat16) if way == "loaded" else unet.to(torch.bfloat16)
    assert exact
    assert_close(dict(half.named_buffers()), exact, rtol=0, atol=0)
    assert half(**{**inputs(unet), "sample": inputs(unet)["sample"].bfloat16()}).sample.isfinite().all()
