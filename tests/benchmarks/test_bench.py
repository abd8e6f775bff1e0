"""The bench: what it says of times, bytes and targets, its page, and its cases at tiny sizes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.speed import loop, scale, segment, start, train_step
from benchmarks.speed.breakdown import milliseconds
from benchmarks.speed.cases import CASES, Options
from benchmarks.speed.memory import allocated, bytes_kept, in_own_process, resident_peak
from benchmarks.speed.networks import diffusers_digits, ours_of
from benchmarks.speed.report import write_report
from benchmarks.speed.results import Found, Table, Target, entry, keep, markdown, page
from benchmarks.speed.timing import Spread, against, compare, in_turn
from unetdiff.models.unet import UNet

CPU = torch.device("cpu")
QUICK = Options(CPU, quick=True)
MACHINE = {
    "date": "2026-01-01",
    "commit": "abc",
    "device": "a processor",
    "threads": 2,
    "load": 0.1,
    "versions": {"python": "3", "torch": "2", "diffusers": "0", "monai": "1"},
}


def test_candidates_take_turns_and_every_other_round_goes_back() -> None:
    order = []
    times = in_turn({name: lambda name=name: order.append(name) for name in "ABC"}, rounds=2, warmup=1)
    assert "".join(order) == "ABC" + "ABC" + "CBA"
    assert [list(entry) for entry in times] == [["A", "B", "C"]] * 2


def test_ratios_are_of_the_same_round() -> None:
    times = [{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 30.0}, {"a": 2.0, "b": 2.0}]
    found = against(times, "a")["b"]
    assert found.ratio == Spread(2.0, 1.5, 2.5, 1.0)
    assert found.row(items=2) == {"ms": 1000.0, "ratio": 2.0, "quartiles": "1.50 - 2.50"}


def test_a_slower_candidate_is_seen() -> None:
    found = compare({"quick": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.1)}, "quick", 3)
    assert found["slow"].ratio.middle > 2
    assert found["quick"].ratio.middle == 1


def test_bytes_of_a_layer_by_hand() -> None:
    """exp keeps its output, and the peak of forward and backward holds output and gradients."""
    x = torch.zeros(1000, requires_grad=True)
    assert bytes_kept(lambda: x.exp()) == 4000
    peak, left = allocated(lambda: x.exp(), CPU)
    assert 4000 <= left <= peak < 4200


def test_the_peak_of_a_process_holds_arrays_too() -> None:
    def act() -> int:
        return int(np.ones(2**23, np.uint8).sum())  # 8 MiB, which no profiler of torch sees

    assert 7.5 * 2**20 < resident_peak(act) < 80 * 2**20


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no_such_module"):
        in_own_process("no_such_module")


def test_targets() -> None:
    assert Target("share", 0.5, 0.5).met
    assert not Target("share", 0.51, 0.5).met
    assert Target("rate", 3.0, 3.0, at_least=True).met
    assert not Target("rate", 2.9, 3.0, at_least=True).met


def test_tables_and_the_page(tmp_path: Path) -> None:
    assert markdown([{"name": "a", "ms": 1.25}, {"name": "b", "share": 0.5}]) == [
        "| name | ms | share |",
        "| --- | ---: | ---: |",
        "| a | 1.25 |  |",
        "| b |  | 0.5 |",
    ]
    file = tmp_path / "cpu.json"
    for value in (2.0, 1.0):  # the second takes the place of the first
        found = Found([Table("Sizes", [{"name": "a", "ms": value}])], [Target("time", value, 1.5)], ["Equal."])
        held = keep(file, "loop", entry("What it is.", MACHINE, found))
    text = page(held, list(CASES), "the command")
    assert "2026-01-01 at abc, a processor, 2 threads, load 0.1; python 3, torch 2" in text
    assert "| time | at most 1.5 | 1 | yes |" in text
    assert "| a | 1 |" in text
    assert "| a | 2 |" not in text


def test_networks_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = diffusers_digits()
    ours_of(theirs)
    other = UNet.from_foreign("diffusers", dict(theirs.config), diffusers_digits().state_dict())
    monkeypatch.setattr(UNet, "from_foreign", classmethod(lambda *_: other))
    with pytest.raises(RuntimeError, match="nothing is timed"):
        ours_of(theirs)


def test_tiled_prediction_is_monais(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SIDE", {True: 96})
    monkeypatch.setattr(segment, "TILE", 32)
    monkeypatch.setattr(segment, "peak", lambda way, side, device: 2**20)
    found = segment.tiled(QUICK)
    assert [row["way"] for row in found.tables[0].rows] == list(segment.WAYS)
    monkeypatch.setattr(segment, "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(RuntimeError, match="differ from MONAI's"):
        segment.tiled(QUICK)


def test_rows_as_they_come_are_the_largest_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "TILE", 32)
    network, image = segment.segmenter().eval(), segment.image_of(80)
    assert (segment.ours_in_rows(network, image) == segment.ours_held(network, image).argmax(0).numpy()).all()


def test_the_loop_beside_its_bare_step(tmp_path: Path) -> None:
    with loop.training("digits.yaml", 20, "--train.batch_size", "2", "--model.channels", "[32,32,32]") as made:
        found = loop.beside_the_bare_step(made, "float32", rounds=2, at_once=1)
    assert list(found) == [
        "bare step",
        "train/denoise.py",
        "of it: batches with their draws",
        "of it: averages of the weights",
    ]
    assert found["of it: averages of the weights"].ratio.middle < 1
    assert not made.run.exists()


def test_the_data_pipeline(tmp_path: Path) -> None:
    data = loop.write_pictures(tmp_path, 12)
    table, target = loop.pipeline(data, 2, 0.05, step_rate=1e-3)
    assert len(table.rows) == 3
    assert target.met
    assert not loop.pipeline(data, 2, 0.05, step_rate=1e9)[1].met


def test_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = train_step.SUBJECTS["segmentation (0.8M), 256 x 256"]
    small = train_step.Subject(subject.build, (1, 16, 16), {"cpu": 2}, 1, 2, compiled=())
    monkeypatch.setattr(train_step.Step, "memory", lambda step, batch: (1.0, 2.0))
    (table,), ratios = train_step.measure("small", small, QUICK, {"float32": 1e9, "bf16": 1e9})
    assert len(table.rows) == 6
    assert next(iter(ratios)).startswith("MONAI UNet")
    assert all(row["share of the matrix rate"] > 0 for row in table.rows)  # pyright: ignore


def test_the_time_of_a_step_is_taken_apart() -> None:
    """A convolution is one, a product is one, and the parts add up to what the processor did."""
    convolution, left = nn.Conv2d(16, 16, 3), torch.randn(256, 256)
    act: dict[str, Any] = {
        "convolutions": lambda: convolution(torch.ones(1, 16, 64, 64)),
        "matrix products, attention": lambda: left @ left,
    }
    for group, each in act.items():
        each()
        spent = milliseconds(each)
        assert max(spent, key=lambda name: spent[name]) == group
        assert spent[group] > 0.5 * sum(spent.values())


def test_targets_of_the_ddpm_network() -> None:
    rows: list[Any] = [
        {"network": f"{train_step.DIFFUSERS}, float32", "kept, MiB": 10.0, "peak, MiB": 20.0},
        {"network": f"{train_step.OURS}, float32", "kept, MiB": 4.0, "peak, MiB": 10.0},
    ]
    ratios = {
        f"{train_step.OURS}, {precision}": Spread(ratio, ratio, ratio, ratio)
        for precision, ratio in (("float32", 1.1), ("bf16", 0.6))
    }
    found = train_step.cifar_targets(rows, ratios)
    assert [target.met for target in found] == [True, False, False, True]
    ratios[f"{train_step.DIFFUSERS}, float32"] = Spread(0.5, 0.5, 0.5, 0.5)
    plain, fastest = train_step.digits_targets(rows, ratios)
    assert (plain.value, plain.met, plain.quartiles) == (0.6, True, (0.6, 0.6))
    assert (round(fastest.value, 3), fastest.met) == (1.2, False)


def test_memory_of_a_step() -> None:
    """One convolution keeps its input and, for cross-entropy, the logarithms of its two classes and the truth."""
    subject = train_step.Subject(lambda: {"one": nn.Conv2d(1, 2, 1)}, (1, 16, 16), {"cpu": 4}, 1, 2, compiled=())
    step = train_step.steps_of(subject, CPU, ("float32",))["one, float32"]
    kept, peak = step.memory(8)
    assert kept * 2**20 == pytest.approx(16 * 16 * (4 + 2 * 4 + 8), rel=0.01)
    assert peak > 16 * 16 * 2 * 4 / 2**20


def test_a_step_trains() -> None:
    subject = train_step.Subject(lambda: {"one": nn.Conv2d(1, 2, 1)}, (1, 4, 4), {"cpu": 2}, 1, 2, compiled=())
    step = train_step.steps_of(subject, CPU, ("float32",))["one, float32"]
    before = [weight.clone() for weight in step.network.parameters()]
    step(2)
    assert all((weight != old).any() for weight, old in zip(step.network.parameters(), before, strict=True))
    assert step.count == 1
    assert all(weight.grad is None for weight in step.network.parameters())


def test_exponents() -> None:
    rows = [{"at": side, "peak, MiB": 3.0 * side**2} for side in (16, 32, 64)]
    assert scale.exponent(rows, "peak, MiB") == pytest.approx(2)
    assert scale.exponent(rows, "peak, MiB", power=2) == pytest.approx(1)


def test_growth_is_measured() -> None:
    small = scale.network(QUICK, scale.PLAIN, channels=[8, 8, 8])
    rows = scale.grown(QUICK, {batch: (small, batch, 16) for batch in (8, 16)})
    assert scale.exponent(rows, "peak, MiB") == pytest.approx(1, abs=0.1)


def test_new_processes_are_timed() -> None:
    found = start.processes({"short": ["-c", "pass"], "long": ["-c", "import time; time.sleep(0.3)"]}, rounds=1)
    clock, processor = found["long"]
    assert clock.middle > 0.3
    assert 0 < processor.middle < 0.3
    assert found["short"][0].middle < clock.middle


def test_the_report(tmp_path: Path) -> None:
    rows = [{"at": 1, "ms": 1.0, "peak, MiB": 2.0}, {"at": 2, "ms": 2.0, "peak, MiB": 4.0}]
    tables = [Table("Batch", rows), Table("Processes", [{"at": 1, "samples/s": 5.0}])]
    held = {"scale": entry("Growth.", MACHINE, Found(tables))}
    write_report({"cpu": held}, tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert text.startswith("# Speed on cpu")
    assert (tmp_path / "pictures" / "speed_scale_cpu.png").stat().st_size > 5000
    assert "![Growth of time and memory](pictures/speed_scale_cpu.png)" in text
