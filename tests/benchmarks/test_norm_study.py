"""The normalization study: its metrics against closed forms, its resumption, its rule and its page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.normalization import metrics
from benchmarks.normalization.data import average_down
from benchmarks.normalization.figures import Figure, arms_of, pooled_deviation, rank_correlation, verdict
from benchmarks.normalization.placements import ARMS, network_settings
from benchmarks.normalization.regimes import MOST_SIGMA, REGIMES
from benchmarks.normalization.report import write_report
from benchmarks.normalization.settings import Job, StudyConfig
from benchmarks.normalization.study import run_study
from benchmarks.normalization.training import Images, build, run_job, train
from benchmarks.resumable import parse_shard
from tests.runs import ROOT
from unetdiff.models.unet import UNet

TINY = StudyConfig(
    regimes={"A": ["none", "ddpm"], "B": ["ddpm"]},
    seeds=[0],
    network={"channels": [8, 8], "blocks": 1, "decoder_blocks": 1, "middle": False},
    groups=2,
    size=8,
    steps=2,
    batch_size=4,
    levels=2,
    samples=4,
    sample_steps=2,
    components=3,
    measured_images=4,
)


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(*(torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1 for count in (16, 4, 12)))


# ---- metrics


def test_a_scaled_target_has_the_inverse_slope_and_only_amplitude_error() -> None:
    target = torch.randn(8, 3, 4, 4)
    found = metrics.calibration(target, 0.8 * target)
    assert found == pytest.approx({"beta": 1.25, "amplitude_share": 1.0, "nmse": 0.04}, rel=1e-5)


def test_the_regression_of_a_target_is_calibrated() -> None:
    """With E[target | x] = x / 2 predicted, beta is 1 and no error is of amplitude, whatever the noise."""
    x, noise = torch.randn(2, 64, 3, 16, 16)
    noise = noise - x * (x * noise).sum() / x.square().sum()  # uncorrelated in this sample too
    found = metrics.calibration(0.5 * x + noise, 0.5 * x)
    assert found["beta"] == pytest.approx(1, abs=1e-5)
    assert found["amplitude_share"] == pytest.approx(0, abs=1e-8)
    assert found["nmse"] == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_transmission_is_the_degree_of_a_homogeneous_network(power: float) -> None:
    x = torch.randn(4, 3, 8, 8)

    def network(x: torch.Tensor) -> torch.Tensor:
        return x / x.square().mean().sqrt() ** (1 - power)

    assert metrics.transmission(network, x) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("name", ["input_rms", "input_instance", "nnunet"])
def test_networks_that_normalise_everything_transmit_nothing(name: str) -> None:
    settings = network_settings(name, 2, conditioned=False)
    settings["norm"]["zero_init"] = []
    network = UNet(**{**TINY.network, **settings})
    with torch.no_grad():
        assert metrics.transmission(lambda x: network(x).sample, torch.randn(2, 3, 8, 8)) == pytest.approx(0, abs=1e-3)


def test_frechet_distance_of_normal_samples() -> None:
    """Along each axis (m1 - m2)^2 + (s1 - s2)^2 where the covariances commute; zero from a set to itself."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=(20000, 3)) * [1.0, 2.0, 3.0]
    second = generator.normal(size=(20000, 3)) * [2.0, 2.0, 1.0] + [0.0, 1.0, 0.0]
    assert metrics.frechet(first, second) == pytest.approx(1 + 1 + 4, rel=0.03)
    assert metrics.frechet(first, first) == pytest.approx(0, abs=1e-8)


def test_principal_components_are_orthonormal_and_first_the_one_that_varies_most() -> None:
    images = 0.01 * torch.randn(100, 1, 2, 2)
    images[:, 0, 1, 0] += torch.randn(100)
    basis = metrics.principal_components(images, 2)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-10)
    assert abs(basis[2, 0]) == pytest.approx(1, abs=0.01)


def test_brightness_ratio_sees_the_mean_of_images_alone() -> None:
    reference = torch.randn(50, 3, 1, 1) + 0.1 * torch.randn(50, 3, 4, 4)
    means = reference.mean((1, 2, 3), keepdim=True)
    quality = metrics.sample_quality(reference + means, reference, 4)
    assert quality["brightness_ratio"] == pytest.approx(2, rel=1e-5)
    assert metrics.sample_quality(reference, reference, 4)["pixel_frechet"] == pytest.approx(0, abs=1e-9)


def test_raw_noise_has_the_regimes_levels() -> None:
    regime = REGIMES["B"]
    x0, noise = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    x, target = regime.corrupt(x0, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(x, target)
    torch.testing.assert_close(target[:, 0, 0, 0], torch.tensor([0.05, MOST_SIGMA]))
    assert [regime.level(u) for u in regime.positions(3)] == pytest.approx([0.05, math.sqrt(0.1), 2.0])
    assert regime.time(torch.tensor([0.5])) is None


def test_images_are_averaged_over_squares() -> None:
    images = np.zeros((1, 4, 4, 1), np.uint8)
    images[0, :2, :2, 0] = [[0, 255], [255, 0]]
    expected = np.full((1, 1, 2, 2), -1, np.float32)
    expected[0, 0, 0, 0] = 0
    np.testing.assert_array_equal(average_down(images, 2), expected)


# ---- placements and running


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "norm_study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_network_of_the_settings_files_can_be_built(path: Path) -> None:
    config = StudyConfig(**yaml.safe_load(path.read_text())["study"])
    assert set(config.regimes["A"]) == set(ARMS)
    for job in {job.placement: job for job in config.jobs()}.values():
        with torch.device("meta"):
            network = build(job, config)
        assert (network.embedding is None) == (job.regime == "B")


def test_a_seed_repeats_and_another_differs(images: Images) -> None:
    job = Job("ddpm", "A", 3, 1e-3)
    first, second = (run_job(job, TINY, images) for _ in range(2))
    assert first["levels"] == second["levels"]
    assert first["samples"] == second["samples"]
    other = run_job(Job("ddpm", "A", 4, 1e-3), TINY, images)
    assert other["levels"] != first["levels"]


def test_placements_of_a_seed_see_the_same_images_and_noise(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    regime = REGIMES["A"]

    def noted(x0: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.cat([x0.flatten(), noise.flatten(), u]))
        return regime.corrupt(x0, noise, u)

    monkeypatch.setitem(REGIMES, "A", replace(regime, corrupt=noted))
    for name in ("none", "ddpm"):
        job = Job(name, "A", 0, 1e-3)
        train(build(job, TINY), job, TINY, images.train)
    torch.testing.assert_close(torch.stack(seen[:2]), torch.stack(seen[2:]))


def test_finished_networks_are_skipped_and_a_killed_one_leaves_nothing(tmp_path: Path, images: Images) -> None:
    calls: list[Job] = []

    def killed(job: Job) -> dict[str, Any]:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_job(job, TINY, images)

    with pytest.raises(KeyboardInterrupt):
        run_study(TINY, tmp_path, killed)
    assert [path.name for path in tmp_path.iterdir()] == [calls[0].file]
    before = (tmp_path / calls[0].file).read_bytes()

    rest: list[Job] = []
    count = run_study(TINY, tmp_path, lambda job: rest.append(job) or run_job(job, TINY, images))
    assert count == 2
    assert calls[0] not in rest
    assert (tmp_path / calls[0].file).read_bytes() == before
    assert run_study(TINY, tmp_path, lambda job: pytest.fail("nothing is left to run")) == 0


def test_results_of_other_conditions_are_refused(tmp_path: Path) -> None:
    run_study(TINY, tmp_path, lambda job: {"conditions": {**TINY.conditions, "steps": 5}}, (1, 3))
    with pytest.raises(ValueError, match="made with steps 5, not 2"):
        run_study(TINY, tmp_path, lambda job: {})


def test_shards_share_the_work(tmp_path: Path) -> None:
    done: list[Job] = []
    for part in (1, 2):
        run_study(TINY, tmp_path / str(part), lambda job: done.append(job) or {}, (part, 2))
    assert sorted(job.file for job in done) == sorted(job.file for job in TINY.jobs())
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ValueError, match="expected i/n"):
            parse_shard(text)


# ---- the rule and the page


def result(placement: str, seed: int, regime: str = "A", **changes: float) -> dict[str, Any]:
    """A made-up result, calibrated and of error 0.1, with what differs."""
    values = {"beta": 1.0, "share": 0.001, "nmse": 0.1 + 0.001 * seed, "frechet": 5.0, "validation": 0.1, "rate": 1e-3}
    values |= changes
    levels = [
        {
            "level": level,
            "beta": values["beta"],
            "amplitude_share": values["share"],
            "nmse": values["nmse"],
            "H": 0.1 * seed,
        }
        for level in (0.1, 1.0)
    ]
    return {
        "placement": placement,
        "regime": regime,
        "seed": seed,
        "learning_rate": values["rate"],
        "parameters": 1000,
        "nmse": values["nmse"],
        "validation_nmse": values["validation"],
        "levels": levels,
        "samples": {"pixel_frechet": values["frechet"], "brightness_ratio": 1.1} if regime == "A" else {},
        "training_loss": [1.0],
        "seconds": 1.0,
        "device": "CPU",
        "torch": "2",
        "conditions": {**TINY.conditions},
    }


def verdict_of(seeds: int = 3, **decoder: float) -> str:
    pairs = [(result("encoder", seed), result("decoder", seed, **decoder)) for seed in range(seeds)]
    return verdict(arms_of([entry for pair in pairs for entry in pair], "A"))


def test_the_rule_refutes_with_three_seeds_only() -> None:
    assert verdict_of() == "refuted"
    assert verdict_of(seeds=2) == "open"
    assert verdict(arms_of([result("decoder", 0)], "A")) == "open"


@pytest.mark.parametrize(
    "decoder",
    [{"beta": 1.06}, {"beta": 0.94}, {"share": 0.06}, {"nmse": 0.105}, {"frechet": 6.5}],
    ids=lambda change: next(iter(change)),
)
def test_the_rule_confirms_on_any_condition(decoder: dict[str, float]) -> None:
    assert verdict_of(**decoder) == "confirmed"


@pytest.mark.parametrize(
    "decoder", [{"beta": 1.04}, {"share": 0.04}, {"nmse": 0.1015}, {"nmse": 0.09}, {"frechet": 6.0}]
)
def test_the_rule_does_not_confirm_below_its_limits(decoder: dict[str, float]) -> None:
    assert verdict_of(**decoder) == "refuted"


def test_pooled_deviation_weighs_by_degrees_of_freedom() -> None:
    figures = [Figure.of([0.0, 2.0]), Figure.of([1.0, 2.0, 3.0]), Figure.of([5.0])]
    assert pooled_deviation(figures) == pytest.approx(math.sqrt((2 + 2 * 1) / 3))
    assert math.isnan(pooled_deviation(figures[2:]))


def test_the_learning_rate_is_chosen_on_validation_images() -> None:
    better = {"rate": 1e-2, "validation": 0.05, "nmse": 0.3}
    arms = arms_of([result("ddpm", 0), result("ddpm", 0, **better), result("none", 0)], "A")
    assert arms["ddpm"].learning_rate == 1e-2
    assert arms["ddpm"].nmse.mean == 0.3
    assert rank_correlation(arms, lambda arm: arm.nmse.mean, lambda arm: -arm.nmse.mean) == pytest.approx(-1)


def test_the_page_is_made_from_results_alone(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "results" / "norm_study" / "tiny"
    folder.mkdir(parents=True)
    made = [result(name, seed) for name in ("none", "encoder", "decoder") for seed in range(3)]
    made += [result("ddpm", 0, nmse=0.25, frechet=9.5), result("ddpm", 0, "B", beta=1.6)]
    for entry in made:
        name = Job(entry["placement"], entry["regime"], entry["seed"], entry["learning_rate"]).file
        (folder / name).write_text(json.dumps(entry))
    write_report(folder, tmp_path / "docs", "configs/norm_study/tiny.yaml")
    page = (tmp_path / "docs" / "normalization.md").read_text()
    assert "the claim is refuted in A" in page
    assert "`benchmarks/results/norm_study/tiny`" in page
    assert "| decoder only | 3 | 0.001 | 0.1010 ± 0.0010 |" in page
    assert "| both + out (DDPM) | 1 | 0.001 | 0.1000 | 1.600 (at 0.1) |" in page
    assert "NMSE of decoder only over that of encoder only is from 1.00 (at t = 0.1) to 1.00" in page
    assert "Seeds per arm: 1 to 3" in page
    assert str(tmp_path) not in page
    pictures = {path.name for path in (tmp_path / "docs" / "pictures").iterdir()}
    assert pictures == {f"norm_study_{name}.png" for name in ("beta", "transmission", "error", "brightness")}
    assert all(f"](pictures/{name})" in page for name in pictures)


def test_a_report_needs_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results"):
        write_report(tmp_path, tmp_path / "docs", "configs/norm_study/tiny.yaml")
