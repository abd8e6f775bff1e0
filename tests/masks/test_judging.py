"""Masks of an image beside the truths of several annotators, by command and in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.masks.test_drawn import ENCODING, SIZE, folder, image_of, images, plain  # noqa: F401
from tests.runs import one_sentence
from unetdiff import load_run
from unetdiff.masks.judging import Scores
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmentation.samples import generalized_energy_distance, hungarian_iou
from unetdiff.segmenting import Segmentation, segment


@pytest.fixture
def truths(tmp_path: Path) -> list[Path]:
    """The masks of three annotators of two images."""
    random = np.random.default_rng(3)
    for name in "abc":
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(100 * random.integers(0, 3, SIZE, np.uint8)).save(tmp_path / name / f"{number}.png")
    return [tmp_path / name for name in "abc"]


def given(truths: list[Path]) -> list[str]:
    return [word for truth in truths for word in ("--truth", str(truth))]


def labels_of(truths: list[Path], number: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(truth / f"{number}.png")) // 100) for truth in truths])


def run_of(run_script: Any, run: Path, images: Path, out: Path, *words: str) -> tuple[int, str, str]:  # noqa: F811
    return run_script("sample/masks.py", str(run), str(images), "--out", str(out), *words)


def test_drawn_masks_beside_several_truths(folder, images, truths, tmp_path, run_script) -> None:  # noqa: F811
    out = tmp_path / "out"
    code, said, errors = run_of(run_script, folder, images, out, "--masks", "4", "--seed", "2", *given(truths))
    assert code == 0, errors
    assert "over 2 images, each against 3 truths" in said
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["images"] == 6
    assert [row["name"] for row in figures["per_image"]][:2] == [f"0, {truths[0]}", f"0, {truths[1]}"]
    drawn = segment(load_run(folder), image_of(images), masks=4, seed=2).masks
    assert drawn is not None
    samples, (row, _) = torch.from_numpy(drawn), figures["several"]["per_image"]
    theirs = labels_of(truths, 0).long()
    assert row["ged"] == pytest.approx(generalized_energy_distance(samples, theirs, 3))
    assert row["hungarian_iou"] == pytest.approx(hungarian_iou(samples, theirs, 3))
    assert (row["samples"], row["truths"]) == (4, 3)
    page = (out / "metrics.md").read_text()
    assert f"| GED² | {figures['several']['ged']:.4f} |" in page
    assert "the classes but ground" in page
    assert "4 samples of one mask model: their spread speaks of the data (aleatoric)" in page


def test_one_mask_beside_several_truths(plain, images, truths, tmp_path, run_script) -> None:  # noqa: F811
    code, _, errors = run_of(run_script, plain, images, tmp_path / "out", *given(truths))
    assert code == 0, errors
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    mask = torch.from_numpy(segment(load_run(plain), image_of(images)).labels)[None]
    expected = generalized_energy_distance(mask, labels_of(truths, 0).long(), 3)
    assert figures["several"]["per_image"][0]["ged"] == pytest.approx(expected)
    page = (tmp_path / "out" / "metrics.md").read_text()
    assert "2 images with 3 truths each" in page
    assert "vote entropy" not in page


def test_one_truth_of_one_mask_is_as_ever(plain, images, truths, tmp_path, run_script) -> None:  # noqa: F811
    code, said, errors = run_of(run_script, plain, images, tmp_path / "out", *given(truths[:1]))
    assert code == 0, errors
    assert "GED" not in said
    assert "several" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_mistakes_are_one_sentence(plain, images, truths, tmp_path, run_script, monkeypatch) -> None:  # noqa: F811
    def refused(chosen: list[Path]) -> str:
        code, _, errors = run_of(run_script, plain, images, tmp_path / "out", *given(chosen))
        assert code == 2, errors
        return one_sentence(errors)

    assert "twice; expected a folder for each annotator" in refused([truths[0], truths[0]])
    monkeypatch.setattr("unetdiff.masks.inputs.LARGE", 1)
    assert "too large for several --truth" in refused(truths)
    monkeypatch.setattr("unetdiff.masks.command.header_size", lambda *_: None)  # as of files that must be decoded
    assert "too large for several --truth" in refused(truths)
    monkeypatch.setattr("unetdiff.masks.inputs.LARGE", 2**22)
    (truths[2] / "1.png").unlink()
    assert "c has no mask called 1" in refused(truths)


def test_parts_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    random = np.random.default_rng(0)

    def case(name: str) -> tuple[str, Segmentation, dict[str, np.ndarray]]:
        shares = random.dirichlet([1, 1, 1], SIZE).transpose(2, 0, 1).astype(np.float32)
        masks = random.integers(0, 3, (4, *SIZE))
        return name, Segmentation(shares.argmax(0), shares, {}, masks), dict.fromkeys("xy", masks[0])

    options = MetricOptions(class_names=ENCODING.class_names)
    whole, *parts = (Scores(options, 2, True) for _ in range(3))
    for place, name in enumerate("ab"):
        made = case(name)
        whole.add(*made)
        parts[place].add(*made)
    Scores.merged(parts).write(tmp_path, 1, [])
    whole.write(tmp_path / "whole", 1, [])
    assert (tmp_path / "metrics.json").read_text() == (tmp_path / "whole" / "metrics.json").read_text()
