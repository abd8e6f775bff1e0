"""Denoising pretraining at one noise level (DeP): its noise, what it leaves behind, what starts from it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from torch.testing import assert_close

from tests.runs import TRAIN, as_a_new_process, command_arguments, left_behind, one_sentence
from unetdiff.config import DataConfig, DenoiseConfig, DiffusionConfig, ModelConfig
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.diffusion.sampler import sample_images
from unetdiff.diffusion.schedule import add_noise, make_schedule
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import load_run
from unetdiff.segment_config import SegmentConfig, SegmentModelConfig
from unetdiff.training.denoise import denoising_trainer
from unetdiff.training.report import write_report
from unetdiff.training.segment import segmentation_trainer

DEP = ["--diffusion.schedule", "one_level", "--diffusion.target", "epsilon"]


def pretrain(run: Path, *, source: str = "digit_scenes", timed: bool = False, steps: int = 4, **diffusion) -> None:
    """Train at one noise level, as a new process would."""
    as_a_new_process()
    embedding = {} if timed else {"time_embedding": "none"}
    config = DenoiseConfig(
        run_dir=str(run),
        model=ModelConfig(channels=[8, 8], blocks=1, class_conditional=False, **embedding),
        diffusion=DiffusionConfig(**{"schedule": "one_level", "target": "epsilon", **diffusion}),
        data=DataConfig(source=source),  # pyright: ignore[reportArgumentType]
        train=TrainConfig(**{**TRAIN, "steps": steps, "sample_count": 3}),
        ema=EmaConfig(widths=[0.1, 0.05]),
    )
    denoising_trainer(config).fit()


@pytest.mark.parametrize("level", [0.22, 1.0])
def test_noise_is_mixed_as_published(level: float) -> None:
    scheduler = make_schedule("one_level", noise_level=level)
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = (x0 + level * noise) / math.sqrt(1 + level**2)
    assert_close(add_noise(scheduler, x0, noise, torch.zeros(2, dtype=torch.int64)), expected)
    assert_close(scheduler.add_noise(x0, noise, torch.tensor([0, 0])), expected)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("source", "target"), [("waveforms", "epsilon"), ("digit_scenes", "v"), ("blobs", "x0")])
def test_trains_and_shows_what_it_denoises(source: str, target: str, tmp_path: Path) -> None:
    pretrain(tmp_path, source=source, timed=target == "v", target=target, steps=1)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    validation = [line for line in lines if line["kind"] == "validation"][-1]
    assert [(entry["from"], entry["to"]) for entry in validation["bins"]] == [(0, 0)]
    assert validation["bins"][0]["loss"] == pytest.approx(validation["loss"])
    assert Image.open(tmp_path / "samples" / "step-00000001.png").size[0] > 100
    assert "by noise level" not in write_report(tmp_path).read_text()


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    for run, steps in (("halted", 2), ("halted", 4), ("straight", 4)):
        pretrain(tmp_path / run, steps=steps)
    assert_close(left_behind(tmp_path / "halted"), left_behind(tmp_path / "straight"), rtol=0, atol=0)


def test_draws_no_samples_and_starts_a_segmenter(tmp_path: Path, run_script) -> None:
    run = tmp_path / "dep"
    pretrain(run, steps=1)
    code, _, errors = run_script("sample/images.py", str(run), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "trained at one noise level" in one_sentence(errors)
    loaded = load_run(run)
    with pytest.raises(ValueError, match="draws no samples"):
        sample_images(loaded.unet, loaded.scheduler, 1, steps=1)
    with pytest.raises(Exception, match="scheduler"):
        DDPMPipeline.from_pretrained(run)
    segmenter = SegmentConfig(
        run_dir=str(tmp_path / "masks"),
        model=SegmentModelConfig(init_from=str(run)),
        data=MaskDataConfig(train_limit=24),
        train=TrainConfig(**{**TRAIN, "steps": 1, "sample_count": 1}),
    )
    as_a_new_process()
    made = segmentation_trainer(segmenter)
    body = {name: value for name, value in loaded.unet.state_dict().items() if not name.startswith("head.")}
    ours = made.unet.state_dict()
    assert_close({name: ours[name] for name in body}, body, rtol=0, atol=0)
    made.fit()
    assert load_run(tmp_path / "masks").masks.num_classes == 11


def test_a_timestep_needs_a_network_that_is_told_one(tmp_path: Path, run_script) -> None:
    pretrain(tmp_path / "dep", steps=1)
    words = ["--run_dir", str(tmp_path / "run"), "--data.train_limit", "24", "--model.timestep", "0"]
    code, _, errors = run_script("train/segment.py", *words, "--model.init_from", str(tmp_path / "dep"))
    assert code == 2
    assert "model.init_from is told no timestep" in one_sentence(errors)


REFUSED = {
    "diffusion.noise_level is 0.3, which nothing reads": ["--diffusion.noise_level", "0.3"],
    "diffusion.noise_level is 0.0; expected more than 0": [*DEP, "--diffusion.noise_level", "0"],
    "diffusion.num_train_timesteps is 10, which nothing reads": [*DEP, "--diffusion.num_train_timesteps", "10"],
    "one noise level has one weight": [*DEP, "--diffusion.weighting", "min_snr"],
    "one noise level cannot be sampled from": [*DEP, "--diffusion.variance", "learned"],
    "expected model.class_conditional false": [*DEP, "--model.time_embedding", "none"],
    "a denoiser needs sinusoidal or fourier": ["--model.time_embedding", "none"],
}


@pytest.mark.parametrize("expected", REFUSED)
def test_mistakes_are_one_sentence(expected: str, tmp_path: Path, run_script) -> None:
    code, _, errors = run_script("train/denoise.py", *command_arguments(tmp_path / "run"), *REFUSED[expected])
    assert code == 2
    assert expected in one_sentence(errors)
