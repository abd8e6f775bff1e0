"""From settings to a trainer: what every kind of run does before its first step."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.data.loader import Batch
from unetdiff.files import read_json, write_text
from unetdiff.levels import Backbone
from unetdiff.models.unet import UNet
from unetdiff.precision import PrecisionChoice
from unetdiff.run_config import RunConfig, TrainConfig
from unetdiff.runs import checkpoints
from unetdiff.spec import UNetSpec
from unetdiff.training.form import Trial, choose_forms, no_compiler, to_channels_last
from unetdiff.training.loop import Trainer
from unetdiff.training.precision import check_precision, choose_precision
from unetdiff.training.processes import device_of, first_alone, make_accelerator, start_processes, together
from unetdiff.training.run_folder import Runtime, check_same_data, open_run_folder, read_runtime, versions
from unetdiff.training.task import Task
from unetdiff.typed import plain

TIMED_BATCH = 16  # samples that decide on the precision and the form, at most, on a CPU


def build_unet(spec: UNetSpec) -> UNet:
    """The network of these settings, with random weights."""
    return UNet(**spec.to_json())


@dataclass(frozen=True)
class Workload:
    """What a run trains, and on what.

    spec: of the network. task: what it is trained to do. loader: makes a process's endless batches; it takes what
    `training_loader` takes by keyword. data: what identifies the data. initialise: fills a new network where its first
    weights are not to be random. build: the network of a spec, where it is more than a U-Net.
    """

    spec: UNetSpec
    task: Task
    loader: Callable[..., Generator[Batch]]
    data: dict[str, Any]
    initialise: Callable[[UNet], None] | None = None
    build: Callable[[UNetSpec], UNet] = build_unet


def make_trainer(config: RunConfig, open_workload: Callable[[int], Workload]) -> Trainer:
    """Check everything, then build the trainer of a run; nothing is trained yet.

    Args:
        config: the settings of the run.
        open_workload: reads the data and builds the task, for batches of so many samples per process; called in every
            process.

    Raises:
        ValueError: whatever a user can get wrong, in one sentence that names it.
    """
    state = start_processes(config.train.processes)
    device = device_of(state)
    check_precision(config.train.precision, device)
    _check_shares(config.train, state.num_processes)
    _set_determinism(config.train.deterministic)
    share = max(1, config.train.batch_size // state.num_processes // config.train.accumulation)
    work = together(lambda: open_workload(share))
    run = config.folder
    backbone = first_alone(lambda: _saved_backbone(run, work.spec))
    torch.manual_seed(config.seed)
    unet = work.build(replace(work.spec, backbone=backbone))
    if work.initialise is not None:
        work.initialise(unet)
    unet.set_memory(config.model.memory, config.model.checkpoint_levels)
    unet.to(device)  # pyright: ignore[reportArgumentType] # diffusers wraps `to` without its types
    first_alone(lambda: open_run_folder(config))
    runtime = first_alone(lambda: read_runtime(run) or _decide(config.train, unet, work, share, state.num_processes))
    together(lambda: check_same_data(runtime.data, work.data, run))
    first_alone(lambda: _describe(run, runtime, unet))
    _take_form(unet, runtime)
    accelerator = make_accelerator(runtime.precision, config.train.tracker, str(run))
    accelerator.init_trackers("unetdiff", config={"run": run.name, "parameters": runtime.parameters})

    def batches(step: int):
        return work.loader(
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=step,
            rank=state.process_index,
            world_size=state.num_processes,
            micro_batches=config.train.accumulation,
            prepare=work.task.prepare,
            device=device,
        )

    return Trainer(run, unet, work.task, batches, config.train, config.ema, config.seed, accelerator)


def _saved_backbone(run: Path, spec: UNetSpec) -> Any:
    """The backbone of a run as its newest checkpoint has it, so that going on looks nothing up; else as it is set."""
    found = checkpoints(run)
    set_now = plain(spec.backbone)
    if spec.foreign is None or not found:
        return set_now
    saved = read_json(found[-1] / "unet" / "config.json").get("backbone") or {}
    same = bool(saved) and Backbone.of(saved).name == spec.foreign.name
    return {**saved, "frozen": spec.foreign.frozen} if same else set_now


def _describe(run: Path, runtime: Runtime, unet: UNet) -> None:
    """Store what the run decided, and its network as a table."""
    runtime.write(run)
    write_text(run / "plan.txt", f"{unet.plan}\n")


def _check_shares(train: TrainConfig, processes: int) -> None:
    parts = processes * train.accumulation
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size {train.batch_size} does not divide into {processes} process(es) x "
            f"{train.accumulation} micro-batches; expected a multiple of {parts}"
        )


def _set_determinism(wanted: bool) -> None:
    """On GPUs, have torch refuse kernels that do not repeat bit for bit."""
    if wanted and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _decide(train: TrainConfig, unet: UNet, work: Workload, share: int, processes: int) -> Runtime:
    """What the run decides for itself, once."""
    device = unet.device
    samples = share if device.type == "cuda" else min(share, TIMED_BATCH)

    @cache
    def loss() -> Callable[[nn.Module], Tensor]:
        """Of a batch that decides."""
        batch = next(work.loader(batch_size=samples, seed=0, workers=0, prepare=work.task.prepare, device=device))
        return lambda network: work.task.loss(network, batch)

    choice = PrecisionChoice(train.precision, "set by train.precision")
    said = []
    if train.precision == "auto":
        choice = choose_precision(unet, loss(), device)
        said.append(f"precision {choice.precision}: {choice.reason}")
    low, passes = choice.precision != "float32", train.steps * train.accumulation * share // samples
    layout, compiled = choose_forms(
        train.channels_last, train.compile, lambda: Trial(unet, unet.layout.dims, loss(), device, low, passes)
    )
    for name, form in (("channels-last", layout), ("compilation", compiled)):
        said += [f"{name} {'on' if form.on else 'off'}: {form.reason}"] if form.told else []
    if said:
        print("; ".join(said))
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    return Runtime(
        precision=choice.precision,
        precision_reason=choice.reason,
        compile=compiled.on,
        compile_reason=compiled.reason,
        channels_last=layout.on,
        channels_last_reason=layout.reason,
        device=f"{device.type} ({name}, {torch.get_num_threads()} threads)",
        processes=processes,
        parameters=parameters,
        versions=versions(),
        data=work.data,
    )


def _take_form(unet: UNet, runtime: Runtime) -> None:
    """Put the network into the form that the run decided on; where nothing compiles any more, say so."""
    if runtime.channels_last:
        to_channels_last(unet, unet.layout.dims)
    missing = no_compiler(unet.device) if runtime.compile else None
    if missing is not None:
        first_alone(lambda: print(f"compilation off: {missing}"))
    elif runtime.compile:
        unet.compile()
