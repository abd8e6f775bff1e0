"""`train/denoise.py` beside the bare step on the same network, and the data pipeline alone."""

from __future__ import annotations

import copy
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import Tensor, nn

from benchmarks.speed.cases import Options
from benchmarks.speed.networks import AUTOCAST
from benchmarks.speed.results import Found, Row, Table, Target
from benchmarks.speed.timing import Timing, compare
from unetdiff.config import parse_denoise
from unetdiff.training.denoise import denoising_trainer
from unetdiff.training.loop import Trainer
from unetdiff.training.task import Batch, Task

ROOT = Path(__file__).parents[2]
OVERHEAD, FASTER = 1.03, 3.0  # what the loop may take over the bare step; what the loader must do at least
PICTURES = 2000  # generated where no data are given


def write_pictures(folder: Path, count: int) -> Path:
    """A parquet file of `count` smooth random pictures, 32 x 32, as JPEG with labels: what CIFAR-10 costs to read."""
    import datasets

    draws = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), np.uint8))
        with io.BytesIO() as buffer:
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
            rows.append({"img": {"bytes": buffer.getvalue(), "path": None}, "label": int(draws.integers(10))})
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    return folder


@contextmanager
def training(config: str, steps: int, *settings: str) -> Iterator[Trainer]:
    """The trainer of a configuration, restored as `fit` does, in a folder that is then removed."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    never = str(10 * steps)
    with tempfile.TemporaryDirectory() as folder:
        words = [str(ROOT / "configs" / config), "--run_dir", str(Path(folder) / "run"), "--train.steps", str(steps)]
        words += ["--train.checkpoint_every", never, "--train.validate_every", "0", "--train.sample_every", "0"]
        made = denoising_trainer(parse_denoise([*words, *settings]))
        made.restore()
        try:
            yield made
        finally:
            made.close()


def bare_step(network: nn.Module, task: Task, batch: Batch, precision: str, clip: float) -> Callable[[], None]:
    """Forward, backward, clip, AdamW, on a batch that is there already: the least that training takes."""
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, fused=True)
    device, dtype = parameters[0].device, AUTOCAST[precision]

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = task.loss(network, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def repeated(act: Callable[[], object], count: int) -> Callable[[], None]:
    """`act`, `count` times."""

    def several() -> None:
        for _ in range(count):
            act()

    return several


def beside_the_bare_step(made: Trainer, precision: str, rounds: int, at_once: int) -> dict[str, Timing]:
    """The loop, the bare step, and the parts of what lies between them, `at_once` times in a row."""
    twin = copy.deepcopy(made.unet).train()
    loader = made.batches(0)
    batch = next(loader)
    bare = bare_step(twin, made.task, batch, precision, made.config.gradient_clip)
    going, average = made.steps(0), itertools.count(1)
    acts: dict[str, Callable[[], object]] = {
        "bare step": bare,
        "train/denoise.py": lambda: next(going),
        "of it: batches with their draws": lambda: next(loader),
        "of it: averages of the weights": lambda: made.averages.update(next(average)),
    }
    found = compare({name: repeated(act, at_once) for name, act in acts.items()}, "bare step", rounds, warmup=1)
    loader.close()
    return found


def images_per_second(stream: Iterator[Batch], batch_size: int, seconds: float) -> float:
    """What batches yield for a while, the first ones not counted."""
    for _ in range(3):
        next(stream)
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        next(stream)
        count += batch_size
    return count / passed


def plain_batches(folder: Path, batch_size: int) -> Iterator[Tensor]:
    """What a user would write: a torch loader over rows that are decoded one by one, with a flip and noise."""
    import datasets

    file = next(path for path in sorted(folder.glob("*.parquet")) if "train" in path.name)
    rows = datasets.load_dataset("parquet", data_files=str(file), split="train")
    rows = rows.cast_column("img", datasets.Image())

    def prepared(examples: dict) -> dict:
        pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in examples["img"]]
        floats = [(entry.float() / 127.5 - 1) for entry in pixels]
        return {"input": [entry.flip(2) if torch.rand(()) < 0.5 else entry for entry in floats]}

    loaded = torch.utils.data.DataLoader(rows.with_transform(prepared), batch_size, shuffle=True, drop_last=True)  # pyright: ignore
    while True:
        for batch in loaded:
            yield torch.stack([batch["input"], torch.randn_like(batch["input"])])


def pipeline(data: Path, batch_size: int, seconds: float, step_rate: float) -> tuple[Table, Target]:
    """Images per second of the loader alone, beside what the training step consumes on the same machine."""
    rows: list[Row] = []
    rates: dict[str, float] = {}
    for workers in (0, 2):
        settings = cifar_settings(data, batch_size, "float32")
        with training("cifar10.yaml", 10, *settings, "--data.workers", str(workers)) as made:
            stream = made.batches(0)
            rates[f"unetdiff, {workers} workers"] = images_per_second(stream, batch_size, seconds)
            stream.close()
    rates["datasets and DataLoader, 0 workers"] = images_per_second(
        plain_batches(data, batch_size), batch_size, seconds
    )
    for name, rate in rates.items():
        rows.append({"loader": name, "images/s": round(rate, 1), "times the step": round(rate / step_rate, 1)})
    table = Table("The data pipeline alone, ddpm_cifar10", rows)
    return table, Target("loader over the step of ddpm_cifar10", rates["unetdiff, 0 workers"] / step_rate, FASTER, True)


def cifar_settings(data: Path, batch_size: int, precision: str) -> Sequence[str]:
    """What the command line adds to configs/cifar10.yaml."""
    chosen = {"data.path": data, "train.batch_size": batch_size, "train.precision": precision,
              "train.validation_size": 1}  # fmt: skip
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def rows_of(found: dict[str, Timing], config: str, at_once: int) -> list[Row]:
    """A table's rows."""
    return [{"settings": config, "part": name, **timing.row(at_once)} for name, timing in found.items()]


def run(options: Options) -> Found:
    """The case."""
    accelerated = options.device.type != "cpu"
    rows: list[Row] = []
    targets: list[Target] = []
    rounds, at_once = options.rounds(30), 1 if options.quick else 5
    with training("digits.yaml", 4 * (rounds + 1) * at_once) as made:
        found = beside_the_bare_step(made, "float32", rounds, at_once)
    rows += rows_of(found, "digits.yaml, float32", at_once)
    targets.append(Target.of("loop over the bare step, digits", found["train/denoise.py"].ratio, OVERHEAD))
    batch, precision = (128, "bf16") if accelerated else (2 if options.quick else 16, "bf16")
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or write_pictures(Path(folder), PICTURES)
        rounds, at_once = options.rounds(5), 10 if accelerated else 1
        with training("cifar10.yaml", 4 * (rounds + 1) * at_once, *cifar_settings(data, batch, precision)) as made:
            found = beside_the_bare_step(made, precision, rounds, at_once)
        consumed = batch * at_once / found["bare step"].seconds.middle
        table, faster = pipeline(data, batch, 1.0 if options.quick else 5.0, consumed)
    rows += rows_of(found, f"cifar10.yaml, {precision}, batch {batch}", at_once)
    targets += [
        Target.of("loop over the bare step, ddpm_cifar10", found["train/denoise.py"].ratio, OVERHEAD),
        faster,
    ]
    pictures = "those of --data" if options.data else f"{PICTURES:,} generated JPEGs of 32 x 32"
    return Found([Table("A step", rows), table], targets, [f"The pictures of cifar10.yaml are {pictures}."])
