"""Averages of the weights against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unetdiff.run_config import EmaConfig
from unetdiff.training.ema import WeightAverages, decays, power_exponent


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_profile_has_the_width_asked_for(width: float) -> None:
    """The weights that the recursion gives to past steps have standard deviation `width` relative to the run."""
    steps = 4000
    weights = np.zeros(steps)
    for step in range(1, steps + 1):
        decay = decays(EmaConfig(widths=[width]), step)[0]
        weights *= decay
        weights[step - 1] = 1 - decay
    times = np.arange(1, steps + 1) / steps
    mean = (weights * times).sum()
    deviation = np.sqrt((weights * (times - mean) ** 2).sum())
    assert weights.sum() == pytest.approx(1)
    assert deviation == pytest.approx(width, rel=0.01)


def test_power_exponent_solves_its_equation() -> None:
    gamma = power_exponent(0.1)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(0.01)


def test_first_update_takes_the_weights_themselves() -> None:
    module = nn.Linear(3, 2)
    averages = WeightAverages(module, EmaConfig(widths=[0.1, 0.2]))
    with torch.no_grad():
        module.weight.add_(1)
    averages.update(1)
    for profile in (0, 1):
        assert_close(averages.state(profile)["weight"], module.weight.detach())


def test_plain_decay_is_an_exponential_average_with_warm_up() -> None:
    module = nn.Linear(1, 1, bias=False)
    averages = WeightAverages(module, EmaConfig(kind="decay", decay=0.5))
    expected = module.weight.item()
    for step in range(1, 30):
        with torch.no_grad():
            module.weight.fill_(float(step))
        averages.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert averages.averages[0][0].item() == pytest.approx(expected, rel=1e-5)


def test_swapping_restores_whatever_happens() -> None:
    module = nn.Linear(2, 2)
    averages = WeightAverages(module, EmaConfig())
    own = module.weight.detach().clone()
    averages.averages[0][0].fill_(7)

    def fail_within() -> None:
        with averages.swapped():
            assert (module.weight == 7).all()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_within()
    assert_close(module.weight.detach(), own)
    assert (averages.averages[0][0] == 7).all()


def test_without_averages_the_weights_stay() -> None:
    module = nn.Linear(2, 2)
    averages = WeightAverages(module, EmaConfig(kind="none"))
    averages.update(1)
    with averages.swapped():
        assert averages.averages == []


def test_buffers_are_the_modules_own() -> None:
    """Batch norm's running statistics are averages by themselves: saved beside averaged weights, never mixed up."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    averages = WeightAverages(module, EmaConfig())
    assert averages.names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    module(torch.randn(8, 2) * 5 + 1)
    with torch.no_grad():
        module[0].weight.add_(1)
    running = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert running["1.running_mean"].abs().max() > 0
    with averages.swapped():
        saved = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert_close({name: saved[name] for name in running}, running, rtol=0, atol=0)
    assert not torch.equal(saved["0.weight"], module.state_dict()["0.weight"])
    assert_close(dict(module.named_buffers()), running, rtol=0, atol=0)
