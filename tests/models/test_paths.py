"""What `describe` says of amplitude and mean, against networks that are run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import NETWORKS, SMALL, inputs, redraw
from tests.runs import ROOT
from unetdiff import UNet
from unetdiff.models.paths import describe, paths, straddling
from unetdiff.models.plan import make_plan
from unetdiff.models.statistics import EXAMPLES
from unetdiff.presets import preset
from unetdiff.spec import UNetSpec

PRESET_NETWORKS = {f"example_{name}": {**entry, "channels": [8, 16, 16]} for name, entry in EXAMPLES.items()}

UNCONDITIONED: dict[str, Any] = {**SMALL, "time_embedding": "none"}
INSTANCE = {"pos": "pre", "norm": {"kind": "instance"}}
BARE: dict[str, Any] = {"encoder": "none", "decoder": "none", "out": "none"}
EDM2_PYRAMID = {**NETWORKS["edm2"], "norm": {"preset": "edm2", "clip": None}, "input_pyramid": True}


def placed(**norm: Any) -> dict[str, Any]:
    """A small unconditioned network with a norm placement."""
    return {**UNCONDITIONED, "norm": norm}


# Placements in which amplitude or mean take a way that no other network here has.
PLACED: dict[str, dict[str, Any]] = {
    "bare": placed(**BARE, zero_init=[]),
    "pre_only": placed(out="none"),
    "input_instance": placed(input="instance"),
    "input_group": placed(input={"kind": "group", "groups": 1}),
    "input_batch": placed(**BARE, input="batch"),
    "input_pixel": placed(**BARE, input="pixel"),
    "all_instance": placed(encoder=INSTANCE, decoder=INSTANCE, out="instance"),
    "instance_on_bare": placed(**{**BARE, "out": "instance"}),
    "attention_alone_is_bare": placed(
        encoder=INSTANCE, decoder=INSTANCE, middle={**INSTANCE, "attention": {"kind": "none"}}, out="instance"
    ),
    "instance_at_skips": placed(encoder=INSTANCE, decoder=INSTANCE, out="none", skip="before_concat"),
    "instance_behind_skips": placed(encoder=INSTANCE, decoder=INSTANCE, out="none", skip="after_concat"),
    "decoder_main": placed(decoder={"pos": "none", "main": "rms"}, out="none"),
    "encoder_main": placed(encoder={"pos": "none", "main": "layer"}, decoder="none", out="none"),
    "encoder_main_pyramid": {**EDM2_PYRAMID, "channels": [8, 8, 8]},
    "post_instance_decoder": placed(
        encoder={"pos": "post", "norm": {"kind": "none"}},
        decoder={"pos": "post", "norm": {"kind": "instance"}},
        out="none",
        residual="off",
        zero_init=[],
    ),
    "pre_without_shortcuts": placed(encoder=INSTANCE, decoder=INSTANCE, out="none", residual="off", zero_init=[]),
    "post_with_shortcuts": placed(
        encoder={"pos": "post", "norm": {"kind": "instance"}}, decoder="post", out="none", residual="sqrt_half"
    ),
}

FOLLOWED = {name: settings for name, settings in NETWORKS.items() if "backbone" not in settings}
EVERY = {**FOLLOWED, **PRESET_NETWORKS, **PLACED}
every_network = pytest.mark.parametrize("name", EVERY)


@pytest.fixture(autouse=True)
def _double(recwarn: pytest.WarningsRecorder):
    """Float64: factors of 1e5 need the digits. (Batch norm warns, as it should.)"""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def built(settings: dict[str, Any]) -> UNet:
    """A network with all weights redrawn, in evaluation mode."""
    unet = UNet(**settings)
    redraw(unet)
    return unet.eval()


def growth(unet: UNet, low: float = 1e4, high: float = 1e5) -> float:
    """The exponent with which the output grows with the amplitude of the input, biases being small beside it."""
    call = inputs(unet, size=12)
    sample = call.pop("sample")
    with torch.no_grad():
        sizes = [unet(sample * scale, **call).sample.square().mean().sqrt().item() for scale in (low, high)]
    return math.log(sizes[1] / sizes[0]) / math.log(high / low)


def without_clip(settings: dict[str, Any]) -> dict[str, Any]:
    spec = UNetSpec(**settings)
    return {**settings, "norm": {**spec.placement.to_json(), "clip": None}}


@every_network
def test_amplitude_reaches_the_output_where_a_path_lets_it_pass(name: str) -> None:
    unet = built(without_clip(EVERY[name]))
    passes = any(path.amplitude.passing == "passes" for path in paths(unet.layout))
    assert growth(unet) == pytest.approx(1.0 if passes else 0.0, abs=0.05)
    assert ("cannot tell the amplitude" in unet.describe()) == (not passes)


def test_amplitude_passes_up_to_the_clip() -> None:
    unet = built(NETWORKS["edm2"])
    assert "up to the clip at 256" in unet.describe()
    assert growth(unet) == pytest.approx(0, abs=0.05)
    assert growth(unet, 1e-5, 1e-4) == pytest.approx(0, abs=0.05)  # the constant channel speaks alone
    assert growth(unet, 10, 100) > 0.3


def wrap_around(unet: UNet) -> bool:
    """Have convolutions wrap around, so that a constant stays one; False where other parts pad with zeros."""
    for module in unet.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.padding_mode = "circular"
    spec = unet.spec
    return spec.resample_filter is None and "asymmetric" not in str(spec.downsample)


def shifted(unet: UNet, shift: Tensor) -> float:
    """How far the output moves, over its size, when `shift` (channels) is added to the input's channels."""
    call = inputs(unet, size=12)
    sample = call.pop("sample")
    moved = sample + shift.reshape(1, -1, *(1,) * (sample.ndim - 2))
    with torch.no_grad():
        before, after = (unet(x, **call).sample for x in (sample, moved))
    return ((after - before).norm() / before.norm()).item()


@every_network
def test_means_reach_the_output_unless_every_way_erases_them(name: str) -> None:
    unet = built(EVERY[name])
    fates = [fate for path in paths(unet.layout) for fate in (path.mean, path.branch_mean) if fate is not None]
    erased = all(fate.passing == "erased" for fate in fates)
    assert ("erases the mean of each channel" in unet.describe()) == erased
    assert wrap_around(unet) or not erased
    moved = shifted(unet, torch.linspace(1.0, -2.0, unet.config["in_channels"]))
    assert moved < 1e-8 if erased else moved > 1e-4


def test_some_networks_erase_the_mean_and_some_do_not() -> None:
    """So that the test above tests something."""
    erasing = {name for name, settings in EVERY.items() if "erases the mean of each" in describe(plan_of(settings))}
    assert erasing == {
        "nnunet",
        "supervised_3d",
        "example_nnunet",
        "input_instance",
        "all_instance",
        "pre_without_shortcuts",
        "instance_at_skips",
        "instance_behind_skips",
    }


def plan_of(settings: dict[str, Any]):
    return make_plan(UNetSpec(**settings))


def test_a_group_norm_subtracts_the_mean_of_its_group_alone() -> None:
    unet = built(PLACED["input_group"])
    wrap_around(unet)
    assert "one per group that the input norm (group)" in unet.describe()
    assert shifted(unet, torch.ones(2)) < 1e-8
    assert shifted(unet, torch.tensor([1.0, -1.0])) > 1e-3


def test_batch_norm_depends_on_the_batch_and_says_so() -> None:
    with pytest.warns(UserWarning, match="mixes the samples"):
        unet = built(PLACED["input_batch"])
    assert "Batch norm (input norm): while training, outputs depend on the other samples" in unet.describe()
    x = torch.randn(2, 2, 8, 8)
    alone, beside = unet.train()(x).sample[0], unet(torch.stack([x[0], x[1] * 9])).sample[0]
    assert (alone - beside).abs().max() > 1e-3
    assert "Batch norm" not in built(PLACED["bare"]).describe()


def test_paths_name_the_norms_they_cross() -> None:
    skips = {path.name: path for path in paths(plan_of(EXAMPLES["edm2"]))}
    assert len(skips) == 10
    assert skips["skip of stem"].norms == ()
    assert [str(norm) for norm in skips["middle"].norms] == ["encoder's main norm (pixel)"]
    assert skips["skip of stem"].amplitude.passing == skips["skip of stem"].mean.passing == "passes"
    assert skips["skip of level0_block0"].amplitude.passing == "erased"
    assert skips["skip of level0_block0"].mean.passing == "passes"


def test_the_pyramid_is_a_way_past_the_encoder() -> None:
    """A main norm in the encoder's blocks does not stop what joins behind them."""
    found = {path.name: path.amplitude.passing for path in paths(plan_of(PLACED["encoder_main_pyramid"]))}
    assert found["skip of level1_down"] == "erased"
    assert found["skip of level1_down by the pyramid"] == "passes"
    assert found["skip of level2_block0 by the pyramid"] == "erased"


def test_branches_are_told_apart_from_the_stream() -> None:
    path = paths(plan_of(PLACED["instance_on_bare"]))[-1]
    assert path.mean.passing == "erased"
    assert path.branch_mean is not None
    assert path.branch_mean.passing == "passes"
    path = paths(plan_of(PLACED["pre_only"]))[-1]
    assert path.branch_amplitude is not None
    assert (path.amplitude.passing, path.branch_amplitude.passing) == ("passes", "erased")
    assert paths(plan_of(EXAMPLES["nnunet"]))[-1].branch_amplitude is None


def test_groups_of_encoder_and_decoder_channels_are_named() -> None:
    """256 + 128 channels in 32 groups of 12: the 22nd has channels of both."""
    plan = plan_of(preset("ddpm_cifar10"))
    assert [(step.name, step.in_channels, step.skip, groups) for step, groups in straddling(plan)] == [
        ("level1_block2", 256, 128, 32),
        ("level0_block0", 256, 128, 32),
    ]
    assert "those of level1_block2's first norm (256 + 128 channels in 32)" in describe(plan)
    assert "mix decoder and encoder" not in describe(plan_of(EXAMPLES["edm2"]))


def test_what_passes_a_pretrained_network_is_not_followed() -> None:
    plan = plan_of(NETWORKS["pretrained"])
    assert [path.name for path in paths(plan)] == ["skip of level0_block0", "skip of level1_block0"]
    assert "its paths are left out" in describe(plan)
    assert "left out" not in describe(plan_of(NETWORKS["2d"]))


def test_description_is_short() -> None:
    for settings in EVERY.values():
        assert len(describe(plan_of(settings)).splitlines()) <= 12


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="a source distribution has no docs")
def test_the_documentation_shows_what_is_printed() -> None:
    page = (ROOT / "docs" / "placement.md").read_text()
    for settings in (preset("ddpm_cifar10"), EXAMPLES["edm2"], EXAMPLES["nnunet"]):
        assert describe(plan_of(settings)) in page


def test_the_description_of_ddpm() -> None:
    described = UNet(**EXAMPLES["ddpm"]).describe().splitlines()
    assert described[0].split("  ")[0] == "path"
    cells = ["9 skips, middle", "out norm (group)", "erased", "per group", "erased", "per group"]
    assert [cell.strip() for cell in described[2].split("  ") if cell] == cells
    assert len(described) == 7
    assert described[4] == (
        "Every path to the output crosses the out norm (group): the network cannot tell the amplitude of its input."
    )
