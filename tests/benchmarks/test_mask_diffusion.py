"""The study of masks that are drawn: equal operations, fewer masks are the first of more, a row of a table per cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.mask_diffusion import arms, measured, plot, table
from tests.runs import fit_segmentation
from tests.training.test_diffusion_kind import config_of, few  # noqa: F401
from unetdiff.data.pairs import open_pairs
from unetdiff.drawing import Drawing, draw
from unetdiff.runs import load_run
from unetdiff.segmentation.metrics import SegmentationMetrics
from unetdiff.training.kinds.task import shared_parts


@pytest.mark.parametrize("conditioning", ["concat", "encoder"])
def test_both_kinds_take_the_same_operations(conditioning: str, few: Path, tmp_path: Path) -> None:  # noqa: F811
    config = config_of(few, tmp_path / "run", None, {"conditioning": conditioning}, steps=1000)
    drawn, scored = arms(config, tmp_path).values()
    costs = [arm.operations * arm.config.train.steps for arm in (drawn, scored)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)
    assert scored.config.train.steps > 1000
    assert scored.config.model.kind == "logits"


def test_figures_are_those_of_the_masks(few: Path, tmp_path: Path) -> None:  # noqa: F811
    config = config_of(few, tmp_path / "run", steps=2)
    fit_segmentation(config)
    run, data = load_run(tmp_path / "run"), open_pairs(config.data)
    figures = measured(run, data.validation, 10, 3, (1, 2), None, 4)
    arrays = data.validation.read([0, 1])
    drawn = draw(run, data.validation.format.encode(arrays["sample"]), Drawing(1, 3, seed=4))[0]
    metrics = SegmentationMetrics(replace(shared_parts(config, data)["options"], boundary_tolerance=None))
    hot = torch.nn.functional.one_hot(drawn, 11).movedim(-1, 1).float()
    metrics.update(hot, torch.from_numpy(arrays["mask"]), names=["a", "b"])
    assert figures[1]["mean_iou"] == metrics.compute()["mean_iou"]
    assert figures[1]["vote_entropy"] == 0
    assert figures[2]["images"] == 2


def test_the_table_has_a_row_per_cell(tmp_path: Path) -> None:
    def made(kind: str, steps: int, masks: int, seed: int, iou: float) -> dict:
        figures = {"mean_iou": iou, "mean_dice": 0.5, "nll": 1.0, "ece": 0.1, "vote_entropy": 0.2}
        return {"kind": kind, "seed": seed, "steps": steps, "masks": masks, "figures": figures,
                "operations": 4e9, "train_operations": 3e12}  # fmt: skip

    results = [made("diffusion", 5, 4, 0, 0.7), made("diffusion", 5, 4, 1, 0.8), made("logits", 0, 1, 0, 0.6)]
    text = table(results)
    assert "| diffusion | 5 | 4 | 0.750 ± 0.071 | 0.500 ± 0.000 |" in text
    assert "| logits | – | – | 0.600 | 0.500 | 1.000 | 0.100 | – | 4.000 | 3.0 | 1 |" in text
    plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
