"""Figures of large images by rows, and the tables that show them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from unetdiff.data.masks import MaskEncoding
from unetdiff.masks.inputs import TruthMask
from unetdiff.masks.scores import TruthScores, score_list, score_page, shown, worst_first
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmenting import Segmentation

ENCODING = MaskEncoding(kind="values", values=(0, 1, 2), class_names=("a", "b|c", "d"), ignore=(255,))
OPTIONS = MetricOptions(class_names=ENCODING.class_names, hd95=True)
SPACE = (13, 11)


def image(seed: int, ignored: bool = False) -> tuple[Segmentation, TruthMask]:
    """Random probabilities beside a random truth with ignored positions."""
    chosen = np.random.default_rng(seed)
    probabilities = chosen.dirichlet([1, 1, 1], SPACE).astype(np.float32).transpose(2, 0, 1)
    mask = np.array([0, 1, 2, 255], np.uint8)[np.full(SPACE, 3) if ignored else chosen.integers(0, 4, SPACE)]
    found = Segmentation(probabilities.argmax(0), probabilities, {})
    return found, TruthMask(Path("a.npy"), mask, ENCODING, SPACE)


def add(scores: TruthScores, name: str, found: Segmentation, truth: TruthMask) -> None:
    """Add an image whole."""
    scores.add(name, found, truth.whole())


def by_rows(scores: TruthScores, name: str, found: Segmentation, truth: TruthMask) -> None:
    """Add an image in three parts."""
    places = [slice(start, start + 5) for start in range(0, SPACE[0], 5)]
    rows = ((place.start, Segmentation(found.labels[place], found.probabilities[:, place], {})) for place in places)
    assert [start for start, _ in scores.add_rows(name, rows, truth)] == [0, 5, 10]


def test_rows_have_the_figures_of_the_whole() -> None:
    whole, parts = TruthScores(OPTIONS), TruthScores(OPTIONS)
    for number in range(3):
        add(whole, f"{number}", *image(number, ignored=number == 2))
        by_rows(parts, f"{number}", *image(number, ignored=number == 2))
    expected, found = whole.compute(), parts.compute()
    for key in ("confusion", "ignored", "mean_iou", "dice", "ece", "aurc", "image_dice", "mean_image_iou"):
        assert found[key] == expected[key], key
    for key in ("nll", "brier", "image_aurc"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6), key
    assert (found["images"], found["images_whole"], expected["images_whole"]) == (3, 0, 3)
    assert [row["positions"] for row in found["per_image"]] == [row["positions"] for row in expected["per_image"]]
    assert "mean_hd95" in expected


def test_a_whole_image_and_a_large_one_are_added_up() -> None:
    mixed, whole = TruthScores(OPTIONS), TruthScores(OPTIONS)
    add(mixed, "a", *image(0))
    by_rows(mixed, "b", *image(1))
    for name, seed in (("a", 0), ("b", 1)):
        add(whole, name, *image(seed))
    assert mixed.compute()["confusion"] == whole.compute()["confusion"]
    alone = TruthScores(OPTIONS)
    add(alone, "a", *image(0))
    assert mixed.compute()["mean_boundary_f"] == alone.compute()["mean_boundary_f"]


def test_the_parts_of_several_processes_are_added_up() -> None:
    """Rows come in one order, so that the figures are the same however images were shared out."""
    alone, first, second = (TruthScores(OPTIONS) for _ in range(3))
    for number in range(5):
        for scores in (alone, (first, second)[number % 2]):
            (add if number < 3 else by_rows)(scores, f"{number}", *image(number))
    assert TruthScores.merged([second, first]).compute() == alone.compute()


def test_tables_name_the_worst_first_and_leave_gaps_for_what_is_not_defined() -> None:
    scores = TruthScores(OPTIONS)
    for number in range(3):
        add(scores, f"{number}", *image(number, ignored=number == 2))
    computed = scores.compute()
    assert [row["name"] for row in worst_first(computed)][2] == "2"
    dice = [row["mean_dice"] for row in worst_first(computed)[:2]]
    assert dice == sorted(dice)
    page = score_page(computed)
    assert "b\\|c" in page
    assert "| 2 | – | – | – | 0 |" in page
    widths = [line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("| class")]
    assert widths == [len(["class", "IoU", "Dice", "recall", "boundary F", "HD95", "share"]) + 1]
    rows = list(csv.DictReader(io.StringIO(score_list(computed))))
    assert rows[2]["mean_dice"] == rows[2]["iou_b|c"] == ""
    assert float(rows[0]["dice_a"]) == worst_first(computed)[0]["dice"][0]
    assert [shown(value) for value in (None, 0.5, 3)] == ["–", "0.5000", "3"]
