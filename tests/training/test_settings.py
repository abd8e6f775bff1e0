"""Every setting of a run trains, saves and samples; where two settings must agree, they do."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import docstring_parser
import numpy as np
import pytest
from PIL import Image

from tests.runs import ROOT, fit, left_behind, relative_difference, settings
from unetdiff import load_run, sample_images
from unetdiff.config import DenoiseConfig, DiffusionConfig
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.segment_config import SegmentConfig
from unetdiff.training.denoise import denoising_trainer

RUNS: dict[str, dict[str, Any]] = {
    "epsilon, linear": {"diffusion": {"target": "epsilon", "schedule": "linear", "weighting": "min_snr"}},
    "x0, zero terminal SNR": {"diffusion": {"target": "x0", "schedule": "zero_terminal_snr"}},
    "learned variance": {"diffusion": {"target": "epsilon", "variance": "learned"}},
    "without labels": {"model": {"class_conditional": False}},
    "without null class": {"diffusion": {"label_dropout": 0.0}},
    "bf16": {"train": {"precision": "bf16"}},
    "auto": {"train": {"precision": "auto"}},
    "plain average": {"ema": {"kind": "decay"}},
    "no average": {"ema": {"kind": "none"}},
    "tensorboard": {"train": {"tracker": "tensorboard"}},
    "adm": {"model": {"norm": "adm", "downsample": "residual", "upsample": "residual"}},
    "few timesteps": {"diffusion": {"num_train_timesteps": 50}},
}


def run_settings(run: Path, changes: dict[str, dict[str, Any]]) -> DenoiseConfig:
    config = settings(run, model=changes.get("model"), **{"steps": 2, **changes.get("train", {})})
    return dataclasses.replace(
        config,
        diffusion=DiffusionConfig(**changes.get("diffusion", {})),
        ema=EmaConfig(**changes.get("ema", {})),
    )


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_trains_and_samples(name: str, sampler: str, tmp_path: Path) -> None:
    trainer = denoising_trainer(run_settings(tmp_path / "run", RUNS[name]))
    trainer.fit()
    run = load_run(tmp_path / "run")
    labels = [3] if run.unet.config["num_classes"] else None
    images = sample_images(run.unet, run.scheduler, 2, labels=labels, sampler=sampler, steps=3)  # pyright: ignore
    assert images.shape == (2, 1, 16, 16)
    assert images.isfinite().all()
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()
    if name == "tensorboard":
        assert list((tmp_path / "run").rglob("events.out.*"))


def test_gradient_checkpointing_changes_memory_only(tmp_path: Path) -> None:
    fit(tmp_path / "plain", model={"dropout": 0.3})
    fit(tmp_path / "checkpointed", model={"dropout": 0.3, "memory": "checkpoint", "checkpoint_levels": [0]})
    assert relative_difference(left_behind(tmp_path / "plain"), left_behind(tmp_path / "checkpointed")) < 1e-6


@pytest.mark.slow
def test_compiled_run_learns_the_same(tmp_path: Path) -> None:
    fit(tmp_path / "eager")
    fit(tmp_path / "compiled", compile=True)
    eager, compiled = left_behind(tmp_path / "eager"), left_behind(tmp_path / "compiled")
    assert set(eager) == set(compiled)
    assert relative_difference(eager, compiled) < 1e-4


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint16, "I;16"), (np.uint8, "RGBA")])
def test_samples_leave_in_the_form_in_which_images_came(dtype: type, mode: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    high = np.iinfo(dtype).max
    shape = (8, 10) if mode == "I;16" else (8, 10, 4)
    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, high, shape, dtype=dtype, endpoint=True)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    data = {"source": "folder", "path": str(tmp_path / "images"), "validation_fraction": 0.2}
    fit(tmp_path / "run", data=data, steps=2)
    run = load_run(tmp_path / "run")
    assert run.format.class_names == ("cats", "dogs")
    images = sample_images(run.unet, run.scheduler, 2, labels=[0, 1], steps=2)
    from unetdiff.outputs import write_samples

    write_samples(tmp_path / "out", run.format.decode(images), run.format, [0, 1], [0, 1])
    written = Image.open(tmp_path / "out" / "00001.png")
    assert written.mode == mode
    assert written.size == (10, 8)
    assert run.format.decode(images).dtype == dtype


def test_every_setting_of_training_is_in_use() -> None:
    """A setting that nothing reads would be a promise that nobody keeps."""
    sources = "\n".join(path.read_text() for path in (ROOT / "unetdiff").rglob("*.py") if path.name != "config.py")
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    assert [name for name in fields if f".{name}" not in sources] == []


def settings_classes(kind: type, known: set[type]) -> set[type]:
    """A class of settings and those of its fields."""
    if kind not in known:
        known.add(kind)
        for hint in typing.get_type_hints(kind).values():
            for entry in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(entry):
                    settings_classes(typing.cast(type, entry), known)
    return known


@pytest.mark.parametrize("kind", [DenoiseConfig, SegmentConfig])
def test_help_explains_every_setting(kind: type) -> None:
    """An entry of its own in the docstring, which `--help` shows."""
    for group in settings_classes(kind, set()):
        bases = [base for base in group.__mro__ if dataclasses.is_dataclass(base)]
        explained = {entry.arg_name for base in bases for entry in docstring_parser.parse(base.__doc__ or "").params}
        assert {field.name for field in dataclasses.fields(group)} <= explained, group
