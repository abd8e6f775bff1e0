"""The comparison on membranes: its loop is that of the commands, and its table says what the results hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks.mask_fits import NETWORKS, fit, fit_and_measure
from benchmarks.membranes import table
from tests.training.test_segment import fit_masks, settings
from unetdiff.models.unet import UNet
from unetdiff.run_config import EmaConfig
from unetdiff.segment_config import EvaluationConfig
from unetdiff.training.segment import segment_workload


def test_the_loop_is_that_of_the_command(tmp_path: Path) -> None:
    """The same weights, and the same average of them, as a run of the same settings."""
    config = replace(settings(tmp_path / "run"), ema=EmaConfig(widths=[0.1, 0.05]))
    made = fit_masks(tmp_path / "run")
    work = segment_workload(config, config.train.batch_size)
    torch.manual_seed(config.seed)
    network = UNet(**work.spec.to_json())
    averages, losses = fit(network, work, config)
    assert len(losses) == config.train.steps
    for name, value in network.state_dict().items():
        assert_close(value, made.unet.state_dict()[name], rtol=0, atol=1e-6)
    for ours, theirs in zip(averages.averages, made.averages.averages, strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_fitted_and_measured(name: str, tmp_path: Path) -> None:
    config = replace(settings(tmp_path / "run", steps=2), evaluation=EvaluationConfig(membrane=0))
    result = fit_and_measure(name, config, {})
    assert len(result["figures"]["per_image"]) == 100
    assert 0 <= result["figures"]["v_rand"] <= 1
    again = fit_and_measure(name, config, {})
    assert again["training_loss"] == result["training_loss"]


def test_the_table_is_mean_and_deviation_of_the_membrane() -> None:
    def made(name: str, seed: int, dice: float) -> dict:
        figures = {"dice": [dice, 1.0], "iou": [0.5, 1.0], "v_rand": 0.8, "v_info": 0.9, "ece": 0.01}
        return {
            "network": name,
            "seed": seed,
            "precision": "bf16",
            "parameters": 1000,
            "seconds": 10,
            "figures": figures,
        }

    text = table([made("unetdiff", 0, 0.7), made("unetdiff", 1, 0.8), made("monai", 0, 0.6)], membrane=0)
    assert "| unetdiff, bf16 | 1,000 | 2 | 0.750 ± 0.071 | 0.500 ± 0.000 |" in text
    assert "| monai, bf16 | 1,000 | 1 | 0.600 |" in text
