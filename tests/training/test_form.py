"""Compiled or not, channels-last or not: taken where it pays, remembered, without a compiler left out."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.runs import fit, left_behind, relative_difference, trainer
from unetdiff.config import parse_denoise
from unetdiff.runs import step_of
from unetdiff.training import form
from unetdiff.training.form import Trial, choose_forms
from unetdiff.training.run_folder import read_runtime

CPU = torch.device("cpu")


class Slow(nn.Module):
    """A network of images that takes so many seconds in either memory format: by whether it is channels-last."""

    def __init__(self, seconds: dict[bool, float]) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Conv2d(2, 2, 3, padding=1), seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds[not self.layer.weight.is_contiguous()])
        return self.layer(x)


def trial(seconds: dict[bool, float], passes: int = 10**9) -> Trial:
    image = torch.zeros(1, 2, 4, 4)
    return Trial(Slow(seconds), 2, lambda module: module(image).sum(), CPU, low=False, passes=passes)


@pytest.mark.parametrize(("other", "taken"), [(0.001, True), (0.03, False)])
def test_channels_last_is_taken_where_it_pays(other: float, taken: bool) -> None:
    layout, compiled = choose_forms("auto", "off", lambda: trial({False: 0.03, True: other}))
    assert layout.on is taken
    assert layout.told
    assert "channels-last" in layout.reason
    assert not compiled.on
    assert compiled.reason == "set by train.compile"


def test_short_runs_try_nothing() -> None:
    choices = choose_forms("auto", "auto", lambda: trial({False: 0.01, True: 0.001}, passes=100))
    assert [choice.on for choice in choices] == [False, False]
    assert not any(choice.told for choice in choices)
    assert "less than 10 minutes" in choices[0].reason
    assert "less than 60 minutes" in choices[1].reason


def test_what_is_set_is_not_timed() -> None:
    def never() -> Trial:
        raise AssertionError

    layout, compiled = choose_forms("on", False, never)
    assert layout.on
    assert not compiled.on


def test_without_a_compiler_one_sentence_and_no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    _, compiled = choose_forms("off", "on", lambda: trial({False: 0.0, True: 0.0}))
    assert (compiled.on, compiled.told) == (False, True)
    assert compiled.reason == "there is no C++ compiler no-such-compiler here"


def test_what_cannot_be_compiled_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: nn.Module) -> None:
        raise RuntimeError("the backend is out of order\nand more")

    monkeypatch.setattr(nn.Module, "compile", fails)
    _, compiled = choose_forms("off", "on", lambda: trial({False: 0.0, True: 0.0}))
    assert compiled.reason == "compiling failed (the backend is out of order)"
    assert not compiled.on


def test_a_run_without_compiler_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    fit(tmp_path / "run", compile="on")
    assert "compilation off: there is no C++ compiler no-such-compiler here" in capsys.readouterr().out
    fit(tmp_path / "plain", compile="off")
    assert_close(left_behind(tmp_path / "run"), left_behind(tmp_path / "plain"), rtol=0, atol=0)


def test_channels_last_runs_resume_exactly_and_learn_the_same(tmp_path: Path) -> None:
    made = fit(tmp_path / "straight", channels_last="on", model={"dropout": 0.3})
    weights = [weight for weight in made.unet.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    fit(tmp_path / "parts", channels_last="on", model={"dropout": 0.3}, steps=3)
    fit(tmp_path / "parts", channels_last="off", model={"dropout": 0.3})  # decided once
    assert_close(left_behind(tmp_path / "parts"), left_behind(tmp_path / "straight"), rtol=0, atol=0)
    for form_of in ("on", "off"):  # dropout draws in the order of memory
        fit(tmp_path / form_of, channels_last=form_of)
    assert relative_difference(left_behind(tmp_path / "on"), left_behind(tmp_path / "off")) < 1e-5


def test_the_choice_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(form, "LONG", 0.0)
    monkeypatch.setattr(form, "LONGER", 0.0)
    monkeypatch.setattr(Trial, "beside", lambda self, other, name: form.Choice(name == "channels-last", name, True))
    monkeypatch.setenv("CXX", "no-such-compiler")
    trainer(tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-1] == "channels-last on: channels-last"
    runtime = read_runtime(tmp_path / "run")
    assert runtime is not None
    assert (runtime.channels_last, runtime.channels_last_reason) == (True, "channels-last")
    assert runtime.compile_reason == "there is no C++ compiler no-such-compiler here"


def test_runs_from_before_the_settings_are_read(tmp_path: Path) -> None:
    fit(tmp_path / "run", steps=3)
    file = tmp_path / "run" / "runtime.json"
    held = json.loads(file.read_text())
    for name in ("compile_reason", "channels_last", "channels_last_reason"):
        del held[name]
    file.write_text(json.dumps(held))
    fit(tmp_path / "run", steps=6)
    assert step_of(tmp_path / "run") == 6


@pytest.mark.parametrize(
    ("word", "value"), [("auto", "auto"), ("on", "on"), ("off", "off"), ("true", True), ("false", False)]
)
def test_switches_on_the_command_line(word: str, value: str | bool, tmp_path: Path) -> None:
    config = parse_denoise(["--run_dir", str(tmp_path), "--train.compile", word, "--train.channels_last", word])
    assert form.is_set(config.train.compile) == form.is_set(value)  # pyright: ignore
    assert form.is_set(config.train.channels_last) == form.is_set(value)  # pyright: ignore
