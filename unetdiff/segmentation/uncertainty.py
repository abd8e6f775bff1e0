"""How far the members of an ensemble are unsure, each of itself and one of another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.segmentation.options import IGNORE

_ROUNDING = 1e-4  # nats: what float32 may make of a mutual information of 0, with room


@dataclass(frozen=True)
class Uncertainty:
    """Maps of what an ensemble predicts and where it is unsure; entropies in nats, at most log K.

    Attributes:
        probabilities: (N, K, *space) float32, the mean over members.
        total: (N, *space), the entropy of the mean, H[mean p_m].
        expected: (N, *space), the mean of the members' entropies, E H[p_m]: what each is unsure of by itself
            (aleatoric).
        mutual_information: (N, *space), total - expected, at least 0: what the members disagree about (epistemic,
            if they differ by their weights).
        variance: (N, *space), the variance over members of the probabilities, summed over classes, in [0, 1].
        vote_entropy: (N, *space), the entropy of the shares of the members' most probable classes.
        disagreement: (N, *space), the share of members whose most probable class is not the most frequent one.
    """

    probabilities: Tensor
    total: Tensor
    expected: Tensor
    mutual_information: Tensor
    variance: Tensor
    vote_entropy: Tensor
    disagreement: Tensor

    @property
    def maps(self) -> dict[str, Tensor]:
        """Every map (N, *space) by its name."""
        return {name: value for name, value in vars(self).items() if name != "probabilities"}

    @property
    def shares(self) -> dict[str, Tensor]:
        """The entropies (N, *space) as shares of log K, the most there can be: in [0, 1]. K is at least 2."""
        most = math.log(self.probabilities.shape[1])
        return {name: self.maps[name] / most for name in ("total", "expected", "mutual_information", "vote_entropy")}

    def masked(self, labels: Tensor, ignore: int = IGNORE) -> Uncertainty:
        """The same with NaN in every map where the labels (N, *space) are ignored; the probabilities stay."""
        void = labels == ignore
        return replace(self, **{name: value.masked_fill(void, math.nan) for name, value in self.maps.items()})

    def means(self, labels: Tensor | None = None, ignore: int = IGNORE) -> dict[str, float | None]:
        """Each map's mean over all positions, or over those of labels (N, *space) that are not ignored; else None."""
        kept = slice(None) if labels is None else labels != ignore
        return {
            name: float(value[kept].mean(dtype=torch.float64)) if value[kept].numel() else None
            for name, value in self.maps.items()
        }


def decompose(members: Iterable[Tensor]) -> Uncertainty:
    """The uncertainty of an ensemble, total = expected + mutual information, from running sums over its members.

    Houlsby et al. 2011, https://arxiv.org/abs/1112.5745; Kendall & Gal 2017, https://arxiv.org/abs/1703.04977.
    What the parts mean follows from how the members differ. Other weights (an ensemble, dropout passes) make the
    mutual information epistemic. Samples of one mask diffusion differ by their noise, which is aleatoric; give the
    mean of each network's samples as one member then.

    Args:
        members: at least one of probabilities (N, K, *space), summing to 1 over classes: a tensor (M, N, K, *space)
            or anything that yields them one by one, of which two are held at most, whatever M is.

    Raises:
        ValueError: there is no member.
    """
    sums: _Sums | None = None
    for member in members:
        member = member.float()
        sums = sums or _Sums.like(member)
        sums.add(member)
    if sums is None:
        raise ValueError("The ensemble has 0 members; expected at least 1.")
    return sums.result()


def decompose_votes(samples: Iterable[Tensor], classes: int) -> Uncertainty:
    """The uncertainty of hard samples: each counts as certain of itself, so that all of it is disagreement.

    The expected entropy is 0, the mutual information is the total and the vote entropy, and the variance is
    1 - sum_c f_c^2 of the shares f of the votes.

    Args:
        samples: at least one of label maps (N, *space) int64 in 0..K-1, as a tensor (M, N, *space) or one by one.
        classes: K.

    Raises:
        ValueError: there is no sample.
    """
    return decompose(F.one_hot(sample, classes).movedim(-1, 1) for sample in samples)


@dataclass
class _Sums:
    """Sums over members: of probabilities and votes (N, K, *space), of entropies and squares (N, *space)."""

    count: int
    probabilities: Tensor
    votes: Tensor
    entropies: Tensor
    squares: Tensor

    @classmethod
    def like(cls, member: Tensor) -> _Sums:
        flat = torch.zeros_like(member[:, 0])
        return cls(0, torch.zeros_like(member), torch.zeros_like(member), flat, flat.clone())

    def add(self, member: Tensor) -> None:
        self.count += 1
        self.probabilities += member
        choice = member.argmax(1, keepdim=True)
        self.votes.scatter_add_(1, choice, torch.ones_like(choice, dtype=self.votes.dtype))
        self.entropies += entropy(member)
        self.squares += member.square().sum(1)

    def result(self) -> Uncertainty:
        mean, votes = self.probabilities / self.count, self.votes / self.count
        total, expected = entropy(mean), self.entropies / self.count
        information = total - expected
        assert (information >= -_ROUNDING).all(), "entropy is concave: members are not probabilities"
        return Uncertainty(
            probabilities=mean,
            total=total,
            expected=expected,
            mutual_information=information.clamp(min=0),
            variance=(self.squares / self.count - mean.square().sum(1)).clamp(min=0),
            vote_entropy=entropy(votes),
            disagreement=1 - votes.amax(1),
        )


def entropy(probabilities: Tensor, classes: int = 1) -> Tensor:
    """-sum p log p in nats, 0 log 0 = 0, over the axis `classes`, which goes: (N, K, *space) to (N, *space)."""
    return torch.special.entr(probabilities).sum(classes)
