"""Run folders, as seen from outside: where the networks are, and how to write and load one.

A run folder holds the final network in the diffusers layout (`model_index.json`, `unet/`, `scheduler/`) beside
`data_format.json`; every folder under `checkpoints/` has the same layout and `training/` with what resuming needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unetdiff.data.formats import DataFormat
from unetdiff.files import write_folder, write_json

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, ModelMixin

    from unetdiff.models.unet import UNet

Weights = Literal["ema", "raw"]

INDEX = "model_index.json"
FORMAT = "data_format.json"
DONE = "DONE.json"
RAW_WEIGHTS = "training/weights.safetensors"


@dataclass(frozen=True)
class Run:
    """A loaded network and what sampling from it needs.

    unet: in evaluation mode. scheduler: the noise schedule of its training. format: the form of its data.
    folder: where it was read.
    """

    unet: ModelMixin
    scheduler: DDPMScheduler
    format: DataFormat
    folder: Path


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{DONE}"))


def write_network(folder: Path, unet: UNet, scheduler: DDPMScheduler, format: DataFormat) -> None:
    """Write a network as `DDPMPipeline.from_pretrained` and `load_run` read it; the index comes last.

    A kill at any moment leaves the previous network, the new one, or a folder without index, which says so.
    """
    (folder / INDEX).unlink(missing_ok=True)
    write_folder(folder / "unet", lambda inner: unet.save_pretrained(inner))
    write_folder(folder / "scheduler", lambda inner: scheduler.save_pretrained(inner))
    write_json(folder / FORMAT, format.to_dict())
    index = {"_class_name": "DDPMPipeline", "unet": ["unetdiff", "UNet"], "scheduler": ["diffusers", "DDPMScheduler"]}
    write_json(folder / INDEX, index)


def load_run(path: str | Path, *, checkpoint: str | None = None, weights: Weights = "ema", device: str = "cpu") -> Run:
    """Load a network by its folder alone.

    Args:
        path: a run folder (its final network, or its newest checkpoint while it trains), a checkpoint, or any
            diffusers folder with a U-Net and a scheduler.
        checkpoint: the name of one checkpoint of the run, such as `step-00001000`.
        weights: `ema`, the average that training kept (the raw weights where it kept none), or `raw`.
        device: where to put the network.

    Raises:
        ValueError: the folder is not there, holds no complete network, or not the weights asked for.
    """
    folder = _network_folder(Path(path), checkpoint)
    unet = _load_unet(folder)
    if weights == "raw":
        _load_raw(unet, folder, Path(path))
    from diffusers import DDPMScheduler

    if not (folder / "scheduler").is_dir():
        raise ValueError(f"{folder} has no scheduler folder; expected a run, a checkpoint or a diffusers pipeline")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert isinstance(scheduler, DDPMScheduler)
    return Run(unet.to(device).eval(), scheduler, _load_format(folder, unet), folder)  # pyright: ignore


def class_labels(text: str | None, run: Run) -> list[int] | None:
    """The labels that a command line names: `3`, `0,1,2`, class names, `none`, or nothing for every class in turn.

    Raises:
        ValueError: a name or number that is no class of the network.
    """
    count = run.unet.config.get("num_classes", run.unet.config.get("num_class_embeds")) or 0
    if text is None:
        return list(range(count)) or None
    if text.lower() == "none":
        return None
    names = run.format.class_names or ()
    labels = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry.lstrip("-").isdigit() and entry not in names:
            known = f"0 to {count - 1}" if count else "none: it has no classes"
            named = f" or one of: {', '.join(names)}" if names else ""
            raise ValueError(f"--labels names {entry!r}; this network's classes are {known}{named}")
        labels.append(names.index(entry) if entry in names else int(entry))
    return labels


def _network_folder(path: Path, checkpoint: str | None) -> Path:
    """The folder with the network's index."""
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}; expected a run, a checkpoint or a diffusers folder")
    found = checkpoints(path)
    if checkpoint is not None:
        chosen = path / "checkpoints" / checkpoint
        if chosen not in found:
            names = ", ".join(entry.name for entry in found) or "none"
            raise ValueError(f"{path} has no complete checkpoint {checkpoint!r}; it has: {names}")
        return chosen
    if (path / INDEX).is_file():
        return path
    if not found:
        raise ValueError(f"{path} holds no network: neither {INDEX} nor a complete checkpoint")
    return found[-1]


def _load_unet(folder: Path) -> Any:
    """The U-Net of a diffusers folder, ours or diffusers' own."""
    library, name = json.loads((folder / INDEX).read_text()).get("unet", (None, None))
    if (library, name) == ("unetdiff", "UNet"):
        from unetdiff.models.unet import UNet as Network
    elif (library, name) == ("diffusers", "UNet2DModel"):
        from diffusers import UNet2DModel as Network
    else:
        raise ValueError(
            f"{folder / INDEX} names the network {library}.{name}; expected UNet or diffusers' UNet2DModel"
        )
    try:
        return Network.from_pretrained(folder, subfolder="unet")
    except Exception as error:  # diffusers, safetensors and json each have their own for a damaged file
        raise ValueError(f"the network in {folder / 'unet'} cannot be read: {error}") from error


def _load_raw(unet: Any, folder: Path, run: Path) -> None:
    """Replace the average by the weights themselves, from the checkpoint that goes with the folder."""
    from safetensors.torch import load_file

    candidates = [folder, *([checkpoints(run)[-1]] if checkpoints(run) else [])]
    for candidate in candidates:
        if (candidate / RAW_WEIGHTS).is_file():
            unet.load_state_dict(load_file(candidate / RAW_WEIGHTS))
            return
    raise ValueError(f"{folder} holds no raw weights: they are in the checkpoints of a run")


def _load_format(folder: Path, unet: Any) -> DataFormat:
    """The stored form of the data; 8-bit images for a diffusers folder, which stores none."""
    path = folder / FORMAT
    if path.is_file():
        return DataFormat.from_dict(json.loads(path.read_text()))
    return DataFormat(dims=2, channels=unet.config["in_channels"], dtype="uint8", low=0.0, high=255.0)
