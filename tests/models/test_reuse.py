"""A network divided at a skip, beside the network itself with the stream into its decoder replaced by a hook."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.networks import inputs, network
from unetdiff import UNet
from unetdiff.models.reuse import choose_cut, cuts

FEATURES = ["1d", "2d", "3d", "adm", "mixed", "ncsnpp", "pyramid_3d", "edm2", "gated_skips", "supervised", "score"]
FEATURES += ["unpadded", "light_decoder", "strided_blocks", "transformer", "pretrained_convnext"]
FEW = ["2d", "mixed", "pyramid_3d", "edm2", "supervised", "pretrained_convnext"]


def call_of(unet: UNet) -> tuple[Any, Any, Any]:
    call = inputs(unet)
    return call["sample"], call.get("timestep"), call.get("class_labels")


@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_all_of_a_divided_network_is_the_network_bit_for_bit(name: str) -> None:
    unet = network(name)
    divided, call = unet.divide(), call_of(unet)
    output, deep = divided.full(*call)
    assert_close(output, unet(*call).sample, rtol=0, atol=0)
    assert_close(divided.shallow(*call, deep), output, rtol=0, atol=0)


@pytest.mark.parametrize("name", FEW)
@torch.no_grad()
def test_a_cached_call_is_the_network_with_the_deep_feature_replaced(name: str) -> None:
    unet = network(name)
    first = call_of(unet)
    second = (first[0] + 1, None if first[1] is None else first[1] / 2, first[2])
    for cut in cuts(unet.plan):
        divided = unet.divide(cut.skip.key)
        deep = divided.full(*first)[1]
        module = unet.step_modules()[cut.entry.key]
        handle = module.register_forward_pre_hook(lambda _, args, deep=deep: (deep, *args[1:]))
        expected = unet(*second).sample
        handle.remove()
        assert_close(divided.shallow(*second, deep), expected, rtol=0, atol=0)
        assert not torch.equal(expected, unet(*second).sample)


@torch.no_grad()
def test_a_cached_call_runs_the_shallow_steps_alone() -> None:
    unet = network("three_levels")
    divided, calls = unet.divide("level1_block0"), Counter()
    for key, module in unet.step_modules().items():
        module.register_forward_hook(lambda *_, key=key: calls.update([key]))
    deep = divided.full(*call_of(unet))[1]
    assert calls == dict.fromkeys((step.key for step in unet.layout.steps), 1)
    calls.clear()
    divided.shallow(*call_of(unet), deep)
    encoder = ["stem", "level0_block0", "level0_down", "level1_block0"]
    decoder = ["level1_block1", "level1_block2", "level1_up", "level0_block0", "level0_block1"]
    keys = [*(f"encoder.{name}" for name in encoder), *(f"decoder.{name}" for name in decoder), "head.sample"]
    assert calls == dict.fromkeys(keys, 1)


def test_a_quarter_of_the_operations_is_the_default() -> None:
    """The table of `print(unet.plan)`, in millions: the first block, the last two, the stem and the head."""
    with torch.device("meta"):
        plan = UNet.from_preset("ddpm_cifar10").plan
    cut = choose_cut(plan)
    assert (cut.skip.key, cut.entry.key) == ("encoder.level0_block0", "decoder.level0_block1")
    assert cut.share == pytest.approx((7.1 + 604.1 + 2 * 973.2 + 7.1) / 12443.1, rel=1e-3)
    assert [step.name for step in cut.shallow] == ["stem", "level0_block0", "level0_block1", "level0_block2"]
    assert choose_cut(plan, "encoder.level0_block1").share == pytest.approx(0.36, abs=0.005)
    assert choose_cut(plan, "level0_block1") == choose_cut(plan, "encoder.level0_block1")
    shares = [cut.share for cut in cuts(plan)]
    assert shares == sorted(shares)


def test_where_nothing_costs_a_quarter_the_cheapest_is_the_default() -> None:
    cut = choose_cut(network("asymmetric").plan)
    assert (cut.skip.name, cut.share > 0.25) == ("stem", True)


REFUSED = {
    "expected decoder_kind plain": lambda: network("nested").divide(),
    "skips above a deeper part": lambda: network("autoencoder").divide(),
    "cache_step is 'level9'; expected a step of the encoder with a skip: encoder.stem, encoder.level0_block0": (
        lambda: network("1d").divide("level9")
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_networks_that_cannot_be_divided_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
