"""Results brought together: one arm per regime and placement, means and deviations over seeds, the verdict's rule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.normalization.placements import ARMS

Result = Mapping[str, Any]

LEAST_SEEDS = 3  # for a refutation
MOST_BETA, MOST_SHARE, MOST_ERRORS, MOST_FRECHET = 0.05, 0.05, 3.0, 1.25  # what the claim is confirmed beyond


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation (NaN for one value) over `count` seeds."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), deviation, len(values))


@dataclass(frozen=True)
class Arm:
    """What was measured of a placement in a regime: its results at one learning rate, one per seed."""

    placement: str
    regime: str
    results: Sequence[Result]
    learning_rate: float

    @property
    def title(self) -> str:
        return ARMS[self.placement].title

    @property
    def seeds(self) -> int:
        return len(self.results)

    @property
    def noise_levels(self) -> list[float]:
        """Timesteps (A) or sigmas (B, C)."""
        return [row["level"] for row in self.results[0]["levels"]]

    @property
    def nmse(self) -> Figure:
        """Mean over noise levels."""
        return Figure.of([result["nmse"] for result in self.results])

    def level(self, name: str, index: int) -> Figure:
        """A metric at a noise level."""
        return Figure.of([result["levels"][index][name] for result in self.results])

    def over_levels(self, name: str) -> list[Figure]:
        """A metric at every noise level."""
        return [self.level(name, index) for index in range(len(self.noise_levels))]

    def sampled(self, name: str) -> Figure | None:
        """A metric of the samples; None where none were drawn."""
        if not all(result["samples"] for result in self.results):
            return None
        return Figure.of([result["samples"][name] for result in self.results])

    @property
    def worst_beta(self) -> tuple[float, float]:
        """The mean beta that is furthest from 1, and its noise level."""
        betas = [figure.mean for figure in self.over_levels("beta")]
        index = max(range(len(betas)), key=lambda i: abs(betas[i] - 1))
        return betas[index], self.noise_levels[index]

    @property
    def worst_share(self) -> float:
        """The largest mean amplitude share of any noise level."""
        return max(figure.mean for figure in self.over_levels("amplitude_share"))


Arms = dict[str, Arm]  # by placement, in the table's order


def arms_of(results: Iterable[Result], regime: str) -> Arms:
    """The arms of a regime; of several learning rates the one with the least error on held-out training images."""
    grouped: dict[str, dict[float, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result["regime"] == regime:
            grouped[result["placement"]][result["learning_rate"]].append(result)
    arms = {}
    for name in ARMS:
        if name in grouped:
            rates = grouped[name]
            best = min(rates, key=lambda rate: float(np.mean([r["validation_nmse"] for r in rates[rate]])))
            arms[name] = Arm(name, regime, sorted(rates[best], key=lambda r: r["seed"]), best)
    return arms


def pooled_deviation(figures: Iterable[Figure]) -> float:
    """Standard deviation between seeds, pooled over arms of at least two seeds; NaN without any."""
    several = [figure for figure in figures if figure.count > 1]
    freedom = sum(figure.count - 1 for figure in several)
    if not freedom:
        return math.nan
    return math.sqrt(sum((figure.count - 1) * figure.deviation**2 for figure in several) / freedom)


@dataclass(frozen=True)
class Check:
    """One clause of the rule: what was measured, in words, and whether it speaks for the claim."""

    text: str
    holds: bool


def checks(arms: Arms) -> list[Check]:
    """The clauses, decoder only against encoder only, in one regime; empty where one of the two is missing.

    The standard error is that of a difference of two means, with the deviation pooled over the two.
    """
    if "decoder" not in arms or "encoder" not in arms:
        return []
    decoder, encoder = arms["decoder"], arms["encoder"]
    (beta, level), share = decoder.worst_beta, decoder.worst_share
    deviation = pooled_deviation((decoder.nmse, encoder.nmse))
    error = deviation * math.sqrt(1 / decoder.seeds + 1 / encoder.seeds)
    worse = decoder.nmse.mean - encoder.nmse.mean
    beside = f"encoder only {abs(encoder.worst_beta[0] - 1):.3f}"
    off = Check(
        f"largest abs(beta - 1) {abs(beta - 1):.3f}, at {level:.3g} ({beside}; limit {MOST_BETA:g})",
        abs(beta - 1) > MOST_BETA,
    )
    beside = f"encoder only {encoder.worst_share:.2%}"
    found = [
        off,
        Check(f"largest amplitude share {share:.2%} ({beside}; limit {MOST_SHARE:.0%})", share > MOST_SHARE),
        _error_check(worse, error),
    ]
    distances = decoder.sampled("pixel_frechet"), encoder.sampled("pixel_frechet")
    if distances[0] and distances[1]:
        ratio = distances[0].mean / distances[1].mean
        found.append(Check(f"pixel-Frechet ratio {ratio:.2f} (limit {MOST_FRECHET:g})", ratio > MOST_FRECHET))
    return found


def _error_check(worse: float, error: float) -> Check:
    """NMSE of decoder only less that of encoder only, in standard errors."""
    if math.isnan(error):
        return Check(f"NMSE {worse:+.4f} against encoder only, standard error unknown (one seed)", False)
    return Check(
        f"NMSE {worse:+.4f} against encoder only, {worse / error:+.1f} pooled standard errors (limit +{MOST_ERRORS:g})",
        worse > MOST_ERRORS * error,
    )


def verdict(arms: Arms) -> str:
    """`confirmed`, `refuted` or `open`, by the rule, from the arms of regime A."""
    found = checks(arms)
    if not found:
        return "open"
    if any(check.holds for check in found):
        return "confirmed"
    seeds = min(arms["decoder"].seeds, arms["encoder"].seeds)
    return "refuted" if seeds >= LEAST_SEEDS else "open"


def rank_correlation(arms: Arms, first: Callable[[Arm], float], second: Callable[[Arm], float]) -> float:
    """Spearman's correlation, over arms, of two of their figures; NaN where one of them is the same in all."""
    ranks = [np.argsort(np.argsort([figure(arm) for arm in arms.values()])) for figure in (first, second)]
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(arms) > 1 else math.nan
