"""The page `docs/normalization.md`: templates, filled in from the results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.normalization.figures import (
    LEAST_SEEDS,
    MOST_BETA,
    MOST_ERRORS,
    MOST_FRECHET,
    MOST_SHARE,
    Arm,
    Arms,
    Figure,
    Result,
    arms_of,
    checks,
    rank_correlation,
    verdict,
)
from benchmarks.normalization.plots import LEVEL_NAMES, draw_plots
from benchmarks.normalization.regimes import LEAST_SIGMA, MOST_SIGMA
from benchmarks.resumable import read_results
from unetdiff.files import write_text

HEADING = """\
# Normalization: does it hurt in the decoder?

The claim, from a popular article on U-Nets: in a diffusion model, normalization in the encoder stabilizes training,
but in the decoder it "can be catastrophic", since it may erase the amplitude that is needed to predict the right amount
of noise. This page is the measurement. Every number on it is generated:

    python benchmarks/norm_study.py {config} --data PATH/TO/cifar10_jpeg
    python benchmarks/norm_study.py {config} --report

from the results in `{folder}`, one file per network. How to set a placement is in
[placement.md](placement.md); what skip connections are worth is measured in [skips.md](skips.md).

## How it is measured

Networks of {parameters} parameters (channels {channels}) on {train_images:,} CIFAR-10 training images
(JPEG re-encodings), averaged down to {size} x {size}; AdamW, {steps:,} steps of batch {batch_size},
learning rate {rates} falling linearly to zero (at a constant one, tried first, the last steps moved
the output's amplitude by about 1%), float32, {average}. Placements share
images, noise and noise levels, in the same order, per seed. Measured on {measured_images} test images at {levels} noise
levels. {networks} networks, trained in {minutes:.0f} minutes in all on one {device}, torch {torch}.

| regime | input | target | told the noise level |
|---|---|---|---|
| A | variance-preserving x_t (linear schedule), the usual setup | unit noise | yes |
| B | x + sigma n, sigma log-uniform in {least_sigma:g} .. {most_sigma:g} | sigma n | no |
| C | as B | as B | yes |

- **beta**: <target, prediction> / <prediction, prediction>, 1 if calibrated; **share**: the part of the squared error
  that scaling the prediction by beta would remove.
- **H**: d log RMS(f(s x)) / d log s at s = 1 and a fixed noise level: 1 for a linear network, 0 for one that does not
  see its input's amplitude.
- **NMSE**: MSE over the target's mean square, averaged over noise levels of equal weight.
- **pixel-Frechet**: squared Frechet distance between {samples} samples ({sample_steps} steps of DPM-Solver++, x0 not
  clipped on the way) and {test_images:,} test images over the {components} first principal components of the test
  images' pixels.
- **brightness**: standard deviation between images of their mean value, of the samples over that of the test images.

What follows is mean ± standard deviation over seeds; bars in the plots are the same.
"""

RULE = """\
## Verdict

The rule (its limits were fixed before the run; that errors are pooled over the two arms compared, and not over all
of A, was decided with A at hand and is the stricter of the two): in A, the claim is confirmed if decoder only has
any abs(beta - 1) > {beta:g}, or an amplitude share above {share:.0%}, or an NMSE worse than encoder only by more than
{errors:g} pooled standard errors, or more than {frechet:g} times its Frechet distance; refuted if none of these, with
at least {seeds} seeds.
"""

WORDS = {
    "confirmed": "**By this rule the claim is confirmed in A.**",
    "refuted": "**By this rule the claim is refuted in A**: none of the conditions holds.",
    "open": "**By this rule the question is open in A**: no condition holds, but there are too few seeds to refute.",
}

LEVEL_SYMBOLS = {"A": "t", "B": "sigma", "C": "sigma"}

PLOT_SECTIONS = {
    "norm_study_beta": "Calibration slope per noise level.",
    "norm_study_transmission": "Amplitude transmission per noise level.",
    "norm_study_error": "NMSE per noise level, over that of the network without norms in the same regime.",
    "norm_study_brightness": "Brightness spread of samples over that of test images, regime A; a pale dot per seed.",
}


LIMITS = {
    "seeds": "Seeds per arm: {seeds}. A deviation over so few is itself rough.",
    "images": "Each network saw {images} images: compared is the state after that, which is not convergence;"
    " differences may shrink or turn with more.",
    "frechet": "The pixel-Frechet distance is over linear features of pixels: it sees colour and coarse layout, is not"
    " FID, and cannot be set beside published figures.",
    "rate": "One learning rate for all: a placement that would bear a larger one is not shown at its best"
    " (EDM2's forced weights are meant for larger ones).",
    "average": "No average of the weights, which published systems sample with.",
    "attention": "No attention.",
    "parts": "The norm before the output brings a nonlinearity with it, so that arms with it differ in both; the middle"
    " goes with the encoder. nnU-Net has no residual shortcuts and leaky ReLU, EDM2 other sums and weights: these arms"
    " differ in more than their norms.",
    "raw": "In B and C the loss is the squared error of sigma n, which weighs large sigma, while the mean NMSE weighs"
    " all levels alike and so mostly shows small sigma. The ends, {ends}, are the edges of the training range.",
}


def number(figure: Figure | None, digits: int = 3) -> str:
    """Mean ± deviation; a dash for what was not measured."""
    if figure is None:
        return "-"
    mean = f"{figure.mean:.{digits}f}"
    return mean if math.isnan(figure.deviation) else f"{mean} ± {figure.deviation:.{digits}f}"


def table(arms: Arms) -> list[str]:
    """One row per placement of a regime."""
    first = next(iter(arms.values()))
    middle, sampled = len(first.noise_levels) // 2, first.sampled("pixel_frechet") is not None
    columns: dict[str, Callable[[Arm], str]] = {
        "placement": lambda arm: arm.title,
        "seeds": lambda arm: str(arm.seeds),
        "learning rate": lambda arm: f"{arm.learning_rate:g}",
        "NMSE": lambda arm: number(arm.nmse, 4),
        "beta furthest from 1": lambda arm: f"{arm.worst_beta[0]:.3f} (at {arm.worst_beta[1]:.3g})",
        f"beta at {first.noise_levels[-1]:.3g}": lambda arm: number(arm.level("beta", -1)),
        "largest share": lambda arm: f"{arm.worst_share:.2%}",
        f"H at {first.noise_levels[middle]:.3g}": lambda arm: number(arm.level("H", middle), 2),
    }
    if sampled:
        columns["pixel-Frechet"] = lambda arm: number(arm.sampled("pixel_frechet"), 2)
        columns["brightness"] = lambda arm: number(arm.sampled("brightness_ratio"), 2)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(cell(arm) for cell in columns.values()) + " |" for arm in arms.values()]


def clauses(arms: Arms) -> list[str]:
    """The clauses of the rule as a list, each with what was measured."""
    return [f"- {check.text}: {'holds' if check.holds else 'does not hold'}" for check in checks(arms)]


def verdict_section(regimes: Mapping[str, Arms]) -> list[str]:
    """The rule, what it says of A, and the same conditions in the other regimes."""
    arms = regimes.get("A", {})
    counts = [f"{arms[name].title}: {arms[name].seeds}" for name in ("decoder", "encoder") if name in arms]
    rule = RULE.format(beta=MOST_BETA, share=MOST_SHARE, errors=MOST_ERRORS, frechet=MOST_FRECHET, seeds=LEAST_SEEDS)
    lines = [rule, f"Seeds: {', '.join(counts) or 'none'}.", ""]
    lines += [*clauses(arms), "", WORDS[verdict(arms)]]
    for regime in ("B", "C"):
        if found := clauses(regimes.get(regime, {})):
            lines += ["", f"The same conditions in {regime}, which the verdict does not count:", "", *found]
    return lines


def sampling_readings(arms: Arms) -> list[str]:
    """What samples say that the error does not, in regime A."""
    drawn = {name: arm for name, arm in arms.items() if arm.sampled("pixel_frechet")}
    if len(drawn) < 2:
        return []

    def error(arm: Arm) -> float:
        return arm.nmse.mean

    def distance(arm: Arm) -> float:
        figure = arm.sampled("pixel_frechet")
        return math.nan if figure is None else figure.mean

    def transmitted(arm: Arm) -> float:
        return arm.level("H", len(arm.noise_levels) // 2).mean

    def frechet_of(arm: Arm) -> str:
        return number(arm.sampled("pixel_frechet"), 2)

    by_error, by_distance = sorted(drawn.values(), key=error), sorted(drawn.values(), key=distance)
    least, most = by_distance[0], by_distance[-1]
    return [
        f"- A, samples: the least pixel-Frechet distance is that of {least.title} ({frechet_of(least)}), the largest"
        f" that of {most.title} ({frechet_of(most)}), which is number {by_error.index(most) + 1} of {len(drawn)} by"
        " NMSE, counted from the least error.",
        f"- A, over the {len(drawn)} placements: rank correlation of NMSE with the Frechet distance"
        f" {rank_correlation(drawn, error, distance):+.2f}; of H with NMSE"
        f" {rank_correlation(drawn, transmitted, error):+.2f}, with the Frechet distance"
        f" {rank_correlation(drawn, transmitted, distance):+.2f}.",
    ]


def level_readings(regime: str, arms: Arms) -> list[str]:
    """Where decoder only is better or worse than encoder only, which their means over noise levels do not show."""
    if "decoder" not in arms or "encoder" not in arms:
        return []
    pairs = zip(arms["decoder"].over_levels("nmse"), arms["encoder"].over_levels("nmse"), strict=True)
    ratios = [decoder.mean / encoder.mean for decoder, encoder in pairs]
    ends = [(ratio, arms["decoder"].noise_levels[ratios.index(ratio)]) for ratio in (min(ratios), max(ratios))]
    said = " to ".join(f"{ratio:.2f} (at {LEVEL_SYMBOLS[regime]} = {level:.3g})" for ratio, level in ends)
    return [f"- {regime}, level by level: NMSE of decoder only over that of encoder only is from {said}."]


def readings(regimes: Mapping[str, Arms]) -> list[str]:
    """What the tables say, in sentences with their numbers."""
    lines = []
    for regime, arms in regimes.items():
        ordered = sorted(arms.values(), key=lambda arm: arm.nmse.mean)
        furthest = max(arms.values(), key=lambda arm: abs(arm.worst_beta[0] - 1))
        beta, level = furthest.worst_beta
        lines.append(
            f"- {regime}: least NMSE {ordered[0].title} ({number(ordered[0].nmse, 4)}), most {ordered[-1].title}"
            f" ({number(ordered[-1].nmse, 4)}); the beta furthest from 1 is {beta:.3f}, of {furthest.title} at"
            f" {LEVEL_SYMBOLS[regime]} = {level:.3g}."
        )
        lines += level_readings(regime, arms)
    return lines + sampling_readings(regimes.get("A", {}))


def limits(results: Sequence[Result], regimes: Mapping[str, Arms]) -> list[str]:
    """What the figures do not show."""
    conditions = results[0]["conditions"]
    rates = {(r["regime"], r["placement"]): set() for r in results}
    for result in results:
        rates[result["regime"], result["placement"]].add(result["learning_rate"])
    counts = sorted({arm.seeds for arms in regimes.values() for arm in arms.values()})
    seen = conditions["steps"] * conditions["batch_size"]
    applies = {
        "seeds": True,
        "images": True,
        "frechet": True,
        "rate": all(len(found) == 1 for found in rates.values()),
        "average": not conditions["ema_decay"],
        "attention": not conditions["network"].get("attention", False),
        "parts": True,
        "raw": "B" in regimes or "C" in regimes,
    }
    values = {
        "seeds": " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))),
        "images": f"{seen:,}",
        "ends": f"{LEAST_SIGMA:g} and {MOST_SIGMA:g}",
    }
    return [f"- {text.format(**values)}" for name, text in LIMITS.items() if applies[name]]


def page(results: Sequence[Result], folder: str, config: str) -> str:
    """The page as Markdown."""
    regimes = {name: arms for name in LEVEL_NAMES if (arms := arms_of(results, name))}
    conditions = results[0]["conditions"]
    counts = [result["parameters"] for result in results]
    average = (
        f"weights averaged (decay {conditions['ema_decay']:g})" if conditions["ema_decay"] else "no average of weights"
    )
    heading = HEADING.format(
        **{key: value for key, value in conditions.items() if key != "network"},
        config=config,
        folder=folder,
        parameters=f"{min(counts):,} to {max(counts):,}",
        channels=", ".join(map(str, conditions["network"]["channels"])),
        rates=", ".join(f"{rate:g}" for rate in sorted({result["learning_rate"] for result in results})),
        average=average,
        least_sigma=LEAST_SIGMA,
        most_sigma=MOST_SIGMA,
        networks=len(results),
        minutes=sum(result["seconds"] for result in results) / 60,
        device=" and ".join(sorted({result["device"].replace("CPU", "CPU core") for result in results})),
        torch=", ".join(sorted({result["torch"] for result in results})),
    )
    lines = [heading, *verdict_section(regimes), "", "## Figures"]
    for regime, arms in regimes.items():
        lines += ["", f"Regime {regime}; noise levels are in {LEVEL_NAMES[regime].split(' (')[0]}s.", "", *table(arms)]
    for name, caption in PLOT_SECTIONS.items():
        if name != "norm_study_brightness" or "A" in regimes:
            lines += ["", f"![{caption}](pictures/{name}.png)", "", caption]
    lines += ["", "## What they show", "", *readings(regimes)]
    lines += ["", "## What they do not show", "", *limits(results, regimes)]
    return "\n".join(lines) + "\n"


def write_report(folder: Path, docs: Path, config: str) -> None:
    """Write `normalization.md` and its plots into `docs` from the results in `folder`."""
    results = read_results(folder)
    regimes = {name: arms for name in LEVEL_NAMES if (arms := arms_of(results, name))}
    draw_plots(regimes, docs / "pictures")
    shown = folder.relative_to(docs.parent) if folder.is_relative_to(docs.parent) else Path(folder.name)
    write_text(docs / "normalization.md", page(results, shown.as_posix(), config))
