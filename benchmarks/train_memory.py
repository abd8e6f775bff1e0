"""Memory and time of a training step in each form of `memory`, beside diffusers' UNet2DModel of the same shape.

python benchmarks/train_memory.py [--batch_size 8] [--rounds 7] [--precision float32 bf16]

A step is forward, mean squared error, backward. Bytes kept are what autograd holds between the two, and the peak is of
everything that is allocated in a step (weights and their gradients apart): both per image, by the difference of two
batch sizes. The forms take turns (A B C A B C ...), since machines are noisy; time is the median of each round's ratio
to diffusers. The table is printed and saved as benchmarks/results/train_memory-DATE-DEVICE.md.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.train_step import AUTOCAST, diffusers_network, timed  # noqa: E402
from unetdiff import UNet  # noqa: E402
from unetdiff.spec import Memory  # noqa: E402

FORMS: tuple[Memory, ...] = ("lean", "plain", "checkpoint")
MEBI = 2**20


def bytes_kept(forward: Callable[[], object]) -> int:
    """Bytes of the distinct storages that autograd saves while `forward` runs."""
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


def allocated(act: Callable[[], object]) -> tuple[int, int]:
    """Bytes that `act` allocates beyond what was there: at the peak, and left while its result is held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = act()
        torch.cuda.synchronize()
        peak, left = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
        del result
        return peak, left
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = act()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue] # not in torch's stubs
        peak = max(peak, now)
    del result
    return peak, now


class Candidate:
    """A network in one form, and its step on batches of any size."""

    def __init__(self, network: nn.Module, memory: Memory | None, precision: str, device: torch.device):
        self.network, self.memory, self.dtype, self.device = network, memory, AUTOCAST[precision], device

    def forward(self, batch: int) -> Tensor:
        """The loss of a batch."""
        if self.memory is not None:
            self.network.set_memory(self.memory)  # pyright: ignore[reportCallIssue]
        images = torch.zeros(batch, 3, 32, 32, device=self.device)
        timestep = torch.full((batch,), 500, device=self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return mse_loss(self.network(images, timestep).sample.float(), images)

    def step(self, batch: int) -> None:
        """One training step without an optimizer."""
        self.forward(batch).backward()
        self.network.zero_grad(set_to_none=True)

    def per_image(self, batch: int) -> tuple[float, float]:
        """MiB kept and at the peak, for one more image at this batch size."""
        kept = [bytes_kept(lambda size=size: self.forward(size)) for size in (batch // 2, batch)]
        self.forward(1).backward()  # gradients of the weights are there before, and are added to
        peak = [allocated(lambda size=size: self.forward(size).backward())[0] for size in (batch // 2, batch)]
        self.network.zero_grad(set_to_none=True)
        return tuple((more - less) / (batch - batch // 2) / MEBI for less, more in (kept, peak))  # pyright: ignore


def rows(precision: str, batch: int, rounds: int, device: torch.device) -> list[str]:
    """The table's lines for one precision."""
    ours = UNet.from_preset("ddpm_cifar10").to(device).train()  # pyright: ignore
    theirs = diffusers_network().to(device).train()  # pyright: ignore
    candidates = {f"`memory: {form}`": Candidate(ours, form, precision, device) for form in FORMS}
    candidates["diffusers"] = Candidate(theirs, None, precision, device)
    for candidate in candidates.values():
        candidate.step(batch)
    times = [{name: timed(partial(each.step, batch)) for name, each in candidates.items()} for _ in range(rounds)]
    memory = {name: each.per_image(batch) for name, each in candidates.items()}
    lines = []
    for name, (kept, peak) in memory.items():
        ratios = sorted(entry[name] / entry["diffusers"] for entry in times)
        per_image = median(entry[name] for entry in times) / batch * 1e3
        shares = [here / there for here, there in zip((kept, peak), memory["diffusers"], strict=True)]
        lines.append(
            f"| {precision} | {name} | {kept:.1f} | {shares[0]:.2f} | {peak:.1f} | {shares[1]:.2f} | {per_image:.1f} | "
            f"{median(ratios):.2f} | {ratios[0]:.2f} - {ratios[-1]:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=list(AUTOCAST), default=["float32"])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    lines = [
        f"# Memory of a training step, ddpm_cifar10 (35.7M), dropout 0.1, batch {options.batch_size}",
        "",
        f"{date.today()}, {name}, torch {torch.__version__}; {options.rounds} rounds in turn.",
        "Memory is for one more image in the batch; each share is of diffusers' `UNet2DModel`.",
        "",
        "| precision | form | kept, MiB | share | peak, MiB | share | ms per image | ratio (median) | ratio (range) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    device = torch.device("cuda" if on_gpu else "cpu")
    for precision in options.precision:
        lines += rows(precision, options.batch_size, options.rounds, device)
    text = "\n".join(lines) + "\n"
    file = f"train_memory-{date.today()}-{'cuda' if on_gpu else 'cpu'}.md"
    (ROOT / "benchmarks" / "results" / file).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
