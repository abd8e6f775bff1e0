"""Runs that sample and segment: two sources in one batch, exact resume, processes, and use by both scripts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from torch.testing import assert_close

from tests.runs import (
    TRAIN,
    as_a_new_process,
    command,
    fit_segmentation,
    left_behind,
    one_sentence,
    relative_difference,
)
from tests.training.test_kill import kill_all, last_step, launch, wait_for
from tests.training.test_noise_input import write_pairs
from unetdiff.config import SamplingConfig
from unetdiff.data.formats import DataFormat
from unetdiff.data.mask_options import MaskDataConfig, WarpConfig
from unetdiff.data.scenes import scenes
from unetdiff.data.unlabelled import joint_loader, open_unlabelled
from unetdiff.joint_options import JointConfig
from unetdiff.noise_options import NoiseInputConfig
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import checkpoints, load_run
from unetdiff.segment_config import SegmentConfig, SegmentModelConfig, UnlabelledConfig
from unetdiff.segmenting import segment
from unetdiff.training.report import write_report
from unetdiff.training.segment import segmentation_trainer

MODEL: dict[str, Any] = {"channels": [8, 8], "blocks": 1, "middle": False, "time_embedding": "sinusoidal"}


def settings(run: Path, model: dict | None = None, noise: Any = "none", **train: Any) -> SegmentConfig:
    """Settings of a run of seconds on the embedded scenes, 24 of them labelled, all of them unlabelled."""
    return SegmentConfig(
        run_dir=str(run),
        model=SegmentModelConfig(kind="joint", **{**MODEL, **(model or {})}),
        data=MaskDataConfig(train_limit=24, augment=WarpConfig(rotation=10.0)),
        joint=JointConfig(unlabelled=0.25, mask_weight=0.5),
        unlabelled=UnlabelledConfig(source="digit_scenes"),
        noise_input=NoiseInputConfig(kind=noise),
        sampling=SamplingConfig(steps=2),
        train=TrainConfig(**{**TRAIN, "sample_count": 2, **train}),
        ema=EmaConfig(widths=[0.1, 0.05]),
    )


def words(run: Path, **train: Any) -> list[str]:
    """The same run as a command line."""
    given = ["--run_dir", str(run), "--model.kind", "joint", "--model.channels", "[8,8]", "--model.blocks", "1"]
    given += ["--model.middle", "false", "--model.time_embedding", "sinusoidal", "--data.train_limit", "24"]
    given += ["--data.augment.rotation", "10", "--joint.unlabelled", "0.25", "--joint.mask_weight", "0.5"]
    given += ["--unlabelled.source", "digit_scenes", "--sampling.steps", "2", "--ema.widths", "[0.1,0.05]"]
    for name, value in {**TRAIN, "sample_count": 2, **train}.items():
        given += [f"--train.{name}", str(value)]
    return given


def made(config: SegmentConfig) -> Any:
    """The trainer of a run, as a new process would make it."""
    as_a_new_process()
    return segmentation_trainer(config)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("joint") / "run"
    fit_segmentation(settings(run))
    return run


def test_resumed_equals_uninterrupted_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    for steps in (2, 6):
        fit_segmentation(settings(tmp_path / "run", steps=steps))
    assert_close(left_behind(tmp_path / "run"), left_behind(straight), rtol=0, atol=0)


@pytest.mark.slow
def test_kill_changes_nothing(tmp_path: Path) -> None:
    plan = {"steps": 40, "checkpoint_every": 5}
    alone, run = tmp_path / "alone", tmp_path / "killed"
    assert command("train/segment.py", *words(alone, **plan)).returncode == 0
    process = launch(words(run, **plan), 1, script="train/segment.py")
    wait_for(process, lambda: last_step(run) >= 12)
    time.sleep(0.03)
    kill_all(process)
    process.wait()
    assert checkpoints(run)
    assert not (run / "model_index.json").exists()
    assert command("train/segment.py", *words(run, **plan)).returncode == 0
    assert_close(left_behind(run), left_behind(alone), rtol=0, atol=0)


@pytest.mark.slow
def test_several_processes_reach_weights_and_figures_of_one(straight: Path, tmp_path: Path) -> None:
    done = command("train/segment.py", *words(tmp_path / "two", processes=2), processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(straight), left_behind(tmp_path / "two")) < 1e-5
    first, second = validation(straight), validation(tmp_path / "two")
    assert first["iou"] == second["iou"]
    assert first["denoising_loss"] == pytest.approx(second["denoising_loss"], rel=1e-4)


def validation(run: Path) -> dict[str, Any]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "validation"][-1]


def test_loss_is_that_of_either_task_alone(tmp_path: Path) -> None:
    """On one step's batch: the mean squared error of v by diffusers' formula, and the masks' loss, by hand."""
    trainer = made(settings(tmp_path / "run"))
    batch = next(trainer.batches(0))
    assert len(batch["sample"]) == 8
    assert len(batch["mask"]) == 6
    assert batch["timesteps"][2:].tolist() == [0] * 6
    unet = trainer.unet.eval()
    scheduler = trainer.task.beside.scheduler
    x0, noise, steps = (batch[name][:2] for name in ("sample", "noise", "timesteps"))
    found = unet(scheduler.add_noise(x0, noise, steps), steps).sample
    of_noise = (found - scheduler.get_velocity(x0, noise, steps)).square().mean()
    logits = unet(batch["sample"][2:], 0).heads["mask"]
    of_masks = trainer.task.objective.loss_per_sample(logits, batch["mask"], None).mean()
    assert_close(trainer.task.loss(unet, batch), of_noise + 0.5 * of_masks)


@pytest.mark.parametrize("parts", [1, 2])
def test_every_process_has_both_kinds_and_all_have_the_same_samples(parts: int) -> None:
    """The samples of a step do not depend on the number of processes, nor on where a run goes on."""
    format = DataFormat(dims=2, channels=1, dtype="uint8", low=0.0, high=255.0)
    source = open_unlabelled(UnlabelledConfig(source="digit_scenes"), format, (16, 16))[0]
    options = UnlabelledConfig(source="digit_scenes")

    def step(number: int, rank: int, world: int) -> list[Any]:
        stream = joint_loader((source, options), (source, options), 0.5, batch_size=8, seed=3, start_step=number,
                              rank=rank, world_size=world)  # fmt: skip
        batch = next(stream)
        half = len(batch["sample"]) // 2
        assert half == 8 // world // 2
        return [batch["sample"][:half], batch["sample"][half:]]

    whole = step(5, 0, 1)
    shares = [step(5, rank, parts) for rank in range(parts)]
    for place in (0, 1):
        assert torch.equal(torch.cat([share[place] for share in shares]), whole[place])
    assert not torch.equal(whole[0], whole[1])


def test_unlabelled_images_are_cut_at_their_own_resolution(tmp_path: Path) -> None:
    """Crops of larger images are parts of them, not smaller pictures of them; smaller ones are continued."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 9), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    options = UnlabelledConfig(source="folder", path=str(tmp_path), validation_fraction=0)
    format = DataFormat(dims=2, channels=1, dtype="uint8", low=0.0, high=255.0)
    source = open_unlabelled(options, format, (16, 16))[0]
    crop = source.read([0], np.array([[0.0, 0.0]]))["sample"][0, ..., 0]
    expected = np.pad(picture[:16], [(0, 0), (3, 4)], mode="reflect")
    assert (crop == expected).all()


def test_both_scripts_and_diffusers_use_the_run(straight: Path, tmp_path: Path, run_script) -> None:
    code, _, errors = run_script("sample/images.py", str(straight), "--num", "2", "--steps", "2", "--out",
                                 str(tmp_path / "samples"))  # fmt: skip
    assert code == 0, errors
    assert Image.open(tmp_path / "samples" / "00001.png").size == (32, 32)
    Image.fromarray(scenes("test")[0][0][..., 0]).save(tmp_path / "scene.png")
    code, _, errors = run_script("sample/masks.py", str(straight), str(tmp_path / "scene.png"), "--out",
                                 str(tmp_path / "masks"))  # fmt: skip
    assert code == 0, errors
    assert np.asarray(Image.open(tmp_path / "masks" / "scene.png")).max() <= 10
    pipeline = DDPMPipeline.from_pretrained(straight)
    made = pipeline(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    assert made.images.shape == (1, 32, 32, 1)  # pyright: ignore[reportAttributeAccessIssue]
    run = load_run(straight)
    image = scenes("test")[0][0]
    found = segment(run, image).probabilities
    encoded = run.format.encode(image[None])
    with torch.no_grad():
        expected = run.unet(encoded, 0).heads["mask"].softmax(1)[0]
    assert_close(torch.from_numpy(found), expected)


def test_report_shows_both(straight: Path) -> None:
    page = write_report(straight).read_text()
    for heading in ("Masks of held-out images", "Validation loss by noise level", "Predictions and samples"):
        assert f"<h2>{heading}</h2>" in page
    assert "denoising loss" in page


@pytest.mark.parametrize("space", [(40,), (12, 16), (6, 12, 16)])
@pytest.mark.parametrize("noise", ["none", "gaussian"])
def test_signals_images_and_volumes(space: tuple[int, ...], noise: str, tmp_path: Path) -> None:
    """The labelled images are the unlabelled ones too; every level of the decoder is supervised in both tasks."""
    data = write_pairs(tmp_path / "data", space)
    model = {"channels": [8, 8, 8], "deep_supervision": True}
    config = settings(tmp_path / "run", model, noise, steps=1, batch_size=4)
    trainer = made(replace(config, data=data, unlabelled=UnlabelledConfig()))
    trainer.fit()
    batch = next(trainer.batches(1))
    trainer.unet.train()
    trainer.task.loss(trainer.unet, batch).backward()
    assert all(parameter.grad is not None for parameter in trainer.unet.parameters())
    found = segment(load_run(tmp_path / "run"), np.load(tmp_path / "data" / "images" / "4.npy"))
    assert found.labels.shape == space


def test_an_unlabelled_source_of_another_form_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
    config = replace(settings(tmp_path / "run"), unlabelled=UnlabelledConfig(source="folder", path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"has 3 channels .* expected 1 of uint8 in 2-D as in the labelled images"):
        made(config)


REFUSED = {
    "is 2.4: expected a whole number": ["--joint.unlabelled", "0.3"],
    "is 0.5: expected a whole number": ["--train.batch_size", "2"],
    "joint.unlabelled is 1.0; expected a share": ["--joint.unlabelled", "1"],
    "joint.mask_weight is 0.0; expected more than 0": ["--joint.mask_weight", "0"],
    "unlabelled.source is of kind joint; model.kind is logits": [
        *("--model.kind", "logits", "--joint.unlabelled", "0.5", "--joint.mask_weight", "1"),
    ],
    "needs sinusoidal or fourier": ["--model.time_embedding", "none"],
    "from which kind joint cannot sample": ["--diffusion.schedule", "one_level"],
    "unlabelled.size is 16; expected [32, 32]": ["--unlabelled.size", "16"],
    "model.init_from is not for kind joint": ["--model.init_from", "runs/denoiser"],
    "diffusion.label_dropout is of classes": ["--diffusion.label_dropout", "0.3"],
    "unlabelled.random_flip is True, which nothing reads": [
        *("--unlabelled.source", "labelled", "--unlabelled.random_flip", "true"),
    ],
    "expected from 0 to 999": ["--model.timestep", "1000"],
    "kind joint has the noise of diffusion": ["--noise_input.kind", "self", "--noise_input.schedule", "cosine"],
}


@pytest.mark.parametrize("expected", REFUSED)
def test_mistakes_are_one_sentence(expected: str, tmp_path: Path, run_script) -> None:
    given = [*words(tmp_path / "run"), *REFUSED[expected]]
    if "logits" in given:
        drop = given.index("--sampling.steps")
        del given[drop : drop + 2]
    code, _, errors = run_script("train/segment.py", *given)
    assert code == 2
    assert expected in one_sentence(errors)
