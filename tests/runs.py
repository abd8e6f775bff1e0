"""Small runs for tests: settings, training in this process or by command, and what a run left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.config import DataConfig, DenoiseConfig, DiffusionConfig, ModelConfig
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import RAW_WEIGHTS, checkpoints
from unetdiff.segment_config import SegmentConfig
from unetdiff.training.denoise import denoising_trainer
from unetdiff.training.loop import Trainer
from unetdiff.training.segment import segmentation_trainer

ROOT = Path(__file__).parents[1]
MODEL: dict[str, Any] = {"channels": [8, 8], "blocks": 1}
TRAIN: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "checkpoint_every": 3,
    "precision": "float32",
    "validation_size": 16,
    "sample_count": 10,
    "validate_every": 0,
    "sample_every": 0,
    "warmup_steps": 2,
    "log_every": 1,
}


def settings(run: Path, model: dict | None = None, data: dict | None = None, **train: Any) -> DenoiseConfig:
    """Settings of a run of seconds on the embedded digits."""
    from unetdiff.config import SamplingConfig

    return DenoiseConfig(
        run_dir=str(run),
        model=ModelConfig(**{**MODEL, **(model or {})}),
        diffusion=DiffusionConfig(),
        data=DataConfig(**(data or {})),
        train=TrainConfig(**{**TRAIN, **train}),
        ema=EmaConfig(widths=[0.1, 0.05]),
        sampling=SamplingConfig(steps=2),
    )


def as_a_new_process() -> None:
    """Forget what accelerate holds for this process, so that the next trainer starts as in a new one."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def fit_segmentation(config: SegmentConfig) -> Trainer:
    """Train a segmentation run to its end, as a new process would."""
    as_a_new_process()
    made = segmentation_trainer(config)
    made.fit()
    return made


def trainer(run: Path, **overrides: Any) -> Trainer:
    """The trainer of such a run, as a new process would make it."""
    as_a_new_process()
    return denoising_trainer(settings(run, **overrides))


def fit(run: Path, **overrides: Any) -> Trainer:
    """Train such a run to its end."""
    made = trainer(run, **overrides)
    made.fit()
    return made


def command_arguments(run: Path, **train: Any) -> list[str]:
    """The same run as a command line of train/denoise.py."""
    words = ["--run_dir", str(run), "--model.channels", "[8,8]", "--model.blocks", "1", "--ema.widths", "[0.1,0.05]"]
    for name, value in {**TRAIN, **train}.items():
        words += [f"--train.{name}", str(value)]
    return [*words, "--sampling.steps", "2"]


def command(*words: str, processes: int = 1, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of the repository, with torchrun for several processes; output and exit code."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
    return subprocess.run(
        [*launcher, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def one_sentence(errors: str) -> str:
    """The sentence of an error, which must be all there is besides progress bars."""
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line.strip() and "it/s" not in line]
    spoken = [line for line in lines if line.startswith("error: ")]
    assert len(spoken) == 1, errors
    assert "Traceback" not in errors
    return spoken[0]


def left_behind(run: Path) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint: weights, averages, optimizer."""
    folder = checkpoints(run)[-1]
    tensors = {f"raw.{key}": value for key, value in load_file(folder / RAW_WEIGHTS).items()}
    average = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    second = load_file(folder / "training" / "ema_1.safetensors")
    tensors |= {f"ema.{key}": value for key, value in average.items()}
    tensors |= {f"ema1.{key}": value for key, value in second.items()}
    saved = torch.load(folder / "training" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    for index, entry in saved.items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
    return tensors


def relative_difference(first: dict[str, Tensor], second: dict[str, Tensor], prefix: str = "raw.") -> float:
    """Norm of the difference over norm, all weights together."""
    keys = [key for key in first if key.startswith(prefix)]
    one, other = (torch.cat([run[key].double().flatten() for key in keys]) for run in (first, second))
    return float((one - other).norm() / one.norm())
