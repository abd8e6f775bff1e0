"""Pipelines: stages in their order, what is finished or interrupted or changed, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.testing import assert_close

from tests.runs import ROOT, command, left_behind, one_sentence, relative_difference
from tests.training.test_kill import kill_all, last_step, wait_for
from unetdiff.runs import load_run

TRAIN = {"batch_size": 8, "checkpoint_every": 2, "precision": "float32", "sample_count": 1, "validate_every": 0,
         "sample_every": 0, "log_every": 1, "validation_size": 8}  # fmt: skip
EMA = {"widths": [0.1, 0.05]}


def write(folder: Path, change: dict[str, Any] | None = None, drop: str | None = None) -> Path:
    """A small pipeline: a denoiser, a segmenter that starts from it, masks of four test scenes.

    change: settings by dotted name, within `stages`. drop: a dotted name to leave out.
    """
    denoiser = {"model": {"channels": [8, 8], "blocks": 1}, "data": {"source": "digit_scenes"}, "ema": EMA,
                "train": {**TRAIN, "steps": 4}, "sampling": {"steps": 2}}  # fmt: skip
    segmenter = {"data": {"source": "digit_scenes", "train_limit": 24}, "train": {**TRAIN, "steps": 4}, "ema": EMA}
    (folder / "denoiser.yaml").write_text(yaml.safe_dump(denoiser))
    (folder / "segmenter.yaml").write_text(yaml.safe_dump(segmenter))
    stages: dict[str, Any] = {
        "pretrain": {"kind": "denoise", "config": "denoiser.yaml"},
        "finetune": {"kind": "segment", "config": "segmenter.yaml", "settings": {
            "model": {"init_from": "${pretrain}", "timestep": 20}}},
        "masks": {"kind": "masks", "runs": "${finetune}", "split": "test", "limit": 2},
    }  # fmt: skip
    for name, value in (change or {}).items():
        *path, last = name.split(".")
        place = stages
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    if drop is not None:
        stage, key = drop.split(".")
        del stages[stage][key]
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"folder": str(folder / "out"), "stages": stages}, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = command("train/pipeline.py", str(write(folder)))
    assert done.returncode == 0, done.stderr
    return folder


def copied(finished: Path, folder: Path) -> Path:
    """The finished pipeline in another folder of the same settings."""
    shutil.copytree(finished / "out", folder / "out")
    for record in (folder / "out").glob("*.json"):
        record.write_text(record.read_text().replace(str(finished), str(folder)))
    for name in ("pretrain", "finetune"):
        saved = folder / "out" / name / "config.yaml"
        saved.write_text(saved.read_text().replace(str(finished), str(folder)))
    return folder


def test_every_stage_leaves_what_it_is_for(finished: Path) -> None:
    out = finished / "out"
    assert load_run(out / "pretrain").scheduler is not None
    segmenter = load_run(out / "finetune")
    assert segmenter.unet.spec.channels == [8, 8]
    figures = json.loads((out / "masks" / "metrics.json").read_text())
    assert figures["images"] == 2
    assert (out / "masks" / "00001_panels.png").is_file()


def test_a_finished_pipeline_does_nothing_more(finished: Path, run_script) -> None:
    files = {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*") if path.is_file()}
    code, output, errors = run_script("train/pipeline.py", str(finished / "pipeline.yaml"))
    assert code == 0, errors
    assert output.count("finished before") == 3
    assert files == {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Killed in the first run and in the second; each time the same command."""
    (tmp_path / "alone").mkdir()
    (tmp_path / "killed").mkdir()
    longer = {"pretrain.settings.train.steps": 20, "finetune.settings.train.steps": 20, "masks.limit": 1}
    assert command("train/pipeline.py", str(write(tmp_path / "alone", longer))).returncode == 0
    file = write(tmp_path / "killed", longer)
    out = tmp_path / "killed" / "out"
    for stage in ("pretrain", "finetune"):
        process = subprocess.Popen([sys.executable, "train/pipeline.py", str(file)], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        wait_for(process, lambda stage=stage: last_step(out / stage) >= 5)
        time.sleep(0.02)
        kill_all(process)
        process.wait()
        assert not json.loads((out / f"{stage}.json").read_text())["done"]
    done = command("train/pipeline.py", str(file))
    assert done.returncode == 0, done.stderr
    assert "pretrain: finished before" in done.stdout
    for stage in ("pretrain", "finetune"):
        assert_close(left_behind(out / stage), left_behind(tmp_path / "alone" / "out" / stage), rtol=0, atol=0)
    assert (out / "masks" / "metrics.json").is_file()


@pytest.mark.slow
def test_changed_masks_are_made_anew_and_changed_runs_refused(finished: Path, tmp_path: Path, run_script) -> None:
    folder = copied(finished, tmp_path)
    code, output, errors = run_script("train/pipeline.py", str(write(folder, {"masks.limit": 1})))
    assert code == 0, errors
    assert output.count("finished before") == 2
    assert json.loads((folder / "out" / "masks" / "metrics.json").read_text())["images"] == 1
    code, _, errors = run_script("train/pipeline.py", str(write(folder, {"pretrain.settings.seed": 5})))
    assert code == 2
    sentence = one_sentence(errors)
    assert "stage pretrain of" in sentence
    assert "seed 0, not 5" in sentence
    shutil.rmtree(folder / "out" / "pretrain")
    code, _, errors = run_script("train/pipeline.py", str(folder / "pipeline.yaml"))
    assert code == 2
    assert "stage finetune of" in one_sentence(errors)
    assert "was built on another pretrain" in one_sentence(errors)
    shutil.rmtree(folder / "out" / "finetune")
    code, output, errors = run_script("train/pipeline.py", str(folder / "pipeline.yaml"))
    assert code == 0, errors
    assert output.count("finished before") == 1


@pytest.mark.slow
def test_several_processes(finished: Path, tmp_path: Path) -> None:
    done = command("train/pipeline.py", str(write(tmp_path)), processes=2)
    assert done.returncode == 0, done.stderr
    for stage in ("pretrain", "finetune"):
        pair = [left_behind(folder / "out" / stage) for folder in (finished, tmp_path)]
        assert relative_difference(*pair) < 1e-5
    assert json.loads((tmp_path / "out" / "masks" / "metrics.json").read_text())["images"] == 2


REFUSED: dict[str, tuple[dict[str, Any], str | None]] = {
    "stage pretrain: kind is 'denoisers'; expected denoise, segment, masks": ({"pretrain.kind": "denoisers"}, None),
    "stage finetune: settings.model.init_from names ${masks}, which is no earlier stage": (
        {"finetune.settings.model.init_from": "${masks}"},
        None,
    ),
    "stage finetune: config: there is no settings file": ({"finetune.config": "no.yaml"}, None),
    "stage pretrain: config is missing": ({}, "pretrain.config"),
    "stage pretrain: steps is no setting of kind denoise": ({"pretrain.steps": 5}, None),
    "did you mean train.learning_rate": ({"finetune.settings.train.learning_rat": 5}, None),
    "stage masks: expected images, or split": ({"masks.images": "somewhere"}, None),
    "stage masks: limit is 0": ({"masks.limit": 0}, None),
    "stage masks of": ({"masks.options": {"passs": 3}}, None),
}


@pytest.mark.parametrize("expected", REFUSED)
def test_mistakes_are_one_sentence_before_anything_is_trained(expected: str, tmp_path: Path, run_script) -> None:
    change, drop = REFUSED[expected]
    code, _, errors = run_script("train/pipeline.py", str(write(tmp_path, change, drop)))
    assert code == 2
    sentence = one_sentence(errors)
    assert expected in sentence
    assert "stage " in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "expected"), [
    ("stages: {}", "has no stages"), ("stage: {a: {kind: denoise}}", "has 'stage'"), ("- a", "holds no settings"),
])  # fmt: skip
def test_what_is_no_pipeline(text: str, expected: str, tmp_path: Path, run_script) -> None:
    (tmp_path / "pipeline.yaml").write_text(text)
    code, _, errors = run_script("train/pipeline.py", str(tmp_path / "pipeline.yaml"))
    assert code == 2
    assert expected in one_sentence(errors)
