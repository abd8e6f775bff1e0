"""Embeddings: each kind against its formula, and where timestep and label meet."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unetdiff.nn.embed import ConditionEmbedding, FourierEmbedding, FourierPhaseEmbedding, make_embedding
from unetdiff.spec import UNetSpec

TIMES = torch.tensor([0.5, 3.0, 900.0])


@pytest.mark.parametrize("sin_first", [False, True])
def test_fourier_features_are_the_waves_of_random_frequencies(sin_first: bool) -> None:
    layer = FourierEmbedding(6, sin_first=sin_first)
    times = torch.tensor([0.1, -0.7])
    angle = 2 * math.pi * times[:, None] * layer.frequency
    parts = [angle.cos(), angle.sin()]
    assert_close(layer(times), torch.cat(parts[::-1] if sin_first else parts, 1), rtol=1e-4, atol=1e-4)


def test_random_phases_give_unit_magnitude() -> None:
    layer = FourierPhaseEmbedding(100_000)
    assert_close(layer(torch.tensor([0.0]))[0], math.sqrt(2) * layer.phase.cos())
    assert_close(layer(torch.tensor([1.7])).square().mean(), torch.tensor(1.0), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"time_embedding": "sinusoidal"}, TIMES),
        ({"time_embedding": "fourier"}, TIMES / 1000),
        ({"time_embedding": "fourier_phase", "time_input": "log"}, TIMES.log()),
        ({"time_embedding": "fourier", "time_input": "timestep"}, TIMES),
    ],
)
def test_time_input_is_what_the_waves_see(settings: dict[str, Any], seen: torch.Tensor) -> None:
    embed = ConditionEmbedding(UNetSpec(channels=[8], wave_channels=12, **settings))
    assert embed.waves is not None
    assert embed.time is not None
    waves = embed.waves(seen)
    assert waves.shape == (3, 12)
    assert_close(embed(TIMES, None, 3), embed.time(waves))


def test_labels_join_the_embedding_or_the_waves() -> None:
    labels = torch.tensor([0, 2, 1])
    settings: dict[str, Any] = {"channels": [8], "num_classes": 3, "wave_channels": 6}
    late, early = (ConditionEmbedding(UNetSpec(**settings, label_entry=entry)) for entry in ("embedding", "waves"))
    for embed in (late, early):
        assert embed.waves is not None
        assert embed.time is not None
        assert embed.label is not None
    assert_close(late(TIMES, labels, 3), late.time(late.waves(TIMES)) + late.label(labels))
    assert_close(early(TIMES, labels, 3), early.time(early.waves(TIMES) + early.label(labels)))


def test_magnitude_preserving_embedding_is_its_formula() -> None:
    """Karras et al. 2024: one unit-norm layer behind the waves, one-hot labels likewise, joined by an mp sum."""
    embed = make_embedding(
        UNetSpec(
            channels=[8], norm="edm2", time_embedding="fourier_phase", num_classes=3, null_class=True, label_balance=0.3
        )
    )

    def unit(weight: torch.Tensor) -> torch.Tensor:
        return weight / weight.norm(dim=1, keepdim=True)

    waves = embed.waves(TIMES / 1000) @ unit(embed.time.weight).T  # pyright: ignore
    hot = torch.cat([torch.eye(3), torch.zeros(1, 3)])[torch.tensor([2, 3, 0])] * math.sqrt(3)  # 3: the null class
    labels = hot @ unit(embed.label.project.weight).T  # pyright: ignore
    expected = (0.7 * waves + 0.3 * labels) / math.hypot(0.7, 0.3)
    assert_close(embed(TIMES, torch.tensor([2, 3, 0]), 3), expected, rtol=1e-3, atol=1e-3)


def test_embedding_starts_with_unit_variance() -> None:
    torch.manual_seed(0)
    embed = ConditionEmbedding(UNetSpec(channels=[256]))
    assert_close(embed(torch.linspace(0, 999, 64), None, 64).var(), torch.tensor(1.0), atol=0.1, rtol=0)
