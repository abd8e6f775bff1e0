"""kill -9 at random moments: what a run reaches does not depend on it, and nothing it leaves fails to load."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.testing import assert_close

from tests.runs import ROOT, command, command_arguments, left_behind
from unetdiff.runs import checkpoints, load_run


def launch(words: list[str], processes: int) -> subprocess.Popen:
    """Start training in a process group of its own, so that all of it can be killed at once."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*launcher, "train/denoise.py", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_and_repeat(tmp_path: Path, *, kills: int, steps: int, processes: int, longest: float, seed: int = 0) -> None:
    """Kill a run at `kills` moments, each followed by the same command; compare with a run left alone."""
    plan = {"steps": steps, "checkpoint_every": max(2, steps // 10)}
    data = ["--data.workers", "2", "--data.random_flip", "true"]
    run, alone = tmp_path / "killed", tmp_path / "alone"
    done = command("train/denoise.py", *command_arguments(alone, **plan), *data, processes=processes)
    assert done.returncode == 0, done.stderr
    words = [*command_arguments(run, **plan), *data]
    moments = random.Random(seed)
    for _ in range(kills):
        process = launch(words, processes)
        time.sleep(moments.uniform(0.5, longest))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if checkpoints(run):
            load_run(run)
    done = command("train/denoise.py", *words, processes=processes)
    assert done.returncode == 0, done.stderr
    assert_close(left_behind(run), left_behind(alone), rtol=0, atol=0)
    assert load_run(run).folder == run


def test_three_kills(tmp_path: Path) -> None:
    kill_and_repeat(tmp_path, kills=3, steps=60, processes=1, longest=9)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    kill_and_repeat(tmp_path, kills=20, steps=200, processes=1, longest=14)


@pytest.mark.slow
def test_five_kills_of_two_processes(tmp_path: Path) -> None:
    kill_and_repeat(tmp_path, kills=5, steps=200, processes=2, longest=20)
