"""What a run was trained with, by the settings in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetdiff.masks.settings import evaluation_of, flips_of
from unetdiff.segment_config import EvaluationConfig


def test_what_a_run_measured_is_read_from_its_settings(tmp_path: Path) -> None:
    assert evaluation_of(tmp_path) == EvaluationConfig()
    (tmp_path / "config.yaml").write_text("evaluation: {membrane: 1, hd95: true, of_a_later_version: 3}\n")
    expected = EvaluationConfig(membrane=1, hd95=True)
    assert evaluation_of(tmp_path) == expected
    assert evaluation_of(tmp_path / "checkpoints" / "step-00000001") == expected
    (tmp_path / "config.yaml").write_text("evaluation: {membrane: many}\n")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read: membrane is 'many'"):
        evaluation_of(tmp_path)


def test_the_flips_of_training_are_read_from_its_settings(tmp_path: Path) -> None:
    assert flips_of(tmp_path) == ()
    for text, expected in (("{}", ()), ("data: {augment: {flips: [1, 0]}}", (0, 1)), ("data: {augment: {}}", ())):
        (tmp_path / "config.yaml").write_text(text)
        assert flips_of(tmp_path / "checkpoints" / "step-00000001") == expected
    for text in ("data: {augment: {flips: both}}", "data: 3", "[1]", "data: {augment: {flips: [all]}}"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml cannot be read"):
            flips_of(tmp_path)
