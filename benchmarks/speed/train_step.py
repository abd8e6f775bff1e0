"""A training step of several networks in every form, beside the same network of another library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.breakdown import milliseconds
from benchmarks.speed.cases import Options
from benchmarks.speed.memory import MEBI, allocated, bytes_kept
from benchmarks.speed.networks import (
    AUTOCAST,
    diffusers_digits,
    diffusers_network,
    monai_cifar,
    monai_unet,
    ours_of,
    segmenter,
)
from benchmarks.speed.results import Found, Row, Table, Target
from benchmarks.speed.timing import Spread, compare, timed
from unetdiff.models.unet import UNet
from unetdiff.run_config import EmaConfig
from unetdiff.training.ema import WeightAverages
from unetdiff.training.form import no_compiler, to_channels_last

OURS, DIFFUSERS = "unetdiff", "diffusers UNet2DModel"
KEPT, SLOWER, IN_BF16 = 0.45, 1.05, 0.62  # of diffusers' ddpm_cifar10 in eager float32: memory, time, time in bf16
GOAL = 0.85  # of the time of diffusers' digits network in eager float32
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrix product whose rate is the machine's limit


@dataclass(frozen=True)
class Subject:
    """A network to train and what it is compared with.

    build: the networks by name, ours among them; the first is the reference. shape: (C, *space) of its input.
    classes: of a segmentation network, which takes no timestep. batch: by device, those where it is run.
    compiled: where it is compiled too, which takes minutes. profiled: whether its time is taken apart on a CPU.
    targets: of its table and of the ratios of its forms.
    """

    build: Callable[[], dict[str, nn.Module]]
    shape: tuple[int, ...]
    batch: Mapping[str, int]
    rounds: int
    classes: int = 0
    labels: int = 0
    compiled: tuple[str, ...] = ("cuda",)
    profiled: bool = False
    targets: Callable[[Sequence[Row], Mapping[str, Spread]], list[Target]] = lambda rows, ratios: []


def cifar() -> dict[str, nn.Module]:
    """The network of the DDPM paper, in three libraries."""
    theirs = diffusers_network()
    return {DIFFUSERS: theirs, "MONAI DiffusionModelUNet": monai_cifar()[0], OURS: ours_of(theirs)}


def digits() -> dict[str, nn.Module]:
    """A network of 1.2M parameters."""
    theirs = diffusers_digits()
    return {DIFFUSERS: theirs, OURS: ours_of(theirs)}


def cifar_targets(rows: Sequence[Row], ratios: Mapping[str, Spread]) -> list[Target]:
    """Memory and time of ours over diffusers', both in eager float32, and what bf16 saves."""
    theirs, ours = (next(row for row in rows if row["network"] == f"{name}, float32") for name in (DIFFUSERS, OURS))
    memory = [
        Target(f"ddpm_cifar10, MiB {says} over diffusers'", float(ours[key]) / float(theirs[key]), KEPT)
        for says, key in (("kept per image", "kept, MiB"), ("at the peak per image", "peak, MiB"))
    ]
    return [
        *memory,
        Target.of("ddpm_cifar10, float32, time over diffusers'", ratios[f"{OURS}, float32"], SLOWER),
        Target.of("ddpm_cifar10, bf16, time over diffusers' in float32", ratios[f"{OURS}, bf16"], IN_BF16),
    ]


def digits_targets(rows: Sequence[Row], ratios: Mapping[str, Spread]) -> list[Target]:
    """What `auto` chooses from in runs of minutes, the two precisions, over diffusers'; the fastest form of each."""
    ours, theirs = (
        {label: ratio for label, ratio in ratios.items() if label.startswith(name)} for name in (OURS, DIFFUSERS)
    )
    plain = min((f"{OURS}, float32", f"{OURS}, bf16"), key=lambda label: ours[label].middle)
    fastest, other = (min(each, key=lambda label: each[label].middle) for each in (ours, theirs))
    return [
        Target.of(f"digits, eager in the faster precision ({plain}), over diffusers' in float32", ours[plain], GOAL),
        Target(f"digits, {fastest} over {other}", ours[fastest].middle / theirs[other].middle, 1.0),
    ]


SUBJECTS: dict[str, Subject] = {
    "ddpm_cifar10 (35.7M), 32 x 32": Subject(cifar, (3, 32, 32), {"cpu": 8, "cuda": 128}, 5, targets=cifar_targets),
    "adm_64 (296M), 64 x 64": Subject(
        lambda: {OURS: UNet.from_preset("adm_64")}, (3, 64, 64), {"cuda": 32}, 5, labels=1000
    ),
    "digits (1.2M), 16 x 16": Subject(
        digits,
        (1, 16, 16),
        {"cpu": 64, "cuda": 64},
        15,
        compiled=("cpu", "cuda"),
        profiled=True,
        targets=digits_targets,
    ),
    "segmentation (0.8M), 256 x 256": Subject(
        lambda: {"MONAI UNet (0.7M)": monai_unet(), OURS: segmenter()}, (1, 256, 256), {"cpu": 4, "cuda": 32}, 5, 2
    ),
    "segmentation, 64 x 64 x 64": Subject(
        lambda: {"MONAI UNet": monai_unet(3), OURS: segmenter(3)}, (1, 64, 64, 64), {"cpu": 1, "cuda": 8}, 5, 2
    ),
}


@dataclass
class Step:
    """A training step of one network in one form: forward, backward, clip, AdamW, average of the weights."""

    network: nn.Module
    call: nn.Module
    precision: str
    subject: Subject
    device: torch.device
    optimizer: torch.optim.Optimizer
    averages: WeightAverages
    count: int = 0
    held: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Samples, what the network is asked for, and its conditions."""
        if batch not in self.held:
            draws = torch.Generator().manual_seed(0)
            sample = torch.randn(batch, *self.subject.shape, generator=draws)
            truth: Tensor = sample
            if self.subject.classes:
                truth = torch.randint(self.subject.classes, (batch, *self.subject.shape[1:]), generator=draws)
            conditions = () if self.subject.classes else (torch.randint(1000, (batch,), generator=draws),)
            if self.subject.labels:
                conditions += (torch.randint(self.subject.labels, (batch,), generator=draws),)
            self.held[batch] = tuple(entry.to(self.device) for entry in (sample, truth, *conditions))
        return self.held[batch]

    def loss(self, batch: int) -> Tensor:
        """The loss of a batch; a learned variance counts as further output."""
        sample, truth, *conditions = self.inputs(batch)
        dtype = AUTOCAST[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            output = self.call(sample, *conditions)
        found = (output if isinstance(output, Tensor) else output.sample).float()
        return cross_entropy(found, truth) if self.subject.classes else mse_loss(found[:, : truth.shape[1]], truth)

    def pass_both_ways(self, batch: int) -> None:
        """Forward and backward; gradients stay."""
        self.loss(batch).backward()

    def __call__(self, batch: int) -> None:
        """The whole step."""
        self.pass_both_ways(batch)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.count += 1
        self.averages.update(self.count)

    def memory(self, batch: int) -> tuple[float, float]:
        """MiB that autograd keeps, and at the peak of forward and backward: for one more image at this batch size."""
        sizes = (batch // 2, batch) if batch > 1 else (1, 2)
        kept = [bytes_kept(lambda size=size: self.loss(size)) for size in sizes]
        self.pass_both_ways(sizes[0])  # gradients of the weights are there before, and are added to
        peak = [allocated(lambda size=size: self.pass_both_ways(size), self.device)[0] for size in sizes]
        self.optimizer.zero_grad(set_to_none=True)
        more = (sizes[1] - sizes[0]) * MEBI
        return (kept[1] - kept[0]) / more, (peak[1] - peak[0]) / more


def steps_of(subject: Subject, device: torch.device, precisions: tuple[str, ...]) -> dict[str, Step]:
    """Every network in every form; forms of one network share its weights, but for channels-last."""
    found: dict[str, Step] = {}

    def add(name: str, network: nn.Module, calls: Mapping[str, Any]) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
        averages = WeightAverages(network, EmaConfig(kind="decay"))
        for form, call in calls.items():
            for precision in precisions:
                label = ", ".join(filter(None, (name, precision, form)))
                found[label] = Step(network, call, precision, subject, device, optimizer, averages)

    compiles = device.type in subject.compiled and no_compiler(device) is None
    for name, network in subject.build().items():
        network.to(device).train()
        calls: dict[str, Any] = {"": network}
        if compiles:
            calls["compiled"] = torch.compile(network)
        if compiles and device.type == "cuda":
            calls["CUDA graphs"] = torch.compile(network, mode="reduce-overhead")
        add(name, network, calls)
        if name == OURS:
            last = to_channels_last(copy.deepcopy(network), len(subject.shape) - 1)
            add(name, last, {"channels-last": last})
    return found


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product: what the machine can do at most."""
    side = PRODUCT[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=AUTOCAST[precision]) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: left @ right) for _ in range(5))


def operations(step: Step, batch: int) -> int:
    """Floating-point operations of forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step.pass_both_ways(batch)
    step.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def measure(
    name: str, subject: Subject, options: Options, rates: Mapping[str, float]
) -> tuple[list[Table], dict[str, Spread]]:
    """One network's tables, and the ratio of every form to the reference in eager float32."""
    device = options.device
    batch = 2 if options.quick else subject.batch[device.type]
    steps = steps_of(subject, device, ("float32", "bf16"))
    acts = {label: (lambda step=step: step(batch)) for label, step in steps.items()}
    times = compare(acts, next(iter(acts)), options.rounds(subject.rounds), warmup=2)
    flops: dict[int, int] = {}
    rows: list[Row] = []
    for label, step in steps.items():
        row: Row = {"network": label, **times[label].row(batch)}
        if "compiled" not in label and "graphs" not in label:
            kept, peak = step.memory(batch)
            row |= {"kept, MiB": round(kept, 2), "peak, MiB": round(peak, 2)}
        if id(step.network) not in flops:
            flops[id(step.network)] = operations(step, batch)
        rate = flops[id(step.network)] / times[label].seconds.middle
        row["share of the matrix rate"] = round(rate / rates[step.precision], 3)
        rows.append(row)
    tables = [Table(f"{name}, batch {batch}", rows)]
    if subject.profiled and device.type == "cpu":
        tables.append(
            Table(f"{name}: milliseconds per step by kind of operation", profiles(steps, batch, flops, rates))
        )
    torch.compiler.reset()
    return tables, {label: timing.ratio for label, timing in times.items()}


def profiles(steps: Mapping[str, Step], batch: int, flops: Mapping[int, int], rates: Mapping[str, float]) -> list[Row]:
    """Where the time of the reference and of ours goes in plain float32, beside what the products alone would take."""
    rows: list[Row] = []
    for label in (next(iter(steps)), f"{OURS}, float32"):
        step = steps[label]
        spent = {group: round(value, 1) for group, value in milliseconds(lambda step=step: step(batch)).items()}
        least = flops[id(step.network)] / rates[step.precision] * 1e3
        rows.append({"network": label, **spent, "at the matrix rate": round(least, 1)})
    return rows


def run(options: Options) -> Found:
    """The case."""
    device = options.device
    rates = {precision: matrix_rate(device, precision) for precision in AUTOCAST}
    subjects = {name: each for name, each in SUBJECTS.items() if device.type in each.batch}
    if options.quick:
        subjects = {name: each for name, each in subjects.items() if each.profiled}
    tables, targets = [], []
    for name, subject in subjects.items():
        found, ratios = measure(name, subject, options, rates)
        tables += found
        targets += subject.targets(found[0].rows, ratios)
    limit = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {precision}" for precision, rate in rates.items())
    note = f"Milliseconds per image; memory is for one more image in the batch. A large matrix product runs at {limit}."
    return Found(tables, targets, [note])
