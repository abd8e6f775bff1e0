"""Padding, embeddings, attention, skips and residuals against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff.nn.attention import SelfAttention, normalize_heads
from unetdiff.nn.blocks import BLOCKS, PostNormBlock, PreNormBlock
from unetdiff.nn.dims import crop, pad_to_multiple
from unetdiff.nn.embed import ConditionedNorm, ConditionEmbedding, SinusoidalEmbedding
from unetdiff.nn.norm import make_norm
from unetdiff.nn.residual import merge_residual, mp_sum
from unetdiff.nn.skips import Merge
from unetdiff.spec import Norm, NormPlacement, Site, UNetSpec


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 3), (8, 8)])
def test_padding_reaches_the_multiple_and_crops_back(mode: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    padded = pad_to_multiple(x, (4, 8), mode)  # pyright: ignore
    assert padded.shape[2] % 4 == 0
    assert padded.shape[3] % 8 == 0
    assert_close(crop(padded, size), x, rtol=0, atol=0)
    if mode == "zeros":
        assert_close(padded.sum(), x.sum())


@pytest.mark.parametrize(("shift", "sin_first"), [(0, False), (1, True), (1, False)])
def test_sinusoid_equals_diffusers(shift: int, sin_first: bool) -> None:
    timestep = torch.tensor([0.0, 3.5, 999.0])
    ours = SinusoidalEmbedding(16, frequency_shift=shift, sin_first=sin_first)(timestep)
    theirs = get_timestep_embedding(timestep, 16, flip_sin_to_cos=not sin_first, downscale_freq_shift=shift)
    assert_close(ours, theirs)


def test_conditions_that_are_missing_or_not_taken_are_named() -> None:
    timed = ConditionEmbedding(UNetSpec(channels=[8], num_classes=3))
    with pytest.raises(ValueError, match="conditioned on the timestep"):
        timed(None, torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="call it with class_labels, 0 to 2"):
        timed(torch.tensor([1.0]), None, 1)
    with pytest.raises(ValueError, match="without classes"):
        ConditionEmbedding(UNetSpec(channels=[8]))(torch.tensor([1.0]), torch.tensor([0]), 1)


def test_null_class_stands_for_no_label() -> None:
    embed = ConditionEmbedding(UNetSpec(channels=[8], num_classes=3, null_class=True))
    timestep = torch.tensor([5.0])
    assert_close(embed(timestep, None, 1), embed(timestep, torch.tensor([3]), 1))
    assert not torch.equal(embed(timestep, None, 1), embed(timestep, torch.tensor([2]), 1))


@pytest.mark.parametrize("mode", ["none", "add", "scale", "scale_shift"])
def test_embedding_enters_a_norm_as_its_formula_says(mode: str) -> None:
    layer = ConditionedNorm(torch.nn.Identity(), mode, 4, 6)
    h, embedding = torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    entry = torch.zeros(2, 0) if layer.project is None else layer.project(torch.nn.functional.silu(embedding))
    first, second = (entry[:, part, None, None] for part in (slice(0, 4), slice(4, 8)))
    expected = {
        "none": lambda: h,
        "add": lambda: h + first,
        "scale": lambda: h * (1 + first),
        "scale_shift": lambda: h * (1 + first) + second,
    }[mode]()
    assert_close(layer(h, embedding), expected)


QK = {
    "none": lambda x: x,
    "rms": lambda x: x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-4),
    "l2": lambda x: x / x.norm(dim=-1, keepdim=True),
}


@pytest.mark.parametrize("qk", QK)
@pytest.mark.parametrize("residual", ["sum", "sqrt_half", "mp"])
@pytest.mark.parametrize("space", [(6,), (2, 3), (2, 3, 2)])
def test_attention_is_the_softmax_average_of_values(qk: str, residual: str, space: tuple[int, ...]) -> None:
    placement = NormPlacement(attention="none", qk=qk, residual=residual, zero_init=frozenset())  # pyright: ignore
    layer = SelfAttention(8, 2, placement, Site(), len(space))
    x = torch.randn(2, 8, *space)
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = (
        part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.query_key_value(tokens).chunk(3, dim=-1)
    )
    scale = 10 if qk == "l2" else 1 / math.sqrt(4)
    weights = (QK[qk](query) @ QK[qk](key).transpose(-1, -2) * scale).softmax(-1)
    branch = layer.out((weights @ value).transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)
    factors = {"sum": (1, 1), "sqrt_half": (0.5**0.5, 0.5**0.5), "mp": (0.7 / 0.58**0.5, 0.3 / 0.58**0.5)}[residual]
    assert_close(layer(x), factors[0] * x + factors[1] * branch, rtol=1e-4, atol=1e-4)


def block(kind: str, *, main: str = "none", resample: torch.nn.Module | None = None) -> PreNormBlock | PostNormBlock:
    """A block from 4 to 8 channels with additive conditioning and all weights random."""
    site = Site(kind, Norm(groups=2, min_group_channels=1), Norm(main))  # pyright: ignore
    made = BLOCKS[kind](
        4,
        8,
        embedding_channels=6,
        site=site,
        placement=NormPlacement(time="add"),
        dims=1,
        resample=resample,
    )
    redraw(made)
    return made  # pyright: ignore


def test_pre_norm_block_is_its_formula() -> None:
    made, x, embedding = block("pre"), torch.randn(2, 4, 6), torch.randn(2, 6)
    silu, shift = torch.nn.functional.silu, made.norm2.project(torch.nn.functional.silu(embedding))[..., None]
    h = made.conv1(silu(made.norm1(x))) + shift
    assert_close(made(x, embedding), made.shortcut(x) + made.conv2(silu(made.norm2.norm(h))))


def test_post_norm_block_is_its_formula() -> None:
    made, x, embedding = block("post"), torch.randn(2, 4, 6), torch.randn(2, 6)
    silu, shift = torch.nn.functional.silu, made.norm1.project(torch.nn.functional.silu(embedding))[..., None]
    h = silu(made.norm1.norm(made.conv1(x) + shift))
    assert_close(made(x, embedding), silu(made.shortcut(x) + made.norm2(made.conv2(h))))


def test_block_changes_the_resolution_of_branch_and_shortcut() -> None:
    down = torch.nn.AvgPool1d(2)
    made, x, embedding = block("pre", resample=down), torch.randn(2, 4, 6), torch.randn(2, 6)
    silu, shift = torch.nn.functional.silu, made.norm2.project(torch.nn.functional.silu(embedding))[..., None]
    h = made.conv1(down(silu(made.norm1(x)))) + shift
    assert_close(made(x, embedding), made.shortcut(down(x)) + made.conv2(silu(made.norm2.norm(h))))


def test_main_norm_is_on_the_stream_and_the_branch_reads_it() -> None:
    """As the encoder of Karras et al. 2024: resample, shortcut, norm, and only then the branch."""
    down = torch.nn.AvgPool1d(2)
    made, x, embedding = block("pre", main="pixel", resample=down), torch.randn(2, 4, 6), torch.randn(2, 6)
    assert made.main is not None
    stream = made.main(made.shortcut(down(x)))
    silu, shift = torch.nn.functional.silu, made.norm2.project(torch.nn.functional.silu(embedding))[..., None]
    h = made.conv1(silu(made.norm1(stream))) + shift
    assert_close(made(x, embedding), stream + made.conv2(silu(made.norm2.norm(h))))


def test_cosine_attention_can_attend() -> None:
    """A query that equals one of 64 orthogonal keys gets most of its weight at the first temperature."""
    keys = torch.eye(64)
    weights = (normalize_heads(keys, "l2") @ normalize_heads(keys, "l2").T * 10).softmax(-1)
    assert weights.diagonal().min() > 0.95


def test_residual_sums_keep_what_they_promise() -> None:
    a, b = torch.randn(2, 100_000), torch.randn(2, 100_000)
    assert_close(mp_sum(a, b, 0.3).std(), torch.tensor(1.0), atol=0.01, rtol=0)
    half = merge_residual(a, b, NormPlacement(residual="sqrt_half"))
    assert_close(half, (a + b) / math.sqrt(2))
    assert_close(merge_residual(a, b, NormPlacement()), a + b)


def test_magnitude_preserving_concatenation_has_unit_magnitude_and_equal_shares() -> None:
    x, skip = torch.randn(4, 16, 50, 50), torch.randn(4, 48, 50, 50)
    merge = Merge(16, 48, NormPlacement(concat="mp"), Site(), 2)
    out = merge(x, skip)
    assert_close(out.square().mean(), torch.tensor(1.0), atol=0.01, rtol=0)
    shares = [part.square().sum() for part in (out[:, :16], out[:, 16:])]
    assert_close(shares[0] / shares[1], torch.tensor(1.0), atol=0.02, rtol=0)


def test_skip_is_scaled_and_normalised_as_placed() -> None:
    x, skip = torch.randn(2, 4, 5), torch.randn(2, 8, 5) * 9
    assert_close(Merge(4, 8, NormPlacement(skip_scale=0.5), Site(), 1)(x, skip)[:, 4:], skip * 0.5)
    before = Merge(4, 8, NormPlacement(skip="before_concat"), Site(norm=Norm("pixel", eps=0)), 1)(x, skip)
    assert_close(before[:, 4:].square().mean(1), torch.ones(2, 5))
    learned = Merge(4, 8, NormPlacement(skip_scale="learned"), Site(), 1)
    learned(x, skip).sum().backward()
    assert learned.scale is not None
    assert learned.scale.grad is not None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([3.0]), "expected integers"),
        ([7], "expected 0 to 3"),
        (torch.tensor([-1]), "expected 0 to 3"),
        (torch.tensor([0, 1, 2]), "one per sample"),
        (torch.zeros(2, 3, dtype=torch.long), r"shape \(2, 3\)"),
    ],
)
def test_wrong_labels_are_named(labels, message: str) -> None:
    embed = ConditionEmbedding(UNetSpec(channels=[8], num_classes=3, null_class=True))
    with pytest.raises(ValueError, match=message):
        embed(5, labels, 2)


def test_conditions_may_be_numbers_lists_or_tensors() -> None:
    embed = ConditionEmbedding(UNetSpec(channels=[8], num_classes=3))
    expected = embed(torch.tensor([5.0, 5.0]), torch.tensor([1, 1]), 2)
    assert_close(embed(5, 1, 2), expected)
    assert_close(embed([5, 5], torch.tensor([1, 1], dtype=torch.uint8), 2), expected)
    with pytest.raises(ValueError, match=r"timestep has shape \(3,\)"):
        embed(torch.zeros(3), 1, 2)


def test_norm_over_single_values_is_refused() -> None:
    with pytest.raises(ValueError, match="norm over single values"):
        make_norm(8, Norm("instance"), 2)(torch.randn(4, 8, 1, 1))
