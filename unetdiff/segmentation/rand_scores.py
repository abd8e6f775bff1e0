"""V-Rand and V-Info: how well the cells that membranes enclose are told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unetdiff.segmentation.scoring import Counts, Row, ScoredImage, mean_of_defined


def cells(mask: np.ndarray) -> np.ndarray:
    """Connected components (*space) int, from 1; 0 outside the mask. Neighbours share a face: 2, 4 or 6 of them."""
    from skimage.measure import label

    return np.asarray(label(mask, connectivity=1))


def partition_scores(truth: np.ndarray, proposal: np.ndarray) -> Row:
    """V-Rand and V-Info of two partitions, over the positions where the truth is not 0.

    With the contingency table n_ij of true segment i and proposed segment j, its sums s_i and t_j, and n in all:

        V-Rand = (sum n_ij^2 - n) / (1/2 (sum s_i^2 - n) + 1/2 (sum t_j^2 - n))
        V-Info = I(S; T) / (1/2 H(S) + 1/2 H(T)) = 1 - (H(S|T) + H(T|S)) / (H(S) + H(T))

    that is, the harmonic means of precision and recall over pairs of distinct positions, and over information
    (Arganda-Carreras et al. 2015, https://doi.org/10.3389/fnana.2015.00142, alpha = 1/2). V-Rand is 1 minus
    scikit-image's `adapted_rand_error`; like it, this counts what is 0 in the proposal as one segment, where the
    SNEMI3D code makes each such position a segment of its own.

    Args:
        truth, proposal: integers at least 0 of one shape.

    Returns:
        `v_rand`, `v_info` in [0, 1], 1 for equal partitions; `vi_split` = H(proposal|truth) and `vi_merge` =
        H(truth|proposal), in bits. None where not defined: no true cell, and for `v_rand` no two positions together.
    """
    from scipy.stats import entropy
    from skimage.metrics import adapted_rand_error, contingency_table

    if not truth.any():
        return dict.fromkeys(("v_rand", "v_info", "vi_split", "vi_merge"))
    table = contingency_table(truth, proposal, ignore_labels=(0,), sparse_type="array")
    with np.errstate(invalid="ignore", divide="ignore"):
        v_rand = 1 - float(adapted_rand_error(table=table)[0])
    joint, of_truth, of_proposal = (
        float(entropy(part, base=2)) for part in (table.data, table.sum(axis=1), table.sum(axis=0))
    )
    split, merge, both = max(joint - of_truth, 0.0), max(joint - of_proposal, 0.0), of_truth + of_proposal
    return {
        "v_rand": None if math.isnan(v_rand) else v_rand,
        "v_info": 1 - (split + merge) / both if both else 1.0,
        "vi_split": split,
        "vi_merge": merge,
    }


@dataclass(frozen=True)
class MembraneScores:
    """V-Rand and V-Info of the cells between membranes, by `partition_scores`, the mean over images.

    True cells are the face-connected components of what is not membrane; the true membrane is left out. Proposed
    cells are those of what is not predicted as membrane, raw: not thinned, not filled by a watershed. Positions that
    are not counted belong to no cell on either side.

    `oracle_v_rand` and `oracle_v_info` are the best means over `thresholds` of the membrane's probability, one
    threshold for the whole data set, chosen on the truth: an upper bound, not a result. The plain ones take the most
    probable class.

    Attributes:
        membrane: the class of the membrane.
        thresholds: of the membrane's probability, in (0, 1); empty: no oracle.
    """

    membrane: int
    thresholds: tuple[float, ...]

    def zeros(self) -> Counts:
        return {}

    def measure(self, image: ScoredImage) -> tuple[Counts, Row]:
        labels, counted = image.labels.cpu().numpy(), image.counted.cpu().numpy()
        truth = cells((labels != self.membrane) & counted)
        chosen = image.prediction.cpu().numpy() != self.membrane
        probability = image.probabilities[self.membrane].cpu().numpy()
        swept = [partition_scores(truth, cells((probability <= cut) & counted)) for cut in self.thresholds]
        by_threshold = {f"{key}_by_threshold": [row[key] for row in swept] for key in ("v_rand", "v_info")}
        return {}, {**partition_scores(truth, cells(chosen & counted)), **by_threshold}

    def summary(self, counts: Counts, rows: list[Row]) -> dict[str, Any]:
        means: dict[str, Any] = {
            key: mean_of_defined(row[key] for row in rows) for key in ("v_rand", "v_info", "vi_split", "vi_merge")
        }
        return {**means, **self._oracle(rows, "v_rand"), **self._oracle(rows, "v_info")}

    def _oracle(self, rows: list[Row], key: str) -> dict[str, Any]:
        best, threshold = None, None
        for place, cut in enumerate(self.thresholds):
            score = mean_of_defined(row[f"{key}_by_threshold"][place] for row in rows)
            if score is not None and (best is None or score > best):
                best, threshold = score, cut
        return {f"oracle_{key}": best, f"oracle_{key}_threshold": threshold}
