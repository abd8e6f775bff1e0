"""Activations and gradients of networks as they start, against the rules. In one dimension, where it is quick."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.networks import NETWORKS
from unetdiff import UNet
from unetdiff.models.plan import make_plan
from unetdiff.models.statistics import EXAMPLES, default_start, initial_statistics
from unetdiff.models.step import Step
from unetdiff.models.variance import Statistic, predict
from unetdiff.spec import NormPlacement, UNetSpec

# Without norms the draws of all layers multiply: more of them for a steady mean.
SEEDS = {"edm2": 24, "unet2015": 60}
PARTS = ("variance", "branch", "gradient")


def example(name: str, **norm: Any) -> dict[str, Any]:
    """A placement's network, one-dimensional, with an input of many channels (few make few different features)."""
    return {**EXAMPLES[name], "dims": 1, "in_channels": 32, "norm": {"preset": name, **norm}}


def deviations(settings: dict[str, Any], measured: dict[Step, Statistic], part: str) -> dict[str, float]:
    """Measured over predicted, minus 1, of the steps that a rule says something of."""
    predicted = predict(UNetSpec(**settings), measured)
    pairs = {
        f"{step.side} {step.name}": (getattr(measured[step], part), getattr(predicted[step], part)) for step in measured
    }
    return {name: seen / rule - 1 for name, (seen, rule) in pairs.items() if rule > 0}


def worst(found: dict[str, float]) -> float:
    return max(map(abs, found.values()), default=0.0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_networks_start_as_the_rules_say(name: str) -> None:
    measured = initial_statistics(example(name), size=128, seeds=SEEDS.get(name, 8))
    found = {part: deviations(example(name), measured, part) for part in PARTS}
    assert min(len(found["variance"]), len(found["gradient"])) > 3
    assert bool(found["branch"]) != ("branch" in NormPlacement.of(name).zero_init)
    assert max(map(worst, found.values())) < 0.1, found


@pytest.mark.parametrize("name", ["ddpm", "adm", "ncsnpp", "ddpmpp"])
def test_without_zeros_to_start_from_too(name: str) -> None:
    settings = example(name, zero_init=[])
    measured = initial_statistics(settings, size=128, seeds=8)
    found = {part: deviations(settings, measured, part) for part in ("variance", "branch")}
    assert max(map(worst, found.values())) < 0.1, found


@pytest.mark.parametrize("name", ["ddpm", "adm"])
def test_norms_divide_branch_gradients_by_the_stream(name: str) -> None:
    """With one group: few channels that are nearly constant in space are divided by less than the rule says."""
    site = {"pos": "pre", "norm": {"kind": "group", "groups": 1}}
    settings = example(name, zero_init=[], encoder=site, decoder=site)
    found = deviations(settings, initial_statistics(settings, size=128, seeds=8), "gradient")
    assert worst(found) < 0.1, found


@pytest.mark.parametrize("name", ["ddpm", "edm2"])
def test_the_stream_has_unit_variance(name: str) -> None:
    rows = initial_statistics(example(name), size=128, seeds=8)
    assert [row.variance for row in rows.values()] == pytest.approx([1.0] * len(rows), rel=0.1)


@pytest.mark.parametrize("name", ["nnunet", "unet2015"])
def test_plain_blocks_have_unit_variance_before_the_nonlinearity(name: str) -> None:
    settings = {**example(name), "downsample": "block"}  # max-pooling raises it
    rows = initial_statistics(settings, size=128, seeds=SEEDS.get(name, 8))
    branches = [row.branch for step, row in rows.items() if step.kind == "block"]
    assert branches == pytest.approx([1.0] * len(branches), rel=0.1)


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"edm2"}))
def test_the_start_of_torch_is_another(name: str) -> None:
    """So that the tests above test something."""
    measured = initial_statistics(example(name), size=128, seeds=4, start=default_start)
    assert worst(deviations(example(name), measured, "variance")) > 0.3


@pytest.mark.parametrize("norm", ["nnunet", "ddpm"])
def test_outputs_start_with_unit_variance_where_they_do_not_start_at_zero(norm: str) -> None:
    sizes = []
    for seed in range(8):
        torch.manual_seed(seed)
        unet = UNet(**{**example(norm, zero_init=[]), "out_channels": 16}).eval()
        timestep = None if norm == "nnunet" else 5
        sizes.append(unet(torch.randn(2, 32, 256), timestep).sample.square().mean().item())
    assert sum(sizes) / len(sizes) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", [name for name, settings in NETWORKS.items() if "backbone" not in settings])
def test_every_network_can_be_measured_and_predicted(name: str) -> None:
    spec = UNetSpec(**NETWORKS[name])
    measured = initial_statistics(NETWORKS[name], size=2 * max(make_plan(spec).multiple), seeds=1)
    predicted = predict(spec, measured)
    assert list(predicted) == list(measured)
    assert all(math.isfinite(row.variance) and row.gradient >= 0 for row in measured.values())


def test_pretrained_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="has no first weights"):
        initial_statistics(NETWORKS["pretrained"])


def test_sizes_that_the_strides_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size is 9; expected a multiple of \(2,\)"):
        initial_statistics(NETWORKS["1d"], size=9)


def test_measuring_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = initial_statistics(NETWORKS["1d"], size=8, seeds=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert initial_statistics(NETWORKS["1d"], size=8, seeds=1) == first
    assert all(isinstance(row, Statistic) for row in first.values())
