"""Tiled prediction beside MONAI's `sliding_window_inference` around the same network; one image in one piece."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.cases import Options
from benchmarks.speed.memory import MEBI, allocated, in_own_process, resident_peak
from benchmarks.speed.networks import monai_unet, segmenter
from benchmarks.speed.results import Found, Table, Target
from benchmarks.speed.timing import compare
from unetdiff.models.unet import UNet
from unetdiff.segmentation.predict import ArrayImage, Inference, predict_image, predict_rows, probabilities_of

TILE, OVERLAP, BATCH = 256, 0.25, 4  # 4 windows at a time: what MONAI's own examples give
SIDE = {False: 2048, True: 512}  # by whether the run is quick
LARGEST_DIFFERENCE = 1e-4  # of probabilities


def image_of(side: int) -> Tensor:
    """(1, side, side) in [-1, 1], the same in every process."""
    return torch.rand(1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ours_held(network: UNet, image: Tensor) -> Tensor:
    """Probabilities (K, *space) of the whole image, as `predict_image` gives them."""
    return predict_image(_predict(network), image, Inference(TILE, OVERLAP), network.layout.multiple)


def ours_in_rows(network: UNet, image: Tensor) -> np.ndarray:
    """Class numbers (*space), a byte each, from rows as they come: what `sample/masks.py` writes of large images."""
    labels = np.empty(image.shape[1:], np.uint8)
    rows = predict_rows(_predict(network), ArrayImage(image.numpy()), Inference(TILE, OVERLAP), network.layout.multiple)
    for start, part in rows:
        labels[start : start + part.shape[1]] = part.argmax(0).numpy()
    return labels


def monai_held(network: UNet, image: Tensor, batch: int = BATCH) -> Tensor:
    """Probabilities (K, *space) on the CPU, by MONAI, where the image and the sums are on the network's device."""
    from monai.inferers.utils import sliding_window_inference

    with torch.no_grad():
        found = sliding_window_inference(
            image[None].to(network.device),
            (TILE, TILE),
            batch,
            lambda windows: network(windows).sample.float().softmax(1),
            overlap=OVERLAP,
            mode="gaussian",
            padding_mode="reflect",
        )
    assert isinstance(found, Tensor)
    return found[0].cpu()


WAYS: dict[str, Callable[[UNet, Tensor], object]] = {
    "MONAI, 4 windows at a time": monai_held,
    "MONAI, 1 window at a time": partial(monai_held, batch=1),
    "unetdiff": ours_held,
    "unetdiff, rows as they come": ours_in_rows,
}
REFERENCE, SMALLEST, HELD, ROWS = WAYS


def _predict(network: UNet) -> Callable[[Tensor], Tensor]:
    return probabilities_of(lambda images: network(images).sample, network.device)


def peak(way: str, side: int, device: torch.device) -> int:
    """Bytes at the peak of one way: of tensors on an accelerator, else of a process of its own."""
    if device.type == "cpu":
        return int(in_own_process("benchmarks.speed.segment", way, str(side)))
    network = segmenter().to(device).eval()  # pyright: ignore[reportArgumentType]
    image = image_of(side)
    WAYS[way](network, image_of(TILE))
    return allocated(lambda: WAYS[way](network, image), device)[0]


def tiled(options: Options) -> Found:
    """A large image: values compared, then time and memory of every way."""
    side = SIDE[options.quick]
    network = segmenter().to(options.device).eval()  # pyright: ignore[reportArgumentType]
    image = image_of(side)
    apart = float((ours_held(network, image) - monai_held(network, image)).abs().max())
    if apart > LARGEST_DIFFERENCE:
        raise RuntimeError(f"probabilities differ from MONAI's by up to {apart:.1e}; expected {LARGEST_DIFFERENCE}")
    acts = {name: partial(way, network, image) for name, way in WAYS.items()}
    times = compare(acts, REFERENCE, options.rounds(5), warmup=0)
    peaks = {name: peak(name, side, options.device) for name in WAYS}
    rows = [
        {
            "way": name,
            "seconds": round(times[name].seconds.middle, 3),
            "ratio": round(times[name].ratio.middle, 3),
            "quartiles": times[name].row()["quartiles"],
            "peak, MiB": round(peaks[name] / MEBI, 1),
            "share": round(peaks[name] / peaks[REFERENCE], 3),
        }
        for name in WAYS
    ]
    title = f"{side} x {side}, tiles of {TILE}, overlap {OVERLAP}"
    note = f"Largest difference of probabilities from MONAI's: {apart:.1e}. Peaks are beyond what was there before."
    best = min(times[name].ratio.middle for name in (REFERENCE, SMALLEST))
    targets = [
        Target("tiled, time over MONAI's faster way", times[HELD].ratio.middle / best, 1.0),
        Target("tiled, peak over MONAI's, 4 windows at a time", peaks[HELD] / peaks[REFERENCE], 0.5),
        Target("rows as they come, peak over MONAI's, 4 windows at a time", peaks[ROWS] / peaks[REFERENCE], 0.5),
    ]
    return Found([Table(title, rows)], targets, [note])


def whole(options: Options) -> Table:
    """Latency of one image in one piece, beside the bare network and MONAI's `UNet` of about the same size."""
    ours, theirs = (network.to(options.device).eval() for network in (segmenter(), monai_unet()))
    image = image_of(TILE)
    inside = image[None].to(options.device)

    def bare(network: nn.Module) -> None:
        with torch.no_grad():
            network(inside)

    acts = {
        "MONAI UNet": partial(bare, theirs),
        "unetdiff, the bare network": partial(bare, ours),
        "unetdiff, predict_image": lambda: predict_image(_predict(ours), image, Inference(), ours.layout.multiple),
    }
    times = compare(acts, "MONAI UNet", options.rounds(15), warmup=2)
    sizes = {name: sum(p.numel() for p in (theirs if name == "MONAI UNet" else ours).parameters()) for name in acts}
    rows = [{"way": name, "parameters": f"{sizes[name]:,}", **times[name].row()} for name in acts]
    return Table(f"{TILE} x {TILE} in one piece", rows)


def run(options: Options) -> Found:
    """The case."""
    found = tiled(options)
    return Found([*found.tables, whole(options)], found.targets, found.notes)


if __name__ == "__main__":
    chosen = segmenter().eval()
    WAYS[sys.argv[1]](chosen, image_of(TILE))  # so that workspaces and lazy imports are not counted
    given = image_of(int(sys.argv[2]))
    print(resident_peak(lambda: WAYS[sys.argv[1]](chosen, given)))
