"""Segmenters of noisy images: what they are given and told, and that runs of them repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from tests.runs import TRAIN, as_a_new_process, fit, fit_segmentation, left_behind, one_sentence
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.scenes import scenes
from unetdiff.noise_options import NoiseInputConfig
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import load_run
from unetdiff.segment_config import SegmentConfig, SegmentModelConfig
from unetdiff.segmentation.noise_input import make_noise_input, probabilities_at
from unetdiff.segmenting import segment
from unetdiff.training.segment import segmentation_trainer


def settings(run: Path, kind: Any = "gaussian", model: dict | None = None, **train: Any) -> SegmentConfig:
    """Settings of a run of seconds on the embedded scenes, from scratch."""
    plain = {"channels": [8, 8], "blocks": 1, "middle": False, "time_embedding": "sinusoidal", "timestep": [100, 500]}
    return SegmentConfig(
        run_dir=str(run),
        model=SegmentModelConfig(**{**plain, **(model or {})}),
        data=MaskDataConfig(train_limit=24),
        noise_input=NoiseInputConfig(kind=kind),
        train=TrainConfig(**{**TRAIN, "sample_count": 1, **train}),
        ema=EmaConfig(widths=[0.1, 0.05]),
    )


@pytest.mark.parametrize("kind", ["gaussian", "self"])
def test_images_are_mixed_as_diffusers_does(kind: str) -> None:
    noise_input = make_noise_input({"kind": kind, "schedule": "linear", "num_train_timesteps": 1000})
    assert noise_input is not None
    images, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    timesteps = torch.tensor([3, 700])
    other = images if kind == "self" else noise
    expected = DDPMScheduler().add_noise(images, other, timesteps)  # pyright: ignore[reportArgumentType]
    assert_close(noise_input.mixed(images, noise, timesteps), expected)


def test_the_image_as_its_own_noise_changes_its_amplitude_alone() -> None:
    noise_input = make_noise_input({"kind": "self", "schedule": "linear", "num_train_timesteps": 1000})
    assert noise_input is not None
    images = torch.randn(3, 2, 5)
    factor = noise_input.fixed(images, 400) / images
    signal = DDPMScheduler().alphas_cumprod[400]
    assert_close(factor, (signal.sqrt() + (1 - signal).sqrt()).expand_as(factor))


def test_predictions_are_means_over_timesteps() -> None:
    """Scores that are the timestep, against softmax by hand; every call has the same noise."""

    def scores(images: torch.Tensor, timestep: int | None) -> torch.Tensor:
        return torch.stack([images[:, 0] * 0 + (timestep or 0), images[:, 0] * 0], dim=1)

    predict = probabilities_at(scores, [0, 1], torch.device("cpu"))
    expected = (0.5 + 1 / (1 + np.exp(-1))) / 2
    assert predict(torch.randn(1, 1, 3))[0, 0] == pytest.approx(np.full(3, expected))
    noisy = make_noise_input({"kind": "gaussian", "schedule": "cosine", "num_train_timesteps": 10})
    predict = probabilities_at(lambda images, _: torch.cat([images, -images], 1), [3, 9], torch.device("cpu"), noisy)
    image = torch.randn(1, 1, 6, 6)
    assert_close(predict(image.repeat(2, 1, 1, 1))[1:], predict(image), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "self"])
def test_resumed_equals_uninterrupted_and_predictions_repeat(kind: str, tmp_path: Path) -> None:
    for run, steps in (("halted", 2), ("halted", 4), ("straight", 4)):
        fit_segmentation(settings(tmp_path / run, kind, steps=steps))
    assert_close(left_behind(tmp_path / "halted"), left_behind(tmp_path / "straight"), rtol=0, atol=0)
    run = load_run(tmp_path / "straight")
    assert run.unet.embedding is not None
    assert run.beside.settings["noise_input"]["kind"] == kind
    image = scenes("test")[0][0]
    first, second = (segment(run, image).probabilities for _ in range(2))
    assert (first == second).all()


def test_training_tells_the_network_what_was_drawn(tmp_path: Path) -> None:
    """Every sample has noise and a timestep of its own, by its position; the network is called with both."""
    as_a_new_process()
    made = segmentation_trainer(settings(tmp_path / "run"))
    batch = next(made.batches(1))
    assert len(set(batch["timesteps"].tolist())) > 4
    seen: list[Any] = []
    made.unet.register_forward_pre_hook(lambda module, given: seen.append(given))
    made.task.loss(made.unet, batch)
    images, timesteps = seen[0]
    expected = DDPMScheduler().add_noise(batch["sample"], batch["noise"], batch["timesteps"])
    assert_close(images, expected)
    assert torch.equal(timesteps, batch["timesteps"])
    again = next(made.batches(1))
    assert torch.equal(again["noise"], batch["noise"])


def write_pairs(root: Path, space: tuple[int, ...], count: int = 5) -> MaskDataConfig:
    """Noisy images of two classes with their masks as arrays, the last two held out."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        labels = (rng.random(space) > 0.5).astype(np.uint8)
        image = labels + rng.normal(0, 0.2, space)
        np.save(root / "images" / f"{number}.npy", image.astype(np.float32).clip(-1, 2)[..., None])
        np.save(root / "masks" / f"{number}.npy", labels)
    dims: Any = len(space)
    return MaskDataConfig(source="folder", path=str(root), dims=dims, split="names", train=["[0-2].npy"],
                          validation=["[34].npy"])  # fmt: skip


@pytest.mark.parametrize("space", [(40,), (12, 16), (6, 12, 16)])
def test_signals_images_and_volumes(space: tuple[int, ...], tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", space)
    fit_segmentation(replace(settings(tmp_path / "run", steps=1, batch_size=2), data=data))
    found = segment(load_run(tmp_path / "run"), np.load(tmp_path / "data" / "images" / "4.npy"))
    assert found.labels.shape == space


def test_starts_from_a_denoiser_of_the_same_noise(tmp_path: Path) -> None:
    """With the denoiser's cosine schedule; with another, timesteps would stand for other noise."""
    fit(tmp_path / "denoiser", data={"source": "digit_scenes"}, steps=1)
    body = {"channels": [8, 8], "init_from": str(tmp_path / "denoiser"), "time_embedding": "none", "middle": True}
    config = settings(tmp_path / "run", model=body, steps=1)
    with pytest.raises(ValueError, match=r"noise_input.schedule is linear .* expected the same"):
        segmentation_trainer(config)
    fit_segmentation(replace(config, noise_input=NoiseInputConfig(kind="gaussian", schedule="cosine")))
    assert load_run(tmp_path / "run").unet.embedding is not None


REFUSED = {
    "expected model.timestep beside it": ["--noise_input.kind", "self", "--model.time_embedding", "sinusoidal"],
    "needs sinusoidal or fourier": ["--noise_input.kind", "self", "--model.timestep", "5"],
    "expected one number, or noise_input beside several": [
        *("--model.timestep", "[1, 2]", "--model.init_from", "somewhere"),
    ],
    "expected from 0 to 999": [
        *("--noise_input.kind", "self", "--model.time_embedding", "sinusoidal", "--model.timestep", "1000"),
    ],
    "noise_input.schedule is 'cosine', which nothing reads": ["--noise_input.schedule", "cosine"],
}


@pytest.mark.parametrize("expected", REFUSED)
def test_mistakes_are_one_sentence(expected: str, tmp_path: Path, run_script) -> None:
    words = ["--run_dir", str(tmp_path / "run"), "--data.train_limit", "24", *REFUSED[expected]]
    code, _, errors = run_script("train/segment.py", *words)
    assert code == 2
    assert expected in one_sentence(errors)
