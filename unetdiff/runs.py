"""Run folders, as seen from outside: where the networks are, and how to write and load one.

A run folder holds the final network in the diffusers layout (`model_index.json`, `unet/`, `scheduler/`) beside
`data_format.json`; every folder under `checkpoints/` has the same layout and `training/` with what resuming needs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import MaskEncoding
from unetdiff.files import read_json, write_folder, write_json

if TYPE_CHECKING:
    import torch
    from diffusers import ModelMixin
    from torch import nn

    from unetdiff.diffusion.schedule import Schedule
    from unetdiff.models.unet import UNet

INDEX = "model_index.json"
FORMAT = "data_format.json"
MASKS = "masks.json"
DONE = "DONE.json"
_NETWORKS = {
    ("unetdiff", "UNet"): "unetdiff.models.unet",
    ("unetdiff", "FeatureNetwork"): "unetdiff.models.feature_network",
    ("unetdiff", "MaskDenoiser"): "unetdiff.models.mask_denoiser",
    ("diffusers", "UNet2DModel"): "diffusers",
}
"""The networks that are loaded, as an index names them, and the module of each."""

RAW_WEIGHTS = "training/weights.safetensors"
AVERAGE = "training/ema_{}.safetensors"


@dataclass(frozen=True)
class _Kind:
    """One kind of noise schedule in a scheduler folder.

    keeper: the class of diffusers that holds it here. prefixes: how the classes are called from whose configuration
    it can be read. in_pipelines: whether DDPMPipeline samples from such a network as it should; it scales no input.
    """

    keeper: str
    prefixes: tuple[str, ...]
    in_pipelines: bool


_BETAS = ("DDPM", "DDIM", "PNDM", "DPMSolver", "UniPC", "EulerDiscrete", "EulerAncestral", "Heun", "DEIS")
_KINDS = (
    _Kind("DDPMScheduler", _BETAS, in_pipelines=True),
    _Kind("EDMEulerScheduler", ("EDMEuler", "EDMDPMSolver"), in_pipelines=False),
)


@dataclass(frozen=True)
class Companions:
    """What is stored beside a network, so that it can be used by its folder alone.

    format: the form of its data. scheduler: the noise schedule of its training, of a denoiser. masks: how the masks
    were written that it was trained on, of a segmentation network. settings: what else its use needs, as JSON.
    """

    format: DataFormat
    scheduler: Schedule | None = None
    masks: MaskEncoding | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A loaded network and what its use needs: `Companions`, and the folder where it was read.

    unet: in evaluation mode.
    """

    unet: ModelMixin
    beside: Companions
    folder: Path

    @property
    def format(self) -> DataFormat:
        """The form of its data."""
        return self.beside.format

    @property
    def scheduler(self) -> Schedule:
        """The noise schedule; `ValueError` for a network that only segments, which has none."""
        if self.beside.scheduler is None:
            raise ValueError(
                f"{self.folder} is a segmentation network, which draws no samples: sample/masks.py uses it"
            )
        return self.beside.scheduler

    @property
    def masks(self) -> MaskEncoding:
        """How its masks are written; `ValueError` for a denoiser, which makes none."""
        if self.beside.masks is None:
            raise ValueError(f"{self.folder} is a denoiser, which makes no masks: train/segment.py starts from it")
        return self.beside.masks


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{DONE}"))


def step_of(folder: Path) -> int | None:
    """How many steps the network in a folder was trained; None where the folder does not say."""
    path = folder / DONE
    return json.loads(path.read_text())["step"] if path.is_file() else None


def write_network(folder: Path, unet: UNet, beside: Companions, step: int | None = None) -> None:
    """Write a network as `DDPMPipeline.from_pretrained` and `load_run` read it; the index comes last.

    A kill at any moment leaves the previous network, the new one, or a folder without index, which says so. Where
    DDPMPipeline would sample wrongly the index names no scheduler, so that it refuses the folder; `load_run` finds
    the scheduler in its own. `step` is how long the network was trained, where that is known.
    """
    (folder / INDEX).unlink(missing_ok=True)
    hook = unet.register_state_dict_post_hook(_make_contiguous)
    try:
        write_folder(folder / "unet", lambda inner: unet.save_pretrained(inner))
    finally:
        hook.remove()
    write_json(folder / FORMAT, beside.format.to_dict())
    if beside.masks is not None:
        write_json(folder / MASKS, {"encoding": beside.masks.to_dict(), "settings": dict(beside.settings)})
    if step is not None:
        write_json(folder / DONE, {"step": step})
    index: dict[str, Any] = {"_class_name": "DDPMPipeline", "unet": ["unetdiff", type(unet).__name__]}
    if beside.scheduler is not None:
        index |= _write_scheduler(folder, beside.scheduler)
    write_json(folder / INDEX, index)


def _make_contiguous(_module: nn.Module, weights: dict[str, torch.Tensor], _prefix: str, _about: Any) -> None:
    """What safetensors takes: contiguous tensors, which those kept channels-last are not."""
    for name, tensor in weights.items():
        weights[name] = tensor.contiguous()


def _write_scheduler(folder: Path, scheduler: Schedule) -> dict[str, Any]:
    """Write a noise schedule; what the index says of it: nothing where there is nothing to sample from."""
    from unetdiff.diffusion.schedule import draws_samples

    write_folder(folder / "scheduler", lambda inner: scheduler.save_pretrained(inner))
    kind = _kind(type(scheduler).__name__)
    assert kind is not None, f"{type(scheduler).__name__} is no kind of noise schedule that load_run reads"
    sampled = kind.in_pipelines and draws_samples(scheduler)
    return {"scheduler": ["diffusers", kind.keeper]} if sampled else {}


def load_run(path: str | Path, *, checkpoint: str | None = None, weights: str = "ema", device: str = "cpu") -> Run:
    """Load a network by its folder alone.

    Args:
        path: a run folder (its final network, or its newest checkpoint while it trains), a checkpoint, or any
            diffusers folder with a U-Net and a scheduler.
        checkpoint: the name of one checkpoint of the run, such as `step-00001000`.
        weights: `ema`, the first average that training kept (the weights themselves where it kept none); `ema:1`,
            `ema:2`, ... the further ones; or `raw`, the weights themselves.
        device: where to put the network.

    Raises:
        ValueError: the folder is not there, holds no complete network, or not the weights asked for.
    """
    folder = _network_folder(Path(path), checkpoint)
    unet = _load_unet(folder)
    if weights != "ema":
        _load_weights(unet, folder, Path(path), weights)
    return Run(unet.to(device).eval(), _load_companions(folder, unet), folder)


def _load_companions(folder: Path, unet: Any) -> Companions:
    """What lies beside a network: a schedule, unless all that it makes are masks."""
    format, path = _load_format(folder, unet), folder / MASKS
    if not path.is_file():
        return Companions(format, load_scheduler(folder))
    held = read_json(path)
    scheduler = load_scheduler(folder) if (folder / "scheduler").is_dir() else None
    try:
        return Companions(format, scheduler, MaskEncoding.from_dict(held["encoding"]), held.get("settings", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


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
        trained = step_of(path)
        later = found and trained is not None and (step_of(found[-1]) or 0) > trained
        return found[-1] if later else path
    if not found:
        raise ValueError(f"{path} holds no network: neither {INDEX} nor a complete checkpoint")
    return found[-1]


def _load_unet(folder: Path) -> Any:
    """The U-Net of a diffusers folder, ours or diffusers' own; every weight must be there, and no other."""
    library, name = read_json(folder / INDEX).get("unet", (None, None))
    home = _NETWORKS.get((library, name))
    if home is None:
        known = ", ".join(f"{owner}.{kind}" for owner, kind in _NETWORKS)
        raise ValueError(f"{folder / INDEX} names the network {library}.{name}; expected one of {known}")
    network = getattr(importlib.import_module(home), name)
    try:
        loaded: Any = network.from_pretrained(folder, subfolder="unet", output_loading_info=True)
    except Exception as error:  # diffusers, safetensors and json each have their own for a damaged file
        raise ValueError(f"the network in {folder / 'unet'} cannot be read: {error}") from error
    unet, report = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            key = sorted(report[what], key=str)[0]
            raise ValueError(f"the weights in {folder / 'unet'} are of another network: {what.split('_')[0]} {key}")
    return unet


def _load_weights(unet: Any, folder: Path, run: Path, weights: str) -> None:
    """Replace the first average by other weights of the same step, from the checkpoint that has them."""
    from safetensors.torch import load_file

    kind, _, number = weights.partition(":")
    if weights != "raw" and not (kind == "ema" and number.isdigit() and int(number) > 0):
        raise ValueError(f"weights is {weights!r}; expected ema, ema:1 (a further average), or raw")
    name = RAW_WEIGHTS if weights == "raw" else AVERAGE.format(number)
    step = step_of(folder)
    for candidate in (folder, *checkpoints(run)):
        if step_of(candidate) == step and (candidate / name).is_file():
            unet.load_state_dict(load_file(candidate / name), strict=weights == "raw")
            return
    raise ValueError(f"{folder} has no weights {weights!r} of its step beside it: they are in the checkpoints of a run")


def load_scheduler(folder: Path) -> Schedule:
    """The noise schedule of the training of the network in `folder`.

    Raises:
        ValueError: there is none, or its kind is not known.
    """
    import diffusers

    if not (folder / "scheduler").is_dir():
        raise ValueError(f"{folder} has no scheduler folder; expected a run, a checkpoint or a diffusers pipeline")
    path = folder / "scheduler" / "scheduler_config.json"
    name = read_json(path).get("_class_name", "")
    kind = _kind(name)
    if kind is None:
        keepers = " or ".join(known.keeper for known in _KINDS)
        raise ValueError(f"{path} is of {name or 'no class'}; expected one with betas or of EDM, such as {keepers}")
    return getattr(diffusers, kind.keeper).from_pretrained(folder, subfolder="scheduler")


def _kind(scheduler: str) -> _Kind | None:
    """The kind of schedule that a class of diffusers describes."""
    return next((kind for kind in _KINDS if scheduler.startswith(kind.prefixes)), None)


def _load_format(folder: Path, unet: Any) -> DataFormat:
    """The stored form of the data; 8-bit images for a diffusers folder, which stores none."""
    path = folder / FORMAT
    if not path.is_file():
        return DataFormat(dims=2, channels=unet.config["in_channels"], dtype="uint8", low=0.0, high=255.0)
    try:
        return DataFormat.from_dict(read_json(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
