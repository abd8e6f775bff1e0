import subprocess
import sys
from itertools import product
from typing import get_args

import pytest

from unetdiff.diffusion import options, sampler, schedule
from unetdiff.diffusion.options import check_combination

CHOICES = [
    get_args(choice)
    for choice in (options.TargetName, options.WeightingName, options.VarianceName, options.ScheduleName)
]


def test_what_has_no_meaning_is_refused_and_nothing_else():
    refused = set()
    for target, weighting, variance, schedule_name in product(*CHOICES):
        try:
            check_combination(target=target, weighting=weighting, variance=variance, schedule=schedule_name)
        except ValueError:
            refused.add((target, weighting, variance, schedule_name))
    assert refused == {
        (target, weighting, variance, schedule_name)
        for target, weighting, variance, schedule_name in product(*CHOICES)
        if (schedule_name == "zero_terminal_snr" and (target == "epsilon" or weighting == "min_snr"))
        or (target == "epsilon" and weighting == "truncated_snr" and schedule_name == "cosine")
        or (schedule_name == "one_level" and (weighting != "uniform" or variance == "learned"))
    }


def test_a_refusal_names_both_choices():
    with pytest.raises(ValueError, match=r"^target 'epsilon' with schedule 'zero_terminal_snr' has no meaning: .*\.$"):
        check_combination(target="epsilon", weighting="uniform", variance="fixed", schedule="zero_terminal_snr")


def test_tables_hold_the_names():
    assert tuple(sampler.SAMPLERS) == get_args(options.SamplerName)
    assert tuple(schedule.TARGETS) == get_args(options.TargetName)


def test_options_need_no_torch():
    code = "import sys, unetdiff.diffusion.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_found():
    import unetdiff.diffusion as package

    assert all(callable(getattr(package, name)) for name in dir(package) if name != "SAMPLERS" and name[0] != "_")
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
