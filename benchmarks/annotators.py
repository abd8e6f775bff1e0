"""Do the masks that a network draws differ as those of its annotators do?

python benchmarks/annotators.py RUN [RUN ...]

RUNs were trained on synthetic annotators of known probabilities, such as those of configs/annotators.yaml. Of every
held-out image each draws as many masks, which are compared with the masks of all its annotators. Writes annotators.json
with the figures, annotators.md with a table and annotators.png to --results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from unetdiff.command import CommandParser, run_command, user_errors  # noqa: E402
from unetdiff.data.annotators import as_counts  # noqa: E402
from unetdiff.data.order import key, keys  # noqa: E402
from unetdiff.data.pairs import PairSource, open_pairs  # noqa: E402
from unetdiff.files import write_json, write_text  # noqa: E402
from unetdiff.mask_figures import image_plane, label_plane, panels  # noqa: E402
from unetdiff.progress import progress  # noqa: E402
from unetdiff.runs import Run, load_run  # noqa: E402
from unetdiff.segment_config import SegmentConfig, parse_segment  # noqa: E402
from unetdiff.segmentation.sample_metrics import SampleMetrics, SampleOptions  # noqa: E402
from unetdiff.segmentation.samples import spread_note  # noqa: E402
from unetdiff.segmenting import segment  # noqa: E402
from unetdiff.training.processes import device_of, start_processes  # noqa: E402

Draw = Callable[[Run, np.ndarray, int, int, int | None], np.ndarray]
"""Masks of an image (*space, C), so many, from a seed, in steps (None: as the run says): int64 (count, *space)."""

SHOWN, SHOWN_SAMPLES = 8, 3

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

RULES = """GED² = 2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU, the mean over classes but the background, 0
where neither mask has the class; means are over all pairs, those of a mask with itself too, so that even {count} masks
by annotators drawn anew (the last row) are not at 0. Disagreement is E d(S, S'). A mask counts for the annotator whose
mask of the image is nearest by IoU; off by: the largest difference from the true frequencies. AUROC: whether positions
where the most frequent class is wrong have a higher vote entropy. ECE: of the shares of the votes."""


def most_probable(run: Run, image: np.ndarray, count: int, seed: int, steps: int | None) -> np.ndarray:
    """The one mask that a network says, `count` times."""
    return np.repeat(segment(run, image).labels[None], count, axis=0)


def by_position(run: Run, image: np.ndarray, count: int, seed: int, steps: int | None) -> np.ndarray:
    """Masks whose every position is drawn from its own probabilities, whatever its neighbours are."""
    upper = segment(run, image).probabilities.cumsum(0)[:-1]
    draws = np.random.Generator(np.random.PCG64(seed)).random((count, 1, *upper.shape[1:]))
    return (draws >= upper).sum(1)


def drawn_from_noise(run: Run, image: np.ndarray, count: int, seed: int, steps: int | None) -> np.ndarray:
    """Masks (count, *space) by a network that draws them."""
    masks = segment(run, image, masks=count, seed=seed, steps=steps).masks
    assert masks is not None
    return masks


WAYS: dict[str, dict[str, Draw]] = {
    "logits": {"most probable class": most_probable, "each position drawn": by_position},
    "diffusion": {"masks drawn": drawn_from_noise},
}
"""How masks are drawn from a run, by its `model.kind` and by what the table calls the way."""


def open_run(folder: Path) -> tuple[Run, SegmentConfig]:
    """A network and the settings it was trained with; `ValueError` where it knows no annotators."""
    run = load_run(folder, device=str(device_of(start_processes(None))))
    config = parse_segment([str(folder / "config.yaml")])
    if not config.data.annotators.probabilities:
        raise ValueError(f"{folder} was trained without data.annotators; expected a run such as of annotators.yaml")
    kind = run.beside.settings.get("kind", "logits")
    if kind not in WAYS:
        raise ValueError(f"{folder} has model.kind {kind}; expected {' or '.join(WAYS)}")
    return run, config


def judge(source: PairSource, images: int, draw: Callable[[int], np.ndarray], name: str) -> dict[str, Any]:
    """The figures of masks (count, *space) that are drawn of held-out images by their number."""
    annotators = source.annotators
    assert annotators is not None
    counts = as_counts(list(annotators.probabilities.values()))
    options = SampleOptions(class_names=source.encoding.class_names, annotators=tuple(annotators.probabilities))
    metrics, seconds = SampleMetrics(options), 0.0
    for index in progress(desc=name, unit="image", iterable=range(images)):
        start = time.perf_counter()
        drawn = torch.from_numpy(draw(index))
        seconds += time.perf_counter() - start
        truths = torch.from_numpy(annotators.labels(index))
        metrics.update(drawn, truths, name=source.name(index), truth_counts=counts)
    return {"masks": name, "seconds_per_image": seconds / images, **metrics.compute()}


def drawn_by_annotators(source: PairSource, index: int, count: int) -> np.ndarray:
    """Masks (count, *space) as an ideal sampler draws them: of annotators drawn with their probabilities."""
    annotators = source.annotators
    assert annotators is not None
    return annotators.labels(index)[annotators.drawn(np.arange(count), key(1, "ideal sampler", index))]


def table(results: list[dict[str, Any]], probabilities: dict[str, float]) -> str:
    """The figures of all arms, and the annotators' frequencies beside the true ones, as Markdown."""
    figures = {
        "GED²": "ged",
        "Hungarian IoU": "hungarian_iou",
        "disagreement": "between_samples",
        "vote entropy (nats)": "vote_entropy",
        "AUROC of errors": "error_auroc",
    }
    heads = ["masks", *figures, "ECE", *probabilities, "off by", "seconds an image"]
    rows = [["true frequencies", *[""] * (len(figures) + 1), *map(_cell, probabilities.values()), "", ""]]
    for result in results:
        shares = [result["frequencies"][name] for name in probabilities]
        off = max((abs(share - probabilities[name]) for name, share in result["frequencies"].items()
                   if share is not None), default=None)  # fmt: skip
        row = [result["masks"], *(_cell(result[name]) for name in figures.values()), _cell(result["votes"]["ece"])]
        rows.append([*row, *map(_cell, shares), _cell(off), _cell(result["seconds_per_image"])])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def page(results: list[dict[str, Any]], probabilities: dict[str, float], count: int, command: str) -> str:
    """The table with what its figures are."""
    lead = results[0]
    return "\n\n".join([
        "# Masks of several annotators",
        f"`{command}`: {lead['images']} held-out images, {count} masks of each, beside those of "
        f"{sum(as_counts(list(probabilities.values())))} annotators, so many of each kind as its probability says.",
        spread_note(count),
        table(results, probabilities),
        RULES.format(count=count),
        f"![Images, their annotators' masks, and those that are drawn](annotators.png)\n\n{legend(results)}",
    ]) + "\n"  # fmt: skip


def legend(results: list[dict[str, Any]]) -> str:
    """What the letters over the picture's columns are."""
    named = [f"{letter}: {result['masks']}" for letter, result in zip(LETTERS, results, strict=False)]
    return f"Images, the mask of each annotator, and drawn masks, one where all are equal. {'; '.join(named)}."


def picture(source: PairSource, drawn: dict[str, list[np.ndarray]], run: Run) -> Image.Image:
    """Images, the masks of their annotators, and of each arm the first masks; see `legend`.

    drawn: by the arm's name, for each image shown (count, *space).
    """
    colours = source.encoding.colours()
    annotators = source.annotators
    assert annotators is not None
    columns = {
        name: 1 if all((masks == masks[:1]).all() for masks in every) else SHOWN_SAMPLES
        for name, every in drawn.items()
    }
    rows = []
    for index in range(len(next(iter(drawn.values())))):
        row = [image_plane(source.load(index)[0], run.format)]
        row += [label_plane(mask, colours) for mask in annotators.labels(index)]
        for name, width in columns.items():
            row += [label_plane(mask, colours) for mask in drawn[name][index][:width]]
        rows.append(row)
    captions = ["image", *(f"{name}\n{share:g}" for name, share in annotators.probabilities.items())]
    for letter, width in zip(LETTERS, columns.values(), strict=False):
        captions += [f"{letter} {number + 1}" for number in range(width)]
    return panels(rows, captions)


def study(folders: list[Path], count: int, most: int | None, seed: int, out: Path, steps: int | None = None) -> str:
    """Judge runs and write the results; the table. For the arguments see `main`."""
    opened = [open_run(folder) for folder in folders]
    data = opened[0][1].data
    for run, config in opened[1:]:
        if (config.data.annotators, config.data.scene_classes, config.data.path) != (
            *(data.annotators, data.scene_classes, data.path),
        ):
            raise ValueError(f"{run.folder} was trained on other data than {folders[0]}; expected the same")
    source = open_pairs(data).test
    if not len(source):
        raise ValueError(f"the data of {folders[0]} have no test images; expected some (see data.split)")
    images = min(most or len(source), len(source))
    seeds = keys(seed, "drawn masks", np.arange(images)).tolist()
    arms: dict[str, Callable[[int], np.ndarray]] = {}
    for run, _ in opened:
        for way, draw in WAYS[run.beside.settings.get("kind", "logits")].items():
            arms[f"{run.folder.name}, {way}"] = lambda index, run=run, draw=draw: draw(
                run, source.load(index)[0], count, seeds[index], steps
            )
    arms["annotators drawn anew"] = lambda index: drawn_by_annotators(source, index, count)
    results = [judge(source, images, draw, name) for name, draw in arms.items()]
    results = [{key: value for key, value in result.items() if key != "per_image"} for result in results]
    assert source.annotators is not None
    probabilities = source.annotators.probabilities
    out.mkdir(parents=True, exist_ok=True)
    conditions = {"images": images, "samples": count, "seed": seed, "steps": steps, "probabilities": probabilities}
    write_json(out / "annotators.json", {"note": spread_note(count), "conditions": conditions, "results": results})
    command = f"python benchmarks/annotators.py {' '.join(map(str, folders))} --samples {count}"
    command += "".join(f" --{name} {given}" for name, given in (("images", most), ("steps", steps)) if given)
    write_text(out / "annotators.md", page(results, probabilities, count, command))
    shown = {name: [draw(index) for index in range(min(SHOWN, images))] for name, draw in arms.items()}
    picture(source, shown, opened[0][0]).save(out / "annotators.png")
    return table(results, probabilities)


def main() -> int:
    parser = CommandParser(prog="python benchmarks/annotators.py", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs on the same annotators' masks")
    parser.add_argument("--samples", type=int, default=16, help="masks drawn of each image (default %(default)s)")
    parser.add_argument("--steps", type=int, help="in which masks are drawn from noise (default: as the run says)")
    parser.add_argument("--images", type=int, help="the first so many held-out images (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    options = parser.parse_args()
    if any(given is not None and given < 1 for given in (options.samples, options.images, options.steps)):
        parser.error("expected --samples, --images and --steps of at least 1")
    with user_errors():
        print(study(options.runs, options.samples, options.images, options.seed, options.results, options.steps))
    print(f"{spread_note(options.samples)}\n{options.results / 'annotators.md'} has the rest")
    return 0


if __name__ == "__main__":
    run_command(main)
