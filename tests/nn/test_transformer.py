"""A transformer's layer against torch's own, and positions at any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet
from unetdiff.nn.transformer import LAYER_NORM, PositionEmbedding, TransformerLayer
from unetdiff.spec import NormPlacement, Site


def make_layer(channels: int, heads: int, dims: int, **norm) -> TransformerLayer:
    placement = NormPlacement.of({"preset": "ddpm", **norm})
    return TransformerLayer(channels, heads, placement, Site(), dims, embedding_channels=6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_layer_of_torch(dims: int) -> None:
    """`nn.TransformerEncoderLayer`, norm first, with the same weights; no embedding enters."""
    ours = redraw(make_layer(8, 2, dims, time="none")).eval()
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", layer_norm_eps=LAYER_NORM.eps, batch_first=True, norm_first=True
    ).eval()
    own = ours.state_dict()
    names = {
        "self_attn.in_proj": "attention.query_key_value",
        "self_attn.out_proj": "attention.out",
        "linear1": "widen",
        "linear2": "narrow",
        "norm1": "attention.norm",
        "norm2": "norm.norm",
    }
    weights = {}
    for name in theirs.state_dict():
        stem, kind = name.rsplit("_", 1) if "in_proj" in name else name.rsplit(".", 1)
        value = own[f"{names[stem]}.{kind}"]
        weights[name] = value.flatten(1) if value.ndim > 1 else value
    theirs.load_state_dict(weights)
    x = torch.randn(2, 8, *(3, 4, 2)[:dims])
    expected = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


def test_the_embedding_enters_the_second_branch() -> None:
    layer = redraw(make_layer(8, 2, 1, time="scale_shift"))
    x, embedding = torch.randn(2, 8, 5), torch.randn(2, 6)
    assert (layer(x, embedding) - layer(x, 2 * embedding)).abs().max() > 1e-3


def test_starts_as_nothing_where_the_placement_says_so() -> None:
    x, embedding = torch.randn(2, 8, 5), torch.randn(2, 6)
    assert_close(make_layer(8, 2, 1)(x, embedding), x)
    assert (make_layer(8, 2, 1, zero_init=[])(x, embedding) - x).abs().max() > 1e-2


def test_positions_are_exact_at_their_own_size_and_interpolated_at_others() -> None:
    positions = PositionEmbedding(3, 4, 2)
    with torch.no_grad():
        ramp = torch.arange(4.0)
        positions.position.copy_(ramp[None, :] + 10 * ramp[:, None])
    zeros = torch.zeros(1, 3, 4, 4)
    assert torch.equal(positions(zeros), positions.position)
    finer = positions(torch.zeros(1, 3, 8, 12))
    assert finer.shape == (1, 3, 8, 12)
    # A ramp stays one away from the border, with the step of the finer grid.
    assert_close(finer[0, 0, 3:5, 6].diff(), torch.tensor([5.0]))
    assert_close(finer[0, 0, 4, 5:7].diff(), torch.tensor([1 / 3]), atol=0.05, rtol=0)


def test_positions_stay_in_the_type_of_the_stream() -> None:
    positions = PositionEmbedding(3, 4, 1)
    assert positions(torch.zeros(1, 3, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_clip_of_the_stream_holds_behind_transformer_layers() -> None:
    unet = redraw(UNet(channels=[8, 8], middle=False, transformer_layers=1, norm={"preset": "ddpm", "clip": 0.5}))
    kept = []
    unet.decoder["middle_layer0"].register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    unet(torch.randn(1, 3, 8, 8), 5)
    assert kept[0].abs().max() == 0.5
