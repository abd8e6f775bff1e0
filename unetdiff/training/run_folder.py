"""A run folder, as training sees it: its settings, what the run decided for itself, and whether it is this run."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import unetdiff
from unetdiff.data.sources import Source
from unetdiff.files import write_json
from unetdiff.run_config import Precision, RunConfig, read_yaml, to_plain, write_yaml
from unetdiff.runs import INDEX, checkpoints
from unetdiff.training.log import METRICS

CONFIG = "config.yaml"
RUNTIME = "runtime.json"
HASHED = 16  # samples that identify a data set

# What may differ when a run goes on: where it is, what it writes, and how long; not what it computes.
FREE = (
    "run_dir",
    "model.memory",
    "model.checkpoint_levels",
    "data.path",
    "data.more_paths",
    "data.workers",
    "unlabelled.path",
    "unlabelled.workers",
    "train.accumulation",
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
    "train.compile",  # decided once: what the run holds goes on
    "train.channels_last",
    "sampling",
)


_locks: dict[Path, Any] = {}  # the open lock files of this process


def open_run_folder(config: RunConfig) -> None:
    """Make the folder, or check that the run in it is this one; the settings in it are then those given now.

    A run without any checkpoint yet holds nothing to lose: it takes other settings. The folder is this process's
    until `release_run_folder`, or its end.

    Raises:
        ValueError: the folder holds a run with other settings (the first that differs is named), another process
            trains in it, or it is not a folder for runs.
    """
    folder = config.folder
    saved = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder for the run")
    started = saved.is_file()
    if not started and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{folder} holds other files but no run; expected a new or empty folder, or a run's")
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    if started and (checkpoints(folder) or (folder / INDEX).is_file()):
        check_same_settings(read_yaml(saved), to_plain(config), folder)
    else:
        for name in (RUNTIME, METRICS):
            (folder / name).unlink(missing_ok=True)
    write_yaml(config, saved)


def _lock(folder: Path) -> None:
    """Keep other processes from training in the folder; the lock ends with this process, however it ends."""
    folder = folder.resolve()
    if folder in _locks:
        return
    file = (folder / ".lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ValueError(
            f"{folder} is being trained by another process: wait for it, or give another run_dir"
        ) from error
    _locks[folder] = file


def release_run_folder(folder: Path) -> None:
    """Let other processes train in the folder."""
    lock = _locks.pop(folder.resolve(), None)
    if lock is not None:
        lock.close()


def check_same_settings(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raise `ValueError` where a run would not be the one in the folder, with the first setting that differs.

    Args:
        old, new: complete settings, as `to_plain` gives them.
        folder: what messages call the run.
    """
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

    precision: Precision
    precision_reason: str
    device: str
    processes: int
    parameters: int
    versions: dict[str, str]
    data: dict[str, Any]
    compile: bool = False
    compile_reason: str = ""
    channels_last: bool = False
    channels_last_reason: str = ""

    def write(self, folder: Path) -> None:
        """Store it with the run."""
        write_json(folder / RUNTIME, dataclasses.asdict(self))


def read_runtime(folder: Path) -> Runtime | None:
    """What an earlier start of this run decided, or None."""
    path = folder / RUNTIME
    return Runtime(**json.loads(path.read_text())) if path.is_file() else None


def data_fingerprint(training: Source, validation: Source) -> dict[str, Any]:
    """What a run's data are: their form, how many there are, and a hash of the labels and of some samples."""
    digest = hashlib.sha256()
    for source in (training, validation):
        if source.labels is not None:
            digest.update(np.ascontiguousarray(source.labels).tobytes())
        if len(source):
            places = np.unique(np.linspace(0, len(source) - 1, HASHED).astype(int))
            digest.update(source.read(places)["sample"].tobytes())
    counts = {"training": len(training), "validation": len(validation)}
    return {**counts, "format": training.format.to_dict(), "hash": digest.hexdigest()[:16]}


def check_same_data(stored: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Raise `ValueError` where the data are not those that the run began with, with what differs."""
    for name, value in found.items():
        if stored.get(name) != value:
            raise ValueError(
                f"the data are not those that {folder} began with: {name} was {stored.get(name)}, is {value}; "
                "expected the same data, or another run_dir"
            )


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    names = ("torch", "accelerate", "diffusers", "datasets", "numpy")
    others = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), "unetdiff": unetdiff.__version__, **others}  # not installed: a clone
