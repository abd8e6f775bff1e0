"""Steps left out without the host waiting for the device: what `Trainer` does on a GPU, here on whatever there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.runs import left_behind, settings, trainer
from unetdiff.config import DiffusionConfig
from unetdiff.diffusion.options import VarianceName
from unetdiff.run_config import EmaConfig
from unetdiff.training.denoise import denoising_trainer
from unetdiff.training.ema import WeightAverages
from unetdiff.training.health import TrainingStopped
from unetdiff.training.loop import Trainer
from unetdiff.training.skipping import Skips, SkipTally


def tally_of(flags: list[int]) -> SkipTally:
    tally = SkipTally(torch.device("cpu"))
    for step, flag in enumerate(flags):
        tally.take(torch.tensor(float(flag)), step)
    return tally


def test_what_is_counted() -> None:
    tally = tally_of([0, 1, 1, 1, 0, 1, 1])
    assert tally.read() == Skips(count=5, row=2, longest=3, first=1)
    assert tally.read() == Skips(count=0, row=2, longest=2, first=-1)
    tally.take(torch.tensor(1.0), 7)
    assert tally.read() == Skips(count=1, row=3, longest=3, first=7)
    tally.take(torch.tensor(0.0), 8)
    assert tally.read() == Skips(count=0, row=0, longest=3, first=-1)


def test_averages_of_a_step_left_out_stay() -> None:
    module, twin = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    averages = WeightAverages(module, EmaConfig(kind="decay", decay=0.5))
    by_lerp = WeightAverages(module, EmaConfig(kind="decay", decay=0.5))
    before = [tensor.clone() for tensor in averages.averages[0]]
    module.load_state_dict(twin.state_dict())
    averages.update(5, torch.tensor(1.0))
    assert_close(averages.averages[0], before, rtol=0, atol=0)
    averages.update(5, torch.tensor(0.0))
    by_lerp.update(5)
    assert_close(averages.averages[0], by_lerp.averages[0])


def poisoned(made: Trainer, steps: set[int]) -> Trainer:
    """The trainer with a NaN in the first sample of some steps."""
    healthy: Callable = made.batches

    def batches(step: int):
        for number, batch in enumerate(healthy(step), step):
            if number in steps:
                batch["sample"][0, 0, 0, 0] = torch.nan
            yield batch

    made.batches = batches
    return made


def on_device(made: Trainer) -> Trainer:
    """As on a GPU."""
    made.tally = SkipTally(made.accelerator.device)
    return made


def lines_of(run: Path, kind: str) -> list[dict]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["kind"] == kind]


def test_the_device_leaves_out_what_the_host_would(tmp_path: Path) -> None:
    given = {"steps": 8, "checkpoint_every": 8, "log_every": 3, "model": {"dropout": 0.2}}
    poisoned(trainer(tmp_path / "host", **given), {1, 4}).fit()
    on_device(poisoned(trainer(tmp_path / "device", **given), {1, 4})).fit()
    host, device = left_behind(tmp_path / "host"), left_behind(tmp_path / "device")
    exact = {key for key in host if key.startswith("raw.") or key.startswith("optimizer.")}
    assert_close({key: device[key] for key in exact}, {key: host[key] for key in exact}, rtol=0, atol=0)
    assert_close(device, host)
    for mine, theirs in zip(lines_of(tmp_path / "device", "train"), lines_of(tmp_path / "host", "train"), strict=True):
        assert_close(mine["loss"], theirs["loss"])
        assert_close(mine["grad_norm"], theirs["grad_norm"])
        assert mine["skipped"] == theirs["skipped"]
    notes = lines_of(tmp_path / "device", "note")
    assert [note["step"] for note in notes] == [2, 5]
    assert [note["text"].split("position(s) ")[1] for note in notes] == ["[8] of the run", "[32] of the run"]


def test_a_run_that_the_device_left_out_too_often_stops_with_its_last_good_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = on_device(poisoned(trainer(run, steps=30, log_every=5, non_finite_limit=4), set(range(7, 30))))
    with pytest.raises(TrainingStopped, match=r"4 steps in a row.*the newest checkpoint is that of step 6"):
        made.fit()
    notes = [note["text"] for note in lines_of(run, "note")]
    assert len(notes) == 2  # the beginning and the end of the row
    assert notes[0].startswith("step 8 and 1 more up to step 9 skipped")
    assert "position(s) [56] of the run" in notes[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_no_step_waits_for_the_gpu(variance: VarianceName, tmp_path: Path) -> None:
    config = settings(tmp_path / "run", steps=12, log_every=100, model={"class_conditional": False})
    made = poisoned(denoising_trainer(replace(config, diffusion=DiffusionConfig(variance=variance))), {5})
    made.restore()
    made.begin(0)
    made.training_step(0)  # allocates, and moves tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 11):
            made.training_step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert made.tally is not None
    assert made.tally.read() == Skips(1, 0, 1, 5)
    assert all(weight.isfinite().all() for weight in made.unet.parameters())
    made.close()
