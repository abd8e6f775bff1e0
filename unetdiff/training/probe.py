"""Which of a denoiser's blocks, at which timesteps, say most about the classes: a grid of small classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.data.images import crop_window
from unetdiff.data.order import key, keys
from unetdiff.data.pairs import PairSource, open_pairs
from unetdiff.feature_options import ProbeOptions
from unetdiff.figures import SEQUENTIAL, plot_style
from unetdiff.files import write_json
from unetdiff.models.frozen_features import FrozenFeatures, at_positions, blocks_of
from unetdiff.models.unet import UNet
from unetdiff.progress import progress
from unetdiff.segment_config import ProbeConfig
from unetdiff.segmentation.options import IGNORE
from unetdiff.training.kinds.features import alpha_bars_of, open_denoiser, random_spec
from unetdiff.training.kinds.logits import check_body

TABLE, GRID = "probe.json", "grid.png"
MOST_ROWS = 20


@dataclass(frozen=True)
class Cell:
    """What the output of a block at a timestep says of the classes.

    dice: of each class over all held-out positions together; None for one that is neither there nor predicted.
    score: what cells are ranked by.
    """

    block: str
    timestep: int
    dice: list[float | None]
    score: float


@dataclass(frozen=True)
class Sampled:
    """An image (1, C, *space) in [-1, 1] with some of its labelled positions.

    places: (P,) int64, counted along the flattened space. labels: (P,) int64, none of them IGNORE. folds: (P,) int64.
    """

    image: Tensor
    places: Tensor
    labels: Tensor
    folds: Tensor


def probe(config: ProbeConfig) -> list[str]:
    """Measure every cell on the training images of `config`, and write the table and the grid.

    Positions are drawn once. In each cell a network of one hidden layer is trained on the features of a single block
    and timestep at those positions, for a fixed number of steps, and judged on the fold that it did not see: on other
    images, or, where there is one image, on its other half. Memory does not grow with the number of images.

    Returns:
        what is said: the best cells as a table, and where the rest is.

    Raises:
        ValueError: the denoiser or the data do not fit, or no position has a label.
    """
    chosen, data, run = config.probe, open_pairs(config.data), open_denoiser(config)
    denoiser, source = run.unet, replace(data.train, size=None)
    assert isinstance(denoiser, UNet)
    check_body(config, source.format, denoiser.spec)
    if config.features.random:
        torch.manual_seed(config.seed)
        denoiser = UNet(**random_spec(denoiser.spec).to_json())
    denoiser.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    blocks = chosen.blocks or blocks_of(denoiser.layout, "encoder", "middle", "decoder")
    signals = alpha_bars_of(run, chosen.timesteps)
    cells: list[Cell] = []
    with progress(desc="probing", unit="cell", total=len(blocks) * len(signals)) as bar:
        for timestep, signal in zip(chosen.timesteps, signals, strict=True):
            reader = FrozenFeatures(denoiser, blocks, [timestep], [signal])
            features, labels, folds = _gathered(reader, sampled_images(source, config))
            for step, values in zip(reader.steps, features, strict=True):
                seed = key(config.seed, f"probe {step.key}", timestep)
                counts = cross_validated(values, labels, folds, source.num_classes, chosen, seed)
                cells.append(_cell(step.key, timestep, counts, config.evaluation.membrane))
                bar.update()
    ranked = sorted(cells, key=lambda cell: (-cell.score, cell.block, cell.timestep))
    how = _protocol(source, config)
    out = Path(chosen.out or f"{config.run_dir}_probe")
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / TABLE,
        {
            "denoiser": None if config.features.random else str(run.folder),
            **how,
            "cells": [vars(cell) for cell in ranked],
        },
    )
    _draw(out / GRID, cells, chosen.timesteps, how["score"])
    return [*_table(ranked, how), f"{out / TABLE} has all {len(cells)} cells, {out / GRID} the grid"]


def sampled_images(source: PairSource, config: ProbeConfig) -> Iterator[Sampled]:
    """The images one by one, whole or (where `evaluation.tile` says so) the window in their middle.

    Raises:
        ValueError: an image cannot be read, or no image has a label.
    """
    chosen, count, found = config.probe, len(source), False
    share = max(chosen.positions // count, 1)
    for index in range(count):
        arrays = source.read([index])
        space = arrays["mask"].shape[1:]
        side = config.evaluation.tile or max(space)
        window = (slice(None), *crop_window(space, tuple(min(side, length) for length in space), None))
        mask = arrays["mask"][window][0]
        known = np.flatnonzero(mask != IGNORE)
        if not len(known):
            continue
        found = True
        places = known[keys(config.seed, f"probe image {index}", np.arange(share)) % len(known)]
        axis = int(np.argmax(mask.shape))
        half = np.unravel_index(places, mask.shape)[axis] * 2 // mask.shape[axis]
        folds = half if count == 1 else np.full(share, index % min(chosen.folds, count))
        image = source.format.encode(arrays["sample"][window])
        yield Sampled(image, *map(torch.from_numpy, (places, mask.flatten()[places], folds.astype(np.int64))))
    if not found:
        raise ValueError(f"no position of {source.name(0)} and the rest has a label; expected some to learn from")


def _gathered(reader: FrozenFeatures, images: Iterator[Sampled]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Of all positions: the features of each step (N, C), the labels (N,) and the folds (N,)."""
    features: list[list[Tensor]] = [[] for _ in reader.steps]
    labels, folds = [], []
    device = reader.denoiser.device
    for one in images:
        space, places = one.image.shape[2:], one.places[None].to(device)
        padded = reader.padded_size(space)
        for part, maps in zip(features, reader(one.image.to(device)), strict=True):
            part.append(at_positions(maps, places, padded, space)[0].cpu())
        labels.append(one.labels)
        folds.append(one.folds)
    if len(torch.cat(folds).unique()) < 2:
        raise ValueError("all positions with a label lie in one fold; expected labels in two images, or in both halves "
                         "of one")  # fmt: skip
    return [torch.cat(part) for part in features], torch.cat(labels), torch.cat(folds)


def cross_validated(
    features: Tensor, labels: Tensor, folds: Tensor, classes: int, options: ProbeOptions, seed: int
) -> Tensor:
    """The confusion (K, K), true by predicted, of positions judged by a classifier that was trained on other folds.

    Args:
        features: (N, C). labels: (N,) in 0 ... K-1. folds: (N,), numbers of any kind.
        classes: K. options: the classifier. seed: of its first weights.
    """
    numbers, fold = folds.unique(return_inverse=True)
    held = fold[None] == torch.arange(len(numbers))[:, None]  # (folds, N)
    share = (~held).float() / (~held).sum(1, keepdim=True).clamp(min=1)
    mean = (share @ features)[:, None]
    deviation = ((share @ features.square())[:, None] - mean.square()).clamp(min=1e-12).sqrt()
    x = (features - mean) / deviation
    widths = [features.shape[1], options.hidden, classes]
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        (torch.randn(len(numbers), before, after, generator=generator) * before**-0.5).requires_grad_()
        for before, after in pairwise(widths)
    )
    shifts = [torch.zeros(len(numbers), 1, width, requires_grad=True) for width in widths[1:]]
    optimizer = torch.optim.AdamW([first, second, *shifts], lr=options.learning_rate)

    def scores() -> Tensor:
        return torch.relu(x @ first + shifts[0]) @ second + shifts[1]

    for _ in range(options.steps):
        losses = F.cross_entropy(scores().flatten(0, 1), labels.repeat(len(numbers)), reduction="none")
        optimizer.zero_grad()
        (losses.reshape(share.shape) * share).sum().backward()
        optimizer.step()
    with torch.no_grad():
        predicted = scores().argmax(-1)[held]
    truth = labels.expand(held.shape)[held]
    return torch.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _cell(block: str, timestep: int, counts: Tensor, membrane: int | None) -> Cell:
    """Dice of each class from the confusion, and the one figure."""
    sizes = counts.sum(0) + counts.sum(1)
    dice = [2 * float(hit) / float(size) if size else None for hit, size in zip(counts.diag(), sizes, strict=True)]
    known = [value for value in dice if value is not None]
    wanted = None if membrane is None else dice[membrane]
    return Cell(block, timestep, dice, sum(known) / len(known) if wanted is None else wanted)


def _protocol(source: PairSource, config: ProbeConfig) -> dict[str, Any]:
    """How cells were measured, for those who read the figures."""
    names, membrane, count = source.encoding.class_names, config.evaluation.membrane, len(source)
    class_name = None if membrane is None else names[membrane] if names else f"class {membrane}"
    validation = (
        "halves of one image along its longest axis" if count == 1 else f"{min(config.probe.folds, count)} folds of "
        f"{count} images"
    )  # fmt: skip
    score = "mean Dice over classes" if class_name is None else f"Dice of {class_name}"
    return {"score": score, "validation": validation, "positions": config.probe.positions, "steps": config.probe.steps}


def _table(ranked: Sequence[Cell], how: dict[str, Any]) -> list[str]:
    """The best cells, one a line."""
    width = max(len(cell.block) for cell in ranked)
    rows = [f"{cell.block:<{width}}  {cell.timestep:>8}  {cell.score:.3f}" for cell in ranked[:MOST_ROWS]]
    return [f"{how['score']}, {how['validation']}", f"{'block':<{width}}  timestep   Dice", *rows]


def _draw(path: Path, cells: Sequence[Cell], timesteps: Sequence[int], score: str) -> None:
    """The grid as a picture: a row per block, a column per timestep, both in the order in which they were measured."""
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(cell.block for cell in cells))
    by_place = {(cell.block, cell.timestep): cell.score for cell in cells}
    grid = np.array([[by_place[block, timestep] for timestep in timesteps] for block in blocks])
    with plot_style():
        figure = Figure(figsize=(3 + 0.7 * len(timesteps), 1.2 + 0.28 * len(blocks)), layout="constrained", dpi=120)
        axes = figure.add_subplot()
        axes.grid(visible=False)
        image = axes.imshow(grid, cmap=SEQUENTIAL, aspect="auto", interpolation="nearest")
        middle = (grid.min() + grid.max()) / 2
        for (row, column), value in np.ndenumerate(grid):
            ink = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks(range(len(timesteps)), list(map(str, timesteps)))
        axes.set_yticks(range(len(blocks)), list(blocks))
        axes.set(xlabel="timestep", title=score)
        axes.tick_params(length=0, labelsize=8)
        figure.colorbar(image, ax=axes)
        figure.savefig(path)
