"""The nonlinearities, with what each makes of a unit normal input."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from unetdiff.placement import Weights
from unetdiff.spec import Activation


@dataclass(frozen=True)
class Response:
    """A nonlinearity f: its module, and E[f(x)] and sqrt(E[f(x)^2]) for x ~ N(0, 1)."""

    module: type[nn.Module]
    mean: float
    rms: float

    @property
    def std(self) -> float:
        """Standard deviation of f(x)."""
        return math.sqrt(self.rms**2 - self.mean**2)


ACTIVATIONS: dict[Activation, Response] = {
    "silu": Response(nn.SiLU, 0.206621, 0.596469),
    "gelu": Response(nn.GELU, 0.282095, 0.652090),
    "relu": Response(nn.ReLU, 0.398942, math.sqrt(0.5)),
    "leaky_relu": Response(nn.LeakyReLU, 0.394953, math.sqrt(0.50005)),
}

# Karras et al. 2024, Eq. 81, divide the SiLU by 0.596; trained networks rely on the rounded figure.
_DIVISORS: dict[Activation, float] = {"silu": 0.596}


class UnitActivation(nn.Module):
    """A nonlinearity divided by its root mean square: unit magnitude in, unit magnitude out (Karras et al. 2024)."""

    def __init__(self, name: Activation):
        super().__init__()
        self.activation = ACTIVATIONS[name].module()
        self.divisor = _DIVISORS.get(name, ACTIVATIONS[name].rms)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x) / self.divisor


def make_activation(name: Activation, weights: Weights = "plain") -> nn.Module:
    """The nonlinearity of a network with such weights: of unit magnitude where the weights keep magnitudes."""
    return UnitActivation(name) if weights == "mp_forced" else ACTIVATIONS[name].module()
