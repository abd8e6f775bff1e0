"""Files that hold networks of other libraries, read without running what is in them."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unetdiff.files import read_json
from unetdiff.models.interop.foreign import from_foreign

if TYPE_CHECKING:
    from unetdiff.models.unet import UNet

# Where checkpoints keep the weights among other things.
WRAPPERS = ("state_dict", "model_state_dict", "model", "ema", "ema_state_dict")
_STORED = "weights."  # how tensors are called in a safetensors file that holds more than weights
_PARALLEL = "module."  # what DistributedDataParallel puts before every name


@dataclass(frozen=True)
class _Contents:
    """What a file holds: weights by the library's names, and its arguments and the library where it says them."""

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None
    library: str | None = None


def load_foreign(path: str | Path, *, library: str, config: Mapping[str, Any] | str | Path | None = None) -> UNet:
    """A network of another library from its file, as one of ours in evaluation mode.

    Args:
        path: `.safetensors`; `.pt`, `.pth`, `.bin` or `.ckpt` with nothing but tensors in it, as a state dict or as
            the one state dict under `state_dict`, `model`, `ema` or the like; or a diffusers folder: a model or a
            pipeline with a `unet`.
        library: a key of LIBRARIES.
        config: the constructor's arguments, as a mapping or a JSON file; without it, those that the folder's
            `config.json` or the metadata of the safetensors file hold.

    Raises:
        ValueError: in one sentence that names the file: it is missing, damaged, of another library, a pickle that
            would run code (none is ever loaded), without arguments, or not of the network that they describe.
    """
    path = Path(path)
    contents = _read(path)
    if contents.library not in (None, library):
        raise ValueError(f"{path} holds a network of {contents.library}, not of {library}")
    given = read_json(Path(config)) if isinstance(config, str | Path) else config
    arguments = contents.config if given is None else given
    if arguments is None:
        raise ValueError(f"{path} does not hold the network's arguments; give them as config, a mapping or a JSON file")
    try:
        return from_foreign(library, arguments, contents.weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def model_folder(path: Path) -> Path:
    """The folder of the network in a diffusers folder: its own, or the pipeline's `unet`."""
    return path / "unet" if (path / "unet").is_dir() else path


def _read(path: Path) -> _Contents:
    if path.is_dir():
        return _read_folder(model_folder(path))
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is called {path.suffix or 'without a suffix'}; expected {', '.join(_READERS)}")
    return _READERS[path.suffix](path)


def _read_folder(folder: Path) -> _Contents:
    """A model as diffusers saves it."""
    found = [folder / f"diffusion_pytorch_model{suffix}" for suffix in (".safetensors", ".bin")]
    files = [file for file in found if file.is_file()]
    if not files or not (folder / "config.json").is_file():
        wanted = f"config.json and {found[0].name}, in one piece and no variant"
        raise ValueError(f"{folder} is no diffusers model; expected {wanted}")
    return _Contents(_read(files[0]).weights, read_json(folder / "config.json"), "diffusers")


def _read_safetensors(path: Path) -> _Contents:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # not a mapping
            metadata = file.metadata() or {}
        config = json.loads(metadata["config"]) if "config" in metadata else None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    stored = {name.removeprefix(_STORED): tensor for name, tensor in tensors.items() if name.startswith(_STORED)}
    return _Contents(_bare(stored or tensors), config, metadata.get("library"))


def _read_torch(path: Path) -> _Contents:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it then refuses
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _code(path) from error
    except Exception as error:  # torch has many for a damaged file
        raise ValueError(f"{path} cannot be read: {str(error).split('. ')[0] or 'it ends too early'}") from error
    return _Contents(_bare(_state_dict(path, held)))


def _refuse(path: Path) -> _Contents:
    raise _code(path)


def _code(path: Path) -> ValueError:
    return ValueError(
        f"{path} is a pickle that may run code, which is never loaded; "
        "save its weights as safetensors in the environment it comes from, as docs/interop.md shows"
    )


_READERS: dict[str, Callable[[Path], _Contents]] = {
    ".safetensors": _read_safetensors,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _read_torch),
    **dict.fromkeys((".pkl", ".pickle"), _refuse),
}


def _state_dict(path: Path, held: Any) -> Mapping[str, Tensor]:
    """What a file holds, or the one state dict in it."""
    if _is_state_dict(held):
        return held
    entries = held if isinstance(held, dict) else {}
    nested = [name for name, entry in entries.items() if _is_state_dict(entry)]
    if len(nested) == 1 and nested[0] in WRAPPERS:
        return entries[nested[0]]
    found = ", ".join(map(repr, entries)) or f"a {type(held).__name__}"
    raise ValueError(f"{path} holds {found}; expected a state dict, or one alone under {', '.join(WRAPPERS)}")


def _is_state_dict(held: Any) -> bool:
    return isinstance(held, Mapping) and bool(held) and all(isinstance(entry, Tensor) for entry in held.values())


def _bare(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the prefix of DistributedDataParallel, where all names have it."""
    if not all(name.startswith(_PARALLEL) for name in state):
        return state
    return {name.removeprefix(_PARALLEL): tensor for name, tensor in state.items()}
