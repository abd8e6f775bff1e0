"""`DiffusionModelUNet` of MONAI, live: its weights here give its outputs and its gradients."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet
from unetdiff.models.interop.monai import MONAI
from unetdiff.models.interop.weights import translate

SMALL: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 2,
    "out_channels": 3,
    "channels": (8, 16),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "norm_num_groups": 4,
    "num_head_channels": 4,
}
VOLUME = {"spatial_dims": 3, "channels": (4, 8), "norm_num_groups": 2}

CASES: dict[str, dict[str, Any]] = {
    "two_levels": {},
    "volume": VOLUME,
    "one_level": {"channels": (8,), "attention_levels": (True,), "num_head_channels": 8},
    "narrowing": {"channels": (16, 12, 8), "attention_levels": (True, False, False), "num_head_channels": (8, 0, 2)},
    "blocks_per_level": {"channels": (8, 8, 16), "num_res_blocks": (2, 1, 3), "attention_levels": (False, True, False)},
    "heads_per_level": {"attention_levels": (True, True), "num_head_channels": (2, 16), "num_res_blocks": 2},
    "odd_label_count": {"num_class_embeds": 7},
    "one_label": {"num_class_embeds": 1, **VOLUME},
    "resblocks": {"resblock_updown": True, "channels": (8, 16, 16), "attention_levels": (False, True, True)},
    "resblocks_volume": {"resblock_updown": True, **VOLUME, "num_class_embeds": 3},
    "combined_linear": {"use_combined_linear": True, "attention_levels": (True, True)},
    "combined_linear_volume": {"use_combined_linear": True, **VOLUME},
    "norm": {"norm_num_groups": 1, "norm_eps": 0.1, "channels": (6, 10), "num_head_channels": (3, 5)},
    "without_effect": {"use_flash_attention": True, "upcast_attention": True, "dropout_cattn": 0.3},
}


def theirs_of(case: dict[str, Any]) -> DiffusionModelUNet:
    """Their network with all its weights redrawn."""
    network = DiffusionModelUNet(**{**SMALL, **case})
    redraw(network)
    return network.eval()


def call(config: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sample, timesteps and labels for a network."""
    sample = torch.randn(2, config["in_channels"], *(8, 12, 4)[: config["spatial_dims"]])
    count = config.get("num_class_embeds")
    return sample, torch.tensor([3, 801]), torch.tensor([count - 1, 0]) if count else None


def our_gradients(ours: UNet, theirs: DiffusionModelUNet, config: dict[str, Any]) -> dict[str, Tensor]:
    """Their gradients under our names: gradients change their form as the weights do."""
    listed = [weight for weight in MONAI.weights(ours.layout, MONAI.complete(config)) if weight.ours in _names(ours)]
    gradients = {name: entry.grad for name, entry in theirs.named_parameters() if entry.grad is not None}
    return translate(listed, gradients)


def _names(ours: UNet) -> set[str]:
    return {name for name, _ in ours.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_same_weights_give_the_same_output_and_gradients(name: str) -> None:
    config = {**SMALL, **CASES[name]}
    theirs = theirs_of(CASES[name])
    ours = UNet.from_foreign("monai", config, theirs.state_dict())
    sample, timesteps, labels = call(config)
    expected = theirs(sample, timesteps, class_labels=labels)
    actual = ours(sample, timesteps, labels).sample
    assert (actual - expected).norm() / expected.norm() <= 1e-5
    for output in (expected, actual):
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = our_gradients(ours, theirs, config)
    assert set(gradients) == _names(ours)
    for parameter_name, parameter in ours.named_parameters():
        wanted = gradients[parameter_name]
        assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()), msg=parameter_name)


def test_timestep_and_label_reach_the_output() -> None:
    """Otherwise equal outputs would say nothing about how conditions enter."""
    config = {**SMALL, **CASES["odd_label_count"]}
    ours = UNet.from_foreign("monai", config, theirs_of(CASES["odd_label_count"]).state_dict())
    sample, timesteps, labels = call(config)
    output = ours(sample, timesteps, labels).sample
    assert not torch.allclose(output, ours(sample, timesteps + 1, labels).sample)
    assert not torch.allclose(output, ours(sample, timesteps, labels * 0).sample)


def test_every_argument_of_the_live_constructor_is_known_with_its_default() -> None:
    parameters = inspect.signature(DiffusionModelUNet).parameters
    required = {name: 2 for name, entry in parameters.items() if entry.default is inspect.Parameter.empty}
    defaults = {name: entry.default for name, entry in parameters.items() if name not in required}
    completed = MONAI.complete(required)
    assert set(completed) == set(parameters)
    assert completed == MONAI.complete({**required, **defaults})


REFUSED: dict[str, dict[str, Any]] = {
    "spatial_dims 1 is not supported": {"spatial_dims": 1},
    "with_conditioning True is not supported": {"with_conditioning": True, "cross_attention_dim": 4},
    "cross_attention_dim 4 is not supported": {"cross_attention_dim": 4},
    "transformer_num_layers 2 is not supported": {"transformer_num_layers": 2},
    "include_fc False is not supported": {"include_fc": False},
    "no argument 'chanels'": {"chanels": (8,)},
    r"num_res_blocks is \[1, 2, 3\]; expected 2 entries": {"num_res_blocks": (1, 2, 3)},
    r"attention_levels is \[True\]; expected 2 entries": {"attention_levels": (True,)},
    "attention_levels is True; expected a list": {"attention_levels": True},
    r"num_head_channels is \[4\]; expected 2 entries": {"num_head_channels": (4,)},
    r"channels \[8, 16\] are not all multiples of norm_num_groups 3": {"norm_num_groups": 3},
    "odd first width": {"channels": (9, 12), "norm_num_groups": 3},
    "channels 16 do not divide into attention_head_channels 5": {"num_head_channels": 5},
}


@pytest.mark.parametrize("message", REFUSED)
def test_unsupported_arguments_are_refused_by_name(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet.from_foreign("monai", {**SMALL, **REFUSED[message]}, {})


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="needs the argument 'in_channels'"):
        UNet.from_foreign("monai", {"spatial_dims": 2, "out_channels": 1}, {})


def test_their_network_fails_on_signals_itself() -> None:
    """Why `spatial_dims` 1 is refused; should it start to work, the refusal can go."""
    theirs = theirs_of({"spatial_dims": 1})
    with pytest.raises(RuntimeError):
        theirs(torch.randn(2, 2, 8), torch.tensor([1, 2]))


@pytest.mark.parametrize("case", ["two_levels", "combined_linear", "resblocks"])
def test_weights_that_do_not_fit_are_named(case: str) -> None:
    config = {**SMALL, **CASES[case]}
    state = theirs_of(CASES[case]).state_dict()
    for name in list(state)[::25]:
        with pytest.raises(ValueError, match=f"has no '{name}'"):
            UNet.from_foreign("monai", config, {key: entry for key, entry in state.items() if key != name})
    with pytest.raises(ValueError, match=r"does not have: 'extra\.weight'"):
        UNet.from_foreign("monai", config, {**state, "extra.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("two_levels", "conv_in.conv.weight"),
        ("two_levels", "middle_block.attention.attn.to_q.weight"),
        ("two_levels", "up_blocks.1.resnets.0.norm1.weight"),
        ("combined_linear", "down_blocks.0.attentions.0.attn.qkv.bias"),
        ("odd_label_count", "class_embedding.weight"),
    ],
)
def test_weights_of_another_shape_are_named(case: str, name: str) -> None:
    state = theirs_of(CASES[case]).state_dict()
    state[name] = torch.cat([state[name]] * 2)
    with pytest.raises(ValueError, match=rf"'{name}' has shape"):
        UNet.from_foreign("monai", {**SMALL, **CASES[case]}, state)
