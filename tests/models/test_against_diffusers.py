"""The networks of DDPM and ADM against diffusers' `UNet2DModel`: same weights, same output and gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet

LEVELS = 3
BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2.norm", "time_emb_proj": "norm2.project", "conv2": "conv2"}
BLOCK |= {"conv_shortcut": "shortcut"}
OUTSIDE = {
    "conv_in": "encoder.stem.module",
    "time_embedding.linear_1": "embedding.time.0",
    "time_embedding.linear_2": "embedding.time.2",
    "class_embedding": "embedding.label",
    "conv_norm_out": "head.sample.0",
    "conv_out": "head.sample.2",
}


def our_name(name: str) -> str:
    """A parameter of `UNet2DModel` by its name here; the parts of a query-key-value product stay apart."""
    for theirs, ours in OUTSIDE.items():
        name = re.sub(rf"^{theirs}\.", f"{ours}.", name)
    step = r"^(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)"
    name = re.sub(step, lambda found: f"{_side(found[1], int(found[2]))}_block{found[4]}.{_part(found[3])}", name)
    name = re.sub(
        r"^mid_block\.(resnets|attentions)\.(\d)", lambda f: f"decoder.middle_block{f[2]}.{_part(f[1])}", name
    )
    name = re.sub(r"^down_blocks\.(\d)\.downsamplers\.0\.conv", r"encoder.level\1_down.module", name)
    name = re.sub(
        r"^up_blocks\.(\d)\.upsamplers\.0\.conv", lambda f: f"decoder.level{_up(int(f[1]))}_up.module.1", name
    )
    for theirs, ours in BLOCK.items():
        name = re.sub(rf"\.residual\.{theirs}\.", f".residual.{ours}.", name)
    return name.replace(".group_norm.", ".norm.").replace(".to_out.0.", ".out.")


def _up(index: int) -> int:
    return LEVELS - 1 - index


def _side(side: str, index: int) -> str:
    return f"encoder.level{index}" if side == "down" else f"decoder.level{_up(index)}"


def _part(name: str) -> str:
    return {"resnets": "residual", "attentions": "attention"}[name]


def translate(theirs: dict[str, Tensor], asymmetric: bool) -> dict[str, Tensor]:
    """The state dict of a `UNet2DModel` as one of ours."""
    renamed = {our_name(name): tensor for name, tensor in theirs.items()}
    if asymmetric:
        renamed = {re.sub(r"_down\.module\.", "_down.module.conv.", name): value for name, value in renamed.items()}
    for name in [name for name in renamed if ".to_q." in name]:
        parts = [renamed.pop(name.replace(".to_q.", f".to_{part}.")) for part in "qkv"]
        renamed[name.replace(".to_q.", ".query_key_value.")] = torch.cat(parts)
    return renamed


def pair(time: str, padding: int, classes: int | None, sin_first: bool) -> tuple[UNet2DModel, UNet]:
    """One network in both libraries, all weights random."""
    theirs = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16, 24),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        norm_eps=1e-6,
        resnet_time_scale_shift=time,
        attn_norm_num_groups=4,
        downsample_padding=padding,
        flip_sin_to_cos=not sin_first,
        freq_shift=int(sin_first),
        num_class_embeds=classes,
    )
    redraw(theirs)
    norm = {"kind": "group", "groups": 4, "min_group_channels": 1, "eps": 1e-6}
    site = {"norm": norm}
    settings: dict[str, Any] = {
        "channels": [8, 16, 24],
        "blocks": 1,
        "attention": [False, True, False],
        "attention_head_channels": 8,
        "downsample": "strided" if padding else "strided_asymmetric",
        "frequency_shift": int(sin_first),
        "sin_first": sin_first,
        "num_classes": classes,
        "norm": {
            "encoder": site,
            "decoder": site,
            "out": norm,
            "time": {"default": "add", "scale_shift": "scale_shift"}[time],
        },
    }
    ours = UNet(**settings)
    ours.load_state_dict(translate(theirs.state_dict(), padding == 0))
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("time", ["default", "scale_shift"])
@pytest.mark.parametrize(("padding", "sin_first"), [(0, True), (1, False)])
@pytest.mark.parametrize("classes", [None, 5])
def test_same_weights_give_the_same_output_and_gradients(
    time: str, padding: int, sin_first: bool, classes: int | None
) -> None:
    theirs, ours = pair(time, padding, classes, sin_first)
    x, timestep = torch.randn(2, 3, 16, 24), torch.tensor([3, 801])
    labels = None if classes is None else torch.tensor([4, 0])
    expected = theirs(x, timestep, labels).sample
    actual = ours(x, timestep, labels).sample
    assert (actual - expected).norm() / expected.norm() < 1e-5
    for output in (expected, actual):
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = translate({name: entry.grad for name, entry in theirs.named_parameters()}, padding == 0)
    assert {name for name, _ in ours.named_parameters()} == set(gradients)
    difference = torch.cat([(entry.grad - gradients[name]).flatten() for name, entry in ours.named_parameters()])
    assert difference.norm() / torch.cat([entry.flatten() for entry in gradients.values()]).norm() < 1e-5
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4 * float(gradients[name].abs().max()))
