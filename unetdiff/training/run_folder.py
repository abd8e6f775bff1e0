"""A run folder, as training sees it: its settings, what the run decided for itself, and whether it is this run."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from unetdiff.config import DenoiseConfig, read_yaml, to_plain, write_yaml
from unetdiff.files import write_json

CONFIG = "config.yaml"
RUNTIME = "runtime.json"

# What may differ when a run goes on: where it is, what it writes, and how long; not what it computes.
FREE = (
    "run_dir",
    "data.workers",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.validate_every",
    "train.sample_every",
    "train.validation_size",
    "train.sample_count",
    "train.tracker",
    "train.processes",
    "train.non_finite_limit",
    "sampling",
)


def open_run_folder(config: DenoiseConfig) -> Path:
    """Make the folder, or check that the run in it is this one; the settings in it are then those given now.

    Raises:
        ValueError: the folder holds a run with other settings (the first that differs is named), or is not a folder.
    """
    folder = config.folder
    saved = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder for the run")
    if saved.is_file():
        _check_same(read_yaml(saved), to_plain(config), folder)
    elif folder.is_dir() and any(not path.name.startswith(".tmp-") for path in folder.iterdir()):
        raise ValueError(f"{folder} holds other files but no run; expected a new or empty folder, or a run's")
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(config, saved)
    return folder


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    free: set[str] = set(FREE)
    if new["train"]["decay"] in ("constant", "inverse_sqrt"):
        free.add("train.steps")  # the learning rate of a step does not depend on how many follow
    was, now = _flat(old), _flat(new)
    for key in now:
        kept = any(key == entry or key.startswith(entry + ".") for entry in free)
        if not kept and was.get(key) != now[key]:
            held = f"{folder} holds a run with {key} {was.get(key)!r}, not {now[key]!r}"
            raise ValueError(f"{held}: give another --run_dir, or that value")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, name + ".") if isinstance(value, dict) and value else {name: value}
    return flat


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What a run decides for itself, once, before its first step; and where it started."""

    precision: str
    precision_reason: str
    compile: bool
    device: str
    processes: int
    parameters: int
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Store it with the run."""
        write_json(folder / RUNTIME, dataclasses.asdict(self))


def read_runtime(folder: Path) -> Runtime | None:
    """What an earlier start of this run decided, or None."""
    path = folder / RUNTIME
    return Runtime(**json.loads(path.read_text())) if path.is_file() else None


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    names = ("unetdiff", "torch", "accelerate", "diffusers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
