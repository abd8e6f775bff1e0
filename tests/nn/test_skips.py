"""Ways to fuse a skip: each against its formula, the gate against MONAI's as well."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.attentionunet import AttentionBlock
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff.nn.skips import FUSIONS, Merge
from unetdiff.spec import FUSED_CHANNELS, NormPlacement, Site

X, SKIP = torch.randn(2, 6, 4, 5), torch.randn(2, 4, 4, 5)
FORMULAS = {
    "concat": lambda fuse: torch.cat([X, SKIP], 1),
    "concat_1x1": lambda fuse: fuse.project(torch.cat([X, SKIP], 1)),
    "add": lambda fuse: X + fuse.project(SKIP),
    "gate": lambda fuse: torch.cat(
        [X, SKIP * fuse.psi((fuse.from_decoder(X) + fuse.from_skip(SKIP)).relu()).sigmoid()], 1
    ),
}


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_is_its_formula_and_as_wide_as_the_plan_says(name: str) -> None:
    fuse = FUSIONS[name](6, 4, 2)
    redraw(fuse)
    out = fuse(X, SKIP)
    assert_close(out, FORMULAS[name](fuse))
    assert out.shape[1] == FUSED_CHANNELS[name](6, 4)  # pyright: ignore


def test_every_fusion_has_a_width() -> None:
    assert FUSIONS.keys() == FUSED_CHANNELS.keys()


def test_equal_widths_add_without_weights() -> None:
    assert not list(FUSIONS["add"](4, 4, 2).parameters())
    assert_close(FUSIONS["add"](4, 4, 2)(SKIP, SKIP), 2 * SKIP)


def test_the_gate_is_that_of_monai() -> None:
    """Its batch norms, new and in evaluation, only divide by sqrt(1 + eps)."""
    theirs = AttentionBlock(2, f_int=2, f_g=6, f_l=4).eval()
    redraw(theirs)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
    ours = FUSIONS["gate"](6, 4, 2)
    convolutions = [module for module in theirs.modules() if isinstance(module, torch.nn.Conv2d)]
    for layer, source in zip((ours.from_decoder, ours.from_skip, ours.psi), convolutions, strict=True):
        layer.load_state_dict(source.state_dict())
    assert_close(SKIP * ours.gate(X, SKIP), theirs(X, SKIP), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FUSIONS)
def test_norms_act_before_and_after_every_fusion(name: str) -> None:
    before = Merge(6, 4, NormPlacement(skip="before_concat"), Site(), 2, name)  # pyright: ignore
    assert_close(before(X, SKIP), before.fuse(before.norm(X), before.norm_skip(SKIP)))
    after = Merge(6, 4, NormPlacement(skip="after_concat", skip_scale=0.5), Site(), 2, name)  # pyright: ignore
    assert_close(after(X, SKIP), after.norm_both(after.fuse(X, SKIP * 0.5)))
