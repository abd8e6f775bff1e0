"""Several masks per image over a data set: beside scikit-learn and the metrics of single masks, in any division."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.segmentation.cases import evaluate
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.sample_metrics import SampleMetrics, SampleOptions
from unetdiff.segmentation.samples import generalized_energy_distance, hungarian_iou, vote_entropy

OPTIONS = SampleOptions(class_names=("a", "b", "c"))
COUNTS = [3, 1]

Case = tuple[torch.Tensor, torch.Tensor]


def cases(count: int = 6, samples: int = 5, void: float = 0.1) -> list[Case]:
    """Samples (S, 7, 8) that are right more often than not, and two truths, some positions ignored."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        truths = torch.randint(3, (2, 7, 8), generator=draw)
        noise = torch.randint(3, (samples, 7, 8), generator=draw)
        masks = torch.where(torch.rand(noise.shape, generator=draw) < 0.6, truths[0], noise)
        truths[torch.rand(truths.shape, generator=draw) < void] = IGNORE
        found.append((masks, truths))
    return found


def measured(chosen: list[tuple[int, Case]], options: SampleOptions = OPTIONS) -> SampleMetrics:
    metrics = SampleMetrics(options)
    for number, (samples, truths) in chosen:
        metrics.update(samples, truths, name=f"image {number}", truth_counts=COUNTS)
    return metrics


def values_of(given: list[Case], options: SampleOptions = OPTIONS) -> dict[str, Any]:
    return measured(list(enumerate(given)), options).compute()


def test_values_of_images_are_those_of_the_functions() -> None:
    given = cases()
    values = values_of(given)
    energies = [generalized_energy_distance(*case, 3, truth_counts=COUNTS) for case in given]
    ious = [hungarian_iou(*case, 3, truth_counts=COUNTS) for case in given]
    assert values["ged"] == pytest.approx(sum(energies) / len(energies))
    assert values["hungarian_iou"] == pytest.approx(sum(ious) / len(ious))
    assert values["ged"] == pytest.approx(2 * values["to_truth"] - values["between_samples"] - values["between_truths"])
    assert (values["images"], values["samples"], values["truths"], values["pairs"]) == (6, [5], [4], "all")
    kept = [vote_entropy(samples, 3)[(truths != IGNORE).all(0)].mean() for samples, truths in given]
    assert values["vote_entropy"] == pytest.approx(float(torch.stack(kept).mean()), abs=1e-6)
    distinct = values_of(given, SampleOptions(class_names=("a", "b", "c"), pairs="distinct"))
    assert distinct["between_samples"] == pytest.approx(values["between_samples"] * 5 / 4)
    json.dumps(values, allow_nan=False)


def test_scikit_learn_agrees_on_how_entropy_ranks_errors() -> None:
    scores, wrong = [], []
    for samples, truths in (given := cases()):
        counted = (truths != IGNORE).all(0)
        winner = torch.nn.functional.one_hot(samples, 3).sum(0).argmax(-1)
        for truth, count in zip(truths, COUNTS, strict=True):
            scores += count * [vote_entropy(samples, 3)[counted]]
            wrong += count * [(winner != truth)[counted]]
    expected = roc_auc_score(torch.cat(wrong).numpy(), torch.cat(scores).numpy().round(5))
    assert 0.5 < expected < 1
    assert values_of(given)["error_auroc"] == pytest.approx(float(expected), abs=1e-12)


def test_votes_are_measured_as_probabilities_against_every_truth() -> None:
    given = cases()
    shares, labels = [], []
    for samples, truths in given:
        votes = torch.nn.functional.one_hot(samples, 3).double().mean(0).movedim(-1, 0).float()
        hidden = truths.masked_fill((truths == IGNORE).any(0), IGNORE)
        shares += [votes] * sum(COUNTS)
        labels += [hidden[0]] * COUNTS[0] + [hidden[1]] * COUNTS[1]
    expected = evaluate(torch.stack(shares), torch.stack(labels), boundary_tolerance=None)
    votes = values_of(given)["votes"]
    for key in ("ece", "nll", "brier", "aurc", "image_aurc", "mean_iou", "positions"):
        assert votes[key] == pytest.approx(expected[key], abs=1e-12), key


def test_any_division_and_order_gives_the_same_bits() -> None:
    given = list(enumerate(cases()))
    whole = measured(given).compute()
    parts = [pickle.loads(pickle.dumps(measured(given[start::3][::-1]))) for start in (2, 0, 1)]
    assert json.dumps(SampleMetrics.merged(parts).compute()) == json.dumps(whole)
    with pytest.raises(ValueError, match="image 2 was counted before"):
        SampleMetrics.merged([*parts, measured(given[2:3])])
    with pytest.raises(ValueError, match="image 2 was counted before"):
        measured([given[2], given[2]])


def test_frequencies_of_annotators() -> None:
    """Three samples like the first, one like the second; an image on which both agree does not count."""
    first, second = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]])
    options = SampleOptions(class_names=("a", "b"), annotators=("one", "other"))
    metrics = SampleMetrics(options)
    metrics.update(torch.stack([first, first, first, second]), torch.stack([first, second]), name="x")
    metrics.update(torch.stack([second]), torch.stack([first, first]), name="y")
    values = metrics.compute()
    assert values["frequencies"] == {"one": 0.75, "other": 0.25}
    assert values["classified"] == 4
    with pytest.raises(ValueError, match="z has 1 truths; expected 2, one by annotator"):
        metrics.update(first[None], first[None], name="z")


def test_images_without_a_counted_position_and_none_at_all() -> None:
    values = SampleMetrics(OPTIONS).compute()
    assert (values["images"], values["ged"], values["error_auroc"], values["votes"]["ece"]) == (0, None, None, None)
    samples, truths = cases(1)[0]
    metrics = SampleMetrics(OPTIONS)
    metrics.update(samples, torch.full_like(truths, IGNORE), name="void")
    values = metrics.compute()
    assert (values["images"], values["ged"], values["hungarian_iou"], values["vote_entropy"]) == (1, None, None, None)
    json.dumps(values, allow_nan=False)


def test_labels_and_options_that_cannot_be() -> None:
    samples, truths = cases(1)[0]
    with pytest.raises(ValueError, match=r"The samples of x hold \[-1\]; expected 0\.\.2"):
        SampleMetrics(OPTIONS).update(truths, truths, name="x")
    with pytest.raises(ValueError, match=r"The truths of x hold \[3\]; expected 0\.\.2"):
        SampleMetrics(OPTIONS).update(samples, samples + 1, name="x")
    with pytest.raises(ValueError, match="pairs is 'some'; expected all or distinct"):
        SampleOptions(class_names=("a", "b"), pairs="some")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected at least two classes"):
        SampleOptions(class_names=("a",))
