"""From settings to a finished denoising run: what `train/denoise.py` calls."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from accelerate import PartialState

from unetdiff.config import DenoiseConfig
from unetdiff.data.check import check_source
from unetdiff.data.loader import training_loader
from unetdiff.data.sources import Source
from unetdiff.models.unet import UNet
from unetdiff.training.denoise import DenoiseTask, make_objective, network_spec
from unetdiff.training.loop import Trainer
from unetdiff.training.precision import PrecisionChoice, check_precision, choose_precision
from unetdiff.training.processes import device_of, make_accelerator, share, start_processes
from unetdiff.training.run_folder import Runtime, open_run_folder, read_runtime, versions


def denoising_trainer(config: DenoiseConfig) -> Trainer:
    """Check everything, then build the trainer of a run; nothing is trained yet.

    Raises:
        ValueError: whatever a user can get wrong, in one sentence that names it.
    """
    state = start_processes(config.train.processes)
    device = device_of(state)
    check_precision(config.train.precision, device)
    training, validation = check_source(config.data, config.train.batch_size)
    _check_shares(config, state.num_processes)
    run = Path(share(str(_first(state, lambda: open_run_folder(config)))))
    _set_determinism(config.train.deterministic)
    torch.manual_seed(config.seed)
    spec = network_spec(config, training.format)
    unet = UNet(**spec.to_json())
    unet.to(device)  # pyright: ignore[reportArgumentType] # diffusers wraps `to` without its types
    task = DenoiseTask(
        objective=make_objective(config, training.format),
        format=training.format,
        spec=spec,
        validation=validation,
        sampling=config.sampling,
        label_dropout=config.diffusion.label_dropout,
        seed=config.seed,
        validation_size=config.train.validation_size,
        sample_count=config.train.sample_count,
        batch_size=max(1, config.train.batch_size // state.num_processes // config.train.accumulation),
    )
    runtime = share(_first(state, lambda: _decide(config, run, unet, task, training, state.num_processes)))
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    accelerator = make_accelerator(runtime.precision, config.train.tracker, str(run))
    accelerator.init_trackers("unetdiff", config={"run": run.name, "parameters": runtime.parameters})
    if accelerator.is_main_process:
        (run / "plan.txt").write_text(f"{unet.plan}\n")

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
            pin_memory=device.type == "cuda",
        )

    return Trainer(run, unet, task, batches, config.train, config.ema, config.seed, accelerator)


def _first(state: PartialState, act):
    """What `act` returns in the first process, None in the others; its errors end all of them."""
    outcome = None
    if state.is_main_process:
        try:
            outcome = act()
        except ValueError as error:
            outcome = error
    outcome = share(outcome)
    if isinstance(outcome, ValueError):
        raise outcome
    return outcome


def _check_shares(config: DenoiseConfig, processes: int) -> None:
    parts = processes * config.train.accumulation
    if config.train.batch_size % parts:
        raise ValueError(
            f"train.batch_size {config.train.batch_size} does not divide into {processes} process(es) x "
            f"{config.train.accumulation} micro-batches; expected a multiple of {parts}"
        )


def _set_determinism(wanted: bool) -> None:
    if wanted and torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def _decide(config: DenoiseConfig, run: Path, unet: UNet, task: DenoiseTask, source: Source, processes: int) -> Runtime:
    """What the run decides for itself: read from its folder, or decided now and stored there."""
    earlier = read_runtime(run)
    if earlier is not None:
        return earlier
    device = unet.device
    choice = PrecisionChoice(config.train.precision, "set by train.precision")
    if config.train.precision == "auto":
        batch = next(iter(training_loader(source, config.data, batch_size=min(task.batch_size, 16), seed=0, workers=0)))
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        choice = choose_precision(unet, lambda network: task.loss(network, moved), device)
        print(f"precision {choice.precision}: {choice.reason}")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    runtime = Runtime(
        choice.precision,
        choice.reason,
        config.train.compile,
        f"{device.type} ({name}, {torch.get_num_threads()} threads)",
        processes,
        parameters,
        versions(),
    )
    runtime.write(run)
    return runtime
