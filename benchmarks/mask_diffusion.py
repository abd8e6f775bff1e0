"""Masks that are drawn beside masks that are scored, at equal operations: quality by steps and number of masks.

python benchmarks/mask_diffusion.py configs/scenes_masks.yaml [--seeds 0 1 2] [--images 100]
python benchmarks/mask_diffusion.py configs/scenes_masks.yaml --report

The first trains what is not yet in --runs, `diffusion` as CONFIG says and `logits` with the same network, without
timestep, for as many steps as take the same operations, and measures what is not yet in --results on the held-out
images, whole, a JSON per cell; the second writes table and pictures beside them. Mask i of an image is the same
however many are drawn, so fewer masks are the first of more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.resumable import finished, read_results  # noqa: E402
from unetdiff.command import user_errors  # noqa: E402
from unetdiff.data.pairs import PairSource, open_pairs  # noqa: E402
from unetdiff.diffusion.options import SamplerName  # noqa: E402
from unetdiff.drawing import ADVICE, Drawing, draw  # noqa: E402
from unetdiff.figures import COLOURS, plot_style  # noqa: E402
from unetdiff.files import write_json, write_text  # noqa: E402
from unetdiff.mask_diffusion_options import MaskDiffusionConfig  # noqa: E402
from unetdiff.mask_figures import entropy_plane, image_plane, label_plane, panels  # noqa: E402
from unetdiff.members import members_of  # noqa: E402
from unetdiff.runs import Run, load_run, step_of  # noqa: E402
from unetdiff.segment_config import SegmentConfig, parse_segment  # noqa: E402
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics  # noqa: E402
from unetdiff.segmentation.uncertainty import decompose_votes  # noqa: E402
from unetdiff.training.segment import segment_workload, segmentation_trainer  # noqa: E402

STEPS, MASKS = (5, 10, 20, 50), (1, 4, 16)
AT_ONCE = 8  # images
SHOWN, SHOWN_MASKS = 4, 4  # images, and masks of each, of the picture
FIGURES = {"mean IoU": "mean_iou", "mean Dice": "mean_dice", "NLL": "nll", "ECE": "ece"}


@dataclass(frozen=True)
class Arm:
    """A kind of run: its settings, and the operations of one training step's forward pass for one image."""

    name: str
    config: SegmentConfig
    operations: int


def arms(config: SegmentConfig, folder: Path) -> dict[str, Arm]:
    """`diffusion` as the settings say, and `logits` with as many training steps as take the same operations."""
    plain = replace(
        config,
        model=replace(config.model, kind="logits", time_embedding="none"),
        mask_diffusion=MaskDiffusionConfig(),
    )
    costs = {name: _forward(given) for name, given in {"diffusion": config, "logits": plain}.items()}
    steps = round(config.train.steps * costs["diffusion"] / costs["logits"])
    plain = replace(plain, train=replace(plain.train, steps=steps))
    return {
        name: Arm(name, replace(given, run_dir=str(folder / f"{name}-{config.seed}")), costs[name])
        for name, given in {"diffusion": config, "logits": plain}.items()
    }


def _forward(config: SegmentConfig) -> int:
    work = segment_workload(config, config.train.batch_size)
    return _operations(work.build(work.spec), steps=1, masks=1)


def _operations(network: Any, steps: int, masks: int) -> int:
    """Of predicting one image (2 per multiply-add)."""
    plan = network.plan
    return plan.operations(steps, masks) if hasattr(plan, "operations") else sum(one.operations for one in plan.steps)


def trained(arm: Arm) -> Run:
    """The run of an arm, trained to its end if it is not yet."""
    if step_of(arm.config.folder) != arm.config.train.steps:
        segmentation_trainer(arm.config).fit()
    return load_run(arm.config.folder, device="cuda" if torch.cuda.is_available() else "cpu")


def held_out(source: PairSource, count: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Some images at a time with their places: (n, C, *space) in [-1, 1], labels (n, *space)."""
    for first in range(0, min(count, len(source)), AT_ONCE):
        places = list(range(first, min(first + AT_ONCE, count, len(source))))
        arrays = source.read(places)
        yield places, source.format.encode(arrays["sample"]), torch.from_numpy(arrays["mask"])


def measured(
    run: Run, source: PairSource, count: int, steps: int, masks: Sequence[int], sampler: SamplerName | None, seed: int
) -> dict[int, dict[str, Any]]:
    """By number of masks: the figures of what is drawn in so many steps, all with the same masks."""
    metrics = {number: SegmentationMetrics(_options(run)) for number in masks}
    maps: dict[int, list[float]] = {number: [] for number in masks}
    for places, images, labels in held_out(source, count):
        drawn = draw(run, images, Drawing(max(masks), steps, sampler, seed))
        for number in masks:
            votes = decompose_votes(drawn[:number], run.masks.num_classes)
            metrics[number].update(votes.probabilities, labels, names=[source.name(place) for place in places])
            maps[number] += votes.vote_entropy.flatten(1).mean(1).tolist()
    return {number: {**_short(metrics[number]), "vote_entropy": statistics.mean(maps[number])} for number in masks}


def scored(run: Run, source: PairSource, count: int) -> dict[str, Any]:
    """The figures of class scores."""
    metrics = SegmentationMetrics(_options(run))
    (predict,) = members_of(run, (), 1, 0)
    for places, images, labels in held_out(source, count):
        with torch.no_grad():
            metrics.update(predict(images).cpu(), labels, names=[source.name(place) for place in places])
    return _short(metrics)


def _options(run: Run) -> MetricOptions:
    return MetricOptions(class_names=run.masks.class_names, boundary_tolerance=None)


def _short(metrics: SegmentationMetrics) -> dict[str, Any]:
    computed = metrics.compute()
    return {name: computed[name] for name in ("images", *FIGURES.values(), "iou")}


def study(options: argparse.Namespace, config: SegmentConfig, folder: Path) -> None:
    """Train and measure what is missing."""
    source = open_pairs(config.data).validation
    for arm in arms(config, options.runs).values():
        conditions = {"train_steps": arm.config.train.steps, "data": str(config.data), "images": options.images}
        cells = [(0, 1)] if arm.name == "logits" else [(steps, masks) for steps in STEPS for masks in MASKS]
        paths = {cell: folder / _file(arm.name, config.seed, *cell) for cell in cells}
        missing = [cell for cell, path in paths.items() if not finished(path, conditions)]
        for steps in sorted({steps for steps, _ in missing}):
            run, start = trained(arm), time.perf_counter()
            if steps:
                found = measured(run, source, options.images, steps, MASKS, options.sampler, config.seed)
            else:
                found = {1: scored(run, source, options.images)}
            for masks, figures in found.items():
                result = {
                    "kind": arm.name, "seed": config.seed, "steps": steps, "masks": masks, "figures": figures,
                    "train_steps": arm.config.train.steps,
                    "train_operations": 3 * arm.operations * arm.config.train.steps * config.train.batch_size,
                    "operations": _operations(run.unet, steps, masks),
                    "seconds": round(time.perf_counter() - start, 1), "device": str(run.unet.device),
                    "torch": torch.__version__, "conditions": conditions,
                }  # fmt: skip
                write_json(paths[steps, masks], result)
                print(f"{paths[steps, masks].stem}: mean IoU {figures['mean_iou']:.3f}", file=sys.stderr)
    _examples(config, options, source).save(folder / "examples.png")


def _file(name: str, seed: int, steps: int, masks: int) -> str:
    return f"{name}-{seed}-steps{steps:02d}-masks{masks:02d}.json" if steps else f"{name}-{seed}.json"


def _examples(config: SegmentConfig, options: argparse.Namespace, source: PairSource) -> Any:
    """Images, truth, scores, some masks, and what the votes of the most masks leave open."""
    runs = {name: trained(arm) for name, arm in arms(config, options.runs).items()}
    (predict,) = members_of(runs["logits"], (), 1, 0)
    colours, rows = source.encoding.colours(), []
    arrays = source.read(list(range(min(SHOWN, len(source)))))
    images = source.format.encode(arrays["sample"])
    with torch.no_grad():
        scores = predict(images).cpu().argmax(1).numpy()
    drawn = draw(runs["diffusion"], images, Drawing(max(MASKS), None, options.sampler, config.seed))
    votes = decompose_votes(drawn, source.num_classes).probabilities.numpy()
    for number, image in enumerate(arrays["sample"]):
        labels = [arrays["mask"][number], scores[number], *drawn[:SHOWN_MASKS, number].numpy(), votes[number].argmax(0)]
        planes = [label_plane(np.asarray(one), colours) for one in labels]
        rows.append([image_plane(image, source.format), *planes, entropy_plane(votes[number])])
    masks = [f"mask {number}" for number in range(SHOWN_MASKS)]
    return panels(rows, ["image", "truth", "logits", *masks, f"vote of {max(MASKS)}", "vote entropy"])


def _mean(results: Sequence[dict[str, Any]], key: str) -> tuple[float, str]:
    """Over seeds, and as text with the standard deviation."""
    values = [result["figures"][key] for result in results]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return statistics.mean(values), f"{statistics.mean(values):.3f}{spread}"


def cells_of(results: Sequence[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Results by (steps, masks); (0, 1) are those of class scores."""
    cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: (result["steps"], result["masks"], result["seed"])):
        cells.setdefault((result["steps"], result["masks"]), []).append(result)
    return cells


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row per cell, as Markdown."""
    head = ["kind", "steps", "masks", *FIGURES, "vote entropy", "Gflop an image", "training Tflop", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (steps, masks), held in cells_of(results).items():
        one = held[0]
        entropy = _mean(held, "vote_entropy")[1] if steps else "–"
        costs = [f"{one['operations'] / 1e9:.3f}", f"{one['train_operations'] / 1e12:.1f}"]
        figures = [_mean(held, key)[1] for key in FIGURES.values()]
        row = [one["kind"], steps or "–", masks if steps else "–", *figures, entropy, *costs, len(held)]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean IoU against steps, a line per number of masks, that of class scores across."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = cells_of(results)
    with plot_style():
        figure = Figure((6.4, 4), 120, layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
        for colour, masks in zip(COLOURS, sorted({masks for steps, masks in cells if steps}), strict=False):
            points = {
                steps: _mean(held, "mean_iou")[0] for (steps, many), held in cells.items() if many == masks and steps
            }
            named = f"{masks} mask" + ("s" if masks > 1 else "")
            axes.plot(list(points), list(points.values()), "o-", color=colour, label=named)
            axes.set_xticks(list(points), list(map(str, points)))
        if (0, 1) in cells:
            axes.axhline(_mean(cells[0, 1], "mean_iou")[0], color="0.4", linestyle="--", label="logits")
        axes.set_xlabel("steps")
        axes.set_ylabel("mean IoU")
        axes.legend()
        canvas.print_png(str(path))


def report(folder: Path) -> str:
    """Write the table and the plot from the results."""
    results = read_results(folder)
    plot(results, folder / "quality.png")
    one = results[0]
    said = [
        f"# {folder.name}: masks drawn and masks scored at equal operations of training",
        f"{one['figures']['images']} held-out images; means over seeds with their standard deviation. Operations count "
        "2 per multiply-add; those of training are three times the forward passes'.",
        table(results),
        f"![mean IoU against steps]({folder.name}/quality.png)",
        f"![masks]({folder.name}/examples.png)",
        f"{ADVICE[0].upper()}{ADVICE[1:]}.",
    ]
    write_text(folder.with_suffix(".md"), "\n\n".join(said) + "\n")
    return said[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/mask_diffusion.py CONFIG", description=__doc__)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="of training `diffusion` (default: those of CONFIG)")
    parser.add_argument("--images", type=int, default=100, help="held-out images, at most")
    parser.add_argument("--sampler", help="default: that of CONFIG")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "mask_diffusion", metavar="DIR")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "mask_diffusion")
    parser.add_argument("--report", action="store_true", help="write table and plot from the results")
    options = parser.parse_args()
    with user_errors():
        if options.report:
            print(report(options.results))
            return
        options.results.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            given = ["--train.steps", str(options.steps)] if options.steps else []
            study(options, parse_segment([options.config, "--seed", str(seed), *given]), options.results)


if __name__ == "__main__":
    main()
