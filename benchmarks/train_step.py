"""Images per second of train/denoise.py beside a plain loop around diffusers' UNet2DModel, in one run.

python benchmarks/train_step.py --data PATH/TO/cifar10 [--precision float32 bf16] [--batch_size 16] [--rounds 5]

The two take turns (A B A B ...), since machines are noisy; the medians of their times and the ratio are printed and
saved as benchmarks/results/train_step-DATE-DEVICE.md.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median

import torch
from diffusers import UNet2DModel
from torch.nn.functional import mse_loss

from unetdiff.config import parse_denoise
from unetdiff.data.loader import Batch
from unetdiff.training.denoise import denoising_trainer
from unetdiff.training.loop import Trainer

ROOT = Path(__file__).parents[1]
AUTOCAST = {"float32": None, "bf16": torch.bfloat16}


def diffusers_network() -> UNet2DModel:
    """The network of the DDPM paper as diffusers publishes it for CIFAR-10: 35.7M parameters."""
    plain, attention = "Block2D", "AttnDownBlock2D"
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("Down" + plain, attention, "Down" + plain, "Down" + plain),
        up_block_types=("Up" + plain, "Up" + plain, "AttnUpBlock2D", "Up" + plain),
        attention_head_dim=None,  # pyright: ignore[reportArgumentType] # one head, as published
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        dropout=0.1,
    )


def plain_step(network: UNet2DModel, trainer: Trainer, batches: Iterator[Batch], precision: str) -> Callable[[], None]:
    """What a user would write by hand: noise, forward, backward, clip, AdamW; no average, no log, no checks."""
    device, scheduler = trainer.accelerator.device, trainer.task.scheduler
    network.to(device).train()  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, fused=True)
    dtype = AUTOCAST[precision]

    def step() -> None:
        x0 = next(batches)["sample"].to(device)
        noise = torch.randn_like(x0)
        timestep = torch.randint(0, 1000, (len(x0),), device=device)
        noisy = scheduler.add_noise(x0, noise, timestep)  # pyright: ignore[reportArgumentType]
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            prediction = network(noisy, timestep).sample
        mse_loss(prediction.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None]) -> float:
    """Seconds for one step."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(data: str, precision: str, batch_size: int, rounds: int, folder: Path) -> tuple[float, float, list[float]]:
    """Images per second of ours and of the plain loop, and the ratio of each round."""
    words = [str(ROOT / "configs" / "cifar10.yaml"), "--data.path", data, "--run_dir", str(folder)]
    words += ["--train.batch_size", str(batch_size), "--train.precision", precision, "--train.steps", str(rounds + 3)]
    trainer = denoising_trainer(parse_denoise([*words, "--train.validate_every", "0", "--train.sample_every", "0"]))
    theirs = plain_step(diffusers_network(), trainer, trainer.batches(0), precision)
    trainer.begin(0)
    steps = iter(range(rounds + 2))

    def ours() -> None:
        trainer.training_step(next(steps))

    for step in (ours, theirs, ours, theirs):
        timed(step)
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    mine, other = (median(column) for column in zip(*pairs, strict=True))
    return batch_size / mine, batch_size / other, [second / first for first, second in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with the parquet files of CIFAR-10")
    parser.add_argument("--precision", nargs="+", choices=list(AUTOCAST), default=["float32", "bf16"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    lines = [
        f"# Training step, ddpm_cifar10 (35.7M), batch {options.batch_size}",
        "",
        f"{date.today()}, {device}, torch {torch.__version__}; {options.rounds} rounds in turn.",
        "Ours is the step of train/denoise.py (with its averages, checks and draws), theirs a plain loop without them.",
        "",
        "| precision | ours, images/s | diffusers, images/s | ratio (median) | ratio (range) |",
        "|---|---|---|---|---|",
    ]
    for precision in options.precision:
        with tempfile.TemporaryDirectory() as folder:
            mine, other, ratios = compare(
                options.data, precision, options.batch_size, options.rounds, Path(folder) / "run"
            )
        lines.append(
            f"| {precision} | {mine:.2f} | {other:.2f} | {median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f} |"
        )
    name = f"train_step-{date.today()}-{'cuda' if on_gpu else 'cpu'}.md"
    text = "\n".join(lines) + "\n"
    (ROOT / "benchmarks" / "results" / name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
