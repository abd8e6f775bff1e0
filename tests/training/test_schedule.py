"""The learning rate at its corners."""

from __future__ import annotations

import pytest

from unetdiff.run_config import TrainConfig
from unetdiff.training.schedule import DECAYS, learning_rate


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_rises_linearly_to_the_peak(decay: str) -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=2.0, decay=decay)  # pyright: ignore
    assert [learning_rate(config, step) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("decay", "half", "end"),
    [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0), ("inverse_sqrt", 0.426, 0.316)],
)
def test_decay_reaches_its_end(decay: str, half: float, end: float) -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0, decay=decay)  # pyright: ignore
    assert learning_rate(config, 55) == pytest.approx(half, abs=1e-3)
    assert learning_rate(config, 100) == pytest.approx(end, abs=1e-3)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(TrainConfig(warmup_steps=0, learning_rate=3.0), 0) == 3.0
