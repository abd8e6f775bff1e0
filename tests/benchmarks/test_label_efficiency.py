"""The study of few labels: what it fits, how sure it says a difference is, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.bootstrap import paired_interval
from benchmarks.label_study.report import interval_of, write_report
from benchmarks.label_study.settings import StudyConfig, command_line
from benchmarks.label_study.study import pretrain, run_fits
from tests.runs import ROOT

TINY = """
segment: configs/em_membranes.yaml
body: {model.channels: [8, 8], model.blocks: 1, model.decoder_blocks: 1, model.middle: false, model.norm: ddpm,
       model.activation: silu, model.attention: false, train.steps: 1, train.batch_size: 2, data.size: 16}
settings:
  data.path: "{data}"
  data.split: names
  data.validation: [image_3, image_4]
pretraining:
  denoiser:
    config: configs/images.yaml
    settings: {data.path: "{data}/images", train.sample_count: 1}
arms:
  scratch: {says: from random weights}
  monai: {says: "another library's", network: monai}
  denoiser: {says: from a denoiser, settings: {model.init_from: "{denoiser}", model.timestep: 0}}
labelled: {1: [[image_1], [image_2]]}
seeds: {1: [0]}
questions: [[denoiser, scratch], [monai, scratch]]
"""

LARGER = """
base: {base}
body: {{model.channels: [16, 16]}}
pretraining: {{denoiser: {{settings: {{train.steps: 7}}}}}}
labelled: {{2: [[image_1, image_2]]}}
seeds: {{1: [0, 1], 2: [0]}}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """A study of four grey images with masks, in `data` below the folder of the test."""
    monkeypatch.chdir(ROOT)
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(1, 5):
        values = generator.integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "data" / "images" / f"image_{number}.png")
        Image.fromarray(np.where(values > 100, 255, 0).astype(np.uint8)).save(
            tmp_path / "data" / "masks" / f"image_{number}.png"
        )
    (tmp_path / "tiny.yaml").write_text(TINY)
    return StudyConfig.read(tmp_path / "tiny.yaml")


def test_an_interval_is_that_of_the_normal_approximation() -> None:
    """Independent differences of equal size: for many fits and images the interval is 1.96 standard errors wide."""
    generator = np.random.default_rng(0)
    theirs = generator.normal(size=(30, 1))
    ours = theirs + 0.5 + generator.normal(size=(30, 1))
    found = paired_interval(ours, theirs)
    error = (ours - theirs).std(ddof=1) / np.sqrt(30)
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.1 * error + 0.03)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.1 * error + 0.03)


def test_an_interval_counts_fits_and_images_as_chance() -> None:
    """What differs between images only is as unsure as what differs between fits only."""
    by_image = np.tile([0.0, 1.0, 0.0, 1.0], (4, 1))
    zero = np.zeros((4, 4))
    assert paired_interval(by_image, zero) == pytest.approx(paired_interval(by_image.T, zero), abs=0.06)
    assert paired_interval(np.full((4, 4), 0.25), zero) == pytest.approx((0.25, 0.25, 0.25))
    with_gap = np.full((2, 2), 0.25)
    with_gap[0, 0] = np.nan
    assert paired_interval(with_gap, np.zeros((2, 2))).mean == pytest.approx(0.25)


def test_a_command_line_names_places() -> None:
    words = command_line({"data.path": "{data}", "a.b": ["{data}", 1], "c": True}, {"data": "/x"})
    assert words == ["--data.path", "/x", "--a.b", '["/x", 1]', "--c", "true"]


def test_a_wrong_study_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(TINY.replace("says: from random weights", "sais: no"))
    with pytest.raises(ValueError, match=r"study.yaml: Arm has no setting 'sais'"):
        StudyConfig.read(tmp_path / "study.yaml")


def test_a_study_changes_another(study: StudyConfig, tmp_path: Path) -> None:
    """Groups of settings are changed entry by entry; what is not named stays."""
    (tmp_path / "larger.yaml").write_text(LARGER.format(base=tmp_path / "tiny.yaml"))
    larger = StudyConfig.read(tmp_path / "larger.yaml")
    denoiser = larger.pretraining["denoiser"]
    held = larger.settings_of(denoiser)
    assert (held["model.channels"], held["model.blocks"], held["train.steps"]) == ([16, 16], 1, 7)
    assert held["data.path"] == "{data}/images"
    assert (larger.pretraining_steps(), study.pretraining_steps()) == ({"denoiser": 7}, {"denoiser": 1})
    assert larger.settings_of(larger.arms["scratch"])["data.split"] == "names"
    assert len(list(larger.fits())) == 3 * (2 * 2 + 1)
    (tmp_path / "wrong.yaml").write_text(TINY.replace("[monai, scratch]", "[monai, none]"))
    with pytest.raises(ValueError, match="questions has 'none'; expected arms: scratch, monai, denoiser"):
        StudyConfig.read(tmp_path / "wrong.yaml")
    (tmp_path / "wrong.yaml").write_text(TINY.replace("[monai, scratch]", "[monai]"))
    with pytest.raises(ValueError, match="questions"):
        StudyConfig.read(tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "label_efficiency").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_studies_that_there_are_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = StudyConfig.read(path)
    assert len({fit.file for fit in study.fits()}) == len(list(study.fits()))


def test_a_study_from_its_denoisers_to_its_page(study: StudyConfig, tmp_path: Path) -> None:
    """Every arm is fitted once, with the labelled images of its draw; a second run fits nothing."""
    folder, runs, places = tmp_path / "results", tmp_path / "runs", {"data": str(tmp_path / "data")}
    for _ in range(2):
        pretrain(study, places, runs, ["denoiser"])
        run_fits(study, places, runs, folder)
    files = sorted(folder.glob("*.json"))
    assert [path.name for path in files] == sorted(fit.file for fit in study.fits())
    results = [json.loads(path.read_text()) for path in files]
    assert all(result["conditions"]["labelled"] == [["image_1"], ["image_2"]][result["draw"]] for result in results)
    assert interval_of(results, "scratch", "scratch", "V-Rand") == (0, 0, 0)
    assert interval_of(results, "scratch", "features", "V-Rand") is None
    write_report(study, folder, tmp_path / "docs", "tiny.yaml")
    text = (tmp_path / "docs" / "segmentation.md").read_text()
    assert "| denoiser - scratch |" in text
    assert "- 1 labelled, monai beside scratch: membrane Dice" in text
    assert "†" in text.split("not fitted on one kind")[0]
    (first, *others) = results
    first["torch"], mixed = "0.1", tmp_path / "mixed"
    mixed.mkdir()
    for path, result in zip(files, [first, *others], strict=True):
        (mixed / path.name).write_text(json.dumps(result))
    write_report(study, mixed, tmp_path / "docs", "tiny.yaml")
    assert "| denoiser - scratch † |" in (tmp_path / "docs" / "segmentation.md").read_text()
    assert (tmp_path / "docs" / "pictures" / "label_efficiency_1.png").stat().st_size > 1000
