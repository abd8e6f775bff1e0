"""The U-Nets for segmentation: `nnunet` against MONAI's `DynUNet`, `unet2015` against plain torch; same weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.losses.ds_loss import DeepSupervisionLoss
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import every_output, inputs, network, redraw
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


def dyn_unet(channels: list[int], strides: list[Any], dims: int, deep_supervision: bool = False) -> DynUNet:
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
        deep_supervision=deep_supervision,
        deep_supr_num=len(channels) - 2,
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
    """Tensors of ours and of `DynUNet`, without deep supervision."""
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
    expected, actual = theirs(x), torch.stack(every_output(ours(x)), dim=1)
    actual = actual if ours.config["deep_supervision"] else actual[:, 0]
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


@pytest.mark.parametrize("name", SHAPES)
def test_deep_supervision_equals_dyn_unet(name: str) -> None:
    """Every head, brought to full size as MONAI does, and the gradients of all of them."""
    channels, strides, space = SHAPES[name]
    shape = (channels, strides, len(space))
    settings = {"norm": "nnunet", "activation": "leaky_relu", "downsample": "block", "deep_supervision": True}
    ours, theirs = plain_unet(*shape, **settings).train(), dyn_unet(*shape, deep_supervision=True)
    names = nnunet_names(len(channels))
    for level in range(1, len(channels) - 1):
        names += layer(f"head.sample@{level}.2", f"deep_supervision_heads.{level - 1}.conv.conv")
    compare(theirs, ours, names, space)


def test_losses_are_halved_with_each_level_as_in_monai() -> None:
    """`DeepSupervisionLoss` has the weights of Isensee et al. 2021 without dividing by their sum."""
    channels, strides, space = SHAPES["narrowing_plane"]
    ours = redraw(plain_unet(channels, strides, 2, norm="nnunet", deep_supervision=True)).train()
    output, target = ours(torch.randn(2, 2, *space)), torch.randn(2, 3, *space)
    expected = DeepSupervisionLoss(nn.MSELoss(), weight_mode="exp")(every_output(output), target)
    assert_close(output.weights, [4 / 7, 2 / 7, 1 / 7])
    assert_close(output.supervise(lambda one: nn.functional.mse_loss(one, target)), expected / 1.75)


def test_outputs_of_coarse_levels_are_made_in_training_only_and_of_full_size() -> None:
    unet = network("supervised")
    call = inputs(unet, size=(7, 11))
    assert unet(**call).deep is None
    assert_close(unet(**call).supervise(torch.Tensor.mean), unet(**call).sample.mean())
    output = unet.train()(**call)
    assert [{name: tuple(value.shape) for name, value in heads.items()} for heads in output.deep] == [
        {"noise": (2, 2, 7, 11), "mask": (2, 3, 7, 11)}
    ] * 2
    noise = output.deep[1]["noise"]  # strides of 2 and 3: one value for six by six positions
    assert_close(noise[..., :6, :6], noise[..., :1, :1].expand(-1, -1, 6, 6))
    assert noise[..., 0, 6].ne(noise[..., 0, 5]).all()


def test_the_plan_says_where_heads_read_and_what_they_repeat() -> None:
    heads = network("supervised").layout.side("head")
    rows = [(step.name, step.source, step.level, step.stride) for step in heads if step.name.startswith("mask")]
    assert rows == [
        ("mask", "decoder.level0_block1", 0, ()),
        ("mask@1", "decoder.level1_block1", 1, (2, 2)),
        ("mask@2", "decoder.level2_block1", 2, (6, 6)),
    ]
    assert "head 6x6 repeat" in str(network("supervised").plan)
    assert [step.name for step in network("supervised_1d").layout.side("head")] == ["sample", "sample@1"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"decoder_blocks": [1, 0, 0]}, "needs decoder_blocks at a level below the finest"),
        ({"channels": [8]}, "needs decoder_blocks at a level below the finest"),
        (
            {"convolutions": "valid", "norm": "unet2015", "downsample": "max_pool"},
            "expected convolutions 'same'",
        ),
    ],
)
def test_what_has_nothing_to_supervise_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        UNet(**{"channels": [8, 8, 8], "deep_supervision": True, **settings})
