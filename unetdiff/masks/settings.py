"""What a run was trained with, by the settings in its folder, where that is the default of how it is used."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from unetdiff.segment_config import EvaluationConfig

CONFIG = "config.yaml"


def evaluation_of(folder: Path) -> EvaluationConfig:
    """How a run measures held-out images; the defaults where the folder of a network has no settings."""
    known = {entry.name for entry in fields(EvaluationConfig)}
    try:
        held = _settings(folder).get("evaluation", {})
        return EvaluationConfig(**{name: value for name, value in held.items() if name in known})
    except (AttributeError, TypeError, ValueError) as error:
        raise _unreadable(folder, error) from error


def flips_of(folder: Path) -> tuple[int, ...]:
    """The spatial axes that a run's images were mirrored along in training; none where its folder does not say."""
    try:
        axes = _settings(folder).get("data", {}).get("augment", {}).get("flips", [])
        return tuple(sorted({int(axis) for axis in axes}))
    except (AttributeError, TypeError, ValueError) as error:
        raise _unreadable(folder, error) from error


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of the run that a network's folder is, or lies in; `ValueError` where they are no YAML."""
    import yaml

    path = _path(folder)
    try:
        return yaml.safe_load(path.read_text()) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _path(folder: Path) -> Path:
    return (folder.parent.parent if folder.parent.name == "checkpoints" else folder) / CONFIG


def _unreadable(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{_path(folder)} cannot be read: {error}")
