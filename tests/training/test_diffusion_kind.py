"""Runs of kind `diffusion` on the shared loop: exact resume, kills, processes, every dimension, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tests.runs import ROOT, as_a_new_process, command, fit_segmentation, left_behind, one_sentence, relative_difference
from tests.training.test_kill import kill_all, last_step
from tests.training.test_segment import settings, words
from unetdiff.data.mask_options import MaskDataConfig, WarpConfig
from unetdiff.data.scenes import scenes
from unetdiff.mask_diffusion_options import MaskDiffusionConfig
from unetdiff.objective_options import ObjectiveConfig
from unetdiff.run_config import EmaConfig
from unetdiff.runs import load_run
from unetdiff.segment_config import SegmentConfig, SegmentModelConfig
from unetdiff.segmenting import segment
from unetdiff.training.kinds.diffusion import DiffusionTask
from unetdiff.training.segment import segmentation_trainer

FEW: dict[str, Any] = {"steps": 2}
WAYS: dict[str, dict[str, Any]] = {
    "concat": {},
    "encoder_bits": {"conditioning": "encoder", "encoding": "bits", "scale": 0.3, "target": "v", "feature_channels": 4},
}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Some scenes to train on, and two that are held out."""
    root = tmp_path_factory.mktemp("few")
    samples, labels = scenes("test")
    for split, numbers in (("train", range(12)), ("val", range(12, 14))):
        for name, arrays in (("images", samples[..., 0]), ("masks", labels)):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                Image.fromarray(arrays[number].astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def config_of(
    few: Path, run: Path, model: dict | None = None, diffusion: dict | None = None, **train: Any
) -> SegmentConfig:
    """Settings of a run of seconds on the embedded scenes."""
    plain = settings(run, model={"kind": "diffusion", **(model or {})}, **{"sample_count": 1, **train})
    chosen = MaskDiffusionConfig(**{**FEW, **(diffusion or {})})
    data = MaskDataConfig(source="folder", path=str(few), values=list(range(11)), augment=plain.data.augment)
    return replace(plain, mask_diffusion=chosen, data=data)


def given(few: Path, run: Path, **train: Any) -> list[str]:
    """The run of `config_of` as a command line."""
    kind = ["--model.kind", "diffusion", "--mask_diffusion.steps", "2"]
    data = ["--data.source", "folder", "--data.path", str(few), "--data.values", str(list(range(11)))]
    plain = words(run, **{"sample_count": 1, **train})
    drop = plain.index("--data.train_limit")
    return [*plain[:drop], *plain[drop + 2 :], *kind, *data]


def validation(run: Path) -> dict[str, Any]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "validation"][-1]


@pytest.mark.parametrize("way", WAYS)
def test_resumed_equals_uninterrupted_bit_for_bit(way: str, few: Path, tmp_path: Path) -> None:
    for run, steps in (("halted", 2), ("halted", 4), ("straight", 4)):
        fit_segmentation(config_of(few, tmp_path / run, {"dropout": 0.2}, WAYS[way], steps=steps))
    assert_close(left_behind(tmp_path / "halted"), left_behind(tmp_path / "straight"), rtol=0, atol=0)
    assert validation(tmp_path / "halted") == validation(tmp_path / "straight")
    run = load_run(tmp_path / "straight")
    assert type(run.unet).__name__ == "MaskDenoiser"
    image = scenes("test")[0][0]
    assert (segment(run, image, masks=2).labels == segment(run, image, masks=2).labels).all()


def test_killed_equals_uninterrupted_bit_for_bit(few: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a step, then the same command."""
    plan: dict[str, Any] = {"steps": 30, "checkpoint_every": 5}
    fit_segmentation(config_of(few, tmp_path / "alone", **plan))
    run = tmp_path / "killed"
    launched = subprocess.Popen(
        [sys.executable, "train/segment.py", *given(few, run, **plan)], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while last_step(run) < 7 and launched.poll() is None:
        time.sleep(0.002)
    kill_all(launched)
    assert launched.wait() == -signal.SIGKILL, "the run had ended by itself"
    fit_segmentation(config_of(few, run, **plan))
    assert_close(left_behind(run), left_behind(tmp_path / "alone"), rtol=0, atol=0)


def test_several_processes_reach_weights_and_metrics_of_one(few: Path, tmp_path: Path) -> None:
    fit_segmentation(config_of(few, tmp_path / "one"))
    done = command("train/segment.py", *given(few, tmp_path / "two", processes=2), processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(tmp_path / "one"), left_behind(tmp_path / "two")) < 1e-5
    first, second = (validation(tmp_path / name) for name in ("one", "two"))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    assert first["mean_iou"] == pytest.approx(second["mean_iou"], abs=1e-3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("space", [(40,), (13, 18), (6, 9, 8)])
def test_signals_images_and_volumes(space: tuple[int, ...], way: str, few: Path, tmp_path: Path) -> None:
    """A real step of each, some positions ignored, and masks of what was trained."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(4):
        labels = rng.integers(0, 3, space).astype(np.uint8)
        image = labels + rng.normal(0, 0.2, space).astype(np.float32)
        np.save(tmp_path / "data" / "images" / f"{number}.npy", image.astype(np.float32)[..., None])
        np.save(tmp_path / "data" / "masks" / f"{number}.npy", np.where(rng.random(space) < 0.1, 255, labels))
    dims: Any = len(space)
    data = MaskDataConfig(source="folder", path=str(tmp_path / "data"), dims=dims, split="names", values=[0, 1, 2],
                          ignore=[255], train=["[0-2].npy"], validation=["3.npy"])  # fmt: skip
    config = replace(config_of(few, tmp_path / "run", None, WAYS[way], steps=1, batch_size=2), data=data)
    fit_segmentation(config)
    assert validation(tmp_path / "run")["loss"] > 0
    found = segment(load_run(tmp_path / "run"), np.load(tmp_path / "data" / "images" / "3.npy"), masks=3, steps=2)
    assert found.masks is not None
    assert found.masks.shape == (3, *space)


def test_learns_two_images_by_heart(few: Path, tmp_path: Path) -> None:
    """Masks drawn of what it was trained on are right at nearly every position."""
    config = config_of(few, tmp_path / "run", {"channels": [16, 32]}, {"scale": 0.2, "steps": 5}, steps=100,
                       batch_size=4, learning_rate=5e-3)  # fmt: skip
    config = replace(config, data=replace(config.data, train_limit=2, augment=WarpConfig()), ema=EmaConfig(kind="none"))
    made = fit_segmentation(config)
    assert isinstance(made.task, DiffusionTask)
    made.unet.eval()
    batch = next(made.batches(0))
    with torch.no_grad():
        found = made.task.predictor(made.unet)(batch["sample"]).argmax(1)  # pyright: ignore[reportArgumentType]
    assert (found == batch["mask"]).float().mean() > 0.95


def test_noise_follows_from_the_position_alone(few: Path, tmp_path: Path) -> None:
    as_a_new_process()
    task = segmentation_trainer(config_of(few, tmp_path / "run")).task
    batch = {"sample": torch.zeros(3, 1, 4, 4), "mask": torch.zeros(3, 4, 4, dtype=torch.long)}
    first = task.prepare({**batch, "position": torch.tensor([5, 6, 7])})
    other = task.prepare({**batch, "position": torch.tensor([7, 5, 900])})
    for name in ("noise", "timesteps"):
        assert_close(first[name][[2, 0]], other[name][:2], rtol=0, atol=0)
    assert (first["noise"][0] != first["noise"][1]).any()


REFUSED: dict[str, dict[str, Any]] = {
    "model.timestep is set": {"model": {"init_from": "x", "timestep": 5}},
    "model.init_from is set": {"model": {"init_from": "x"}},
    "model.convolutions is valid": {"model": {"convolutions": "valid", "norm": "unet2015"}},
    "objective.loss is dice": {"objective": ObjectiveConfig(loss="dice")},
    "the error is squared": {"objective": ObjectiveConfig(loss="cross_entropy"), "diffusion": {"target": "v"}},
    "feature_channels is read with conditioning encoder": {"diffusion": {"feature_channels": 3}},
    "weighting is read with a target of squared error": {"diffusion": {"weighting": "min_snr"}},
    "has no meaning": {"diffusion": {"target": "epsilon", "schedule": "zero_terminal_snr"}},
    "mask_diffusion.scale is 0": {"diffusion": {"scale": 0.0}},
    "mask_diffusion.steps is 30": {"diffusion": {"steps": 30, "num_train_timesteps": 20}},
    "mask_diffusion.steps is of kind diffusion; model.kind is logits": {
        "model": {"kind": "logits"}, "diffusion": {"steps": 3},
    },
}  # fmt: skip


@pytest.mark.parametrize("expected", REFUSED)
def test_settings_that_have_no_meaning_are_refused(expected: str) -> None:
    chosen = REFUSED[expected]
    with pytest.raises(ValueError, match=expected):
        SegmentConfig(
            run_dir="run",
            model=SegmentModelConfig(**{"kind": "diffusion", **chosen.get("model", {})}),
            objective=chosen.get("objective", ObjectiveConfig()),
            mask_diffusion=MaskDiffusionConfig(**chosen.get("diffusion", {})),
        )


def test_mistakes_are_one_sentence(few: Path, tmp_path: Path) -> None:
    done = command("train/segment.py", *given(few, tmp_path / "run"), "--evaluation.tile", "8")
    assert done.returncode == 2, done.stderr
    assert "a mask is drawn of a whole image" in one_sentence(done.stderr)
