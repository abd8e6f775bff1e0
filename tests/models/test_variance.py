"""The rules for variances and gradients at the start, against the closed forms they stand for."""

from __future__ import annotations

import math

import pytest

from tests.networks import NETWORKS
from unetdiff.models.plan import make_plan
from unetdiff.models.statistics import EXAMPLES
from unetdiff.models.step import Step
from unetdiff.models.variance import Statistic, moments, predict
from unetdiff.nn.activation import ACTIVATIONS
from unetdiff.spec import UNetSpec


def spec(name: str, zero_init: bool = True, **settings) -> UNetSpec:
    """An example's spec, with `zero_init` as it is or emptied."""
    norm = {"preset": name} if zero_init else {"preset": name, "zero_init": []}
    return UNetSpec(**{**EXAMPLES[name], "norm": norm, "middle_attention": False, **settings})


def by_name(rows: dict[Step, Statistic]) -> dict[str, Statistic]:
    return {f"{step.side} {step.name}": row for step, row in rows.items()}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_moments_are_those_of_the_table(name) -> None:
    mean, square, slope = moments(name, 1.0)
    assert mean == pytest.approx(ACTIVATIONS[name].mean, abs=1e-4)
    assert square == pytest.approx(ACTIVATIONS[name].rms ** 2, abs=1e-4)
    assert moments("relu", 3.0)[1:] == pytest.approx((1.5, 0.5), rel=1e-3)
    assert 0 < slope < 1


def test_branches_that_start_at_zero_leave_the_stream_alone() -> None:
    """v + 0, and concatenations of equal variances keep it: 1 everywhere."""
    rows = predict(spec("ddpm")).values()
    assert [row.variance for row in rows] == pytest.approx([1.0] * len(rows))
    assert {row.branch for row in rows} == {0.0}


def test_sums_add() -> None:
    rows = by_name(predict(spec("ddpm", zero_init=False)))
    assert rows["encoder level0_block0"].variance == pytest.approx(2, rel=1e-3)
    assert rows["encoder level2_block1"].variance == pytest.approx(7, rel=1e-3)
    assert rows["middle middle_block1"].variance == pytest.approx(9, rel=1e-3)
    # (128 * 9 + 128 * 7) / 256 and a branch of 1
    assert rows["decoder level2_block0"].variance == pytest.approx(9, rel=1e-3)


def test_sums_over_root_two_average() -> None:
    halved = by_name(predict(spec("ddpmpp", downsample="strided", upsample="nearest")))
    assert halved["encoder level2_block1"].variance == pytest.approx(0.5**6)
    kept = predict(spec("ddpmpp", zero_init=False, downsample="strided", upsample="nearest")).values()
    assert [row.variance for row in kept] == pytest.approx([1.0] * len(kept), rel=1e-3)


def test_magnitude_preserving_parts_keep_unit_variance() -> None:
    rows = predict(spec("edm2")).values()
    assert [row.variance for row in rows] == pytest.approx([1.0] * len(rows), rel=1e-3)


def test_concatenation_is_the_weighted_mean() -> None:
    """E[c^2] = (N_a v_a + N_b v_b) / (N_a + N_b), with the widths 64 and 128 of one place."""
    rows = by_name(predict(spec("ddpm", zero_init=False)))
    up, skip = rows["decoder level1_up"].variance, rows["encoder level0_down"].variance
    assert skip == pytest.approx(3, rel=1e-3)
    first = rows["decoder level0_block0"].variance - 1
    assert first == pytest.approx((128 * up + 64 * rows["encoder level0_block1"].variance) / 192, rel=1e-3)


def test_gradient_of_a_concatenation_is_the_ratio_of_widths() -> None:
    """C_out / (N_a + N_b) at both sources; a saved feature also has what comes through the encoder."""
    rows = by_name(predict(spec("ddpm")))
    assert rows["decoder level0_block2"].gradient == 1.0
    assert rows["decoder level0_block1"].gradient == pytest.approx(64 / 128)
    assert rows["decoder level0_block0"].gradient == pytest.approx((64 / 128) ** 2)
    assert rows["decoder level1_up"].gradient == pytest.approx((64 / 128) ** 2 * 64 / 192)
    # Up: four positions each. Down: a quarter.
    assert rows["decoder level1_block2"].gradient == pytest.approx(4 * rows["decoder level1_up"].gradient)
    through = rows["encoder level0_block0"].gradient - (64 / 128) ** 2  # block1 of the decoder takes it
    assert through == pytest.approx(rows["encoder level0_block1"].gradient)


def test_a_norm_divides_the_gradient_of_its_branch_by_the_variance() -> None:
    rows = by_name(predict(spec("ddpm", zero_init=False)))
    slope = moments("silu", 1.0)[2] / moments("silu", 1.0)[1]
    into = rows["middle middle_block1"]
    before = rows["middle middle_block0"].variance
    expected = into.gradient * (1 + slope**2 / before)
    assert rows["middle middle_block0"].gradient == pytest.approx(expected, rel=1e-3)


def test_rectified_streams_keep_half() -> None:
    """Post-norm: 1 before the nonlinearity, half behind it, through strided and transposed convolutions alike."""
    rows = predict(spec("nnunet"))
    assert [row.variance for row in rows.values()] == pytest.approx([0.50005] * len(rows), rel=1e-3)
    bare = predict(spec("unet2015", downsample="strided"))
    assert [row.variance for row in bare.values()] == pytest.approx([0.5] * len(bare), rel=1e-3)


def test_what_no_rule_says_stays_unsaid() -> None:
    rows = by_name(predict(spec("adm")))
    assert math.isnan(rows["encoder level0_down"].variance)
    assert math.isnan(rows["encoder level1_block0"].variance)
    given = {step: Statistic(0.25, 0.0, 1.0) for step in predict(spec("adm"))}
    around = by_name(predict(spec("adm"), given))
    assert math.isnan(around["encoder level0_down"].variance)
    assert around["encoder level1_block0"].variance == 0.25
    attended = by_name(predict(spec("ddpm", zero_init=False, middle_attention=True)))
    assert math.isnan(attended["middle middle_block0"].variance)
    assert math.isnan(by_name(predict(spec("unet2015")))["encoder level0_down"].gradient)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_predictions_or_none(name: str) -> None:
    spec = UNetSpec(**NETWORKS[name])
    assert list(predict(spec)) == [step for step in make_plan(spec).steps if step.side != "head"]


def test_all_readers_of_a_step_count() -> None:
    """Max-pooling is one of the two that read an encoder's node in a nested network: no rule, as in a plain one."""
    common = {"norm": "nnunet", "downsample": "max_pool", "middle": False, "channels": [8, 16, 16], "blocks": 1}
    for settings in ({"decoder_kind": "nested"}, {"decoder_blocks": [1, 1, 0]}):
        found = {step.key: row for step, row in predict(UNetSpec(**common, **settings)).items()}
        assert math.isnan(found["encoder.level0_block0"].gradient)
