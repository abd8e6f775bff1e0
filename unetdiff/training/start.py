"""From settings to a finished denoising run: what `train/denoise.py` calls."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from unetdiff.config import DenoiseConfig
from unetdiff.data.check import check_source
from unetdiff.data.formats import DataFormat
from unetdiff.data.loader import training_loader
from unetdiff.data.sources import Source
from unetdiff.files import write_text
from unetdiff.models.unet import UNet
from unetdiff.spec import UNetSpec
from unetdiff.training.denoise import DenoiseTask, make_objective, network_spec
from unetdiff.training.loop import Trainer
from unetdiff.training.precision import PrecisionChoice, check_precision, choose_precision
from unetdiff.training.processes import device_of, first_alone, make_accelerator, start_processes, together
from unetdiff.training.run_folder import (
    Runtime,
    check_same_data,
    data_fingerprint,
    open_run_folder,
    read_runtime,
    versions,
)

TIMED_BATCH = 16  # samples that decide on the precision


def denoising_trainer(config: DenoiseConfig) -> Trainer:
    """Check everything, then build the trainer of a run; nothing is trained yet.

    Raises:
        ValueError: whatever a user can get wrong, in one sentence that names it.
    """
    state = start_processes(config.train.processes)
    device = device_of(state)
    check_precision(config.train.precision, device)
    _check_shares(config, state.num_processes)
    _set_determinism(config.train.deterministic)
    training, validation = together(lambda: check_source(config.data, config.train.batch_size))
    torch.manual_seed(config.seed)
    spec = network_spec(config, training.format)
    unet = UNet(**spec.to_json())
    unet.to(device)  # pyright: ignore[reportArgumentType] # diffusers wraps `to` without its types
    task = _task(config, spec, training.format, validation, state.num_processes)
    run = config.folder
    first_alone(lambda: open_run_folder(config))
    data = data_fingerprint(training, validation)
    runtime = first_alone(lambda: read_runtime(run) or _decide(config, unet, task, training, data, state.num_processes))
    together(lambda: check_same_data(runtime.data, data, run))
    first_alone(lambda: _describe(run, runtime, unet))
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    accelerator = make_accelerator(runtime.precision, config.train.tracker, str(run))
    accelerator.init_trackers("unetdiff", config={"run": run.name, "parameters": runtime.parameters})

    def batches(step: int):
        return training_loader(
            training,
            config.data,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=step,
            rank=state.process_index,
            world_size=state.num_processes,
            micro_batches=config.train.accumulation,
            prepare=task.prepare,
            pin_memory=device.type == "cuda",
        )

    return Trainer(run, unet, task, batches, config.train, config.ema, config.seed, accelerator)


def _task(config: DenoiseConfig, spec: UNetSpec, format: DataFormat, validation: Source, processes: int) -> DenoiseTask:
    """What the network is trained to do."""
    return DenoiseTask(
        objective=make_objective(config, format),
        format=format,
        spec=spec,
        validation=validation,
        sampling=config.sampling,
        label_dropout=config.diffusion.label_dropout,
        seed=config.seed,
        validation_size=config.train.validation_size,
        sample_count=config.train.sample_count,
        batch_size=max(1, config.train.batch_size // processes // config.train.accumulation),
    )


def _describe(run: Path, runtime: Runtime, unet: UNet) -> None:
    """Store what the run decided, and its network as a table."""
    runtime.write(run)
    write_text(run / "plan.txt", f"{unet.plan}\n")


def _check_shares(config: DenoiseConfig, processes: int) -> None:
    parts = processes * config.train.accumulation
    if config.train.batch_size % parts:
        raise ValueError(
            f"train.batch_size {config.train.batch_size} does not divide into {processes} process(es) x "
            f"{config.train.accumulation} micro-batches; expected a multiple of {parts}"
        )


def _set_determinism(wanted: bool) -> None:
    """On GPUs, have torch refuse kernels that do not repeat bit for bit."""
    if wanted and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _decide(
    config: DenoiseConfig, unet: UNet, task: DenoiseTask, source: Source, data: dict[str, Any], processes: int
) -> Runtime:
    """What the run decides for itself, once."""
    device = unet.device
    choice = PrecisionChoice(config.train.precision, "set by train.precision")
    if config.train.precision == "auto":
        size = min(task.batch_size, TIMED_BATCH)
        batch = next(training_loader(source, config.data, batch_size=size, seed=0, workers=0, prepare=task.prepare))
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        choice = choose_precision(unet, lambda network: task.loss(network, moved), device)
        print(f"precision {choice.precision}: {choice.reason}")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    return Runtime(
        precision=choice.precision,
        precision_reason=choice.reason,
        compile=config.train.compile,
        device=f"{device.type} ({name}, {torch.get_num_threads()} threads)",
        processes=processes,
        parameters=parameters,
        versions=versions(),
        data=data,
    )
