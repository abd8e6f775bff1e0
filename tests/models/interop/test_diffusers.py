"""Networks of diffusers' `UNet2DModel`, live: same weights, same output and gradients, in and out."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet
from unetdiff.models.interop.diffusers import DIFFUSERS
from unetdiff.models.interop.weights import translate

SMALL: dict[str, Any] = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
PLAIN = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
}
ATTENDING = {"down_block_types": ("AttnDownBlock2D",) * 3, "up_block_types": ("AttnUpBlock2D",) * 3}
FOURIER = {"time_embedding_type": "fourier"}

CONFIGS: dict[str, dict[str, Any]] = {
    "small": {},
    "ddpm": {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6},
    "plain": PLAIN,
    "one_level": {
        "block_out_channels": (12,),
        "down_block_types": ("ResnetDownsampleBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "attention_head_dim": 3,
    },
    "two_levels": {
        "block_out_channels": (16, 8),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    "odd_widths": {"block_out_channels": (10, 15, 5), "norm_num_groups": 5, "attention_head_dim": 5},
    "many_blocks": {"layers_per_block": 3, "dropout": 0.3},
    "encoder_attends": {**PLAIN, "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")},
    "decoder_attends": {**PLAIN, "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D")},
    "resampling_mixed": {**RESNET, "downsample_padding": 0},
    "attention_resamples": {**ATTENDING, "downsample_type": "resnet", "upsample_type": "resnet"},
    "some_attention_resamples": {**RESNET, "downsample_type": "resnet", "upsample_type": "conv"},
    "resampling_type_unused": {**PLAIN, "downsample_type": "resnet", "upsample_type": "resnet"},
    "adm": {**RESNET, "downsample_type": "resnet", "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 4},
    "scale_shift_normed_middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 3},
    "normed_middle": {"attn_norm_num_groups": 2},
    "one_head": {**ATTENDING, "attention_head_dim": None},
    "no_middle_attention": {"add_attention": False, "attn_norm_num_groups": 7},
    "no_middle": {"mid_block_type": None},
    "labels": {"num_class_embeds": 7, "time_embedding_dim": 20},
    "one_label": {"num_class_embeds": 1, "resnet_time_scale_shift": "scale_shift"},
    "fourier": {**FOURIER, "num_class_embeds": 3},
    "fourier_resampling": {**FOURIER, **RESNET, "freq_shift": 1, "flip_sin_to_cos": True, "norm_eps": 1e-3},
    "other_channels": {"in_channels": 2, "out_channels": 5, "sample_size": (16, 24), "act_fn": "swish"},
    "one_group": {"norm_num_groups": 1, "num_train_timesteps": 1000},
}


def drawn(seed: int) -> dict[str, Any]:
    """A configuration drawn at random from everything that is supported."""
    draw = random.Random(seed)
    levels = draw.choice([1, 2, 3])
    ways = {"down": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")}
    ways["up"] = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
    choices: dict[str, Any] = {
        "time_embedding_type": ("positional", "fourier"),
        "time_embedding_dim": (None, 0, 18),
        "freq_shift": (0, 1),
        "flip_sin_to_cos": (True, False),
        "layers_per_block": (1, 2),
        "downsample_padding": (0, 1),
        "downsample_type": ("conv", "resnet"),
        "upsample_type": ("conv", "resnet"),
        "attention_head_dim": (None, 2, 4),
        "norm_num_groups": (1, 2, 4),
        "attn_norm_num_groups": (None, 1, 4),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "add_attention": (True, False),
        "num_class_embeds": (None, 5),
    }
    return {
        "block_out_channels": [draw.choice([4, 8, 12]) for _ in range(levels)],
        **{f"{side}_block_types": [draw.choice(kinds) for _ in range(levels)] for side, kinds in ways.items()},
        **{name: draw.choice(values) for name, values in choices.items()},
    }


EVERY = {**CONFIGS, **{f"drawn{seed}": drawn(seed) for seed in range(12)}}


def foreign(**changes: Any) -> UNet2DModel:
    """A network of diffusers with all weights random; Fourier frequencies as it draws them."""
    network = UNet2DModel(**{**SMALL, **changes})
    waves = network.time_proj.state_dict()
    redraw(network)
    network.time_proj.load_state_dict(waves)
    return network.eval()


def pair(**changes: Any) -> tuple[UNet2DModel, UNet]:
    """One network in both libraries."""
    theirs = foreign(**changes)
    return theirs, UNet.from_foreign("diffusers", {**SMALL, **changes}, theirs.state_dict())


def call(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arguments for one call of either network."""
    labels = config["num_class_embeds"]
    given = {"sample": torch.randn(2, config["in_channels"], 8, 16), "timestep": torch.tensor([3, 801])}
    return given if labels is None else {**given, "class_labels": torch.tensor([labels - 1, 0])}


def gradients(network: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradient of a fixed function of it by every parameter."""
    output: Tensor = network(**inputs).sample
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    found = {name: entry.grad for name, entry in network.named_parameters() if entry.grad is not None}
    return output.detach(), found


def assert_same_outputs(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Each sample by itself, in its root mean square."""
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).norm() < relative * other.norm()


def assert_same_gradients(
    ours: UNet, found: dict[str, Tensor], theirs: dict[str, Tensor], config: Mapping[str, Any], relative: float = 1e-4
) -> None:
    """Each parameter by itself; nothing is asked of what is rounding beside the whole."""
    listed = DIFFUSERS.weights(ours.layout, DIFFUSERS.complete(config))
    expected = translate([weight for weight in listed if weight.ours in found], theirs)
    assert set(expected) == {name for name, _ in ours.named_parameters()}
    whole = torch.cat([entry.flatten() for entry in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < relative * (gradient.norm() + 1e-3 * whole), name


@pytest.mark.parametrize("name", EVERY)
def test_same_weights_give_the_same_output_and_gradients(name: str) -> None:
    theirs, ours = pair(**EVERY[name])
    inputs = call(theirs.config)
    with torch.no_grad():
        assert_same_outputs(ours(**inputs).sample, theirs(**inputs).sample)
    # In double precision, so that what remains is no rounding, but for that of the waves.
    inputs["sample"] = inputs["sample"].double()
    theirs.double().time_proj.float()
    relative = 1e-4 if theirs.config["time_embedding_type"] == "fourier" else 1e-6
    expected, their_gradients = gradients(theirs, inputs)
    actual, our_gradients = gradients(ours.double(), inputs)
    assert_same_outputs(actual, expected, relative)
    assert_same_gradients(ours, our_gradients, their_gradients, {**SMALL, **EVERY[name]}, relative)


@pytest.mark.parametrize("name", EVERY)
def test_in_and_out_again_gives_the_network_that_came_in(name: str) -> None:
    theirs, ours = pair(**EVERY[name])
    config, weights = ours.to_foreign("diffusers")
    back = UNet2DModel(**json.loads(json.dumps(config))).eval()
    back.load_state_dict(weights)
    assert list(back.state_dict()) == list(theirs.state_dict())
    inputs = call(theirs.config)
    with torch.no_grad():
        assert torch.equal(back(**inputs).sample, theirs(**inputs).sample)


def test_dropout_drops_the_same_values() -> None:
    # Without attention, behind which the two differ in memory layout, the order in which values are drawn.
    theirs, ours = pair(**PLAIN, add_attention=False, dropout=0.37)
    inputs, outputs = call(theirs.config), []
    for network in (theirs, ours):
        torch.manual_seed(5)
        outputs.append(network.train()(**inputs).sample)
    assert_same_outputs(outputs[1], outputs[0])
    assert (outputs[0] - theirs.eval()(**inputs).sample).norm() > 0.1 * outputs[0].norm()


# The configuration that was published with the CIFAR-10 network of Ho et al. 2020 (google/ddpm-cifar10-32).
CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of the first releases."""
    pattern = re.compile(r"\.(to_q|to_k|to_v|to_out\.0)\.")
    return {pattern.sub(lambda found: f".{OLD_NAMES[found[1]]}.", name): tensor for name, tensor in state.items()}


def test_the_published_cifar10_network() -> None:
    preset = UNet.from_preset("ddpm_cifar10", dropout=0.0)
    redraw(preset, scale=0.05)
    config, weights = preset.to_foreign("diffusers")
    assert config == {**DIFFUSERS.complete(CIFAR10), "time_embedding_dim": 512}
    theirs = UNet2DModel(**config).eval()
    theirs.load_state_dict(weights)
    old = renamed(weights)
    assert sum(".query." in name for name in old) == 2 * 6
    ours = UNet.from_foreign("diffusers", CIFAR10, old)
    assert all(torch.equal(tensor, preset.state_dict()[name]) for name, tensor in ours.state_dict().items())
    inputs = {"sample": torch.randn(1, 3, 32, 32), "timestep": torch.tensor([501])}
    expected, their_gradients = gradients(theirs, inputs)
    actual, our_gradients = gradients(ours, inputs)
    assert_same_outputs(actual, expected)
    assert_same_gradients(ours, our_gradients, their_gradients, CIFAR10)


def test_a_saved_network(tmp_path: Path) -> None:
    theirs = foreign(num_class_embeds=3)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ours = UNet.from_foreign("diffusers", config, load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    inputs = call(theirs.config)
    assert_close(ours(**inputs).sample, theirs(**inputs).sample, rtol=1e-4, atol=1e-5)


def test_block_names_of_the_first_releases() -> None:
    theirs = foreign(down_block_types=("UNetResDownBlock2D", "UNetResAttnDownBlock2D", "UNetResDownBlock2D"))
    ours = UNet.from_foreign("diffusers", theirs.config, theirs.state_dict())
    assert [step.heads > 0 for step in ours.layout.side("encoder") if step.kind == "block"] == [False, True, False]
