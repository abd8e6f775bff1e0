"""The U-Nets for segmentation: `nnunet` against MONAI's `DynUNet`, `unet2015` against plain torch; same weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet
from unetdiff.models.interop.weights import Weight, layer, translate

PLAIN = {
    "stem_channels": 0,
    "middle": False,
    "blocks": 1,
    "upsample": "transposed",
    "up_channels": "next",
    "head_kernel": 1,
    "time_embedding": "none",
    "in_channels": 2,
    "out_channels": 3,
}


def plain_unet(channels: list[int], strides: list[Any], dims: int, **settings: Any) -> UNet:
    """A U-Net with one block per level, none at the decoder's coarsest."""
    decoder_blocks = [1] * (len(channels) - 1) + [0]
    return UNet(**PLAIN, channels=channels, strides=strides, dims=dims, decoder_blocks=decoder_blocks, **settings)


def dyn_unet(channels: list[int], strides: list[Any], dims: int) -> DynUNet:
    """nnU-Net's network; its strides count a first one, of the input block."""
    return DynUNet(
        spatial_dims=dims,
        in_channels=2,
        out_channels=3,
        kernel_size=[3] * len(channels),
        strides=[1, *strides],
        upsample_kernel_size=strides,
        filters=channels,
        norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"negative_slope": 0.01}),
        trans_bias=True,
    )


class UNet2015(nn.Module):
    """Ronneberger et al. 2015, Fig. 1, with padded convolutions; the transposed ones grow by the strides given."""

    def __init__(self, channels: list[int], strides: list[Any], dims: int):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
        pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims]

        def double(width: int, out: int) -> nn.Sequential:
            return nn.Sequential(conv(width, out, 3, padding=1), nn.ReLU(), conv(out, out, 3, padding=1), nn.ReLU())

        pairs = list(pairwise(channels))
        self.down = nn.ModuleList([double(2, channels[0]), *(double(fine, coarse) for fine, coarse in pairs)])
        self.pools = nn.ModuleList(pool(stride) for stride in strides)
        self.grow = nn.ModuleList(
            transposed(coarse, fine, stride, stride) for (fine, coarse), stride in zip(pairs, strides, strict=True)
        )
        self.up = nn.ModuleList(double(2 * fine, fine) for fine, _ in pairs)
        self.out = conv(channels[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, saved = self.down[0](x), []
        for pool, block in zip(self.pools, self.down[1:], strict=True):  # pyright: ignore
            saved.append(x)
            x = block(pool(x))
        for grow, block in zip(reversed(self.grow), reversed(self.up), strict=True):  # pyright: ignore
            x = block(torch.cat([grow(x), saved.pop()], dim=1))
        return self.out(x)


def nnunet_names(levels: int) -> list[Weight]:
    """Tensors of ours and of `DynUNet`."""
    weights = layer("head.sample.2", "output_block.conv.conv")
    down = ["input_block", *(f"downsamples.{index}" for index in range(levels - 2)), "bottleneck"]
    blocks = {f"encoder.level{level}_block0": name for level, name in enumerate(down)}
    for level in range(levels - 1):
        theirs = f"upsamples.{levels - 2 - level}"
        weights += layer(f"decoder.level{level + 1}_up.module", f"{theirs}.transp_conv.conv")
        blocks[f"decoder.level{level}_block0"] = f"{theirs}.conv_block"
    for ours, theirs in blocks.items():
        for number in (1, 2):
            weights += layer(f"{ours}.residual.conv{number}", f"{theirs}.conv{number}.conv", bias=False)
        weights += layer(f"{ours}.residual.norm1.norm", f"{theirs}.norm1")
        weights += layer(f"{ours}.residual.norm2", f"{theirs}.norm2")
    return weights


def unet2015_names(levels: int) -> list[Weight]:
    """Tensors of ours and of `UNet2015`."""
    weights = layer("head.sample.2", "out")
    blocks = {f"encoder.level{level}_block0": f"down.{level}" for level in range(levels)}
    for level in range(levels - 1):
        weights += layer(f"decoder.level{level + 1}_up.module", f"grow.{level}")
        blocks[f"decoder.level{level}_block0"] = f"up.{level}"
    for ours, theirs in blocks.items():
        weights += layer(f"{ours}.residual.conv1", f"{theirs}.0") + layer(f"{ours}.residual.conv2", f"{theirs}.2")
    return weights


SHAPES: dict[str, tuple[list[int], list[Any], tuple[int, ...]]] = {
    "plane": ([4, 8, 16], [2, 2], (16, 24)),
    "narrowing_plane": ([6, 10, 8, 4], [2, (1, 2), 2], (16, 16)),
    "volume": ([4, 6, 8], [2, 2], (8, 8, 16)),
    "anisotropic_volume": ([4, 6, 6, 8], [(1, 2, 2), 2, (1, 2, 2)], (4, 16, 16)),
}


def compare(theirs: nn.Module, ours: UNet, weights: list[Weight], space: tuple[int, ...]) -> None:
    """Both with the same random weights: output to 1e-5, gradients to 1e-4."""
    redraw(theirs)
    ours.load_state_dict(translate(weights, dict(theirs.named_parameters())))
    x = torch.randn(2, 2, *space)
    expected, actual = theirs(x), ours(x).sample
    assert (actual - expected).norm() / expected.norm() <= 1e-5
    for output in (expected, actual):
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = translate(weights, {name: entry.grad for name, entry in theirs.named_parameters()})  # pyright: ignore
    assert set(gradients) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        wanted = gradients[name]
        assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()), msg=name)


@pytest.mark.parametrize("name", SHAPES)
def test_nnunet_equals_dyn_unet(name: str) -> None:
    channels, strides, space = SHAPES[name]
    shape = (channels, strides, len(space))
    ours = plain_unet(*shape, norm="nnunet", activation="leaky_relu", downsample="block")
    compare(dyn_unet(*shape), ours, nnunet_names(len(channels)), space)


@pytest.mark.parametrize("name", ["signal", *SHAPES])
def test_unet2015_equals_its_composition(name: str) -> None:
    channels, strides, space = {"signal": ([4, 8, 6], [2, 3], (18,)), **SHAPES}[name]
    shape = (channels, strides, len(space))
    ours = plain_unet(*shape, norm="unet2015", activation="relu", downsample="max_pool")
    compare(UNet2015(*shape), ours, unet2015_names(len(channels)), space)
