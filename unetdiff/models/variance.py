"""What first weights make of variances and gradients: rules over the plan of a network, no network needed.

Every layer starts at unit gain (`nn.layers`), so that a few rules say how large the stream is behind each step, and how
large the gradient. They hold on average over draws of the weights, for unit normal input, away from the border.
`nan` stands for what no rule says: pooling, filters and attention depend on how their input is correlated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from unetdiff.models.plan import make_plan
from unetdiff.models.step import Step
from unetdiff.nn.activation import ACTIVATIONS
from unetdiff.nn.norm import removes_mean
from unetdiff.nn.skips import mp_weights
from unetdiff.spec import Activation, Site, UNetSpec

UNKNOWN = math.nan


@dataclass(frozen=True)
class Statistic:
    """Mean squares at one step, over samples, channels and positions.

    variance: of the stream behind the step (about zero: its mean over draws of the weights, but behind a
    nonlinearity). branch: of what its residual branch adds. gradient: of a loss's gradient at the stream.
    """

    variance: float
    branch: float
    gradient: float


@cache
def moments(activation: Activation, variance: float) -> tuple[float, float, float]:
    """E[f(x)], E[f(x)^2] and E[f'(x)^2] of a nonlinearity f for x ~ N(0, variance)."""
    z = torch.linspace(-9, 9, 18_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    x = (z * math.sqrt(variance)).requires_grad_()
    value = ACTIVATIONS[activation].module()(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    first, second, squared_slope = ((entry.detach() * density).sum() for entry in (value, value**2, slope**2))
    return float(first), float(second), float(squared_slope)


# Shares (of the stream, of the branch) in the mean square of their merger: v = share_stream v + share_branch v_branch.
SHARES = {
    "sum": lambda t: (1.0, 1.0),
    "sqrt_half": lambda t: (0.5, 0.5),
    "mp": lambda t: ((1 - t) ** 2 / ((1 - t) ** 2 + t**2), t**2 / ((1 - t) ** 2 + t**2)),
    "off": lambda t: (0.0, 1.0),
}

# Factors (on the variance, on the gradient's mean square at equal width) of a step between levels, from the number of
# positions in a cell of its stride. A pooling's variance depends on its input, as does that of a step without a row.
RESAMPLING = {
    "": lambda cell: (1.0, 1.0),
    "strided": lambda cell: (1.0, 1 / cell),
    "strided_asymmetric": lambda cell: (1.0, 1 / cell),
    "block": lambda cell: (1.0, 1 / cell),
    "max_pool": lambda cell: (UNKNOWN, 1 / cell),
    "average_pool": lambda cell: (UNKNOWN, 1 / cell**2),
    "nearest": lambda cell: (1.0, float(cell)),
    "repeat": lambda cell: (1.0, float(cell)),
    "transposed": lambda cell: (1.0, float(cell)),
}


def _weighted(*terms: tuple[float, float]) -> float:
    """The sum of weight times value, where what has no weight may be unknown."""
    return sum(weight * value for weight, value in terms if weight)


@dataclass(frozen=True)
class Rule:
    """A step whose input is of variance `x`: a convolution of unit gain, with a change of resolution or without.

    before, after: how the step that it reads and those that read it change the resolution ("": not at all).
    """

    spec: UNetSpec
    step: Step
    x: float
    skip: float = 0.0
    before: str = ""
    after: frozenset[str] = frozenset()

    @property
    def factors(self) -> tuple[float, float]:
        """What its change of resolution does to variance and gradient."""
        how = self.step.resampling
        if how == "residual":
            plain = "average_pool" if self.step.kind == "down" else "repeat"
            how = plain if self.spec.resample_filter is None else "filter"
        return RESAMPLING.get(how, lambda cell: (UNKNOWN, UNKNOWN))(math.prod(self.step.stride))

    @property
    def branch(self) -> float:
        """Variance of the residual branch; 0 where there is none."""
        return 0.0

    @property
    def out(self) -> float:
        """Variance behind the step."""
        return self.x * self.factors[0]

    def backward(self, gradient: float) -> tuple[float, float]:
        """Gradients at the step's input and at the skip it takes, from the gradient behind it."""
        return gradient * self.factors[1] * self.step.out_channels / self.step.in_channels, 0.0


@dataclass(frozen=True)
class UnknownRule(Rule):
    """A step that has no rule, such as one that the input pyramid joins behind its filter."""

    @property
    def out(self) -> float:
        return UNKNOWN

    def backward(self, gradient: float) -> tuple[float, float]:
        return UNKNOWN, 0.0


@dataclass(frozen=True)
class BlockRule(Rule):
    """A residual block: concatenation, shortcut, main norm, branch, merger, attention."""

    @property
    def site(self) -> Site:
        assert self.step.side != "head"
        return self.spec.placement.site(self.step.side)

    @property
    def normed(self) -> bool:
        """Whether the branch has norms."""
        return self.site.norm.kind != "none"

    @property
    def standardized(self) -> bool:
        """Whether filters have zero mean, so that they do not see the mean of what they read."""
        return self.spec.placement.weights == "standardized"

    @property
    def gain(self) -> float:
        """Mean square of the nonlinearity's output (or its variance), which the convolutions behind it make up for."""
        response = ACTIVATIONS[self.spec.activation]
        return (response.std if self.standardized else response.rms) ** 2

    @property
    def reads(self) -> float:
        """The mean square that the first convolution of a post-norm block makes up for."""
        return 1.0 if self.step.first else UNKNOWN if self.standardized else self.gain

    @property
    def weights(self) -> tuple[float, float]:
        """Shares of stream and skip in the sum of squares of their concatenation, over its width."""
        placement, widths = self.spec.placement, (self.step.in_channels, self.step.skip)
        plain = placement.concat == "plain" or not self.step.skip
        factors = (1.0, 1.0) if plain else mp_weights(*widths, placement.concat_t)
        scale = 1.0 if isinstance(placement.skip_scale, str) else placement.skip_scale
        return factors[0] ** 2, (factors[1] * scale) ** 2

    @property
    def concatenated(self) -> float:
        """E[c^2] = (N_a v_a + N_b v_b) / (N_a + N_b), before a norm on both; no rule for other ways to fuse."""
        if self.step.skip and self.spec.skip_fusion != "concat":
            return UNKNOWN
        before = self.spec.placement.skip == "before_concat" and self.step.skip
        x, skip = (1.0, 1.0) if before else (self.x, self.skip)
        (a, b), (n, s) = self.weights, (self.step.in_channels, self.step.skip)
        return _weighted((a * n, x), (b * s, skip)) / (n + s)

    @property
    def joined(self) -> float:
        """Variance of what the block reads."""
        return 1.0 if self.spec.placement.skip == "after_concat" and self.step.skip else self.concatenated

    @property
    def shortcut(self) -> float:
        """Variance of the stream behind resampling and shortcut, before a main norm."""
        return self.joined * self.factors[0]

    @property
    def stream(self) -> float:
        return self.shortcut if self.site.main.kind == "none" else 1.0

    @property
    def entry(self) -> float:
        """Variance of what the branch reads."""
        return self.joined if self.site.main.kind == "none" else 1.0

    @property
    def normalised(self) -> tuple[float, float]:
        """What the two norms of the branch divide by: the variances before them, less the means that they remove."""
        before = self.inner if self.site.pos == "post" else (self.entry, self.inner[0])
        if not self.normed:
            return 1.0, 1.0
        if not removes_mean(self.site.norm):
            return before
        if self.site.pos == "pre":
            return UNKNOWN, UNKNOWN
        return before[0] * (1 - self._constant), before[1] * (1 - self._activated_constant)

    @property
    def _activated_constant(self) -> float:
        """The share of channels' means in the mean square behind the nonlinearity; linear layers keep it."""
        response = ACTIVATIONS[self.spec.activation]
        return (response.mean / response.rms) ** 2

    @property
    def _constant(self) -> float:
        """The share of channels' means in the mean square that the first convolution reads."""
        if self.step.first:
            return 0.0
        skip = self._activated_constant
        # Each position of a cell has weights of its own, so means average over the cell.
        cell = math.prod(self.spec.stride_tuples(self.spec.dims)[self.step.level]) if self.before == "transposed" else 1
        (a, b), (n, s) = self.weights, (self.step.in_channels, self.step.skip)
        return _weighted((a * n, self.x * skip / cell), (b * s, self.skip * skip)) / (n + s) / self.concatenated

    @cached_property
    def inner(self) -> tuple[float, float]:
        """Variances behind the branch's two convolutions, before norms that follow them."""
        if self.site.pos == "post":
            first = self.entry / self.reads
            return first, self._activated(1.0 if self.normed else first)
        first = self._activated(1.0 if self.normed else self.entry)
        if self.site.main.kind == "none":
            first *= self.factors[0]
        return first, self._activated(1.0 if self.normed else first)

    def _activated(self, variance: float) -> float:
        """Behind the nonlinearity and a convolution that reads it."""
        if math.isnan(variance):
            return UNKNOWN
        mean, square, _ = moments(self.spec.activation, variance)
        return (square - (mean**2 if self.standardized else 0.0)) / self.gain

    def _slope(self, variance: float) -> float:
        """Factor on a gradient that passes the nonlinearity."""
        return UNKNOWN if math.isnan(variance) else moments(self.spec.activation, variance)[2]

    @property
    def branch(self) -> float:
        if "branch" in self.spec.placement.zero_init:
            return 0.0
        return 1.0 if self.normed and self.site.pos == "post" else self.inner[1]

    @property
    def shares(self) -> tuple[float, float]:
        placement = self.spec.placement
        return SHARES[placement.residual](placement.residual_t)

    @property
    def merged(self) -> float:
        """Variance behind the merger, and behind the nonlinearity of a post-norm block."""
        stream, branch = self.shares
        merged = _weighted((stream, self.stream), (branch, self.branch))
        if self.site.pos != "post":
            return merged
        return moments(self.spec.activation, merged)[1] if self.rectifies else UNKNOWN

    @property
    def rectifies(self) -> bool:
        """Whether what a post-norm block's last nonlinearity reads is unit normal but for its size."""
        return self.spec.placement.residual == "off" and not math.isnan(self.branch)

    @property
    def attention(self) -> float:
        """Factor of self-attention on the stream's variance and gradient: known where it starts at zero."""
        if not self.step.heads:
            return 1.0
        placement = self.spec.placement
        kind = "sum" if placement.residual == "off" else placement.residual
        return SHARES[kind](placement.attention_balance)[0] if "attention" in placement.zero_init else UNKNOWN

    @property
    def out(self) -> float:
        return self.merged * self.attention

    def _branch_backward(self, gradient: float) -> float:
        """The gradient at what the branch reads."""
        if "branch" in self.spec.placement.zero_init:
            return 0.0
        streams = self.site.main.kind != "none"
        width = self.step.out_channels if streams else self.step.reads
        gradient *= self.step.out_channels / width * (1.0 if streams else self.factors[1])
        first, second = self.normalised
        inner = 1.0 if self.normed else self.inner[0]
        gradient *= self._slope(inner) / self.gain / first / second
        if self.site.pos == "post":
            return gradient / self.reads
        return gradient * self._slope(1.0 if self.normed else self.entry) / self.gain

    def backward(self, gradient: float) -> tuple[float, float]:
        gradient *= self.attention
        if self.site.pos == "post":
            # Max-pooling sends gradients to where the nonlinearity is active more often than not.
            known = self.rectifies and "max_pool" not in self.after
            gradient *= self._slope(self.branch) if known else UNKNOWN
        stream, branch = self.shares
        inner = self._branch_backward(branch * gradient)
        width = self.step.reads
        projected = self.factors[1] * self.step.out_channels / width
        if self.site.main.kind == "none":
            total = inner + (stream * gradient * projected if stream else 0.0)
        else:
            total = (stream * gradient + inner) / self.shortcut * projected
        return self._split(total)

    def _split(self, gradient: float) -> tuple[float, float]:
        """The concatenation's gradient at its two sources."""
        placement, (a, b) = self.spec.placement, self.weights
        if not self.step.skip:
            return gradient, 0.0
        if self.spec.skip_fusion != "concat":
            return UNKNOWN, UNKNOWN
        if placement.skip == "after_concat":
            gradient /= self.concatenated
        x, skip = (self.x, self.skip) if placement.skip == "before_concat" else (1.0, 1.0)
        return gradient * a / x, gradient * b / skip


@dataclass(frozen=True)
class TransformerRule(Rule):
    """A layer of a transformer, known where both its branches start at zero."""

    @property
    def out(self) -> float:
        return self.x if self.spec.placement.zero_init >= {"branch", "attention"} else UNKNOWN

    def backward(self, gradient: float) -> tuple[float, float]:
        return gradient * self.out / self.x, 0.0


# Rules of steps that are neither blocks nor convolutions. (A position embedding starts small.)
RULES: dict[str, type[Rule]] = {"transformer": TransformerRule, "backbone": UnknownRule, "feature": UnknownRule}


def _rule(spec: UNetSpec, step: Step, **around: Any) -> Rule:
    if step.stream:
        return UnknownRule(spec, step, **around)
    blocks = step.kind == "block" or step.resampling == "residual"
    return RULES.get(step.kind, BlockRule if blocks else Rule)(spec, step, **around)


def predict(spec: UNetSpec, measured: Mapping[Step, Statistic] | None = None) -> dict[Step, Statistic]:
    """The statistics of every step up to the decoder's last, for unit normal input and gradient.

    The gradient is that of <g, features> with g unit normal at the decoder's output: the head, which may start at
    zero, is left out. measured: each step is then predicted from these figures of the steps around it, so that what
    no rule says (nan in the result) ends with its step; without, from what the rules gave before.
    """
    plan = make_plan(spec)
    steps = [step for step in plan.steps if step.side != "head"]
    sources = plan.reads
    rules: dict[Step, Rule] = {}
    variances: dict[Step, float] = {}
    for step in steps:
        x = variances[sources[step]] if step in sources else 1.0
        joins = plan.skips.get(step, ())
        skip = _weighted(*((one.out_channels / step.skip, variances[one]) for one in joins))
        before = sources[step].resampling if step in sources else ""
        after = frozenset(reader.resampling for reader, read in sources.items() if read == step)
        rules[step] = _rule(spec, step, x=x, skip=skip, before=before, after=after)
        variances[step] = rules[step].out if measured is None else measured[step].variance
    gradients = dict.fromkeys(steps, 0.0)
    gradients[steps[-1]] = 1.0
    for step in reversed(steps):
        through, aside = rules[step].backward(gradients[step] if measured is None else measured[step].gradient)
        if step in sources:
            gradients[sources[step]] += through
        for one in plan.skips.get(step, ()):
            gradients[one] += aside
    return {step: Statistic(rules[step].out, rules[step].branch, gradients[step]) for step in steps}
