"""Checkpoints: written whole or not at all, rotated, read by the first process and shared with the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from unetdiff.files import remove_folder, remove_leftovers, write_folder
from unetdiff.models.unet import UNet
from unetdiff.runs import AVERAGE, RAW_WEIGHTS, Companions, checkpoints, step_of, write_network
from unetdiff.training.ema import WeightAverages
from unetdiff.training.processes import together

OPTIMIZER = "training/optimizer.pt"


@dataclass(frozen=True)
class TrainingState:
    """All that a run must have back to go on exactly: everything else is a function of the seed and the step.

    scaler: the gradient scaler of fp16, or None.
    """

    unet: UNet
    optimizer: torch.optim.Optimizer
    averages: WeightAverages
    scaler: Any = None


def save_checkpoint(run: Path, step: int, state: TrainingState, beside: Companions, keep: int) -> Path:
    """Write `checkpoints/step-...`, then remove the oldest beyond `keep`. Only the first process calls this."""
    folder = run / "checkpoints" / f"step-{step:08d}"

    def fill(inner: Path) -> None:
        training = inner / "training"
        training.mkdir()
        with state.averages.swapped():
            write_network(inner, state.unet, beside, step)
        save_file(_contiguous(state.unet.state_dict()), inner / RAW_WEIGHTS)
        for profile in range(1, len(state.averages.averages)):
            save_file(_contiguous(state.averages.state(profile)), inner / AVERAGE.format(profile))
        scaler = None if state.scaler is None else state.scaler.state_dict()
        torch.save({"optimizer": state.optimizer.state_dict(), "scaler": scaler}, inner / OPTIMIZER)

    write_folder(folder, fill)
    for old in checkpoints(run)[:-keep]:
        remove_folder(old)
    return folder


def newest_step(run: Path) -> int:
    """The step of the newest complete checkpoint, 0 where there is none."""
    found = checkpoints(run)
    return (step_of(found[-1]) or 0) if found else 0


def clear_leftovers(run: Path) -> None:
    """Remove what a kill left half-written."""
    remove_leftovers(run)
    remove_leftovers(run / "checkpoints")


def load_checkpoint(run: Path, state: TrainingState) -> None:
    """Restore `state` from the newest checkpoint. The first process reads, the others receive: no shared disk needed.

    Raises:
        ValueError: the checkpoint is of another network, with the first keys that differ, or cannot be read.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    together(lambda: _read(checkpoints(run)[-1], state) if first else None)
    _fill_optimizer_state(state.optimizer)
    if dist.is_initialized() and dist.get_world_size() > 1:
        _share(state)


def _read(folder: Path, state: TrainingState) -> None:
    try:
        weights = load_file(folder / RAW_WEIGHTS)
        saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        averages = [load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")]
        averages += [load_file(folder / AVERAGE.format(i)) for i in range(1, len(state.averages.averages))]
    except Exception as error:  # each library has its own for a damaged file
        raise ValueError(
            f"the checkpoint {folder} cannot be read ({error}): remove it to go on from the one before"
        ) from error
    check_keys(weights, state.unet.state_dict(), folder)
    state.unet.load_state_dict(weights)
    state.optimizer.load_state_dict(saved["optimizer"])
    for profile in range(len(state.averages.averages)):
        state.averages.load(profile, averages[profile])
    if state.scaler is not None and saved["scaler"] is not None:
        state.scaler.load_state_dict(saved["scaler"])


def check_keys(found: dict[str, Tensor], expected: dict[str, Tensor], folder: Path) -> None:
    """Raise `ValueError` with the first keys or shapes in which two networks differ."""
    for key in sorted({*found, *expected}):
        shapes = [None if key not in weights else tuple(weights[key].shape) for weights in (found, expected)]
        if shapes[0] != shapes[1]:
            has, wants = ("nothing" if shape is None else f"shape {shape}" for shape in shapes)
            raise ValueError(f"{folder} is of another network: at {key} it has {has}, these settings make {wants}")


def _fill_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW, where it has no state yet, the zeros that it would start with: somewhere to receive into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                step = torch.zeros((), device=parameter.device if group.get("fused") else "cpu")
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": step, **moments}


def _share(state: TrainingState) -> None:
    """Send every tensor of the first process's state to the others."""
    device = next(state.unet.parameters()).device
    for tensor in _all_tensors(state):
        moved = tensor.to(device)
        dist.broadcast(moved, src=0)
        tensor.copy_(moved)
    if state.scaler is not None:
        box = [state.scaler.state_dict()]
        dist.broadcast_object_list(box, src=0)
        state.scaler.load_state_dict(box[0])


def _all_tensors(state: TrainingState) -> Iterable[Tensor]:
    with torch.no_grad():
        yield from (tensor.detach() for tensor in state.unet.state_dict().values())
        for group in state.optimizer.param_groups:
            for parameter in group["params"]:
                held = state.optimizer.state[parameter]
                yield from (held[name] for name in ("step", "exp_avg", "exp_avg_sq"))
        for average in state.averages.averages:
            yield from average


def _contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors takes: contiguous tensors."""
    return {name: tensor.contiguous() for name, tensor in weights.items()}
