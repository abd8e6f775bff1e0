"""The text of the autoencoder control: templates, and sentences that follow from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.normalization.report import number
from benchmarks.skip_study.figures import (
    ARM_TITLES,
    Results,
    bottleneck,
    images_needed,
    over_images,
    over_seeds,
    table,
)
from benchmarks.skip_study.study import pick

SMALL_GAP = 0.1  # between two errors, as a share, below which more images would bring little
LARGE_FALL = 0.75  # of an error: the share that may be left of it for more steps to have been what was lacking

TEXT = """\
## The autoencoder control: learning from few images

The claim: skips let a network learn from less data. A U-Net with {unet_parameters} parameters (channels
{unet_channels}) and the same network without skips, {autoencoder_parameters} parameters (channels
{autoencoder_channels}: wider, since without concatenations it would be smaller), are trained as denoisers on the first
n of the embedded 16 x 16 digits in a shuffled order. Target {target}, {schedule} schedule, {steps} steps of batch
{batch_size} for every n (AdamW, rate {learning_rate:g} falling to zero), seeds: {seeds}. The error is the mean squared
one of the prediction on {held_out} held-out digits, over {timesteps} fixed noise levels of equal weight, after the last
step.

{table}

The last column: the n at which the network without skips has the U-Net's error of that row, interpolated between
logarithms.

![Held-out error over training images, and over noise levels](pictures/skips_few_images.png)

Dotted on the left: the error on (at most 128 of) the training images.

![Held-out digits, denoised](pictures/skips_few_images_digits.png)

The digits that the predictions at timestep {shown_timestep} stand for, networks of the first seed; the numbers are
those of training images.

{reading}
{other}
What this does not show: other numbers of steps, and other sizes of network or image; nothing is stopped early. The
middle has {bottleneck} numbers for the {pixels} pixels of an image, so that its size alone does not forbid copying.
"""

OTHER = """
### Without having to pass on the noise

Much of what the target {first} asks for is noise, which only skips bring to the output with ease. The same comparison
with the target {target}, the digit itself (seeds: {seeds}; its error is that of the digit, so the figures do not
compare with those above):

{table}

![Held-out error over training images, target {target}](pictures/skips_few_images_x0.png)

{reading}
"""


def few_images_section(experiments: Mapping[str, Results]) -> str:
    """The U-Net against the autoencoder on the same few images."""
    results = experiments["few_images"]
    by_arm = {arm: pick(results, arm=arm) for arm in ("unet", "autoencoder")}
    conditions = {arm: found[0]["conditions"] for arm, found in by_arm.items()}
    common = {name: value for name, value in conditions["unet"].items() if name not in ("network", "timesteps")}
    named = {}
    for arm, found in by_arm.items():
        named[f"{arm}_parameters"] = f"{found[0]['parameters']:,}"
        named[f"{arm}_channels"] = ", ".join(map(str, conditions[arm]["network"]["channels"]))
    network = conditions["autoencoder"]["network"]
    return TEXT.format(
        **common,
        **named,
        seeds=_seeds(results),
        timesteps=len(conditions["unet"]["timesteps"]),
        pixels=network["sample_size"] ** 2,
        bottleneck=bottleneck(network, network["sample_size"]),
        table=_table(results),
        reading="\n".join([*_ends(results), *_longer(results, experiments.get("longer", [])), *_levels(results)]),
        other=_other_target(results, experiments.get("few_images_x0", [])),
    )


def _seeds(results: Results) -> int:
    return len({result["seed"] for result in results})


def _other_target(first: Results, results: Results) -> str:
    """The control with another target than `first`; empty where it was not measured."""
    if not results:
        return ""
    targets = [found[0]["conditions"]["target"] for found in (first, results)]
    said = f"- The error without skips is {_ratios(results)} times the U-Net's; with target {targets[0]} it is"
    reading = "\n".join([*_ends(results), f"{said} {_ratios(first)} times."])
    return OTHER.format(
        first=targets[0], target=targets[1], seeds=_seeds(results), table=_table(results), reading=reading
    )


def _ratios(results: Results) -> str:
    """The range, over numbers of images, of the error without skips over that with them."""
    with_skips, without = (over_images(results, arm, "error")[1] for arm in ("unet", "autoencoder"))
    ratios = [b.mean / a.mean for a, b in zip(with_skips, without, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _table(results: Results) -> str:
    counts, with_skips = over_images(results, "unet", "error")
    _, without = over_images(results, "autoencoder", "error")
    rows = []
    for count, unet, autoencoder in zip(counts, with_skips, without, strict=True):
        needed = images_needed(counts, [figure.mean for figure in without], unet.mean)
        rows.append([f"{count:,}", number(unet), number(autoencoder), _images(needed, counts)])
    return table(["training images", "U-Net", "no skips", "images needed without skips"], rows)


def _images(needed: float | None, counts: Sequence[int]) -> str:
    if needed is None:
        return f"more than {max(counts):,}"
    return f"at most {min(counts):,}" if needed <= min(counts) else f"{needed:,.0f}"


def _ends(results: Results) -> list[str]:
    """What becomes of the error with the fewest and the most images, on digits seen and not seen."""
    counts = sorted({result["images"] for result in results})
    lines = []
    for arm in ("unet", "autoencoder"):
        fewest, most = (pick(results, arm=arm, images=count) for count in (counts[0], counts[-1]))
        errors = [figure.mean for figure in over_images(results, arm, "error")[1]]
        enough = images_needed(counts, errors, (1 + SMALL_GAP) * errors[-1])
        best = min(np.mean([[value for _, value in r["curve"]] for r in fewest], 0))
        lines.append(
            f"- {ARM_TITLES[arm]}: with {counts[0]} images {_pair(fewest)} (held-out, the least along the way"
            f" {best:.3f}); with {counts[-1]:,} images {_pair(most)}. Within {SMALL_GAP:.0%} of its own error with"
            f" {counts[-1]:,} images from {_images(enough, counts)} images on."
        )
    without = pick(results, arm="autoencoder", images=counts[-1])
    held_out, seen = (over_seeds(without, name).mean for name in ("error", "training_error"))
    if abs(held_out - seen) < SMALL_GAP * held_out:
        lines.append(
            f"- Without skips the two errors with {counts[-1]:,} images are within {SMALL_GAP:.0%} of each other: after"
            " these steps it is not for want of images that its error is what it is."
        )
    return lines


def _pair(results: Results) -> str:
    held_out, seen = (over_seeds(results, name).mean for name in ("error", "training_error"))
    return f"{held_out:.3f} on held-out digits, {seen:.3f} on digits it was trained on"


def _longer(results: Results, longer: Results) -> list[str]:
    """What more steps on the same images bring to the network without skips."""
    lines = []
    for more in longer:
        before = pick(results, arm=more["arm"], images=more["images"], seed=more["seed"])
        if not before:
            continue
        steps = [f"{result['conditions']['steps']:,}" for result in (*before, more)]
        lines.append(
            f"- {ARM_TITLES[more['arm']]}, {more['images']:,} images, {steps[1]} steps instead of {steps[0]}, one seed:"
            f" {_pair([more])}; before {before[0]['error']:.3f}."
        )
        if more["error"] < LARGE_FALL * before[0]["error"]:
            lines[-1] += " What it lacked was mostly steps, not images."
    return lines


def _levels(results: Results) -> list[str]:
    """Where on the noise scale the two differ."""
    timesteps, images = results[0]["conditions"]["timesteps"], max(result["images"] for result in results)
    most = [pick(results, arm=arm, images=images) for arm in ("unet", "autoencoder")]
    least, greatest = ([float(np.mean([r["errors"][end] for r in found])) for found in most] for end in (0, -1))
    return [
        f"- By noise level, {images:,} images, U-Net and no skips: {least[0]:.3f} and {least[1]:.3f} at timestep"
        f" {timesteps[0]} (little noise), {greatest[0]:.3f} and {greatest[1]:.3f} at timestep {timesteps[-1]}"
        " (little else)."
    ]
