"""What is measured of masks with truth: a mask against each of its truths, and several masks against several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetdiff.files import write_json, write_text
from unetdiff.masks.inputs import TruthMask
from unetdiff.masks.scores import TruthScores, score_list, score_page, shown, table
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmentation.sample_metrics import SampleMetrics, SampleOptions
from unetdiff.segmentation.samples import spread_note
from unetdiff.segmenting import Segmentation

_SUMMARY = {
    "ged": "GED²",
    "hungarian_iou": "Hungarian IoU",
    "to_truth": "distance of a mask and a truth",
    "between_samples": "distance of two masks",
    "between_truths": "distance of two truths",
}
_OF_VOTES = {"vote_entropy": "vote entropy (nats)", "error_auroc": "AUROC of vote entropy for errors"}

RULES = """GED² = 2 E d(S, Y) - E d(S, S') - E d(Y, Y'), where d is 1 - IoU, the mean over the classes but {background}
and 0 for one that neither mask holds; means are over all pairs, those of a mask with itself too, and depend on the
number of masks. Hungarian IoU: of the best one-to-one matching, both sets repeated to one size."""
VOTES = """AUROC: whether a position where the most voted class is wrong has a higher vote entropy than one where it is
right. {spread}"""


class Scores:
    """The figures of images with truth, added up one by one.

    annotators: how many truths an image has. drawn: whether several masks of an image are drawn.
    """

    def __init__(self, options: MetricOptions, annotators: int, drawn: bool) -> None:
        self.annotators = annotators
        self._single = TruthScores(options)
        several = drawn or annotators > 1
        self._several = SampleMetrics(SampleOptions(class_names=options.class_names)) if several else None

    def add(
        self,
        name: str,
        found: Segmentation,
        truths: Mapping[str, np.ndarray],
        spacing: Sequence[float] | None = None,
    ) -> None:
        """Add an image that is held whole, beside its labels (*space) int64 by annotator; spacing: for HD95."""
        for annotator, labels in truths.items():
            self._single.add(name if len(truths) == 1 else f"{name}, {annotator}", found, labels, spacing)
        if self._several is not None:
            samples = found.labels[None] if found.masks is None else found.masks
            stacked = np.stack(list(truths.values()))
            self._several.update(torch.from_numpy(samples), torch.from_numpy(stacked), name=name)

    def add_rows(
        self, name: str, rows: Iterator[tuple[int, Segmentation]], truth: TruthMask
    ) -> Iterator[tuple[int, Segmentation]]:
        """Add a large image, of one truth, as its rows pass; see `TruthScores.add_rows`."""
        return self._single.add_rows(name, rows, truth)

    @classmethod
    def merged(cls, parts: Sequence[Scores]) -> Scores:
        """What one process would hold after all the images of `parts`, which several have measured."""
        lead, several = parts[0], [part._several for part in parts if part._several is not None]
        total = cls(lead._single.options, lead.annotators, bool(several))
        total._single = TruthScores.merged([part._single for part in parts])
        total._several = SampleMetrics.merged(several) if several else None
        return total

    def write(self, out: Path, networks: int, notes: Sequence[str]) -> str:
        """Write the figures as metrics.json, metrics.csv and metrics.md, with notes; what is said of them.

        networks: how many made the masks.
        """
        computed = self._single.compute()
        pages, also = [score_page(computed, self.annotators).strip()], ""
        if self._several is not None:
            computed["several"] = self._several.compute()
            pages.append(several_page(computed["several"], self._several.options.background, networks))
            also = f", GED² {shown(computed['several']['ged'])}"
        write_json(out / "metrics.json", computed)
        write_text(out / "metrics.csv", score_list(computed))
        write_text(out / "metrics.md", "\n\n".join([*pages, *(f"{note}." for note in notes)]) + "\n")
        rand = f", V-Rand {shown(computed['v_rand'])}" if "v_rand" in computed else ""
        means = f"mean IoU {shown(computed['mean_iou'])}, mean Dice {shown(computed['mean_dice'])}{rand}{also}"
        against = f", each against {self.annotators} truths" if self.annotators > 1 else ""
        return (
            f"{means} over {computed['images'] // self.annotators} images{against}; {out / 'metrics.md'} has the rest"
        )


def several_page(computed: dict[str, Any], background: int | None, networks: int) -> str:
    """The figures of `SampleMetrics.compute` as a section in Markdown, with what they speak of.

    background: the class that distances leave out. networks: how many drew the masks.
    """
    counts = [" or ".join(map(str, computed[name])) for name in ("samples", "truths")]
    left_out = "none" if background is None else computed["class_names"][background]
    drawn, shares = max(computed["samples"]), _SUMMARY
    notes = [RULES.format(background=left_out)]
    if drawn > 1:
        shares = _SUMMARY | _OF_VOTES
        notes.append(VOTES.format(spread=spread_note(drawn // networks, networks)))
    return "\n\n".join(
        [
            f"## Masks beside truths\n\nMasks of an image: {counts[0]}; truths: {counts[1]}. Means over images.",
            table(["", "all images"], [[label, shown(computed[key])] for key, label in shares.items()]),
            *notes,
        ]
    )
