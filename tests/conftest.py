"""What every test shares: few threads, a fixed seed, and commands run in this process."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run_script(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a script of the repository, or a module, in this process; returns its exit code, output and errors."""

    def run(script: str, *words: str) -> tuple[int, str, str]:

        from tests.runs import ROOT, as_a_new_process

        as_a_new_process()
        monkeypatch.setattr(sys, "argv", [script, *words])
        is_file = script.endswith(".py")
        start, name = (runpy.run_path, str(ROOT / script)) if is_file else (runpy.run_module, script)
        with pytest.raises(SystemExit) as end:
            start(name, run_name="__main__")
        output, errors = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), output, errors

    return run
