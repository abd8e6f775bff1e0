"""The report: complete, self-contained, and written for whatever a run folder holds."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.config import DenoiseConfig
from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import class_colours
from unetdiff.run_config import TrainConfig, write_yaml
from unetdiff.segment_config import SegmentConfig
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.training.evaluation import FIGURES, FOLDER, Evaluation, merged, read_evaluation, write_evaluation
from unetdiff.training.report import main, read_metrics, seconds_trained, write_report
from unetdiff.training.report_plots import (
    confusion_plot,
    curve_plot,
    loss_plot,
    noise_level_history_plot,
    noise_level_plot,
    reliability_plot,
    risk_coverage_plot,
    smooth,
)

VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page taken apart: its text, its pictures, and what it opens and does not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[tuple[str, bytes]] = []
        self.references: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.changed: set[str] = set()
        self.in_changed = False
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [values[key] or "" for key in ("src", "href") if key in values]
        if tag == "img":
            kind, data = re.fullmatch(r"data:(image/[a-z+]+);base64,(.+)", values["src"] or "").groups()  # pyright: ignore
            self.pictures.append((kind, base64.b64decode(data)))
        if tag == "tr":
            self.in_changed = values.get("class") == "changed"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text += data + "\n"
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.in_changed and self.open[-1] == "th":
            self.changed.add(data)

    def grids(self) -> list[Image.Image]:
        return [Image.open(io.BytesIO(data)) for kind, data in self.pictures if kind == "image/png"]


def bins(loss: float, count: int = 10) -> list[dict[str, Any]]:
    return [{"from": 100 * i, "to": 100 * i + 99, "loss": loss / (i + 1)} for i in range(count)]


def train_line(step: int, **values: Any) -> dict[str, Any]:
    line = {"loss": 1 / step, "grad_norm": 0.5, "learning_rate": 1e-4, "samples_per_second": 400.0 + step, "skipped": 0}
    return {"kind": "train", "step": step, **line, "elapsed": 0.5 * step, **values}


def write_run(run: Path, lines: list[dict[str, Any]], end: str = "", **train: Any) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    write_yaml(DenoiseConfig(run_dir=str(run), train=TrainConfig(**train)), run / "config.yaml")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return run


def write_grids(run: Path, steps: range, side: int) -> list[dict[str, Any]]:
    """Noise, which no compression makes smaller; the red channel of the first pixel tells the grids apart."""
    (run / "samples").mkdir(parents=True)
    lines = []
    for step in steps:
        pixels = np.random.default_rng(step).integers(0, 256, (side, side, 3), dtype=np.uint8)
        pixels[:8, :8] = step % 256
        Image.fromarray(pixels).save(run / "samples" / f"{step}.png")
        lines.append({"kind": "samples", "step": step, "file": f"samples/{step}.png"})
    return lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 200 steps with everything that a folder can hold."""
    run = tmp_path / "digits <b>"
    lines = [train_line(step, skipped=int(step > 90)) for step in range(10, 201, 10)]
    lines.append({"kind": "note", "step": 90, "text": "step skipped: inf in <Conv2d> & co"})
    for step in (100, 200):
        values = {"kind": "validation", "step": step, "loss": 12.5 / step, "bins": bins(1 / step)}
        lines.append({**values, "weights": "ema"})
    lines += write_grids(run, range(50, 201, 50), side=40)
    write_run(run, lines, end='{"kind":"train","step":210,"lo', steps=200, learning_rate=0.00123)
    runtime = {"precision": "bf16", "precision_reason": "bf16 is <faster>", "device": "cpu", "parameters": 35_700_000}
    (run / "runtime.json").write_text(json.dumps({**runtime, "versions": {"torch": "2.13.0+cpu"}}))
    (run / "plan.txt").write_text("step  level\nstem <in>\n")
    (run / "unet").mkdir()
    (run / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet", "channels": [64, 128]}))
    return run


def test_report_holds_the_whole_run(run):
    path = write_report(run)
    page = Page(path)
    assert path == run / "report.html"
    assert page.headings == [
        "Loss",
        "Validation loss by noise level",
        "Course of training",
        "Samples",
        "Samples through training",
        "Notes",
        "Settings",
        "Machine and versions",
        "Network",
    ]
    for text in ("200\nsteps", "35.7 M", "0.0625", "505", "1 min 40 s", "bf16", "cpu", "1\nskipped steps"):
        assert text in page.text, text
    for text in ("digits <b>", "inf in <Conv2d> & co", "bf16 is <faster>", "stem <in>", "2.13.0+cpu", '"channels": ['):
        assert text in page.text, text
    assert page.changed == {"run_dir", "steps", "learning_rate"}
    plots = [ElementTree.fromstring(data) for kind, data in page.pictures if kind == "image/svg+xml"]
    assert len(plots) == 6
    assert [grid.getpixel((0, 0))[0] for grid in page.grids()] == [200, 50, 100, 150]  # pyright: ignore


def test_report_needs_no_network(run):
    page = Page(write_report(run))
    assert all(reference.startswith("data:") for reference in page.references)
    assert not re.search(r"@import|url\(|<script|<link", (run / "report.html").read_text(encoding="utf-8"))
    for kind, data in page.pictures:
        if kind == "image/svg+xml":
            assert not re.search(rb'href="(?!#)', data)


def test_the_same_folder_gives_the_same_bytes(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_short_run_shows_what_it_has(tmp_path):
    run = write_run(tmp_path / "short", [train_line(step) for step in range(1, 6)], steps=10)
    page = Page(write_report(run))
    assert page.headings == ["Loss", "Course of training", "Settings"]
    assert "5\nof 10 steps" in page.text
    assert "0.2\ntraining loss" in page.text


@pytest.mark.parametrize("kind", ["none", "note", "validation", "odd"])
def test_few_lines_make_a_page(tmp_path, kind):
    lines = {
        "none": [],
        "note": [{"kind": "note", "step": 3, "text": "stopped"}],
        "validation": [{"kind": "validation", "step": 5, "loss": None, "bins": [{"from": 0, "to": 9, "loss": None}]}],
        "odd": [train_line(1, loss=float("nan"), grad_norm=None, elapsed="?"), {"kind": "new", "step": 1}, {"step": 2}],
    }[kind]
    page = Page(write_report(write_run(tmp_path / "run", lines)))
    assert page.headings[-1] == "Settings"
    assert ("Notes" in page.headings) == (kind == "note")
    assert "Loss" not in page.headings or kind == "validation"


def test_metrics_alone_make_a_page(tmp_path):
    write_run(tmp_path, [train_line(1)])
    (tmp_path / "config.yaml").unlink()
    assert Page(write_report(tmp_path)).headings == ["Loss", "Course of training"]


def test_a_damaged_grid_is_left_out(tmp_path):
    lines = write_grids(tmp_path / "run", range(1, 4), side=64)
    run = write_run(tmp_path / "run", lines)
    last = run / "samples" / "3.png"
    last.write_bytes(last.read_bytes()[:5000])
    (run / "samples" / "1.png").unlink()
    page = Page(write_report(run))
    assert [grid.getpixel((0, 0))[0] for grid in page.grids()] == [2]  # pyright: ignore
    assert "Samples through training" not in page.headings


def test_the_page_of_a_long_run_stays_small(tmp_path):
    run = tmp_path / "run"
    lines = write_grids(run, range(1, 21), side=1300)
    lines += [train_line(step, loss=1 / step) for step in range(1, 30_000, 3)]
    path = write_report(write_run(run, lines))
    sizes = [max(grid.size) for grid in Page(path).grids()]
    assert sizes == [1200] + [340] * 8
    assert path.stat().st_size < 10e6
    captions = re.findall(r"step \d+(?=\n)", Page(path).text)
    assert [captions[0], captions[1], captions[-1]] == ["step 20", "step 1", "step 19"]


def test_broken_lines_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(train_line(1))
    path.write_bytes(f'{good}\n{{"kind":"tr{good}\n[1]\nnull\n{{"kind":"train"}}\n\n{good}\n'.encode() + b'{"k\xc3')
    assert read_metrics(path) == {"train": [train_line(1)] * 2, "validation": [], "samples": [], "note": []}


def test_time_adds_up_over_sessions():
    lines = [train_line(step, elapsed=seconds) for step, seconds in ((10, 5.0), (20, 9.0), (30, 4.0), (40, 6.0))]
    assert seconds_trained(lines) == 15.0
    assert seconds_trained([]) == 0.0


@pytest.mark.parametrize("name", ["runtime.json", "config.yaml", "unet/config.json"])
def test_a_damaged_file_is_named_and_the_old_page_stays(run, name):
    before = write_report(run).read_bytes()
    (run / name).write_text("[1, ")
    with pytest.raises(ValueError, match=re.escape(name)):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".tmp-*"))


def test_smooth_is_a_centred_mean():
    values = np.random.default_rng(0).random(30)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(30)]
    np.testing.assert_allclose(smooth(values, 5), expected)
    np.testing.assert_allclose(smooth(values, 0), values)
    np.testing.assert_allclose(smooth(values[:1], 9), values[:1])


def texts(svg: str | None) -> str:
    """What an SVG of matplotlib writes, which it keeps in comments beside the outlines."""
    assert svg is not None
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg))


def test_a_decade_makes_the_axis_logarithmic():
    wide = [train_line(step, loss=loss) for step, loss in enumerate((0.01, 0.1, 1.0), start=1)]
    narrow = [train_line(step, loss=loss) for step, loss in enumerate((0.5, 0.6, 0.7), start=1)]
    assert "0.02\n0.05\n0.1\n0.2" in texts(loss_plot(wide, []))
    assert "0.600" in texts(loss_plot(narrow, []))
    assert "−0.5" in texts(loss_plot([*wide, train_line(4, loss=-1.0)], []))


def test_plots_name_what_they_show():
    validation = [
        {"step": 100, "loss": 0.3, "bins": bins(0.3), "weights": "ema"},
        {"step": 100, "loss": 0.4, "bins": bins(0.4), "weights": "raw"},
        {"step": 9000, "loss": 0.1, "bins": bins(0.1), "weights": "ema"},
    ]
    assert "training\nvalidation (ema)\nvalidation (raw)" in texts(loss_plot([train_line(1)], validation))
    assert "step 100\nstep 9,000" in texts(noise_level_plot(validation))
    assert "900–999" in texts(noise_level_history_plot(validation))
    assert noise_level_history_plot(validation[:1]) is None
    assert noise_level_plot([{"step": 1, "loss": 0.3}]) is None
    assert curve_plot([train_line(1)], "unknown") is None


def test_command_writes_the_page(run, capsys):
    main([str(run)])
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("name", ["missing", "."])
def test_command_refuses_what_is_no_run(tmp_path, capsys, name):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / name)])
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.startswith("error: ")
    assert message.endswith("expected a run folder\n")
    assert message.count("\n") == 1


def mask_lines(*ious: float, **values: Any) -> list[dict[str, Any]]:
    """A line of validation for every 10 steps, of two classes, of which the second occurs nowhere."""
    return [
        {"kind": "validation", "step": 10 * number, "loss": 1.0, "mean_iou": iou, "mean_dice": iou, "iou": [iou, None],
         "dice": [iou, None], "class_names": ["cell <a>", "wall"], "ece": 0.1, **values}
        for number, iou in enumerate(ious, start=1)
    ]  # fmt: skip


def write_mask_run(run: Path, lines: list[dict[str, Any]]) -> Path:
    run.mkdir(exist_ok=True)
    write_yaml(SegmentConfig(run_dir="runs/x"), run / "config.yaml")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def mask_run(tmp_path: Path) -> Path:
    """A segmentation run with the folder of its last validation, of twelve images."""
    evaluation = Evaluation.start(MetricOptions(class_names=("cell <a>", "wall"), hd95=True))
    form, colours = DataFormat(dims=2, channels=1, dtype="uint8", low=0, high=255), class_colours(2)
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        labels = torch.randint(2, (8, 8), generator=generator).numpy()
        scores = torch.randn(2, 8, 8, generator=generator).softmax(0)
        evaluation.add(f"/data/<{number}>.png", labels[..., None].astype(np.uint8), labels, scores, 0.5, form, colours)
    figures, cases = merged([evaluation.parts()])
    write_evaluation(tmp_path, figures, cases, colours)
    last = {name: figures[name] for name in ("loss", "iou", "dice", "mean_iou", "mean_dice", "class_names", "ece")}
    return write_mask_run(tmp_path, [*mask_lines(0.25), {"kind": "validation", "step": 20, **last}])


def test_segmentation_runs_show_classes_and_course(tmp_path: Path) -> None:
    page = Page(write_report(write_mask_run(tmp_path, mask_lines(0.25, 0.5))))
    assert page.headings == ["Loss", "Masks of held-out images", "Settings"]
    assert "After step 20." in page.text
    assert "0.5000\nmean IoU" in page.text
    assert page.text.count("0.1000\nECE") == 1
    assert "class\nIoU\nDice\ncell <a>\n0.5000\n0.5000\nwall\n–\n–\nmean\n0.5000\n0.5000" in page.text
    assert len(page.pictures) == 4  # the loss, IoU, Dice and ECE over steps


def test_segmentation_runs_show_the_worst_and_how_sure_they_are(mask_run: Path) -> None:
    page = Page(write_report(mask_run))
    assert page.headings == ["Loss", "Masks of held-out images", "Worst held-out images", "Confidence", "Settings"]
    held = read_evaluation(mask_run)
    names = re.findall(r"\d+\. \n(<\d+>\.png)", page.text)
    assert names == [Path(case["name"]).name for case in held["cases"]]
    assert len(page.grids()) == len(names) == 10
    assert "IoU\nDice\nrecall\nboundary F\nHD95\ntrue %\npredicted %" in page.text
    share = 100 * sum(held["confusion"][0]) / held["positions"]
    assert f"{share:.2f}" in page.text
    assert "0.69 nats (log 2, no class likelier)" in page.text
    assert "After step 20, 12 images." in page.text
    assert len(page.pictures) == 4 + 10 + 3  # and the confusion matrix, the reliability, the risk


def test_a_folder_of_another_validation_is_not_shown(mask_run: Path) -> None:
    write_mask_run(mask_run, mask_lines(0.25, 0.3))
    page = Page(write_report(mask_run))
    assert page.headings == ["Loss", "Masks of held-out images", "Settings"]
    assert not page.grids()


def test_damaged_cases_are_left_out(mask_run: Path) -> None:
    files = [mask_run / FOLDER / case["file"] for case in read_evaluation(mask_run)["cases"]]
    files[0].write_bytes(files[0].read_bytes()[:300])
    files[1].unlink()
    page = Page(write_report(mask_run))
    assert len(page.grids()) == 8
    assert "3. \n" in page.text
    assert "2. \n" not in page.text
    (mask_run / FOLDER / FIGURES).write_text('{"iou": [0.')
    assert Page(write_report(mask_run)).headings == ["Loss", "Masks of held-out images", "Settings"]


def test_mask_plots_name_what_they_show() -> None:
    bins = [{"low": k / 4, "high": (k + 1) / 4, "positions": 0, "accuracy": None, "confidence": None} for k in range(3)]
    filled = [*bins, {"low": 0.75, "high": 1.0, "positions": 5, "accuracy": 0.8, "confidence": 0.9}]
    assert "ECE 0.1000" in texts(reliability_plot(filled, 0.1))
    assert "&lt; 30 positions" in texts(reliability_plot(filled, 0.1))
    assert "30 positions" not in texts(reliability_plot([*bins, {**filled[-1], "positions": 30}], 0.1))
    assert reliability_plot(bins, None) is None
    curve = {"coverage": [0.5, 1.0], "risk": [0.0, 0.2]}
    assert "pixels" in texts(risk_coverage_plot([("pixels", curve), ("images", {"coverage": [], "risk": []})]))
    assert risk_coverage_plot([("pixels", {})]) is None
    drawn = texts(confusion_plot([[3, 1, 0], [0, 0, 0], [0, 2, 2]], ["cell", "wall", "a name that is long"]))
    assert all(text in drawn for text in ("75", "25", "50", "cell", "wall", "a name that i…"))
    assert drawn.count("50") == 2
    assert confusion_plot([[0, 0], [0, 0]], ["a", "b"]) is None
    many = [f"c{number}" for number in range(150)]
    assert "c149" in texts(confusion_plot(np.eye(150, dtype=int).tolist(), many))
