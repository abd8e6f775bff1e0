"""Running a pipeline: what is finished is left alone, what was interrupted goes on, what changed is seen."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from hashlib import blake2b
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np

from unetdiff.command import speaking_of, user_errors
from unetdiff.data.pairs import open_pairs
from unetdiff.files import read_json, write_json
from unetdiff.masks.command import segment_files
from unetdiff.pipeline_config import MasksStage, Pipeline, Stage, TrainingStage
from unetdiff.run_config import to_plain
from unetdiff.segment_config import parse_segment
from unetdiff.training.command import train
from unetdiff.training.denoise import denoising_trainer
from unetdiff.training.processes import first_alone, start_processes
from unetdiff.training.run_folder import CONFIG, check_same_settings
from unetdiff.training.segment import segmentation_trainer

MaskArguments = Callable[[Sequence[str]], argparse.Namespace]
"""The command line of sample/masks.py as options."""

TRAINERS: dict[str, Callable[[Any], Any]] = {"denoise": denoising_trainer, "segment": segmentation_trainer}
"""By the kind of a training stage."""


def run_pipeline(pipeline: Pipeline, mask_arguments: MaskArguments) -> int:
    """Every stage in its order; returns the exit code, 1 where training stopped before its end.

    A record beside each stage's folder, NAME.json, says what it was made of and whether it is done. Called again, a
    finished stage is skipped and an interrupted one goes on. A training stage that was begun keeps its settings (those
    that a run may change excepted) and the stages that it was built on: others are refused, until its folder is
    deleted, and then it is trained anew. A stage of kind masks is made anew by itself.
    """
    with user_errors():
        options = _mask_options(pipeline, mask_arguments)
        state = start_processes(None)
    for stage in pipeline.stages:
        with speaking_of(f"stage {stage.name} of {pipeline.file}"):
            with user_errors():
                done = first_alone(lambda stage=stage: _begin(pipeline, stage))
            if done:
                _say(state, f"{stage.name}: finished before ({stage.folder})")
                continue
            code = _run(stage, options.get(stage.name), state)
            if code:
                return code
            with user_errors():
                first_alone(lambda stage=stage: _finish(pipeline, stage))
    _say(state, f"pipeline finished: {pipeline.folder}")
    return 0


def _say(state: Any, text: str) -> None:
    if state.is_main_process:
        print(text, flush=True)


def _mask_options(pipeline: Pipeline, mask_arguments: MaskArguments) -> dict[str, argparse.Namespace]:
    """The options of every stage of kind masks, so that a wrong one is seen before anything is trained."""
    options = {}
    for stage in pipeline.stages:
        if isinstance(stage, MasksStage):
            with speaking_of(f"stage {stage.name} of {pipeline.file}"):
                options[stage.name] = mask_arguments(stage.words)
    return options


def _run(stage: Stage, options: argparse.Namespace | None, state: Any) -> int:
    """The work of a stage; the exit code."""
    if isinstance(stage, TrainingStage):
        return train(lambda: TRAINERS[stage.kind](stage.config))
    assert isinstance(stage, MasksStage)
    with user_errors():
        if stage.split is not None:
            first_alone(lambda: _write_split(stage))
        assert options is not None
        lines = segment_files(options, state)
    _say(state, "\n".join(lines))
    return 0


def _made_of(stage: Stage) -> dict[str, Any]:
    """What a stage says of itself."""
    if isinstance(stage, TrainingStage):
        return to_plain(stage.config)
    assert isinstance(stage, MasksStage)
    return {"words": stage.words, "split": stage.split, "limit": stage.limit}


def _record(pipeline: Pipeline, name: str) -> Path:
    return pipeline.folder / f"{name}.json"


def _read(pipeline: Pipeline, stage: Stage) -> dict[str, Any]:
    """What is known of a stage; nothing without its folder, which someone may have deleted."""
    path = _record(pipeline, stage.name)
    return read_json(path) if path.is_file() and stage.folder.is_dir() else {}


def _identity(record: dict[str, Any]) -> str:
    """What a finished stage is, as those that are built on it know it."""
    text = dumps([record["settings"], record["after"]], sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _begin(pipeline: Pipeline, stage: Stage) -> bool:
    """Check a stage against its record and write a new one; returns whether it is finished.

    Raises:
        ValueError: a run that was begun would be another one.
    """
    held = _read(pipeline, stage)
    now = {"settings": _made_of(stage), "after": {name: read_json(_record(pipeline, name))["identity"]
                                                  for name in stage.after}}  # fmt: skip
    if held and isinstance(stage, TrainingStage):
        check_same_settings(held["settings"], now["settings"], stage.folder)
        for name, identity in now["after"].items():
            if held["after"].get(name) != identity:
                raise ValueError(f"{stage.folder} was built on another {name}: delete the folder to train it anew")
    finished = held.get("done", False) and held["after"] == now["after"] and _as_long(stage, held, now)
    if not finished:
        if isinstance(stage, MasksStage) and stage.folder.is_dir():
            shutil.rmtree(stage.folder)
        pipeline.folder.mkdir(parents=True, exist_ok=True)
        write_json(_record(pipeline, stage.name), {**now, "done": False})
    return finished


def _as_long(stage: Stage, held: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a finished stage is what it is to be: a run of so many steps, or these masks."""
    if isinstance(stage, TrainingStage):
        return held["settings"]["train"]["steps"] == now["settings"]["train"]["steps"]
    return held["settings"] == now["settings"]


def _finish(pipeline: Pipeline, stage: Stage) -> None:
    """Note that a stage is done."""
    record = read_json(_record(pipeline, stage.name))
    write_json(_record(pipeline, stage.name), {**record, "done": True, "identity": _identity(record)})


def _write_split(stage: MasksStage) -> None:
    """The images of a split of the first run's data and their masks, as arrays by number."""
    run = Path(stage.runs[0])
    data = open_pairs(parse_segment([str(run / CONFIG), "--run_dir", str(run)]).data)
    pairs = getattr(data, str(stage.split)).pairs[: stage.limit]
    if not pairs:
        raise ValueError(f"the data of {run} have no split {stage.split}; expected one that holds images")
    for name in ("images", "masks"):
        (stage.folder / "data" / name).mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(pairs):
        for name, array in (("images", pair.image()), ("masks", pair.mask().array)):
            np.save(stage.folder / "data" / name / f"{number:05d}.npy", array)
