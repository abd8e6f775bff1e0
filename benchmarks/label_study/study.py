"""The work of a study: denoisers first, then every network whose result is not there yet."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.label_study.settings import Fit, StudyConfig, command_line
from benchmarks.mask_fits import fit_and_measure
from benchmarks.resumable import finished
from unetdiff.config import parse_denoise
from unetdiff.files import write_json
from unetdiff.progress import progress
from unetdiff.segment_config import parse_segment
from unetdiff.training.denoise import denoising_trainer


def pretrain(config: StudyConfig, places: Mapping[str, str], runs: Path, names: list[str]) -> None:
    """Train the denoisers that arms start from, each a run of its own; one that is there goes on, or is left alone."""
    for name in names:
        chosen = config.pretraining[name]
        words = [chosen.config, *command_line(config.settings_of(chosen), places), "--run_dir", str(runs / name)]
        denoising_trainer(parse_denoise(words)).fit()


def run_fits(
    config: StudyConfig, places: Mapping[str, str], runs: Path, folder: Path, shard: tuple[int, int] = (1, 1)
) -> None:
    """Fit and measure what has no result in `folder` yet; a killed process loses the network that it was fitting.

    Raises:
        ValueError: a result there was made under other conditions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fits = list(config.fits())[shard[0] - 1 :: shard[1]]
    waiting = [fit for fit in fits if not finished(folder / fit.file, config.conditions(fit))]
    for fit in progress(desc=folder.name, unit="network", iterable=waiting):
        print(f"{fit.arm}, {fit.n} labelled, draw {fit.draw}, seed {fit.seed}", file=sys.stderr)
        write_json(folder / fit.file, _result(config, fit, places, runs))


def _result(config: StudyConfig, fit: Fit, places: Mapping[str, str], runs: Path) -> dict:
    """The result of one network, as JSON."""
    arm = config.arms[fit.arm]
    known = {**places, **{name: str(runs / name) for name in config.pretraining}}
    words = command_line({**config.settings_of(arm), "data.train": config.labelled[fit.n][fit.draw]}, known)
    with tempfile.TemporaryDirectory() as scratch:
        chosen = parse_segment([config.segment, *words, "--run_dir", f"{scratch}/run"])
        result = fit_and_measure(arm.network, replace(chosen, seed=fit.seed), config.conditions(fit))
    return {"arm": fit.arm, "n": fit.n, "draw": fit.draw, **result}
