"""Pipelines: one YAML file with runs and evaluations in their order. No torch.

folder: runs/few_labels            # default: runs/ and the file's name
stages:
  denoiser:
    kind: denoise                  # as train/denoise.py
    config: scenes_denoiser.yaml   # beside the pipeline's file
    settings:                      # over those of the file
      train: {steps: 400}
  segmenter:
    kind: segment                  # as train/segment.py
    config: scenes_few_labels.yaml
    settings:
      model:
        init_from: ${denoiser}     # the folder of an earlier stage
  masks:
    kind: masks                    # as sample/masks.py
    runs: ${segmenter}
    split: test                    # of the first run's data; or images: and truth: folders
    options: {hd95: true}
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetdiff.command import speaking_of
from unetdiff.config import parse_denoise
from unetdiff.run_config import RunConfig, read_yaml
from unetdiff.segment_config import parse_segment

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Stage:
    """One stage, checked.

    name, kind: as in the file. folder: where its results go. after: the earlier stages that it names.
    """

    name: str
    kind: str
    folder: Path
    after: tuple[str, ...]


@dataclass(frozen=True)
class TrainingStage(Stage):
    """A run: config, its settings."""

    config: RunConfig


@dataclass(frozen=True)
class MasksStage(Stage):
    """Masks by trained networks.

    runs: their folders. images, truth: folders of images and of their masks; or split, of the first run's data, and
    limit, how many of its images, None for all. options: those of sample/masks.py.
    """

    runs: tuple[str, ...]
    images: str | None
    truth: str | None
    split: str | None
    limit: int | None
    options: Mapping[str, Any]

    @property
    def words(self) -> list[str]:
        """The command line of sample/masks.py."""
        data = self.folder / "data"
        truth = self.truth if self.split is None else str(data / "masks")
        given = {"truth": truth, **self.options, "out": str(self.folder)}
        words = [*self.runs, self.images if self.images is not None else str(data / "images")]
        for name, value in given.items():
            if value is None or value is False:
                continue
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{name}"] if value is True else [f"--{name}", text]
        return words


@dataclass(frozen=True)
class Pipeline:
    """file: the YAML file. folder: below which every stage has its folder. stages: in their order."""

    file: str
    folder: Path
    stages: tuple[Stage, ...]


def read_pipeline(file: str, folder: str | None = None) -> Pipeline:
    """A pipeline, every stage of it checked as far as that goes before anything is trained.

    A wrong setting within a stage ends the program with one sentence that names the stage, and exit code 2.

    Args:
        file: the YAML file. folder: instead of the one that it names.

    Raises:
        ValueError: there is no such file, or it is no pipeline.
    """
    if not Path(file).is_file():
        raise ValueError(f"there is no pipeline {file}")
    held = read_yaml(file)
    given = held.get("stages")
    unknown = sorted(set(held) - {"folder", "stages"})
    if unknown or not isinstance(given, dict) or not given:
        found = f"has {unknown[0]!r}" if unknown else "has no stages"
        raise ValueError(f"{file} {found}; expected folder, and stages by name")
    root = Path(folder or held.get("folder") or Path("runs") / Path(file).stem)
    stages: dict[str, Stage] = {}
    for name, settings in given.items():
        with speaking_of(f"stage {name} of {file}"):
            stages[str(name)] = _stage(str(name), settings, root, Path(file).parent, stages)
    return Pipeline(file, root, tuple(stages.values()))


def _stage(name: str, given: Any, root: Path, beside: Path, earlier: Mapping[str, Stage]) -> Stage:
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise ValueError(f"stages names {name!r}; expected a word of letters, digits, - and _")
    kind = given.get("kind") if isinstance(given, dict) else None
    if kind not in KINDS:
        raise ValueError(f"stage {name}: kind is {kind!r}; expected {', '.join(KINDS)}")
    make, known, needed = KINDS[kind]
    for key in given:
        if key not in ("kind", *known):
            raise ValueError(f"stage {name}: {key} is no setting of kind {kind}; expected {', '.join(known)}")
    for key in needed:
        if not given.get(key):
            raise ValueError(f"stage {name}: {key} is missing")
    named: dict[str, None] = {}
    resolved = {key: _resolved(value, f"stage {name}: {key}", earlier, named) for key, value in given.items()}
    return make(name, kind, root / name, tuple(named), resolved, beside)


def _resolved(value: Any, where: str, earlier: Mapping[str, Stage], named: dict[str, None]) -> Any:
    """A value of the file with every `${stage}` as that stage's folder; the stages go into `named`."""
    if isinstance(value, dict):
        return {key: _resolved(inner, f"{where}.{key}", earlier, named) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, where, earlier, named) for inner in value]
    if not isinstance(value, str):
        return value

    def folder(match: re.Match[str]) -> str:
        stage = earlier.get(match[1])
        if stage is None:
            known = ", ".join(earlier) or "none"
            raise ValueError(f"{where} names {match[0]}, which is no earlier stage; those are: {known}")
        named[match[1]] = None
        return str(stage.folder)

    return PLACEHOLDER.sub(folder, value)


def _training(parse: Callable[[Sequence[str]], RunConfig]) -> Callable[..., Stage]:
    """What makes the stages of a training command."""
    import yaml

    def make(name: str, kind: str, folder: Path, after: tuple[str, ...], given: dict[str, Any], beside: Path) -> Stage:
        file, settings = beside / str(given["config"]), given.get("settings") or {}
        if not file.is_file():
            raise ValueError(f"stage {name}: config: there is no settings file {file}")
        if not isinstance(settings, dict):
            raise ValueError(f"stage {name}: settings is {settings!r}; expected groups such as model: and train:")
        with tempfile.TemporaryDirectory() as scratch:
            whole = Path(scratch) / file.name
            whole.write_text(yaml.safe_dump(_merged(read_yaml(file), settings)))
            config = parse([str(whole), "--run_dir", str(folder)])
        return TrainingStage(name, kind, folder, after, config)

    return make


def _merged(under: Any, over: Any) -> Any:
    """Nested settings with others over them."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {**under, **{key: _merged(under.get(key), value) for key, value in over.items()}}


def _masks(name: str, kind: str, folder: Path, after: tuple[str, ...], given: dict[str, Any], beside: Path) -> Stage:
    runs, split, limit = given["runs"], given.get("split"), given.get("limit")
    options = given.get("options") or {}
    if (split is None) == (given.get("images") is None):
        raise ValueError(f"stage {name}: expected images, or split, and not both")
    if split is not None and (split not in SPLITS or given.get("truth") is not None):
        raise ValueError(f"stage {name}: split is {split!r}; expected {', '.join(SPLITS)}, without truth")
    if limit is not None and (split is None or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"stage {name}: limit is {limit!r}; expected at least 1, beside split")
    if not isinstance(options, dict) or {"out", "truth"} & set(options):
        raise ValueError(
            f"stage {name}: options is {options!r}; expected options of sample/masks.py but --out, --truth"
        )
    listed = tuple(map(str, runs)) if isinstance(runs, list) else (str(runs),)
    return MasksStage(name, kind, folder, after, listed, given.get("images"), given.get("truth"), split, limit, options)


_SETTINGS, _EVALUATION = ("config", "settings"), ("runs", "images", "truth", "split", "limit", "options")
KINDS: dict[str, tuple[Callable[..., Stage], tuple[str, ...], tuple[str, ...]]] = {
    "denoise": (_training(parse_denoise), _SETTINGS, ("config",)),
    "segment": (_training(parse_segment), _SETTINGS, ("config",)),
    "masks": (_masks, _EVALUATION, ("runs",)),
}
"""By kind: what makes a stage, its settings, and those that it needs."""
