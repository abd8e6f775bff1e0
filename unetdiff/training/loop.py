"""The loop, for every task: forward, backward, clip, step, average, count, log, checkpoint.

Everything random is a function of (seed, step, position in the global batch), so that a run that was killed and
started again equals one that was not, bit for bit on the same machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from unetdiff.config import EmaConfig, TrainConfig
from unetdiff.data.formats import DataFormat
from unetdiff.data.order import key
from unetdiff.models.unet import UNet
from unetdiff.runs import write_network
from unetdiff.training.checkpoint import TrainingState, load_checkpoint, newest_step, save_checkpoint
from unetdiff.training.ema import WeightAverages
from unetdiff.training.health import TrainingStopped, first_non_finite, non_finite_samples
from unetdiff.training.log import RunLog, keep_metrics_until
from unetdiff.training.processes import Agreement, catching_stop, share
from unetdiff.training.schedule import learning_rate

Batch = dict[str, Tensor]
FP16_GRACE = 16  # steps that the scaler may skip while it halves its first scale, 2^16, down to what fits


class Task(Protocol):
    """What a network is trained to do: the loop knows nothing more of it."""

    @property
    def scheduler(self) -> DDPMScheduler:
        """The noise schedule that is stored with the network."""
        ...

    @property
    def format(self) -> DataFormat:
        """The form of the data, stored with the network."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar; random only through the batch's `position`."""
        ...

    def validate(self, network: UNet, accelerator: Accelerator) -> dict[str, Any] | None:
        """Figures on held-out data, each process with its share, the same in all; None without such data."""
        ...

    def picture(self, network: UNet) -> Image.Image | None:
        """What the network makes at present; called in every process."""
        ...


@dataclass
class Trainer:
    """One run of one task, from its newest checkpoint (or the start) to its last step.

    batches: makes this process's endless micro-batches from a given step on.
    """

    run: Path
    unet: UNet
    task: Task
    batches: Callable[[int], Iterator[Batch]]
    config: TrainConfig
    ema: EmaConfig
    seed: int
    accelerator: Accelerator
    bad_in_a_row: int = 0
    skipped: int = 0
    losses: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        optimizer = torch.optim.AdamW(
            self.unet.parameters(),
            lr=self.config.learning_rate,
            betas=(self.config.betas[0], self.config.betas[1]),
            weight_decay=self.config.weight_decay,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        if self.config.compile:
            self.unet.compile()
        self.network, self.optimizer = self.accelerator.prepare(self.unet, optimizer)
        self.averages = WeightAverages(self.unet, self.ema)
        scaler = self.accelerator.scaler
        self.state = TrainingState(self.unet, optimizer, self.averages, scaler)
        self.agreement = Agreement()
        self.norm = torch.zeros(())
        self.main = self.accelerator.is_main_process

    def fit(self) -> int:
        """Train to the last step; returns it. A second call with the same folder goes on where the first ended.

        Raises:
            TrainingStopped: on SIGTERM or SIGINT, after a checkpoint; after too many non-finite steps in a row.
            ValueError: the folder's checkpoint is of another network.
        """
        start = share(newest_step(self.run) if self.main else None)
        if start:
            load_checkpoint(self.run, self.state)
        elapsed = keep_metrics_until(self.run, start) if self.main else 0.0
        self.log = RunLog(
            self.run,
            self.accelerator,
            first_step=start,
            steps=self.config.steps,
            samples_per_step=self.config.batch_size,
            elapsed=elapsed,
        )
        if start:
            self.log.say(f"going on from step {start}")
        try:
            with catching_stop() as request:
                batches = self.batches(start) if start < self.config.steps else iter(())
                for step in range(start, self.config.steps):
                    self.training_step(step, batches)
                    self._after(step + 1)
                    (stop,) = self.agreement.totals(int(request.signal > 0))
                    if stop:
                        self._stop(step + 1)
            self._finish(start)
        finally:
            self.log.close()
        return self.config.steps

    def training_step(self, step: int, batches: Iterator[Batch]) -> None:
        """One optimizer step on one global batch."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self.network.train()
        loss = torch.zeros((), device=self.accelerator.device)
        micro: list[tuple[Batch, int]] = []
        for part in range(config.accumulation):
            batch = self._to_device(next(batches))
            part_seed = self._dropout_seed(step, part)
            micro.append((batch, part_seed))
            torch.manual_seed(part_seed)
            last = part == config.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                value = self.task.loss(self.network, batch) / config.accumulation
                self.accelerator.backward(value)
            loss += value.detach()
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), config.gradient_clip)
        assert norm is not None
        (bad,) = self.agreement.totals(int(not (torch.isfinite(norm) and torch.isfinite(loss))))
        if bad:
            self._skip(step, micro)
        else:
            self.bad_in_a_row = 0
            self.optimizer.step()
            self.averages.update(step + 1)
            self.losses.append(loss)
            self.norm = norm.detach()
        self.optimizer.zero_grad(set_to_none=True)

    def _dropout_seed(self, step: int, part: int) -> int:
        """The seed of a micro-batch's dropout."""
        index = (step * self.accelerator.num_processes + self.accelerator.process_index) * self.config.accumulation
        return key(self.seed, "dropout", index + part)

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}

    def _skip(self, step: int, micro: list[tuple[Batch, int]]) -> None:
        """Leave out a step whose loss or gradient is not finite; say where it began; give up after too many."""
        self.skipped += 1
        self.bad_in_a_row += 1
        half = self.state.scaler is not None
        if half:
            self.optimizer.step()  # the scaler skips the step itself and lowers its scale only here
        limit = self.config.non_finite_limit + (FP16_GRACE if half else 0)
        if 1 < self.bad_in_a_row < limit:
            return  # the first and the last of a row are looked into: it takes another forward pass
        causes = self._causes(micro)
        text = f"step {step} skipped, its loss or gradient is not finite; {causes}"
        self.log.say(text)
        self.log.write("note", step, text=text)
        if self.bad_in_a_row >= limit:
            last = newest_step(self.run) if self.main else 0
            raise TrainingStopped(
                f"{limit} steps in a row up to step {step} had a non-finite loss or gradient ({causes}); "
                f"the newest checkpoint is that of step {last}: lower train.learning_rate or train.gradient_clip"
            )

    def _causes(self, micro: list[tuple[Batch, int]]) -> str:
        """Where the first process that sees it loses finiteness."""

        def rerun() -> None:
            for batch, seed in micro:
                torch.manual_seed(seed)
                with self.accelerator.autocast():
                    self.task.loss(self.unet, batch)

        own = next(filter(None, (non_finite_samples(batch) for batch, _ in micro)), None)
        own = own or first_non_finite(self.unet, rerun)
        blind = own.startswith("every output and gradient")
        place = self.accelerator.process_index + (self.accelerator.num_processes if blind else 0)
        return min(self.agreement.collect((place, own)))[1]

    def _after(self, done: int) -> None:
        """What comes after a step, `done` being the number of steps so far."""
        config, last = self.config, done == self.config.steps
        self.log.step_done()
        if (done % config.log_every == 0 or last) and self.losses:
            mean = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean")
            assert isinstance(mean, Tensor)
            self.log.training(
                done,
                loss=float(mean),
                grad_norm=float(self.norm),
                learning_rate=learning_rate(config, done - 1),
                skipped=self.skipped,
            )
            self.losses.clear()
        before = time.perf_counter()
        if last or (config.validate_every and done % config.validate_every == 0):
            self._validate(done)
        if last or (config.sample_every and done % config.sample_every == 0):
            self._picture(done)
        # In a row of bad steps the weights may be what is wrong: the last good checkpoint stays the newest.
        if last or (done % config.checkpoint_every == 0 and not self.bad_in_a_row):
            self._save(done)
        self.log.pause(time.perf_counter() - before)

    def _validate(self, done: int) -> None:
        with self.averages.swapped(), self._evaluating():
            figures = self.task.validate(self.unet, self.accelerator)
        if figures is not None:
            self.log.write("validation", done, **figures, weights="ema" if self.averages.averages else "raw")

    def _picture(self, done: int) -> None:
        with self.averages.swapped(), self._evaluating():
            picture = self.task.picture(self.unet)
        if self.main and picture is not None:
            file = Path("samples") / f"step-{done:08d}.png"
            (self.run / "samples").mkdir(exist_ok=True)
            picture.save(self.run / file)
            self.log.write("samples", done, file=str(file))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, in the run's precision."""
        self.unet.eval()
        with torch.no_grad(), self.accelerator.autocast():
            yield
        self.unet.train()

    def _save(self, done: int) -> None:
        if self.main:
            save_checkpoint(
                self.run, done, self.state, self.task.scheduler, self.task.format, self.config.keep_checkpoints
            )
        self.accelerator.wait_for_everyone()

    def _stop(self, done: int) -> None:
        """Save and end, because a signal asked for it; a run that has all its steps ends by itself."""
        if done < self.config.steps:
            if done % self.config.checkpoint_every or self.bad_in_a_row:
                self._save(done)
            raise TrainingStopped(f"stopped by a signal after step {done}; the same command goes on from there")

    def _finish(self, start: int) -> None:
        """The final network at the root of the run folder."""
        if start == self.config.steps:
            self.log.say(f"{self.run} has all its {start} steps already; a larger train.steps goes on")
        if self.main:
            with self.averages.swapped():
                write_network(self.run, self.unet, self.task.scheduler, self.task.format)
        self.accelerator.wait_for_everyone()
