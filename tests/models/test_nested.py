"""The nested decoder: MONAI's UNet++ with the same weights, the plan's arithmetic, and pruning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch.testing import assert_close

from tests.networks import NETWORKS, RESNET, every_output, inputs, network, redraw
from unetdiff import UNet
from unetdiff.models.plan import make_plan
from unetdiff.models.pruning import prune
from unetdiff.presets import preset
from unetdiff.spec import UNetSpec

WIDTHS = [4, 4, 8, 16, 32]


def plus_plus(dims: int, **settings: Any) -> UNet:
    """The preset, small and without a timestep."""
    small = {"channels": WIDTHS, "dims": dims, "in_channels": 2, "out_channels": 3, "time_embedding": "none"}
    return UNet.from_preset("unet_plus_plus", **{**small, **settings})


def monai_plus_plus(dims: int) -> BasicUNetPlusPlus:
    return BasicUNetPlusPlus(
        spatial_dims=dims,
        in_channels=2,
        out_channels=3,
        features=(*WIDTHS, WIDTHS[0]),
        deep_supervision=True,
        act=("leakyrelu", {"negative_slope": 0.01}),
        norm=("instance", {"affine": True}),
    )


def fill_from_monai(ours: UNet, theirs: BasicUNetPlusPlus) -> None:
    """Copy weights block by block. MONAI puts skips before what comes from below, oldest first."""
    held = dict(theirs.named_parameters())
    deepest = len(WIDTHS) - 1

    def fill_block(block: Any, name: str, from_below: int) -> None:
        for number in (1, 2):
            conv, norm = block.get_submodule(f"conv{number}"), block.get_submodule(f"norm{number}")
            norm = getattr(norm, "norm", norm)
            weight = held[f"{name}.conv_{number - 1}.conv.weight"]
            if number == 1 and from_below:
                weight = torch.cat([weight[:, -from_below:], weight[:, :-from_below]], dim=1)
            conv.weight.copy_(weight)
            norm.weight.copy_(held[f"{name}.conv_{number - 1}.adn.N.weight"])
            norm.bias.copy_(held[f"{name}.conv_{number - 1}.adn.N.bias"])

    with torch.no_grad():
        for level in range(deepest + 1):
            name = f"conv_{level}_0" + (".convs" if level else "")
            fill_block(ours.encoder[f"level{level}_block0"].residual, name, 0)
        for column in range(1, deepest + 1):
            for level in range(deepest + 1 - column):
                up = ours.decoder[f"level{level + 1}_column{column - 1}_up"].module
                up.load_state_dict(
                    {key: held[f"upcat_{level}_{column}.upsample.deconv.{key}"] for key in ("weight", "bias")}
                )
                block = ours.decoder[f"level{level}_column{column}_block0"].residual
                fill_block(block, f"upcat_{level}_{column}.convs", WIDTHS[level])
            name = "sample" if column == deepest else f"sample@{column}"
            ours.head[name][2].load_state_dict(
                {key: held[f"final_conv_0_{column}.{key}"] for key in ("weight", "bias")}
            )


@pytest.mark.parametrize(("dims", "size"), [(2, (32, 48)), (3, (16, 16, 32))])
def test_equals_monai(dims: int, size: tuple[int, ...]) -> None:
    ours, theirs = plus_plus(dims).train(), monai_plus_plus(dims)
    redraw(theirs)
    fill_from_monai(ours, theirs)
    x = torch.randn(2, 2, *size)
    expected, output = theirs(x), ours(x)
    actual = [output.sample, *(heads["sample"] for heads in output.deep)]
    assert len(actual) == len(expected) == 4
    for one, wanted in zip(actual, reversed(expected), strict=True):
        assert (one - wanted).norm() <= 1e-5 * wanted.norm()


def test_parameters_are_those_of_monai_but_for_biases_before_norms() -> None:
    """Instance norm takes a bias out again, so our convolutions before one have none."""
    ours = sum(parameter.numel() for parameter in plus_plus(2).parameters())
    theirs = sum(
        parameter.numel()
        for name, parameter in monai_plus_plus(2).named_parameters()
        if not (".conv_" in f".{name}" and name.endswith("conv.bias") and "final" not in name)
    )
    assert ours == theirs


def test_every_node_takes_all_before_it() -> None:
    """Channels by the paper's figure 1a: X[i, j] reads j nodes of its level and one from below."""
    plan = make_plan(UNetSpec(**{**preset("unet_plus_plus"), "out_channels": 1}))
    blocks = {step.name: step for step in plan.side("decoder") if step.kind == "block"}
    widths = [32, 64, 128, 256, 512]
    assert len(blocks) == 10
    for column in range(1, 5):
        for level in range(5 - column):
            step = blocks[f"level{level}_column{column}_block0"]
            assert (step.in_channels, step.skip, step.reads) == (
                widths[level],
                column * widths[level],
                (column + 1) * widths[level],
            )
    assert len(plan.side("head")) == 4


def test_deep_outputs_are_made_in_training_only() -> None:
    unet = network("nested")
    call = inputs(unet)
    assert unet(**call).deep is None
    output = unet.train()(**call)
    assert [list(heads) for heads in output.deep] == [["noise", "mask"]]
    assert len(every_output(output)) == 4
    assert [type(entry) for entry in unet(**call, return_dict=False)] == [torch.Tensor, dict, list, list]


def test_every_depth_counts_the_same() -> None:
    """Zhou et al. 2018, section 3.2: the losses of all depths are averaged."""
    unet = redraw(plus_plus(2)).train()
    output = unet(torch.randn(1, 2, 32, 32))
    every = [output.sample, *(heads["sample"] for heads in output.deep)]
    assert_close(output.supervise(torch.Tensor.mean), torch.stack([one.mean() for one in every]).mean())


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_pruned_networks_return_what_the_whole_returns_at_that_depth(depth: int) -> None:
    unet = redraw(plus_plus(2, time_embedding="sinusoidal")).train()
    x, timestep = torch.randn(2, 2, 32, 32), torch.tensor([3.0, 700.0])
    output = unet(x, timestep)
    every = [output.sample, *(heads["sample"] for heads in output.deep)]
    pruned = prune(unet, depth)
    assert_close(pruned.eval()(x, timestep).sample, every[4 - depth], rtol=1e-5, atol=1e-5)
    shallower = [heads["sample"] for heads in pruned.train()(x, timestep).deep or []]
    assert_close(shallower, every[5 - depth :], rtol=1e-5, atol=1e-5)
    assert unet.training


def test_pruning_leaves_the_middle_behind_and_cuts_lists(tmp_path) -> None:
    settings = {**NETWORKS["nested"], "strides": [2, 3], "decoder_blocks": [1, 2, 0], "downsample": ["strided"] * 2}
    unet = redraw(UNet(**settings)).train()
    call = inputs(unet, size=12)
    pruned = prune(unet, 1)
    deep = unet(**call).deep[0]
    assert_close(pruned.eval()(**call).heads, deep, rtol=1e-5, atol=1e-5)
    assert sum(entry.numel() for entry in pruned.parameters()) < sum(entry.numel() for entry in unet.parameters()) / 2
    pruned.save_pretrained(tmp_path)
    assert_close(UNet.from_pretrained(tmp_path)(**call).heads, deep, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "depth", "expected"),
    [
        ({"deep_supervision": False}, 1, "needs decoder_kind 'nested' and deep_supervision"),
        ({"decoder_kind": "plain"}, 1, "needs decoder_kind 'nested' and deep_supervision"),
        ({}, 0, "depth is 0; expected 1 to 4"),
        ({}, 5, "depth is 5; expected 1 to 4"),
        ({}, 1.5, "depth is 1.5; expected 1 to 4"),
    ],
)
def test_what_cannot_be_pruned_is_refused(settings: dict[str, Any], depth: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        prune(plus_plus(2, **settings), depth)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"decoder_blocks": 1}, "decoder_blocks that end in 0"),
        ({"decoder_blocks": [1, 0, 1, 1, 0]}, "a block at each but the coarsest"),
        ({"channels": [8]}, "at least two levels"),
        ({"skip_fusion": "none"}, "made of skips"),
    ],
)
def test_what_cannot_be_nested_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        plus_plus(2, **settings)


def test_outputs_are_told_apart_from_depths_whatever_they_are_called() -> None:
    unet = plus_plus(2, out_channels=None, heads={"a": 1, "a_depth1": 2}).train()
    output = unet(torch.randn(1, 2, 32, 32))
    assert [output.heads[name].shape[1] for name in ("a", "a_depth1")] == [1, 2]
    assert len({step.key for step in unet.layout.steps}) == len(unet.layout.steps)


def test_attention_by_block_and_fourier_features_are_cut() -> None:
    settings = {"attention": [[False], [True], [True], [False], [True]], "decoder_attention": [[False]] * 4 + [[]]}
    unet = redraw(plus_plus(2, norm="ddpm", time_embedding="fourier", **settings)).train()
    x = torch.randn(1, 2, 32, 32)
    deep = unet(x, 5.0).deep[1]["sample"]
    assert_close(prune(unet, 2).eval()(x, 5.0).sample, deep, rtol=1e-5, atol=1e-5)


def test_a_backbone_is_not_cut() -> None:
    nested = {"decoder_kind": "nested", "deep_supervision": True}
    unet = UNet(channels=[8, 8, 12], backbone={"config": {**RESNET, "out_features": ["stage1"]}}, **nested)
    assert prune(unet, 2).spec == unet.spec
    with pytest.raises(ValueError, match="a network with a backbone is not cut"):
        prune(unet, 1)
