"""The grid of a denoiser's blocks and timesteps: what a cell measures, that it is judged on what it did not see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import command, fit
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.pairs import open_pairs
from unetdiff.feature_options import FeaturesConfig, ProbeOptions
from unetdiff.segment_config import EvaluationConfig, ProbeConfig, SegmentModelConfig
from unetdiff.training.probe import GRID, TABLE, cross_validated, probe, sampled_images

QUICK = ProbeOptions(timesteps=[20, 400], positions=300, steps=30, hidden=8)
SPACES = {1: (60,), 2: (18, 30), 3: (6, 10, 9)}


def write_pairs(root: Path, dims: int, count: int, void: bool = False) -> MaskDataConfig:
    """Images whose brightness says the class; `void`: most positions are ignored, and would say the opposite."""
    rng, space = np.random.default_rng(0), SPACES[dims]
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        labels = (rng.random(space) > 0.5).astype(np.uint8)
        image = (labels + rng.normal(0, 0.05, space)).astype(np.float32).clip(-1, 2)[..., None]
        if void:
            labels[rng.random(space) > 0.2] = 9
        np.save(root / "images" / f"{number}.npy", image)
        np.save(root / "masks" / f"{number}.npy", labels)
    dimensions: Any = dims
    return MaskDataConfig(source="folder", path=str(root), dims=dimensions, values=[0, 1], ignore=[9])


@pytest.mark.parametrize(("dims", "count"), [(1, 3), (2, 1), (3, 2)])
def test_cells_are_ranked_and_drawn(dims: int, count: int, tmp_path: Path) -> None:
    """Features of full resolution and little noise say most; one image is cut in halves."""
    data = write_pairs(tmp_path / "data", dims, count, void=True)
    plain = {"source": "npy", "path": str(tmp_path / "data" / "images"), "dims": dims, "validation_fraction": 0.0}
    fit(tmp_path / "denoiser", data=plain, steps=1, batch_size=1, sample_count=1)
    model = SegmentModelConfig(kind="features", init_from=str(tmp_path / "denoiser"))
    config = ProbeConfig(run_dir=str(tmp_path / "run"), model=model, data=data, probe=QUICK)
    said = probe(config)
    held = json.loads((tmp_path / "run_probe" / TABLE).read_text())
    cells, scores = held["cells"], [cell["score"] for cell in held["cells"]]
    blocks = {cell["block"] for cell in cells}
    assert len(cells) == 2 * len(blocks)
    assert {block.split(".")[0] for block in blocks} == {"encoder", "middle", "decoder"}
    assert scores == sorted(scores, reverse=True)
    assert cells[0]["timestep"] == 20
    assert "level0" in cells[0]["block"]
    assert scores[0] > {1: 0.9, 2: 0.9, 3: 0.65}[dims]  # few positions in a volume
    assert scores[-1] < scores[0] - 0.1
    assert held["validation"].startswith("halves" if count == 1 else f"{count} folds of {count} images")
    assert cells[0]["block"] in said[2]
    assert Image.open(tmp_path / "run_probe" / GRID).size[0] > 300
    assert probe(config) == said


def test_a_cell_is_judged_on_the_fold_it_did_not_see() -> None:
    """Features that name the position, with random labels, are learnt by heart and say nothing of the other fold."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (200,), generator=generator)
    folds = torch.arange(200) % 2
    by_heart = cross_validated(torch.eye(200), labels, folds, 2, replace(QUICK, steps=100), 0)
    assert int(by_heart.sum()) == 200
    assert by_heart.sum(1).tolist() == torch.bincount(labels).tolist()
    assert 0.35 < float(by_heart.diag().sum()) / 200 < 0.65
    telling = labels[:, None] + 0.1 * torch.randn(200, 3, generator=generator)
    assert float(cross_validated(telling, labels, folds, 2, QUICK, 0).diag().sum()) == 200
    # A fold with the opposite meaning: each classifier has learnt the other one's, so that all is wrong.
    opposite = torch.where(folds[:, None] == 1, 1 - telling, telling)
    assert float(cross_validated(opposite, labels, folds, 2, QUICK, 0).diag().sum()) == 0


def test_positions_are_shared_out_and_never_ignored(tmp_path: Path) -> None:
    data = write_pairs(tmp_path, 2, 3, void=True)
    config = ProbeConfig(run_dir="run", data=data, probe=QUICK)
    source = open_pairs(data).train
    found = list(sampled_images(source, config))
    assert [len(one.places) for one in found] == [100, 100, 100]
    assert [one.folds.unique().tolist() for one in found] == [[0], [1], [2]]
    for index, one in enumerate(found):
        mask = source.read([index])["mask"].ravel()
        assert (mask[one.places.numpy()] == one.labels.numpy()).all()
        assert set(one.labels.tolist()) == {0, 1}
    tiled = replace(config, evaluation=EvaluationConfig(tile=10))
    assert {tuple(one.image.shape) for one in sampled_images(source, tiled)} == {(1, 1, 10, 10)}


def test_halves_of_one_image_lie_apart(tmp_path: Path) -> None:
    data = write_pairs(tmp_path, 2, 1)
    (one,) = sampled_images(open_pairs(data).train, ProbeConfig(run_dir="run", data=data, probe=QUICK))
    columns = one.places % 30
    assert columns[one.folds == 0].max() < 15 <= columns[one.folds == 1].min()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 2, 2)
    done = command("train/probe.py", "--run_dir", str(tmp_path / "run"), "--data.source", "folder", "--data.path",
                   str(data.path), "--probe.folds", "1")  # fmt: skip
    assert done.returncode == 2
    assert "folds is 1; expected at least 2" in done.stderr


def test_unlabelled_images_and_the_control(tmp_path: Path) -> None:
    """One image of two has no label: nothing is left to judge by. The control is probed as the denoiser is."""
    data = write_pairs(tmp_path / "data", 2, 2)
    plain = {"source": "npy", "path": str(tmp_path / "data" / "images"), "dims": 2, "validation_fraction": 0.0}
    fit(tmp_path / "denoiser", data=plain, steps=1, batch_size=1, sample_count=1)
    model = SegmentModelConfig(kind="features", init_from=str(tmp_path / "denoiser"))
    quick = replace(QUICK, blocks=["decoder.level0_block0"], out=str(tmp_path / "out"))
    config = ProbeConfig(run_dir="run", model=model, data=data, probe=quick)
    probe(config)
    trained = (tmp_path / "out" / TABLE).read_text()
    probe(replace(config, features=FeaturesConfig(random=True)))
    assert json.loads((tmp_path / "out" / TABLE).read_text())["denoiser"] is None
    assert (tmp_path / "out" / TABLE).read_text() != trained
    np.save(tmp_path / "data" / "masks" / "1.npy", np.full(SPACES[2], 9, np.uint8))
    with pytest.raises(ValueError, match="all positions with a label lie in one fold"):
        probe(config)
