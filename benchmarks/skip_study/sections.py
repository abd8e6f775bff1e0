"""The text of each experiment: templates, and sentences that follow from the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.normalization.report import number
from benchmarks.skip_study.control_section import few_images_section
from benchmarks.skip_study.figures import (
    ARM_TITLES,
    Results,
    arms_in,
    bottleneck,
    in_order,
    over_depth,
    over_seeds,
    table,
)
from benchmarks.skip_study.study import pick

Experiments = Mapping[str, Results]

LEARNED = 0.95  # the IoU from which a network is said to have learned the flood fill
SAME_FACTOR = 3.0  # gradient norms within this factor of each other are said to differ little

SPIKE = """\
## A single spike

Does a single pixel come through? Networks of {levels} levels ({channels} channels) are trained to return their input,
{steps} steps of batch {batch_size} (AdamW, rate {learning_rate:g} falling to zero): half of the images white noise,
half 1 to {most} spikes on nothing, of {size} x {size} pixels. Then one spike at a time is sent in, at {positions}
places, with nothing else in the image. The response is the output.

- **returned**: the response's energy at the spike's pixel over the spike's; 1 if all comes back.
- **share**: the part of the response's energy that is at that pixel; 1 if nothing is elsewhere.
- **width**: root mean square distance of the response's energy from that pixel, in pixels; 0 for a spike.

Each is the median over places; seeds: {seeds}. Without norms in the network, and with group norm placed as in DDPM:

{table}

![A spike, and what the networks return](pictures/skips_spike.png)

The pictures show one place of one seed, all on one scale, in which the spike has height 1.

{reading}
"""

GRADIENT = """\
## Gradient at the first layer

How much gradient reaches the first convolution of a network as it starts? Networks of {depths} levels of {channels}
channels on white noise of {size} x {size}, mean squared error to other white noise; the norm of its gradient with
respect to the first convolution's filters. {seeds} seeds of weights and noise.

The networks here start as their placement says but for the output convolution, which by default is zero: then the
gradient of everything before it is exactly zero, with skips and without. Curves are geometric means, bars the geometric
standard deviation over seeds.

![Gradient norm at the first convolution over depth](pictures/skips_gradient.png)

At {deepest} levels, and in brackets at {shallowest}:

{table}

{reading}

What this does not show: how far training gets. A large gradient is not a useful one, Adam divides by its size, and
norms change what a step does.
"""

FLOOD = """\
## Flood fill across a one-pixel wall

Which pixels can be reached from a seed without crossing a wall? Images of {size} x {size} pixels, cut in two by a wall
of one pixel that winds from edge to edge: every second row it runs sideways by up to {stride} pixels. The network sees
the wall and the seed and marks the seed's region (steps to the side, not diagonal). To draw the region it has to know
where the wall is, to the pixel. {parameters} parameters; {steps} steps of batch {batch_size}, every image new
(AdamW, rate {learning_rate:g} falling to zero, cross-entropy); measured on {held_out} other images. {levels} levels of
{channels} channels, so that what passes without skips passes {bottleneck} numbers.

{table}

![Held-out images: the regions that the networks mark](pictures/skips_flood.png)

Walls dark, seeds orange, regions blue by the network's certainty.

![IoU over steps](pictures/skips_flood_curve.png)

{reading}

What this does not show: that no network without skips could learn it. These have few channels and few steps.
"""


def spike_section(experiments: Experiments) -> str:
    """What comes back of a spike."""
    results = experiments["spike"]
    names = {"bare": "none", "ddpm": "group (DDPM)"}
    groups = {
        (placement, arm): pick(results, placement=placement, arm=arm) for placement in names for arm in arms_in(results)
    }
    groups = {key: found for key, found in groups.items() if found}
    rows = [
        [names[placement], ARM_TITLES[arm], f"{found[0]['parameters']:,}"]
        + [number(over_seeds(found, name), 2) for name in ("returned", "share", "width")]
        for (placement, arm), found in groups.items()
    ]
    conditions = results[0]["conditions"]
    seeds = len({result["seed"] for result in results})
    return SPIKE.format(
        **{name: value for name, value in conditions.items() if name != "network"},
        levels=len(conditions["network"]["channels"]),
        channels=conditions["network"]["channels"][0],
        positions=results[0]["positions"],
        seeds=seeds,
        table=table(["norm", "network", "parameters", "returned", "share", "width (pixels)"], rows),
        reading=_spike_reading(groups),
    )


def _spike_reading(groups: Mapping[tuple[str, str], Results]) -> str:
    lines = []
    for placement, said in (("bare", "Without norms"), ("ddpm", "With group norm")):
        if (placement, "unet") in groups and (placement, "autoencoder") in groups:
            with_skips, without = groups[placement, "unet"], groups[placement, "autoencoder"]
            shares = [over_seeds(found, "share").mean for found in (with_skips, without)]
            widths = [over_seeds(found, "width").mean for found in (with_skips, without)]
            lines.append(
                f"{said} {shares[0]:.0%} of the response's energy is at the spike's pixel with skips, {shares[1]:.0%}"
                f" without; the width is {widths[0]:.1f} against {widths[1]:.1f} pixels."
            )
    if ("ddpm", "unet") in groups:
        lines.append(
            "Group norm takes its statistics over all of space, so that in an otherwise empty image one spike decides"
            " how every pixel is scaled."
        )
    return " ".join(lines)


def gradient_section(experiments: Experiments) -> str:
    """Gradient norms at the first layer."""
    results = in_order(experiments["gradient"])
    conditions = results[0]["conditions"]
    arms, depths = arms_in(results), conditions["depths"]

    def cell(result: dict[str, Any], arm: str) -> str:
        means, deviations = over_depth(result, arm)
        return f"{means[-1]:.2g} x/÷ {deviations[-1]:.1f} ({means[0]:.2g})"

    rows = [[result["title"], *(cell(result, arm) for arm in arms)] for result in results]
    return GRADIENT.format(
        depths=f"{min(depths)} to {max(depths)}",
        **{name: conditions[name] for name in ("channels", "size", "seeds")},
        deepest=depths[-1],
        shallowest=depths[0],
        table=table(["placement", *(ARM_TITLES[arm] for arm in arms)], rows),
        reading="\n".join(_gradient_reading(result) for result in results),
    )


def _factor(value: float) -> str:
    """Two digits, without an exponent from 0.01 to a million."""
    return f"{value:.1e}" if not 0.01 <= value < 1e6 else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _gradient_reading(result: dict[str, Any]) -> str:
    (with_skips, _), (without, _) = (over_depth(result, arm) for arm in ("unet", "autoencoder"))
    factor = float(with_skips[-1] / without[-1])
    if max(factor, 1 / factor) <= SAME_FACTOR:
        said = f"little difference, with skips {factor:.1f} times that without"
    elif factor > 1:
        said = f"with skips the gradient is {_factor(factor)} times as large"
    else:
        said = f"without skips the gradient is {_factor(1 / factor)} times as large"
    depths = result["conditions"]["depths"]
    change = [float(means[-1] / means[0]) for means in (with_skips, without)]
    return (
        f"- {result['title']}, {depths[-1]} levels: {said}. From {depths[0]} to {depths[-1]} levels it changes by a"
        f" factor of {_factor(change[0])} with skips, {_factor(change[1])} without."
    )


def flood_section(experiments: Experiments) -> str:
    """Intersection over union of the marked regions."""
    results = experiments["flood"]
    conditions = results[0]["conditions"]
    groups = {arm: pick(results, arm=arm) for arm in arms_in(results)}
    free = results[0]["iou_of_all_free_pixels"]
    rows = [
        [ARM_TITLES[arm], f"{found[0]['parameters']:,}", str(len(found)), number(over_seeds(found, "iou"))]
        for arm, found in groups.items()
    ]
    rows.append(["every free pixel marked", "", "", f"{free:.3f}"])
    counts = sorted({result["parameters"] for result in results})
    network = conditions["network"]
    return FLOOD.format(
        **{name: value for name, value in conditions.items() if name != "network"},
        parameters=f"{counts[0]:,} to {counts[-1]:,}",
        levels=len(network["channels"]),
        channels=network["channels"][0],
        bottleneck=bottleneck(network, conditions["size"]),
        table=table(["network", "parameters", "seeds", "mean IoU"], rows),
        reading=" ".join(_flood_reading(arm, found) for arm, found in groups.items()),
    )


def _flood_reading(arm: str, found: Results) -> str:
    values = [result["iou"] for result in found]
    if min(values) >= LEARNED:
        said = f"learns it: at least {min(values):.3f} with every seed"
    elif max(values) < LEARNED:
        said = f"does not learn it: at most {max(values):.3f}"
    else:
        said = f"learns it with some seeds: {min(values):.3f} to {max(values):.3f}"
    return f"{ARM_TITLES[arm][0].upper()}{ARM_TITLES[arm][1:]}: {said} (limit {LEARNED:g})."


SECTIONS: dict[str, Callable[[Experiments], str]] = {
    "spike": spike_section,
    "gradient": gradient_section,
    "flood": flood_section,
    "few_images": few_images_section,
}
"""For each experiment its text, in the order of the page."""
