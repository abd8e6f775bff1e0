"""The study of annotators: what each way of drawing masks gives, its figures, table and picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from benchmarks import annotators
from benchmarks.annotators import SHOWN_SAMPLES, by_position, most_probable, open_run, study, table
from tests.runs import as_a_new_process
from tests.training.test_segment import settings
from unetdiff.data.mask_options import AnnotatorConfig, MaskDataConfig
from unetdiff.data.scenes import scenes
from unetdiff.segmenting import segment
from unetdiff.training.segment import segmentation_trainer

OTHERS = AnnotatorConfig(none=0.5, erode=0.5)
ANNOTATORS = AnnotatorConfig(none=0.75, erode=0.25)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("annotators") / "run"
    fit_on(run, MaskDataConfig(scene_classes="foreground", annotators=ANNOTATORS, train_limit=24))
    return run


def fit_on(run: Path, data: MaskDataConfig) -> None:
    """Train for a few steps, as a new process would."""
    as_a_new_process()
    segmentation_trainer(replace(settings(run, steps=4), data=data)).fit()


def test_masks_of_a_deterministic_network(trained: Path) -> None:
    run, config = open_run(trained)
    assert config.data.annotators.probabilities == {"none": 0.75, "erode": 0.25}
    image = scenes("test")[0][0]
    found = segment(run, image)
    masks = most_probable(run, image, 3, 0, None)
    np.testing.assert_array_equal(masks, [found.labels] * 3)
    drawn = by_position(run, image, 400, 5, None)
    assert (drawn.shape, drawn.dtype) == ((400, 32, 32), np.int64)
    # Half a million draws of known probabilities: shares within four standard deviations of 400 draws.
    np.testing.assert_allclose((drawn == 1).mean(0), found.probabilities[1], atol=4 * 0.5 / 20)
    assert (drawn == 1).mean() == pytest.approx(found.probabilities[1].mean(), abs=0.005)
    np.testing.assert_array_equal(by_position(run, image, 2, 5, None), drawn[:2])
    assert (by_position(run, image, 2, 6, None) != drawn[:2]).any()


def test_the_study_writes_figures_a_table_and_a_picture(trained: Path, tmp_path: Path) -> None:
    said = study([trained], 8, 5, 0, tmp_path / "out")
    held = json.loads((tmp_path / "out" / "annotators.json").read_text())
    sure, drawn, ideal = held["results"]
    assert [result["masks"] for result in held["results"]] == [
        *("run, most probable class", "run, each position drawn", "annotators drawn anew")
    ]
    for result in held["results"]:
        assert (result["images"], result["samples"], result["truths"]) == (5, [8], [4])
        assert result["classified"] == 5 * 8
        assert sum(result["frequencies"].values()) == pytest.approx(1)
    assert sure["between_samples"] == sure["vote_entropy"] == 0
    assert drawn["between_samples"] > 0.1
    assert ideal["ged"] < min(sure["ged"], drawn["ged"])
    assert set(sure["frequencies"].values()) <= {n / 5 for n in range(6)}
    most = entropy([0.5, 0.5])
    assert 0 < ideal["vote_entropy"] < most
    page = (tmp_path / "out" / "annotators.md").read_text()
    assert said in page
    assert "speaks of the data (aleatoric), not of the model" in page
    assert "5 held-out images, 8 masks of each, beside those of 4 annotators" in page
    from PIL import Image

    columns = 1 + 2 + 1 + 2 * SHOWN_SAMPLES  # the network's one mask once
    width, height = Image.open(tmp_path / "out" / "annotators.png").size
    assert width > columns * 32
    assert height > 5 * 32


def test_the_table_says_how_far_frequencies_are_off() -> None:
    result = {
        **dict.fromkeys(("ged", "hungarian_iou", "between_samples", "vote_entropy", "seconds_per_image"), 0.5),
        **{"masks": "some", "error_auroc": None, "votes": {"ece": 0.25}, "frequencies": {"none": 0.5, "erode": 0.5}},
    }
    lines = table([result], {"none": 0.75, "erode": 0.25}).splitlines()
    assert lines[2].split("|")[8:10] == [" 0.750 ", " 0.250 "]
    assert lines[3].split("|")[6:11] == [" – ", " 0.250 ", " 0.500 ", " 0.500 ", " 0.250 "]


def test_a_run_without_annotators_is_refused(tmp_path: Path) -> None:
    fit_on(tmp_path / "run", MaskDataConfig(train_limit=24))
    with pytest.raises(ValueError, match=r"run was trained without data\.annotators; expected a run"):
        open_run(tmp_path / "run")


def test_runs_on_other_annotators_are_not_compared(trained: Path, tmp_path: Path) -> None:
    fit_on(tmp_path / "run", MaskDataConfig(scene_classes="foreground", train_limit=24, annotators=OTHERS))
    with pytest.raises(ValueError, match="was trained on other data than"):
        study([trained, tmp_path / "run"], 2, 1, 0, tmp_path)


def test_a_kind_of_network_that_draws_no_masks_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotators, "WAYS", {"other": {}})
    with pytest.raises(ValueError, match=r"has model\.kind logits; expected other"):
        open_run(trained)
