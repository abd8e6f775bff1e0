"""Segmentation runs on the shared loop: exact resume, processes, a denoiser's body, what is refused, masks out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch.testing import assert_close

from tests.runs import TRAIN, command, fit, left_behind, one_sentence, relative_difference
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.scenes import scenes
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import load_run
from unetdiff.segment_config import ObjectiveConfig, SegmentConfig, SegmentModelConfig
from unetdiff.segmentation.predict import Inference
from unetdiff.segmenting import segment
from unetdiff.training.loop import Trainer
from unetdiff.training.segment import segmentation_trainer

MODEL: dict[str, Any] = {"channels": [8, 8], "blocks": 1, "middle": False}
AUGMENT = {"flips": [1], "rotation": 10.0, "gain": 0.1}


def settings(run: Path, model: dict | None = None, objective: dict | None = None, **train: Any) -> SegmentConfig:
    """Settings of a run of seconds on the embedded scenes."""
    from unetdiff.data.mask_options import WarpConfig

    return SegmentConfig(
        run_dir=str(run),
        model=SegmentModelConfig(**{**MODEL, **(model or {})}),
        data=MaskDataConfig(train_limit=24, augment=WarpConfig(**AUGMENT)),
        objective=ObjectiveConfig(**(objective or {})),
        train=TrainConfig(**{**TRAIN, "sample_count": 2, **train}),
        ema=EmaConfig(widths=[0.1, 0.05]),
    )


def fit_masks(run: Path, **overrides: Any) -> Trainer:
    """Train such a run to its end, as a new process would."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    made = segmentation_trainer(settings(run, **overrides))
    made.fit()
    return made


def words(run: Path, **train: Any) -> list[str]:
    """The same run as a command line."""
    given = ["--run_dir", str(run), "--model.channels", "[8,8]", "--model.blocks", "1", "--model.middle", "false"]
    given += ["--data.train_limit", "24", "--data.augment.flips", "[1]", "--data.augment.rotation", "10"]
    given += ["--data.augment.gain", "0.1", "--ema.widths", "[0.1,0.05]"]
    for name, value in {**TRAIN, "sample_count": 2, **train}.items():
        given += [f"--train.{name}", str(value)]
    return given


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    fit_masks(run, model={"dropout": 0.2})
    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with three scenes, and one with their masks."""
    root = tmp_path_factory.mktemp("scenes")
    samples, labels = scenes("test")
    for name, arrays in (("images", samples[..., 0]), ("masks", labels)):
        (root / name).mkdir()
        for number in range(3):
            Image.fromarray(arrays[number].astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def test_resumed_equals_uninterrupted_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    for steps in (2, 6):
        fit_masks(tmp_path / "run", model={"dropout": 0.2}, steps=steps)
    assert_close(left_behind(tmp_path / "run"), left_behind(straight), rtol=0, atol=0)


def test_several_processes_reach_weights_and_metrics_of_one(tmp_path: Path) -> None:
    fit_masks(tmp_path / "one", objective={"border_weight": 10.0})
    given = [*words(tmp_path / "two", processes=2), "--objective.border_weight", "10"]
    done = command("train/segment.py", *given, processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(tmp_path / "one"), left_behind(tmp_path / "two")) < 1e-5
    first, second = (_validation(tmp_path / name) for name in ("one", "two"))
    assert first["iou"] == second["iou"]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)


def _validation(run: Path) -> dict[str, Any]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "validation"][-1]


def test_learns_a_few_images_by_heart(tmp_path: Path) -> None:
    """Every position of two scenes after some hundred steps: mean IoU of what it was trained on."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    wide = {"channels": [16, 32, 32], "blocks": 1, "middle_attention": False, "middle": True}
    config = settings(tmp_path / "run", model=wide, steps=150, batch_size=2, learning_rate=5e-3)
    config = replace(config, data=MaskDataConfig(train_limit=2), ema=EmaConfig(kind="none"))
    made = segmentation_trainer(config)
    made.fit()
    made.unet.eval()
    batch = next(made.batches(0))
    found = made.unet(batch["sample"]).sample.argmax(1)
    assert (found == batch["mask"]).float().mean() > 0.99


@pytest.mark.parametrize("timestep", [None, 20])
def test_starts_from_a_denoiser_and_says_what_it_took(timestep: int | None, tmp_path: Path, capsys) -> None:
    fit(tmp_path / "denoiser", data={"source": "digit_scenes"}, steps=2)
    body = {"init_from": str(tmp_path / "denoiser"), "timestep": timestep}
    plain = {name: getattr(SegmentModelConfig(), name) for name in ("channels", "blocks", "middle")}
    fit_masks(tmp_path / "run", model={**plain, **body}, steps=1)
    said = capsys.readouterr().err
    assert re.search(r"\d+ tensors taken over; new: \d of the head;", said)
    left = said.split("left behind: ")[1]
    assert "of the head" in left
    assert ("embedding" in left) == (timestep is None)
    run, denoiser = load_run(tmp_path / "run"), load_run(tmp_path / "denoiser")
    assert run.unet.spec.channels == denoiser.unet.spec.channels
    assert (run.unet.embedding is None) == (timestep is None)
    assert run.beside.settings == {"timestep": timestep}


def test_a_run_folder_says_what_it_is(straight: Path, tmp_path: Path) -> None:
    run = load_run(straight)
    assert run.masks.num_classes == 11
    with pytest.raises(ValueError, match="is a segmentation network, which draws no samples"):
        run.scheduler  # noqa: B018
    done = command("sample/images.py", str(straight), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "segmentation network" in one_sentence(done.stderr)


def test_masks_leave_as_they_came_with_pictures_and_figures(straight: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("sample/masks.py", str(straight), str(images / "images"), "--out", str(out), "--truth",
                   str(images / "masks"), "--tta", "--passes", "3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(out / "1.png"))
    assert (mask.shape, mask.dtype) == ((32, 32), np.uint8)
    with np.load(out / "1.npz") as held:
        assert held["probabilities"].shape == (11, 32, 32)
        assert (held["probabilities"].argmax(0) == mask).mean() > 0.98  # ties in float16
        assert (held["mutual_information"] >= 0).all()
        assert held["mutual_information"].max() > 0
        assert_close(held["total_entropy"] - held["expected_entropy"], held["mutual_information"], rtol=0, atol=1e-4)
    for name in ("1_overlay.png", "1_panels.png", "1_total_entropy.png", "metrics.json"):
        assert (out / name).is_file()
    assert json.loads((out / "metrics.json").read_text())["images"] == 3


def test_tiles_flips_and_members_in_memory(straight: Path) -> None:
    run = load_run(straight)
    image = np.concatenate([scenes("test")[0][number] for number in range(4)], axis=0)
    whole = segment(run, image)
    assert whole.labels.shape == (128, 32)
    assert_close(torch.from_numpy(whole.probabilities.sum(0)), torch.ones(128, 32))
    tiled = segment(run, image, Inference(tile=64, overlap=0.5))
    assert (tiled.labels == whole.labels).mean() > 0.9  # group norms read the whole of what they are given
    twice = segment([run, run], image)
    assert_close(torch.from_numpy(twice.probabilities), torch.from_numpy(whole.probabilities), rtol=1e-5, atol=1e-6)
    assert twice.maps["mutual_information"].max() < 1e-5
    again = [segment(run, image, passes=2, seed=5).probabilities for _ in range(2)]
    assert (again[0] == again[1]).all()
    assert abs(again[0] - whole.probabilities).max() > 1e-6


REFUSED = {
    "expected model.init_from beside it": ["--model.timestep", "5"],
    "nothing tells this network a timestep": ["--model.time_embedding", "sinusoidal"],
    "there is no folder NO/run": ["--model.init_from", "NO/run"],
    "class_weights": ["--objective.class_weights", "[1, 2]"],
    "objective.border_sigma is 0.0": ["--objective.border_sigma", "0"],
    "did you mean data.train_limit": ["--data.train_limi", "3"],
}


@pytest.mark.parametrize("expected", REFUSED)
def test_mistakes_are_one_sentence(expected: str, tmp_path: Path) -> None:
    done = command("train/segment.py", *words(tmp_path / "run"), *REFUSED[expected])
    assert done.returncode == 2, done.stderr
    assert expected in one_sentence(done.stderr)


def test_check_says_what_the_data_are(tmp_path: Path) -> None:
    done = command("train/segment.py", *words(tmp_path / "run"), "--check")
    assert done.returncode == 0, done.stderr
    assert "background" in done.stdout
    assert not (tmp_path / "run").exists()
