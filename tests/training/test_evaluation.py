"""The folder of a validation: the worst images in order, the same for any division among processes."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import class_colours
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmentation.options import IGNORE
from unetdiff.training.evaluation import (
    FIGURES,
    FOLDER,
    MOST_CASES,
    DrawnCase,
    Evaluation,
    merged,
    read_evaluation,
    write_evaluation,
)

FORMAT = DataFormat(dims=2, channels=1, dtype="uint8", low=0, high=255)
OPTIONS = MetricOptions(class_names=("a", "b"))
SIDE = 8


def evaluated(wrong: dict[str, int | None], places: list[int]) -> Evaluation:
    """What a process has that saw these of the images; so many positions of each are wrong, None: all are ignored."""
    own = Evaluation.start(OPTIONS)
    for place in places:
        name = list(wrong)[place]
        labels = np.zeros((SIDE, SIDE), np.int64)
        labels[: SIDE // 2] = 1
        found = labels.copy()
        found.ravel()[: wrong[name] or 0] = 0
        labels = labels if wrong[name] is not None else np.full_like(labels, IGNORE)
        probabilities = torch.nn.functional.one_hot(torch.from_numpy(found), 2).movedim(-1, 0).float()
        own.add(name, labels[..., None].astype(np.uint8), labels, probabilities, 0.5, FORMAT, class_colours(2))
    return own


def all_of(wrong: dict[str, int | None], division: list[list[int]]) -> tuple[dict[str, Any], list[DrawnCase]]:
    """What all processes know after the exchange, each having had its part of the division."""
    return merged([pickle.loads(pickle.dumps(evaluated(wrong, part).parts())) for part in division])


MANY: dict[str, int | None] = {f"image {number:02d}.png": (7 * number) % 25 for number in range(25)}


def test_the_worst_come_first_and_there_are_ten() -> None:
    _, cases = all_of(MANY, [list(range(25))])
    assert [case.figures["name"] for case in cases] == sorted(MANY, key=lambda name: -(MANY[name] or 0))[:MOST_CASES]
    dice = [case.figures["mean_dice"] for case in cases]
    assert dice == sorted(dice)
    assert Image.open(io.BytesIO(cases[0].picture)).size[0] > 500


@pytest.mark.parametrize("division", [[[*range(0, 25, 2)], [*range(1, 25, 2)]], [[*range(24, -1, -1)], []]])
def test_any_division_gives_the_same(division: list[list[int]]) -> None:
    assert all_of(MANY, division) == all_of(MANY, [list(range(25))])


def test_ties_go_by_name_and_ignored_images_are_no_case() -> None:
    _, cases = all_of({"b": 3, "none": None, "a": 3}, [[0, 1, 2]])
    assert [case.figures["name"] for case in cases] == ["a", "b"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    wrong: dict[str, int | None] = {"/data/x y/é:1.nii.gz": 4, "scans, scene 2": 2}
    figures, cases = all_of(wrong, [[0, 1]])
    for _ in range(2):
        write_evaluation(tmp_path, figures, cases, class_colours(2))
    held = read_evaluation(tmp_path)
    files = [case["file"] for case in held["cases"]]
    assert files == ["00_é_1.png", "01_scans_scene_2.png"]
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {*files, FIGURES}
    assert held["colours"] == class_colours(2).tolist()
    assert held["mean_dice"] == figures["mean_dice"]
    assert "per_image" not in held
    assert held["cases"][0]["accuracy"] == 1 - 4 / SIDE**2
    write_evaluation(tmp_path, *all_of({"other": 1}, [[0]]), class_colours(2))
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"00_other.png", FIGURES}


def test_a_volume_shows_its_worst_slice(tmp_path: Path) -> None:
    own = Evaluation.start(OPTIONS)
    labels = np.zeros((5, SIDE, SIDE), np.int64)
    found = torch.zeros(5, SIDE, SIDE, dtype=torch.int64)
    found[3, 2] = 1
    probabilities = torch.nn.functional.one_hot(found, 2).movedim(-1, 0).float()
    form = DataFormat(dims=3, channels=1, dtype="uint8", low=0, high=255)
    own.add("v", labels[..., None].astype(np.uint8), labels, probabilities, 0.5, form, class_colours(2))
    write_evaluation(tmp_path, *merged([own.parts()]), class_colours(2))
    assert read_evaluation(tmp_path)["cases"][0]["slice"] == 3


@pytest.mark.parametrize("content", [None, "[1, 2]", '{"iou": [', "\xff"])
def test_what_cannot_be_read_is_left_out(content: str | None, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    if content is not None:
        (tmp_path / FOLDER / FIGURES).write_bytes(content.encode("latin-1"))
    assert read_evaluation(tmp_path) == {}


def test_figures_are_json_without_nan(tmp_path: Path) -> None:
    write_evaluation(tmp_path, *all_of({"none": None}, [[0]]), class_colours(2))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    held = json.loads((tmp_path / FOLDER / FIGURES).read_text(), parse_constant=refuse)
    assert (held["cases"], held["iou"]) == ([], [None, None])
