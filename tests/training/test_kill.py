"""kill -9 at random moments: what a run reaches does not depend on it, and nothing it leaves fails to load."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from torch.testing import assert_close

from tests.runs import ROOT, command, command_arguments, left_behind
from unetdiff.runs import checkpoints, load_run
from unetdiff.training.checkpoint import newest_step


def launch(words: list[str], processes: int, script: str = "train/denoise.py") -> subprocess.Popen:
    """Start training."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
    return subprocess.Popen(
        [*launcher, script, *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 a launcher with its workers, which have process groups of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family[1:], timeout=30)


def wait_for(process: subprocess.Popen, happened: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something has happened; the process must still be running then."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def last_step(run: Path) -> int:
    """The last step that a run has logged."""
    path = run / "metrics.jsonl"
    found = re.findall(rb'"step": (\d+)', path.read_bytes()) if path.is_file() else []
    return int(found[-1]) if found else 0


def writing(run: Path) -> bool:
    """Whether a checkpoint or the final network is being written."""
    return any(run.glob("checkpoints/.tmp-*")) or any(run.glob(".tmp-*"))


def check_that_kills_change_nothing(tmp_path: Path, *, kills: int, steps: int, processes: int, seed: int = 0) -> None:
    """Kill a run at `kills` moments, each followed by the same command; compare with a run left alone.

    Half of the moments are anywhere in a step, half while something is being written.
    """
    plan = {"steps": steps, "checkpoint_every": 5}
    data = ["--data.workers", "2", "--data.random_flip", "true"]
    run, alone = tmp_path / "killed", tmp_path / "alone"
    done = command("train/denoise.py", *command_arguments(alone, **plan), *data, processes=processes)
    assert done.returncode == 0, done.stderr
    words = [*command_arguments(run, **plan), *data]
    moments = random.Random(seed)
    for number in range(kills):
        process = launch(words, processes)
        target = newest_step(run) + moments.randint(1, 8)
        wait_for(process, lambda target=target: last_step(run) >= target)
        if number % 2:
            wait_for(process, lambda: writing(run))
        time.sleep(moments.uniform(0, 0.05))
        kill_all(process)
        assert process.wait() == -signal.SIGKILL, "the run had ended by itself"
        if checkpoints(run):
            load_run(run)
    assert not (run / "model_index.json").exists(), "every kill came before the end"
    done = command("train/denoise.py", *words, processes=processes)
    assert done.returncode == 0, done.stderr
    assert_close(left_behind(run), left_behind(alone), rtol=0, atol=0)
    assert load_run(run).folder == run


def test_three_kills(tmp_path: Path) -> None:
    check_that_kills_change_nothing(tmp_path, kills=3, steps=60, processes=1)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    check_that_kills_change_nothing(tmp_path, kills=20, steps=200, processes=1)


@pytest.mark.slow
def test_five_kills_of_two_processes(tmp_path: Path) -> None:
    check_that_kills_change_nothing(tmp_path, kills=5, steps=200, processes=2)
