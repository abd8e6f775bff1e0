"""The benchmark of sampling: both libraries draw the same images, and its judge knows digits from noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.sampling.price import Judge, measure_price
from benchmarks.sampling.report import draw, page
from benchmarks.sampling.speed import STEPS, Arm, Networks, arms, check_agreement, measure
from benchmarks.speed import sample
from benchmarks.speed.cases import Options
from tests.runs import fit
from unetdiff import UNet
from unetdiff.presets import preset


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Networks:
    small = {
        **preset("ddpm_cifar10"),
        "channels": [128, 128],
        "attention": [False, True],
        "sample_size": 8,
        "blocks": 1,
    }
    monkeypatch.setattr(UNet, "from_preset", lambda name: UNet(**small))
    return Networks.of("ddpm_cifar10", torch.device("cpu"))


def test_the_libraries_agree_and_a_difference_is_noticed(networks: Networks) -> None:
    assert 0 < check_agreement(networks) < 1e-3
    with torch.no_grad():
        next(networks.theirs.parameters()).mul_(1.1)
    with pytest.raises(ValueError, match="the two libraries' images differ by"):
        check_agreement(networks)


def test_as_large_a_share_is_recomputed_in_the_timed_steps() -> None:
    assert {n: Arm("ddim", interval=n).timed_steps(6) for n in (1, 2, 3, 5)} == {1: 6, 2: 6, 3: 6, 5: 5}
    assert Arm("ddim", interval=3).timed_steps(1) == 3
    assert Arm("ddim", interval=3).timed_steps(50) == STEPS["ddim"]


def test_speed_and_price_are_measured_and_reported(networks: Networks, tmp_path: Path) -> None:
    chosen = arms([1, 3], ["encoder.stem"], ["ddim"])
    assert [(arm.library, arm.interval) for arm in chosen] == [("diffusers", 1), ("unetdiff", 1), ("unetdiff", 3)]
    speed = measure(networks, chosen, batch_size=2, precision="bf16", about=3, rounds=2)
    assert all(row["images_per_second"] > 0 for row in speed)
    assert speed[0]["ratio"] == 1
    fit(tmp_path / "run", steps=2)
    rows = measure_price(tmp_path / "run", [(2, None), (3, "stem")], count=50, sampler="ddim", steps=3)
    plain, chance, *reused, real = rows
    assert plain["speed"] == 1
    assert plain["change"] == 0
    assert min(row["change"] for row in (chance, *reused)) > 0
    assert [row["cache_step"] for row in reused] == ["encoder.stem", "encoder.stem"]
    assert real["share"] > 0.9
    priced = {"count": 50, "sampler": "ddim", "steps": 3, "run": "run", "components": 32, "rows": rows}
    names = ("date", "device", "torch", "diffusers", "command")
    settings = {"preset": "small", "rounds": 2, "timed_steps": 3, "timed_steps_large": 1}
    text = page({**dict.fromkeys(names, ""), "settings": settings, "difference": 0.0, "speed": speed, "price": priced})
    assert f"| 2 | bf16 | ddim | unetdiff | 3 | `encoder.stem` | {speed[2]['images_per_second']:.3g} |" in text
    assert f"| real test digits |  |  | {real['share']:.1%} |" in text
    draw(rows, tmp_path / "price.png")
    assert (tmp_path / "price.png").stat().st_size > 1000


def test_the_judge_tells_noise_from_digits() -> None:
    judge, noise = Judge(), np.random.default_rng(0).integers(0, 256, (50, 16, 16, 1))
    real, found = judge.real(50), judge(noise, np.arange(50) % 10)
    assert found["share"] < 0.5 < real["share"]
    assert found["pixel_frechet"] > 2 * real["pixel_frechet"]
    assert found["class_frechet"] > 2 * real["class_frechet"]


def test_the_case_of_the_bench(networks: Networks) -> None:
    """Targets are of DDIM in float32, without and with reuse."""
    found = sample.run(Options(torch.device("cpu"), quick=True))
    (table,) = found.tables
    assert [row["precision"] for row in table.rows] == ["float32"] * 3 + ["bf16"] * 3
    assert [row["library"] for row in table.rows[:3]] == ["diffusers", "unetdiff", "unetdiff, features reused over 3"]
    assert [target.limit for target in found.targets] == [sample.EQUAL, sample.REUSED]
