"""The loop, for every task: forward, backward, clip, step, average, count, log, checkpoint.

Everything random is a function of (seed, step, position in the global batch), so that a run that was killed and
started again equals one that was not, bit for bit on the same machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from unetdiff.data.order import key
from unetdiff.models.unet import UNet
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import write_network
from unetdiff.training.checkpoint import (
    TrainingState,
    clear_leftovers,
    load_checkpoint,
    newest_step,
    save_checkpoint,
)
from unetdiff.training.ema import WeightAverages
from unetdiff.training.health import TrainingStopped, first_non_finite, non_finite_samples
from unetdiff.training.log import RunLog, keep_metrics_until
from unetdiff.training.processes import Agreement, StopRequest, catching_stop, first_alone, kept_to_the_end, together
from unetdiff.training.run_folder import release_run_folder
from unetdiff.training.schedule import learning_rate
from unetdiff.training.skipping import SkipTally
from unetdiff.training.task import Batch, Task

FP16_GRACE = 16  # steps that the scaler may skip while it halves its first scale, 2^16, down to what fits


@dataclass
class Trainer:
    """One run of one task, from its newest checkpoint (or the start) to its last step.

    batches: makes this process's endless prepared micro-batches, on its device, from a given step on. request: a stop
    that was asked for. bad_in_a_row, skipped: non-finite steps, lately and in all. losses: those of the steps not yet
    logged.
    """

    run: Path
    unet: UNet
    task: Task
    batches: Callable[[int], Generator[Batch]]
    config: TrainConfig
    ema: EmaConfig
    seed: int
    accelerator: Accelerator
    request: StopRequest = field(default_factory=StopRequest)
    bad_in_a_row: int = 0
    skipped: int = 0
    checkpoint_due: bool = False
    losses: list[Tensor] = field(default_factory=list)
    stream: Generator[Batch] | None = None

    def __post_init__(self) -> None:
        optimizer = torch.optim.AdamW(
            [parameter for parameter in self.unet.parameters() if parameter.requires_grad],  # some are frozen
            lr=self.config.learning_rate,
            betas=(self.config.betas[0], self.config.betas[1]),
            weight_decay=self.config.weight_decay,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        self.network, self.optimizer = self.accelerator.prepare(self.unet, optimizer)
        self.parameters = list(self.network.parameters())  # walking the modules at every step would take its time
        self.averages = WeightAverages(self.unet, self.ema)
        scaler = self.accelerator.scaler
        self.state = TrainingState(self.unet, optimizer, self.averages, scaler)
        self.agreement = Agreement()
        device = self.accelerator.device
        self.norm = torch.zeros((), device=device)
        self.tally = SkipTally(device) if device.type == "cuda" and scaler is None else None
        self.main = self.accelerator.is_main_process
        kept_to_the_end.append(self.network if self.agreement.several else None)

    def fit(self) -> int:
        """Train to the last step; returns it. A second call with the same folder goes on where the first ended.

        Raises:
            TrainingStopped: on SIGTERM or SIGINT, after a checkpoint; after too many non-finite steps in a row.
            ValueError: the folder's checkpoint is of another network or further than asked for; data that cannot be
                read.
        """
        start = self.restore()
        try:
            with catching_stop(self.request):
                for done, stop in self.steps(start):
                    if stop and done < self.config.steps:
                        self._stop(done)
            self._finish(start)
        finally:
            self.close()
        return self.config.steps

    def close(self) -> None:
        """Stop what loads batches, end the log, and let go of the run folder."""
        if self.stream is not None:
            self.stream.close()
        self.agreement.close()
        self.log.close()
        release_run_folder(self.run)

    def steps(self, start: int) -> Iterator[tuple[int, bool]]:
        """The steps from `start` on with what follows each: how many are done, whether a stop was asked for."""
        if start < self.config.steps:
            self.begin(start)
        for step in range(start, self.config.steps):
            stop = self.training_step(step)
            self._after(step + 1)
            yield step + 1, stop

    def restore(self) -> int:
        """Load the newest checkpoint and open the log; returns the steps done so far."""
        if self.main:
            clear_leftovers(self.run)
        steps = self.agreement.collect(newest_step(self.run))
        start = steps[0]
        if max(steps) > start:
            rank = steps.index(max(steps))
            raise ValueError(
                f"process {rank} has {self.run} at step {max(steps)}, the first process at step {start}: have the "
                "machine that holds the run start the first process (torchrun --node-rank 0 with --master-addr)"
            )
        if start > self.config.steps:
            raise ValueError(f"{self.run} has {start} steps already; expected train.steps of at least that")
        if start:
            load_checkpoint(self.run, self.state)
        elapsed, self.skipped = first_alone(lambda: keep_metrics_until(self.run, start))
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
        return start

    def begin(self, step: int) -> None:
        """Have the batches of `step` at hand, and the network in training mode."""
        self.network.train()
        self.stream = self.batches(step)
        self.fetched = together(self._fetch)

    def _fetch(self) -> list[Batch]:
        """This process's micro-batches of the next step, on the device; `ValueError` for data that cannot be read."""
        assert self.stream is not None
        return self._take(self.stream)

    def _take(self, stream: Generator[Batch]) -> list[Batch]:
        """The micro-batches of a step."""
        return [next(stream) for _ in range(self.config.accumulation)]

    def training_step(self, step: int) -> bool:
        """One optimizer step on one global batch; returns whether some process was asked to stop."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        loss = torch.zeros((), device=self.accelerator.device)
        micro = [(batch, self._dropout_seed(step, part)) for part, batch in enumerate(self.fetched)]
        for part, (batch, seed) in enumerate(micro):
            torch.manual_seed(seed)
            last = part == config.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                value = self.task.loss(self.network, batch) / config.accumulation
                self.accelerator.backward(value)
            loss += value.detach()
        for parameter in self.task.held(self.unet, step):
            parameter.grad = None  # after backward: DDP, the optimizer and a compiled graph know all weights
        norm = self.accelerator.clip_grad_norm_(self.parameters, config.gradient_clip)
        assert norm is not None
        failure = self._fetch_next(step)  # while a GPU still works on this step
        bad = ~torch.isfinite(norm + loss)
        facts = (failure is not None, self.request.signal > 0, self.tally is None and bool(bad))
        unread, stop, skip = self.agreement.totals(*map(int, facts))
        if unread:
            raise ValueError(next(text for text in self.agreement.collect(failure) if text))
        if skip:
            self._skip(step, micro)
        elif self.tally is None:
            self.bad_in_a_row = 0
            self._apply(step, loss, norm.detach())
        else:
            self._apply_on_device(self.tally, step, loss, norm.detach(), bad)
        self.optimizer.zero_grad(set_to_none=True)
        return stop > 0

    def _apply(self, step: int, loss: Tensor, norm: Tensor, skipped: Tensor | None = None) -> None:
        """The optimizer's step, the averages, the figures of the step."""
        self.optimizer.step()
        self.averages.update(step + 1, skipped)
        self.losses.append(loss)
        self.norm = norm

    def _apply_on_device(self, tally: SkipTally, step: int, loss: Tensor, norm: Tensor, bad: Tensor) -> None:
        """As `_apply`, where the GPU decides whether the step is left out, and the host does not wait to know."""
        skipped = self.accelerator.reduce(bad.float(), "sum")
        assert isinstance(skipped, Tensor)
        tally.take(skipped.clamp(max=1), step)
        self.state.optimizer.found_inf = tally.skipped  # pyright: ignore # the fused kernel then changes nothing
        left_out = tally.skipped > 0
        loss = torch.where(left_out, torch.nan, loss)
        self._apply(step, loss, torch.where(left_out, self.norm, norm), tally.skipped)

    def _fetch_next(self, step: int) -> str | None:
        """Fetch the next step's batches; what was wrong with them, if anything."""
        if step + 1 == self.config.steps:
            return None
        try:
            self.fetched = self._fetch()
        except ValueError as error:
            return f"process {self.accelerator.process_index}: {error}"
        return None

    def _dropout_seed(self, step: int, part: int) -> int:
        """The seed of a micro-batch's dropout."""
        index = (step * self.accelerator.num_processes + self.accelerator.process_index) * self.config.accumulation
        return key(self.seed, "dropout", index + part)

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
        self._explain(step, f"step {step + 1} skipped, its loss or gradient is not finite", micro, limit)

    def _look_back(self, done: int) -> None:
        """Learn what the GPU left out since the last look; say where the first of it began; give up after too many."""
        assert self.tally is not None
        found, limit = self.tally.read(), self.config.non_finite_limit
        known, self.bad_in_a_row = self.bad_in_a_row > 0, found.row
        self.skipped += found.count
        if not found.count or (known and found.longest < limit):
            return
        stream = self.batches(found.first)  # batches are a function of the step
        micro = [(batch, self._dropout_seed(found.first, part)) for part, batch in enumerate(self._take(stream))]
        stream.close()
        others = f" and {found.count - 1} more up to step {done}" if found.count > 1 else ""
        text = f"step {found.first + 1}{others} skipped, with a loss or gradient that is not finite"
        self.bad_in_a_row = max(found.row, found.longest)
        self._explain(found.first, text, micro, limit)
        self.bad_in_a_row = found.row

    def _explain(self, step: int, what: str, micro: list[tuple[Batch, int]], limit: int) -> None:
        """Say why steps were left out; end the training where there were `limit` in a row."""
        causes = self._causes(micro)
        text = f"{what}; {causes}"
        self.log.say(text)
        self.log.write("note", step + 1, text=text)
        if self.bad_in_a_row >= limit:
            newest = self.agreement.collect(newest_step(self.run))[0]
            raise TrainingStopped(
                f"{limit} steps in a row up to step {step + 1} had a non-finite loss or gradient ({causes}); "
                f"the newest checkpoint is that of step {newest}: lower train.learning_rate or train.gradient_clip"
            )

    def _causes(self, micro: list[tuple[Batch, int]]) -> str:
        """What the process nearest to the origin has to say."""

        def rerun() -> None:
            for batch, seed in micro:
                torch.manual_seed(seed)
                with self.accelerator.autocast():
                    self.task.loss(self.unet, batch)

        own = next(filter(None, (non_finite_samples(batch) for batch, _ in micro)), None)
        own = own or first_non_finite(self.unet, rerun)
        return min(self.agreement.collect(own)).text

    def _after(self, done: int) -> None:
        """What comes after a step, `done` being the number of steps so far."""
        config, last = self.config, done == self.config.steps
        self.log.step_done()
        logs = done % config.log_every == 0 or last
        # In a row of bad steps the weights may be what is wrong: the last good checkpoint stays the newest until then.
        self.checkpoint_due |= done % config.checkpoint_every == 0
        if self.tally is not None and (logs or self.checkpoint_due):
            self._look_back(done)
        if logs and self.losses:
            self._log(done)
        before = time.perf_counter()
        if last or (self.checkpoint_due and not self.bad_in_a_row):
            self._save(done)
        if last or (config.validate_every and done % config.validate_every == 0):
            self._validate(done)
        if last or (config.sample_every and done % config.sample_every == 0):
            self._picture(done)
        self.log.pause(time.perf_counter() - before)

    def _log(self, done: int) -> None:
        mean = self.accelerator.reduce(torch.stack(self.losses).nanmean(), "mean")  # NaN: left out
        assert isinstance(mean, Tensor)
        self.losses.clear()
        if mean.isnan():
            return
        self.log.training(
            done,
            loss=float(mean),
            grad_norm=float(self.norm),
            learning_rate=learning_rate(self.config, done - 1),
            skipped=self.skipped,
        )

    def _validate(self, done: int) -> None:
        with self.averages.swapped(), self._evaluating():
            figures = self.task.validate(self.unet, self.accelerator)
        if figures is not None:
            self.log.write("validation", done, **figures, weights="ema" if self.averages.averages else "raw")

    def _picture(self, done: int) -> None:
        with self.averages.swapped(), self._evaluating():
            picture = self.task.picture(self.unet)
        if self.main and picture is not None:
            file = picture_of(done)
            (self.run / file).parent.mkdir(exist_ok=True)
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
        beside, keep = self.task.beside, self.config.keep_checkpoints
        first_alone(lambda: str(save_checkpoint(self.run, done, self.state, beside, keep)))
        self.checkpoint_due = False

    def _stop(self, done: int) -> None:
        """Save and end, because a signal asked for it."""
        if self.checkpoint_due or done % self.config.checkpoint_every:
            self._save(done)
        raise TrainingStopped(f"stopped by a signal after step {done}; the same command goes on from there")

    def _finish(self, start: int) -> None:
        """The final network at the root of the run folder, and what a kill after the last checkpoint left out."""
        if start == self.config.steps:
            self.log.say(f"{self.run} has all its {start} steps already; a larger train.steps goes on")
            if not first_alone(lambda: (self.run / picture_of(start)).is_file()):
                self._validate(start)
                self._picture(start)
        first_alone(self._write_final)

    def _write_final(self) -> None:
        with self.averages.swapped():
            write_network(self.run, self.unet, self.task.beside, self.config.steps)


def picture_of(done: int) -> Path:
    """Where the grid after `done` steps is, within the run folder."""
    return Path("samples") / f"step-{done:08d}.png"
