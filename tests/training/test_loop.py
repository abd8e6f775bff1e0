"""The loop: exact resume, any number of processes, accumulation, what it does with what is not finite."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tests.runs import ROOT, command, command_arguments, fit, left_behind, relative_difference, settings, trainer
from unetdiff.data.loader import training_loader
from unetdiff.runs import checkpoints, load_run
from unetdiff.training.health import TrainingStopped


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run that was never interrupted, with dropout so that its seeds matter."""
    run = tmp_path_factory.mktemp("straight") / "run"
    fit(run, model={"dropout": 0.3}, data={"random_flip": True, "random_crop": 2})
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(straight: Path, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    data = {"random_flip": True, "random_crop": 2, "workers": workers}
    fit(run, model={"dropout": 0.3}, data=data, steps=2)
    fit(run, model={"dropout": 0.3}, data=data)
    assert_close(left_behind(run), left_behind(straight), rtol=0, atol=0)


def test_another_seed_is_another_run(straight: Path, tmp_path: Path) -> None:
    from tests.runs import trainer as make

    made = make(tmp_path / "run", model={"dropout": 0.3}, data={"random_flip": True, "random_crop": 2})
    made.seed = 1
    made.fit()
    assert relative_difference(left_behind(straight), left_behind(tmp_path / "run")) > 0


def test_accumulation_changes_rounding_only(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    fit(tmp_path / "parts", accumulation=4)
    assert relative_difference(left_behind(tmp_path / "whole"), left_behind(tmp_path / "parts")) < 1e-5


@pytest.mark.parametrize(("processes", "steps"), [(2, 50), (4, 6)])
def test_processes_reach_the_weights_of_one(tmp_path: Path, processes: int, steps: int) -> None:
    fit(tmp_path / "one", steps=steps)
    words = command_arguments(tmp_path / "several", processes=processes, steps=steps)
    done = command("train/denoise.py", *words, processes=processes)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(tmp_path / "one"), left_behind(tmp_path / "several")) < 1e-5
    validations = [
        next(json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open() if '"validation"' in line)
        for name in ("one", "several")
    ]
    assert_close(validations[0]["loss"], validations[1]["loss"], rtol=1e-4, atol=1e-5)


def test_run_resumes_with_another_number_of_processes(tmp_path: Path) -> None:
    fit(tmp_path / "one")
    fit(tmp_path / "mixed", steps=3)
    done = command("train/denoise.py", *command_arguments(tmp_path / "mixed"), processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(tmp_path / "one"), left_behind(tmp_path / "mixed")) < 1e-5


def test_network_learns_one_batch_by_heart(tmp_path: Path) -> None:
    """With fixed positions, noise and timesteps are fixed too, so that the loss can go far down."""
    made = trainer(tmp_path / "run", steps=150, learning_rate=5e-3, checkpoint_every=1000, model={"channels": [16, 16]})
    batch = next(made.batches(0))

    def always(step: int):
        while True:
            yield batch

    made.batches = always
    made.fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.15 * losses[0]


def test_non_finite_steps_are_skipped_counted_and_explained(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    healthy = made.batches
    poisoned = {1, 4}

    def batches(step: int):
        for number, batch in enumerate(healthy(step), step):
            if number in poisoned:
                batch["sample"][0, 0, 0, 0] = torch.nan
            yield batch

    made.batches = batches
    made.fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    notes = [line for line in lines if line["kind"] == "note"]
    assert [note["step"] for note in notes] == [2, 5]
    # Position 1 * 8 + 0 and 4 * 8 + 0: the first sample of each poisoned batch.
    assert [note["text"].split("position(s) ")[1] for note in notes] == ["[8] of the run", "[32] of the run"]
    assert [line["skipped"] for line in lines if line["kind"] == "train"][-1] == 2
    assert all(tensor.isfinite().all() for tensor in left_behind(tmp_path / "run").values())


def test_training_stops_after_too_many_non_finite_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run, steps=3)
    before = left_behind(run)
    made = trainer(run, steps=20, non_finite_limit=4)
    made.unet.encoder["level1_block0"].register_forward_hook(lambda module, inputs, output: output * torch.inf)
    with pytest.raises(TrainingStopped, match=r"4 steps in a row.*encoder\.level1_block0.*of step 3"):
        made.fit()
    assert_close(left_behind(run), before, rtol=0, atol=0)
    assert load_run(run).unet is not None


def test_sigterm_saves_and_the_same_command_goes_on(straight: Path, tmp_path: Path) -> None:
    fit(tmp_path / "straight", steps=40)
    run = tmp_path / "run"
    words = command_arguments(run, steps=40, checkpoint_every=1000)
    process = subprocess.Popen(
        [sys.executable, "train/denoise.py", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (run / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "the same command goes on from there" in errors
    step = int(checkpoints(run)[-1].name.removeprefix("step-"))
    assert 0 < step < 40
    assert command("train/denoise.py", *words).returncode == 0
    assert_close(left_behind(run), left_behind(tmp_path / "straight"), rtol=0, atol=0)


def test_finished_run_says_so_and_changes_nothing(straight: Path, capsys) -> None:
    def contents() -> dict[str, bytes]:
        files = (path for path in straight.rglob("*") if path.is_file())
        return {str(path.relative_to(straight)): path.read_bytes() for path in files}

    before = contents()
    fit(straight, model={"dropout": 0.3}, data={"random_flip": True, "random_crop": 2})
    assert contents() == before
    assert "has all its 6 steps already" in capsys.readouterr().err


def test_picture_that_a_kill_left_out_is_made_up_for(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    picture = tmp_path / "run" / "samples" / "step-00000006.png"
    before = picture.read_bytes()
    picture.unlink()
    fit(tmp_path / "run")
    assert picture.read_bytes() == before


def test_fewer_steps_than_were_trained_are_refused(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    with pytest.raises(ValueError, match="has 6 steps already"):
        fit(tmp_path / "run", steps=3)


def test_extended_run_loads_its_newest_network(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run, steps=3)
    first = load_run(run)
    made = trainer(run, steps=100)
    made.request.signal = signal.SIGTERM
    with pytest.raises(TrainingStopped):
        made.fit()
    later = load_run(run)
    assert later.folder == checkpoints(run)[-1]
    assert any(not torch.equal(a, b) for a, b in zip(first.unet.parameters(), later.unet.parameters(), strict=True))


def test_run_without_a_checkpoint_takes_corrected_settings(tmp_path: Path) -> None:
    trainer(tmp_path / "run", learning_rate=1.0)
    fit(tmp_path / "run", learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"learning_rate 0\.001, not 1\.0"):
        trainer(tmp_path / "run", learning_rate=1.0)


def test_other_data_are_noticed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(images / f"{number:02d}.png")
    data = {"source": "folder", "path": str(images), "validation_fraction": 0.2}
    fit(tmp_path / "run", data=data, steps=3)
    images.rename(tmp_path / "moved")
    moved = {**data, "path": str(tmp_path / "moved")}
    fit(tmp_path / "run", data=moved, steps=4)
    (tmp_path / "moved" / "03.png").unlink()
    with pytest.raises(ValueError, match="training was 16, is"):
        fit(tmp_path / "run", data=moved, steps=5)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    done = command("train/denoise.py", *command_arguments(tmp_path / "run"))
    assert done.returncode == 2
    assert "is being trained by another process" in done.stderr
    made.fit()


POISONED = """
import sys, torch
from pathlib import Path
from tests.runs import trainer
from unetdiff.command import run_command
made = trainer(Path(sys.argv[1]), non_finite_limit=2)
if made.accelerator.process_index == 1:
    if sys.argv[2] == "network":
        made.unet.encoder["level1_block0"].register_forward_hook(lambda module, inputs, output: output * torch.inf)
    healthy = made.batches
    def batches(step):
        for number, batch in enumerate(healthy(step), step):
            if number == 2 and sys.argv[2] == "file":
                raise ValueError("somewhere/broken.png cannot be decoded")
            if sys.argv[2] == "data":
                batch["sample"][0] = torch.nan
            yield batch
    made.batches = batches

def main():
    try:
        made.fit()
    except Exception as error:
        sys.stdout.write(f"{made.accelerator.process_index} said: {error}\\n")  # in one piece
    return 0

run_command(main)
"""


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("data", "the data themselves are not finite"),
        ("network", "encoder.level1_block0"),
        ("file", "process 1: somewhere/broken.png cannot be decoded"),
    ],
)
def test_what_one_process_finds_all_say(what: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(POISONED)
    words = [str(tmp_path / "program.py"), str(tmp_path / "run"), what]
    done = command(*words, processes=2, PYTHONPATH=str(ROOT))
    said = [line for line in done.stdout.splitlines() if " said: " in line]
    assert len(said) == 2, done.stderr
    assert all(expected in line for line in said), said


def test_old_checkpoints_make_room(tmp_path: Path) -> None:
    fit(tmp_path / "run", checkpoint_every=1, keep_checkpoints=2)
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-00000005", "step-00000006"]


def test_loop_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    """Dropout is reseeded at every step; batches must not depend on what was drawn before."""
    made = trainer(tmp_path / "run")
    first = next(made.batches(3))
    torch.manual_seed(99)
    config = settings(tmp_path / "run")
    source = made.task.validation  # pyright: ignore
    torch.randn(5)
    again = next(made.batches(3))
    assert_close(first, again, rtol=0, atol=0)
    one = next(training_loader(source, config.data, batch_size=4, seed=0))
    torch.randn(5)
    assert_close(next(training_loader(source, config.data, batch_size=4, seed=0)), one, rtol=0, atol=0)


def test_two_launches_that_meet_are_two_machines(tmp_path: Path) -> None:
    """Two launchers of one process each, with a folder each and nothing shared but the network of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", "--", str(ROOT / "train/denoise.py")]
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    machines = [
        subprocess.Popen(
            [sys.executable, *words, *command_arguments(Path("run"))],
            cwd=tmp_path / folder,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for folder in ("first", "second")
    ]
    for machine in machines:
        _, errors = machine.communicate(timeout=120)
        assert machine.returncode == 0, errors
    fit(tmp_path / "alone")
    runs = [tmp_path / folder / "run" for folder in ("first", "second") if (tmp_path / folder / "run").exists()]
    assert len(runs) == 1, "only the first process writes"
    assert relative_difference(left_behind(tmp_path / "alone"), left_behind(runs[0])) < 1e-5
