"""The named networks: what their sources say of their size, or what follows from their shapes, and what they return."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet
from monai.networks.nets.attentionunet import AttentionBlock
from torch import nn
from torch.export import Dim, export
from torch.testing import assert_close

from benchmarks.networks import CONFIGURATIONS
from tests.networks import redraw
from unetdiff import UNet
from unetdiff.nn.layers import SeparableConv
from unetdiff.nn.transformer import TransformerLayer
from unetdiff.presets import PRESETS, preset


def meta(name: str, **overrides: Any) -> UNet:
    """A preset without storage."""
    if name == "pretrained":
        overrides = {"backbone": {"config": CONFIGURATIONS[preset(name)["backbone"]]}, **overrides}
    with torch.device("meta"):
        return UNet.from_preset(name, **overrides)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def conv(source: int, target: int, positions: int, bias: bool = True) -> int:
    """Parameters of a convolution whose kernel has so many positions."""
    return source * target * positions + bias * target


def plain_unet(channels: list[int], inputs: int, outputs: int) -> int:
    """Parameters of a U-Net of two 3x3 convolutions per level and side, 2x2 up-convolutions and a 1x1 at the end."""
    pairs = list(itertools.pairwise(channels))
    down = sum(conv(a, b, 9) + conv(b, b, 9) for a, b in [(inputs, channels[0]), *pairs])
    up = sum(conv(b, a, 4) + conv(2 * a, a, 9) + conv(a, a, 9) for a, b in pairs)
    return down + up + conv(channels[0], outputs, 1)


# Ho et al. 2020, appendix B, say 35.7M; Dhariwal & Nichol 2021 (and Karras et al. 2022, table 7) say 296M. The others
# by their layers.
PARAMETERS = {
    "ddpm_cifar10": ({}, 35_746_307),
    "adm_64": ({}, 295_904_454),
    "unet2015": ({}, plain_unet([64, 128, 256, 512, 1024], 1, 2)),
    "unet_same": ({"time_embedding": "none", "out_channels": 1}, plain_unet([64, 128, 256, 512], 3, 1)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_of_the_literature_have_their_size(name: str) -> None:
    overrides, expected = PARAMETERS[name]
    unet = meta(name, **overrides)
    assert count(unet) == expected
    assert f"{expected:,}" in str(unet.plan)


PLAIN_UNET = {"norm": "unet2015", "activation": "relu", "time_embedding": "none", "out_channels": 1}

# (preset, overrides that make it the network of the source, millions of parameters that the source gives)
PUBLISHED = {
    "U-Net of Zhou et al. 2018": (
        "unet_plus_plus",
        {**PLAIN_UNET, "decoder_kind": "plain", "decoder_blocks": [1, 1, 1, 1, 0], "deep_supervision": False},
        7.76,
    ),
    "UNet++ of Zhou et al. 2018": ("unet_plus_plus", PLAIN_UNET, 9.04),
    "U-Net of Oktay et al. 2018": ("attention_unet", {**PLAIN_UNET, "skip_fusion": "concat"}, 5.88),
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_published_counts(source: str) -> None:
    name, overrides, millions = PUBLISHED[source]
    assert round(count(meta(name, **overrides)) / 1e6, 2) == millions


def test_resunet_has_the_convolutions_of_its_source() -> None:
    """Zhang et al. 2018 give 7.8M: the 3x3 convolutions. Shortcuts that change the width come on top."""
    unet = meta("resunet", time_embedding="none", out_channels=1)
    convolutions = [module for module in unet.modules() if isinstance(module, nn.Conv2d)]
    assert round(sum(module.weight.numel() for module in convolutions if module.kernel_size == (3, 3)) / 1e6, 1) == 7.8
    shortcuts = sum(module.weight.numel() for module in convolutions if module.kernel_size == (1, 1))
    widths = [(64, 128), (128, 256), (256, 512), (768, 256), (384, 128), (192, 64), (64, 1)]
    assert shortcuts == sum(a * b for a, b in widths)


def test_volume_has_the_parameters_of_nnunet() -> None:
    strides = preset("volume")["strides"]
    with torch.device("meta"):
        peer = DynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            kernel_size=[3] * 5,
            strides=[1, *strides],
            upsample_kernel_size=strides,
            filters=preset("volume")["channels"],
            norm_name=("INSTANCE", {"affine": True}),
            trans_bias=True,
        )
    assert count(meta("volume", time_embedding="none")) == count(peer)


def test_attention_unet_gates_every_skip_as_its_peer() -> None:
    """Oktay et al. 2018 put a gate of half the skip's width on every skip; MONAI's has batch norms besides."""
    unet = meta("attention_unet")
    skips = [step for step in unet.layout.side("decoder") if step.skip]
    assert [step.skip for step in skips] == [128, 64, 32, 16]
    for step in skips:
        gate = unet.decoder[step.name].merge.fuse
        peer = AttentionBlock(3, f_int=step.skip // 2, f_g=step.in_channels, f_l=step.skip)
        theirs = sum(count(module) for module in peer.modules() if isinstance(module, nn.Conv3d))
        assert count(gate) == theirs


def test_transunet_has_the_layers_of_vit_base() -> None:
    """Dosovitskiy et al. 2021, table 1: 12 layers of 768 channels, 12 heads and 3,072 inner channels."""
    unet = meta("transunet", time_embedding="none")
    layers = [module for module in unet.modules() if isinstance(module, TransformerLayer)]
    assert sum(map(count, layers)) == 12 * (4 * 768 * 769 + 768 * 3072 + 3072 + 3072 * 768 + 768 + 4 * 768)
    assert {layer.attention.heads for layer in layers} == {12}
    assert unet.multiple == (16, 16)


def test_transunet_takes_any_size() -> None:
    unet = UNet.from_preset(
        "transunet", channels=[8, 8, 16], decoder_channels=[4, 8, 8], transformer_layers=2, attention_head_channels=8
    )
    redraw(unet)
    for size in [(56, 56), (37, 90), (14, 3)]:
        assert unet(torch.randn(1, 3, *size), 5).sample.shape == (1, 3, *size)


def test_mobile_unet_is_small_and_exports_for_any_size_and_batch() -> None:
    full = count(meta("mobile_unet", block_convolutions="full"))
    unet = redraw(UNet.from_preset("mobile_unet"), scale=0.05).eval()
    assert count(unet) <= 1_000_000 < full / 4
    shapes = {"sample": {0: Dim("batch"), 2: 8 * Dim("rows"), 3: 8 * Dim("columns")}, "timestep": {0: Dim("batch")}}
    program = export(unet, (torch.randn(2, 3, 64, 64), torch.tensor([1.0, 2.0])), dynamic_shapes=shapes)
    x, timestep = torch.randn(3, 3, 96, 40), torch.tensor([5.0, 80.0, 900.0])
    assert_close(program.module()(x, timestep).sample, unet(x, timestep).sample, rtol=1e-4, atol=1e-4)
    separable = [module for module in unet.modules() if isinstance(module, SeparableConv)]
    assert len(separable) == 2 * sum(step.kind == "block" for step in unet.layout.steps)


def test_genome_track_reads_ten_thousand_bases_without_padding() -> None:
    unet = meta("genome_track")
    assert unet.multiple == (500,)
    assert unet(torch.empty(1, 4, 10_000, device="meta"), 5).sample.shape == (1, 1, 10_000)


def test_autoencoder_is_the_unet_less_what_reads_its_skips() -> None:
    """The blocks of the decoder read fewer channels; nothing else changes."""
    unet, control = meta("autoencoder", skip_fusion="concat"), meta("autoencoder")
    assert not any(step.skip for step in control.layout.steps)
    fewer = 0
    for step, bare in zip(unet.layout.side("decoder"), control.layout.side("decoder"), strict=True):
        if step.skip:
            shortcut = step.reads * step.out_channels + step.out_channels
            had_one = bare.in_channels != bare.out_channels
            kept = bare.in_channels * bare.out_channels + bare.out_channels if had_one else 0
            fewer += 9 * step.skip * step.out_channels + 2 * step.skip + shortcut - kept
    assert count(unet) - count(control) == fewer


def test_pretrained_is_resnet_18() -> None:
    """He et al. 2016: 11.7M with the classifier of 1,000 classes, 512 x 1,000 weights and as many biases."""
    unet = meta("pretrained")
    backbone = next(step for step in unet.plan.steps if step.kind == "backbone")
    assert backbone.parameters == 11_176_512
    assert round((backbone.parameters + 513_000) / 1e6, 1) == 11.7
    assert preset("pretrained")["backbone"] == "microsoft/resnet-18"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_a_timestep_or_none(name: str) -> None:
    """Every one is a denoiser but the network of 2015; without an embedding, each also works without a timestep."""
    timed = meta(name)
    classes = timed.config["num_classes"]
    size = [16 if entry is None else entry for entry in _sizes(timed)]
    sample = torch.empty(2, timed.config["in_channels"], *size, device="meta")
    shape = (2, *timed.spec.outputs.values(), *timed.layout.output_size(size))
    bare = meta(name, time_embedding="none", num_classes=None)
    assert bare(sample).sample.shape == shape
    if name == "unet2015":
        with pytest.raises(ValueError, match="without an embedding"):
            timed(sample, 5)
        return
    labels = torch.zeros(2, dtype=torch.long, device="meta") if classes else None
    assert timed(sample, torch.tensor([5.0, 9.0]), labels).sample.shape == shape


def _sizes(unet: UNet) -> list[int]:
    size = unet.config["sample_size"]
    return [size] * unet.config["dims"] if isinstance(size, int) else list(size)


def test_presets_say_where_they_come_from() -> None:
    for name, entry in PRESETS.items():
        assert entry.source, name
        assert entry.url.startswith("https://"), name
        assert entry.note, name


def test_satellite_reads_and_returns_twelve_bands() -> None:
    """Against the same network for colours: nine more bands in the stem and in the output convolution."""
    bands, colours = meta("satellite"), meta("satellite", in_channels=3)
    assert count(bands) - count(colours) == 9 * 9 * 64 + 9 * (9 * 64 + 1)


def test_transunet_exports_for_any_size_from_its_own() -> None:
    narrow = {"channels": [4, 4, 8, 8, 8], "decoder_channels": [4, 4, 4, 4, 8], "transformer_layers": 1}
    unet = redraw(UNet.from_preset("transunet", **narrow, attention_head_channels=8), scale=0.05).eval()
    shapes = {"sample": {2: 16 * Dim("rows"), 3: 16 * Dim("columns")}, "timestep": None}
    program = export(unet, (torch.randn(1, 3, 224, 224), torch.tensor([1.0])), dynamic_shapes=shapes)
    x, timestep = torch.randn(1, 3, 160, 320), torch.tensor([5.0])
    assert_close(program.module()(x, timestep).sample, unet(x, timestep).sample, rtol=1e-4, atol=1e-4)


class _Gated(nn.Module):
    """The plain composition of `attention_unet` from torch's layers and MONAI's gates."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.down = nn.ModuleList(_double(a, b) for a, b in itertools.pairwise([1, *channels]))
        pairs = list(itertools.pairwise(channels))
        self.gates = nn.ModuleList(AttentionBlock(2, f_int=a // 2, f_g=b, f_l=a) for a, b in pairs)
        self.up = nn.ModuleList(_double(a + b, a) for a, b in pairs)
        self.out = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        saved: list[torch.Tensor] = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else nn.functional.max_pool2d(x, 2))
            saved.append(x)
        for gate, block, skip in zip(reversed(self.gates), reversed(self.up), reversed(saved[:-1]), strict=True):  # pyright: ignore
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, gate(x, skip)], dim=1))
        return self.out(x)


def _double(source: int, target: int) -> nn.Sequential:
    layers = []
    for width in (source, target):
        norm = nn.InstanceNorm2d(target, affine=True)
        layers += [nn.Conv2d(width, target, 3, padding=1, bias=False), norm, nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def test_attention_unet_equals_a_composition_with_gates_of_monai() -> None:
    """Whole networks with the same weights; MONAI's gates have batch norms, which are switched to the identity."""
    channels = [8, 16, 24]
    small = {"channels": channels, "decoder_blocks": [1, 1, 0], "dims": 2, "time_embedding": "none"}
    ours = redraw(UNet.from_preset("attention_unet", **small)).eval()
    theirs = redraw(_Gated(channels)).eval()
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(theirs.get_submodule(parent), last, nn.Identity())

    def copy_block(block: Any, double: nn.Module) -> None:
        for number in (1, 2):
            double[3 * number - 3].load_state_dict(block.get_submodule(f"conv{number}").state_dict())
            norm = block.get_submodule(f"norm{number}")
            double[3 * number - 2].load_state_dict(getattr(norm, "norm", norm).state_dict(), strict=False)

    for level in range(3):
        copy_block(ours.encoder[f"level{level}_block0"].residual, theirs.down[level])
    for level in range(2):
        step = ours.decoder[f"level{level}_block0"]
        copy_block(step.residual, theirs.up[level])
        fuse, gate = step.merge.fuse, theirs.gates[level]
        for mine, name in ((fuse.from_decoder, "W_g"), (fuse.from_skip, "W_x"), (fuse.psi, "psi")):
            conv_of = next(module for module in gate.get_submodule(name).modules() if isinstance(module, nn.Conv2d))
            conv_of.load_state_dict(mine.state_dict())
    theirs.out.load_state_dict(ours.head["sample"][2].state_dict())
    x = torch.randn(2, 1, 16, 24)
    expected = theirs(x)
    assert (ours(x).sample - expected).norm() <= 1e-5 * expected.norm()
