"""Networks whose encoder is a pretrained one: by name, saved and loaded, frozen, at the strides that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.networks import CONVNEXT, RESNET, SMALL, inputs, redraw
from unetdiff import UNet
from unetdiff.models.plan import make_plan
from unetdiff.spec import UNetSpec

transformers = pytest.importorskip("transformers")

LEVELS: dict[str, Any] = {"channels": [8, 8, 12, 16, 16, 16], "blocks": 1, "decoder_blocks": 1, "in_channels": 3}
DINOV2: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "out_features": ["stage2", "stage4"],
    "reshape_hidden_states": True,
}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
    "out_features": ["stage1", "stage2"],
}

# For each family, levels that reach its strides.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet": (RESNET, {"channels": [8, 8, 12, 16, 16]}),
    "convnext": (CONVNEXT, {"channels": [8, 12, 16], "strides": [4, 2]}),
    "swin": (SWIN, {"channels": [8, 8, 12, 16]}),
    "dinov2": (DINOV2, {"channels": [8, 12, 16], "strides": [2, 7]}),
}


def built(family: str, **backbone: Any) -> UNet:
    config, levels = FAMILIES[family]
    return redraw(UNet(**{**LEVELS, **levels}, backbone={"config": config, **backbone})).eval()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A pretrained image classifier as it lies on a disk."""
    config = transformers.AutoConfig.for_model(**{**RESNET, "out_features": None})
    torch.manual_seed(3)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "classifier")
    return str(tmp_path / "classifier")


@pytest.mark.parametrize("family", FAMILIES)
def test_any_size_comes_back_and_the_timestep_enters(family: str) -> None:
    unet = built(family)
    x = torch.randn(2, 3, 37, 45)
    early, late = unet(x, 5).sample, unet(x, 900).sample
    assert early.shape == x.shape
    assert (early - late).abs().max() > 1e-3


def test_features_of_one_stride_are_one_entry() -> None:
    unet = built("dinov2")
    feature = next(step for step in unet.layout.steps if step.kind == "feature")
    assert (feature.level, feature.out_channels) == (2, 24)
    assert unet.multiple == (14, 14)


def test_levels_without_a_feature_are_our_own() -> None:
    """Strides 1, 2, 4, 8, 16, 32 with features at 4 and 16 alone."""
    config = {**RESNET, "out_features": ["stage1", "stage3"]}
    plan = make_plan(UNetSpec(**LEVELS, backbone={"config": config}))
    assert [step.level for step in plan.steps if step.kind == "feature"] == [2, 4]
    assert [step.level for step in plan.side("encoder") if step.kind == "down"] == [1, 3, 5]


def test_named_weights_are_read_once_and_saved_with_the_network(folder: str, tmp_path: Path) -> None:
    unet = UNet(**{**LEVELS, "channels": [8, 8, 12, 16, 16, 16]}, backbone=folder).eval()
    theirs = transformers.ResNetModel.from_pretrained(folder).eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = theirs(((x + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[1:]
    assert_close(unet.encoder["backbone"](x), list(expected), rtol=1e-4, atol=1e-5)

    redraw(unet)
    unet.save_pretrained(tmp_path / "ours")
    Path(folder, "model.safetensors").unlink()
    Path(folder, "config.json").unlink()
    loaded = UNet.from_pretrained(tmp_path / "ours").eval()
    assert_close(loaded(x, 5).sample, unet(x, 5).sample, rtol=1e-4, atol=1e-5)
    assert loaded.config["backbone"]["name"] == folder


def test_frozen_means_frozen(folder: str) -> None:
    unet = UNet(**LEVELS, backbone={"name": folder, "frozen": True}).train()
    backbone = unet.encoder["backbone"]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        unet(torch.randn(2, 3, 64, 64), 5).sample.square().mean().backward()
        optimizer.step()
    assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)
    assert any("running_mean" in name for name in before)
    assert not backbone.module.backbone.training


def test_trained_means_trained(folder: str) -> None:
    unet = redraw(UNet(**LEVELS, backbone={"name": folder, "frozen": False})).train()
    before = {name: value.clone() for name, value in unet.encoder["backbone"].state_dict().items()}
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    unet(torch.randn(2, 3, 64, 64), 5).sample.square().mean().backward()
    optimizer.step()
    after = unet.encoder["backbone"].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith("running_mean") for name in moved)
    assert any(name.endswith("convolution.weight") for name in moved)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"backbone": {"config": DINOV2}}, r"features at strides \[14\], but levels are at \[1, 2, 4, 8, 16, 32\]"),
        ({"backbone": {"config": RESNET}, "channels": [8, 8]}, r"expected strides whose products reach them all"),
        ({"backbone": {"config": RESNET}, "dims": 3}, "a backbone takes images: expected dims 2"),
        ({"backbone": {"config": RESNET}, "strides": [2, [2, 1], 2, 2, 2]}, "strides of a network with a backbone"),
        ({"backbone": {"config": RESNET}, "input_pyramid": True}, "input_pyramid"),
        ({"backbone": {}}, "neither name nor config"),
        ({"backbone": ""}, "neither name nor config"),
        ({"backbone": {"config": {}}}, "config has no model_type"),
        ({"backbone": {"config": RESNET, "features": []}}, "features is empty"),
        ({"backbone": {"config": RESNET, "channels": [8]}}, "expected one each per feature"),
        ({"backbone": {"name": "x", "channels": [8], "strides": [4]}}, "expected one each per feature"),
        ({"backbone": {"config": RESNET, "channels": [8, 12, 16], "strides": [2, 4, 8]}}, "its config makes"),
        ({"backbone": {"config": RESNET}, "norm": {"input": "instance"}}, "norm.input would hide"),
        ({"backbone": {"config": RESNET}, "skip_fusion": "none"}, "level1_block0 leads nowhere"),
        ({"backbone": {"config": RESNET}, "decoder_blocks": [1, 0, 1, 1, 1, 1]}, "level1_block0 leads nowhere"),
        ({"backbone": {"config": RESNET, "std": [1, 0, 1]}}, "backbone.std is"),
        ({"backbone": {"name": "x", "freeze": True}}, "Backbone has no setting 'freeze'"),
        ({"backbone": "NO/such/folder"}, "configuration of backbone 'NO/such/folder' cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, Any], expected: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=expected):
        UNet(**{**LEVELS, **settings})


def test_no_condition_reaches_a_pretrained_encoder() -> None:
    """The backbone runs once whatever the timestep: its features are the same."""
    unet = built("resnet")
    x = inputs(UNet(**SMALL, dims=2), size=32)["sample"][:, :1].expand(-1, 3, -1, -1)
    unet(x, 5)
    first = unet.encoder["backbone"](x)
    unet(x, 900)
    assert_close(unet.encoder["backbone"](x), first, rtol=0, atol=0)
