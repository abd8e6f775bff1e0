"""What goes wrong with norms elsewhere (divisors, single values, low precision, compilers) does not go wrong here."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import NETWORKS, inputs
from unetdiff import UNet
from unetdiff.nn.attention import normalize_heads
from unetdiff.nn.norm import FloatStatistics, make_norm
from unetdiff.presets import PRESETS, preset
from unetdiff.spec import Norm

KINDS = ["group", "layer", "rms", "pixel", "instance"]
TYPES = [torch.float16, torch.bfloat16, torch.float32]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def norm_of(kind: str, channels: int = 12, **settings) -> nn.Module:
    """A norm of three groups over 2-D maps, with scale and shift drawn."""
    norm = make_norm(channels, Norm(kind, groups=3, **settings), 2)  # pyright: ignore
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return norm


@pytest.mark.parametrize(
    ("channels", "groups", "least", "asked", "taken"),
    [(48, 32, 1, 32, 24), (132, 32, 4, 32, 22), (10, 4, 1, 4, 2), (14, 32, 4, 3, 2)],
)
def test_groups_that_do_not_divide_are_said_aloud(channels: int, groups: int, least: int, asked: int, taken: int):
    """GroupNorm(32, 48) raises in torch, and min(32, C / 4) fails at 132 channels; the largest divisor serves."""
    said = f"a norm of {channels} channels cannot have {asked} groups: it has {taken},"
    for kind in ("group", "rms"):
        with pytest.warns(UserWarning, match=said) as caught:
            norm = make_norm(channels, Norm(kind, groups, least), 2)  # pyright: ignore
        assert len(caught) == 1
        assert norm.groups == taken
        assert norm(torch.randn(1, channels, 3, 3)).isfinite().all()


@pytest.mark.parametrize(("channels", "groups", "least"), [(128, 32, 4), (48, 32, 4), (7, 32, 4), (64, 32, 4)])
def test_fewer_groups_by_design_are_not(channels: int, groups: int, least: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = make_norm(channels, Norm("group", groups, least), 2)
    assert norm.groups == max(1, min(groups, channels // least))


# All but the one whose backbone would have to be looked up.
NAMED = {f"preset_{name}": preset(name) for name in PRESETS if name != "pretrained"}


@pytest.mark.parametrize("name", [*NAMED, *NETWORKS])
def test_no_network_of_ours_warns(name: str) -> None:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        UNet(**{**NAMED, **NETWORKS}[name])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("kind", "groups", "size"), [("instance", 1, (1, 1)), ("group", 8, (1, 1)), ("rms", 8, (1, 1)), ("group", 8, (1,))]
)
def test_groups_of_one_value_are_refused(kind: str, groups: int, size: tuple[int, ...], batch: int) -> None:
    """In torch the first two raise at batch 1 and return zeros at batch 4; without a mean, signs would be left."""
    norm = make_norm(8, Norm(kind, groups, 1), len(size))  # pyright: ignore
    with pytest.raises(ValueError, match="a norm over single values erases them: 8 channels in 8 groups at size"):
        norm(torch.randn(batch, 8, *size))


@pytest.mark.parametrize("kind", ["layer", "pixel"])
def test_norms_over_one_channel_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"a {kind} norm over 1 channel erases it"):
        make_norm(1, Norm(kind), 2)  # pyright: ignore


@every_kind
def test_a_batch_of_one_is_as_good_as_any(kind: str) -> None:
    norm, x = norm_of(kind).train(), torch.randn(4, 12, 5, 5) * 3 + 1
    assert_close(norm(x[:1]), norm(x)[:1])
    assert norm(x[:1]).std() > 0.5


def test_groups_mix_the_sources_of_a_concatenation() -> None:
    """32 groups of 256 + 128 channels: the 22nd has four of one source and eight of the other (`describe` says so)."""
    norm = make_norm(384, Norm(groups=32), 2)
    deep, skip = torch.randn(1, 256, 4, 4), torch.randn(1, 128, 4, 4)
    before, after = (norm(torch.cat([deep, skip * scale], dim=1))[0] for scale in (1, 9))
    moved = (before - after).abs().amax((1, 2)) > 1e-4
    assert moved[:256].nonzero().flatten().tolist() == [252, 253, 254, 255]


def test_layer_norm_is_over_channels() -> None:
    """Each position by itself: not over the last axis, as `nn.LayerNorm` on (N, C, H, W) would be."""
    x = torch.randn(2, 12, 4, 6)
    out = make_norm(12, Norm("layer", eps=0), 2)(x)
    assert_close(out.mean(1), torch.zeros(2, 4, 6), atol=1e-6, rtol=0)
    assert_close(out.square().mean(1), torch.ones(2, 4, 6))
    assert_close(out[..., :1, :1], make_norm(12, Norm("layer", eps=0), 2)(x[..., :1, :1]))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_norm_is_inert(name: str) -> None:
    """Every norm that a network owns runs."""
    unet = UNet(**NETWORKS[name])
    unet.train(unet.config["deep_supervision"])
    ran: set[nn.Module] = set()
    norms = {module for module in unet.modules() if isinstance(module, FloatStatistics)}
    for norm in norms:
        norm.register_forward_hook(lambda module, _inputs, _output: ran.add(module))
    unet(**inputs(unet))
    assert ran == norms


@every_kind
@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_large_values_do_not_overflow(kind: str, dtype: torch.dtype) -> None:
    """The square of 300 is more than float16 holds."""
    x = (torch.randn(2, 12, 4, 4) * 100 + 300).to(dtype)
    assert dtype != torch.float16 or x.square().isinf().any()
    norm = norm_of(kind)
    assert_close(norm(x).float(), norm(x.float()), rtol=1e-2, atol=1e-2)


@every_kind
@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_eps_is_not_lost(kind: str, dtype: torch.dtype) -> None:
    """1e-8 is zero in float16; beside values of 1e-4 it decides."""
    x = (torch.randn(2, 12, 4, 4) * 1e-4).to(dtype)
    norm = norm_of(kind, eps=1e-8)
    assert_close(norm(x).float(), norm(x.float()), rtol=1e-2, atol=1e-2)
    assert norm(torch.zeros_like(x)).isfinite().all()


def test_bf16_loses_what_its_input_lost_and_no_more() -> None:
    """N(100, 1) has lost 0.12 on average before any norm sees it; float32 statistics lose nothing beyond."""
    x = torch.randn(4, 12, 32, 32) + 100
    for kind in ("group", "instance"):
        norm = make_norm(12, Norm(kind, groups=3), 2)  # pyright: ignore
        low = norm(x.bfloat16()).float()
        assert (low - norm(x)).abs().mean().item() == pytest.approx(0.125, abs=0.02)
        assert (low - norm(x.bfloat16().float())).abs().mean() < 2**-8


@every_kind
def test_autocast_on_a_cpu_changes_no_statistics(kind: str) -> None:
    norm, x = norm_of(kind), torch.randn(2, 12, 8, 8) + 30
    with torch.autocast("cpu", torch.bfloat16):
        low, high = norm(x.bfloat16()), norm(x)
    assert low.dtype == torch.bfloat16
    assert high.dtype == torch.float32
    assert_close(low.float(), norm(x.bfloat16().float()), rtol=1e-2, atol=1e-2)
    assert_close(high, norm(x))


def gradient(function, x: Tensor) -> Tensor:
    """The gradient of the sum of the function's values."""
    x = x.requires_grad_()
    function(x).float().sum().backward()
    assert x.grad is not None
    return x.grad


@every_type
@every_kind
def test_zeros_stay_zeros_with_finite_gradients(kind: str, dtype: torch.dtype) -> None:
    """The gradient at zeros is 1 / sqrt(eps); of `pixel`, which adds it to the root, 1 / eps."""
    norm = make_norm(12, Norm(kind, groups=3, eps=1e-4 if kind == "pixel" else 1e-5), 2)  # pyright: ignore
    x = torch.zeros(2, 12, 4, 4, dtype=dtype)
    assert norm(x).abs().max() == 0
    assert gradient(norm, x).isfinite().all()


@every_type
@pytest.mark.parametrize("kind", ["rms", "l2"])
def test_queries_of_zeros_stay_zeros(kind: str, dtype: torch.dtype) -> None:
    """`F.normalize` of zeros is NaN in float16: its eps of 1e-12 is zero there."""
    x = torch.zeros(1, 2, 3, 4, dtype=dtype)
    assert normalize_heads(x, kind).abs().max() == 0
    assert gradient(lambda entry: normalize_heads(entry, kind), x).isfinite().all()
    if dtype == torch.float16:
        assert F.normalize(x.detach(), dim=-1).isnan().all()


@pytest.mark.parametrize("kind", ["rms", "l2"])
def test_normalised_queries_bound_the_logits(kind: str) -> None:
    """By the root of the head's width before the softmax: |q k| <= width, over its root (l2: 1)."""
    query, key = (normalize_heads(torch.randn(1, 1, 50, 16) * 1e4, kind) for _ in range(2))
    logits = query @ key.transpose(-1, -2) / (math.sqrt(16) if kind == "rms" else 1)
    assert logits.abs().max() <= (math.sqrt(16) if kind == "rms" else 1) * (1 + 1e-5)


COMPILED_INPUTS = {
    "normal": lambda: torch.randn(2, 12, 8, 8) * 2 + 1,
    "constant": lambda: torch.full((2, 12, 8, 8), 5.0),
    "zeros": lambda: torch.zeros(2, 12, 8, 8),
    "bf16": lambda: (torch.randn(2, 12, 8, 8) + 10).bfloat16(),
}


def check_compiled(kind: str, backend: str) -> None:
    """Compiled and not, on normal, constant and low-precision input: equal outputs and gradients."""
    norm = norm_of(kind)
    compiled = torch.compile(norm, backend=backend)
    for name, make in COMPILED_INPUTS.items():
        x, tolerance = make(), {"bf16": 2e-2}.get(name, 1e-4)
        assert_close(
            compiled(x), norm(x), rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
        ramp = torch.linspace(-1, 1, x.numel()).reshape(x.shape).to(x.dtype)
        pair = [gradient(lambda entry, run=run, ramp=ramp: run(entry) * ramp, x.clone()) for run in (compiled, norm)]
        # Of a constant, what is left of (x - mean) is rounding, over a root of eps.
        loose = {"constant": 0.1}.get(name, tolerance)
        assert_close(*pair, rtol=loose, atol=loose, msg=lambda text, name=name: f"gradient, {name}: {text}")
    torch._dynamo.reset()


@every_kind
def test_compiled_is_equal(kind: str) -> None:
    check_compiled(kind, "aot_eager")


@pytest.mark.slow
@every_kind
def test_really_compiled_is_equal(kind: str) -> None:
    check_compiled(kind, "inductor")
