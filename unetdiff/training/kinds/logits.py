"""Kind `logits`: the network says a score for every class at every position."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from unetdiff.data.formats import DataFormat
from unetdiff.data.loader import Batch, training_loader
from unetdiff.data.order import keys
from unetdiff.data.pairs import PairData, open_pairs
from unetdiff.models.start_from import body_spec, take_over
from unetdiff.models.unet import UNet
from unetdiff.runs import Run, checkpoints, load_run
from unetdiff.segment_config import Frozen, SegmentConfig
from unetdiff.segmentation.noise_input import NoiseInput, make_noise_input, probabilities_at, timesteps_of
from unetdiff.segmentation.tiles import Predict
from unetdiff.spec import Architecture, UNetSpec
from unetdiff.training.kinds.task import MaskTask, companions, make_objective, shared_parts, weighted
from unetdiff.training.start import Workload
from unetdiff.typed import plain

OWN = ("dropout", "deep_supervision")
"""Settings of the network that may differ from those of the denoiser it starts from."""


LEARNING: dict[Frozen, tuple[str, ...]] = {"none": ("",), "encoder": ("decoder.", "head."), "body": ("head.",)}
"""By what is frozen: how the names of the weights begin that learn all the same."""


@dataclass(frozen=True)
class LogitsTask(MaskTask):
    """Predicting the classes of positions.

    timesteps: those of predictions, None for a network that is told none; without noise it is told the only one in
    training too. noise: what is mixed into images, or None. seed: of the run. frozen: the part of the network whose
    weights the first `freeze_steps` steps leave as they are.
    """

    timesteps: Sequence[int | None]
    noise: NoiseInput | None
    seed: int
    frozen: Frozen
    freeze_steps: int

    def prepare(self, batch: Batch) -> Batch:
        """The batch; where images are noisy with `noise` and `timesteps`, which follow from the samples' positions."""
        if self.noise is None:
            return batch
        drawn = keys(self.seed, "noise", batch["position"].numpy()).tolist()
        draws = self.noise.draw(drawn, batch["sample"].shape[1:])
        return {**batch, "noise": draws.noise, "timesteps": draws.timesteps}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a prepared batch; of a deeply supervised network, every output predicts the same masks."""
        labels, weight = batch["mask"], batch.get("weight")
        if self.noise is None:
            output = network(batch["sample"], self.timesteps[0])
        else:
            timesteps = batch["timesteps"]
            output = network(self.noise.mixed(batch["sample"], batch["noise"], timesteps), timesteps)
        return output.supervise(lambda logits: self.objective.loss_per_sample(logits, labels, weight).mean())

    def held(self, network: UNet, step: int) -> Iterator[Parameter]:
        """All but the learning part, in the steps in which it is frozen; norms' running statistics are no weights."""
        if step >= self.freeze_steps:
            return
        for name, parameter in network.named_parameters():
            if not name.startswith(LEARNING[self.frozen]):
                yield parameter

    def predictor(self, network: UNet) -> Predict:
        """The softmax of the scores, a mean over the timesteps of predictions."""
        return probabilities_at(lambda images, t: network(images, t).sample, self.timesteps, network.device, self.noise)


def check_body(config: SegmentConfig, format: DataFormat, body: UNetSpec, own: Sequence[str] = ()) -> None:
    """Raise `ValueError` where a denoiser takes other data, or the settings choose another network than its.

    own: settings of the network that may differ.
    """
    if (body.dims, body.in_channels) != (format.dims, format.channels):
        held = f"model.init_from takes {body.in_channels} channels in {body.dims}-D"
        raise ValueError(f"{held}; the images have {format.channels} in {format.dims}-D")
    default = Architecture(time_embedding="none")
    for entry in fields(Architecture):
        given, unset, theirs = (plain(getattr(whose, entry.name)) for whose in (config.model, default, body))
        if given not in (unset, theirs) and entry.name not in own:
            raise ValueError(f"model.{entry.name} is {given!r}, but model.init_from has {theirs!r}: leave it out")


def network_spec(config: SegmentConfig, data: PairData, body: UNetSpec | None) -> UNetSpec:
    """The network of a run: what the settings choose (or a denoiser's body), and what the data decide.

    Raises:
        ValueError: the denoiser takes other data, or the settings choose another network than its.
    """
    format, classes = data.train.format, data.train.num_classes
    if body is None:
        chosen = {entry.name: getattr(config.model, entry.name) for entry in fields(Architecture)}
        return UNetSpec(**chosen, dims=format.dims, in_channels=format.channels, out_channels=classes,
                        sample_size=list(data.train.size) if data.train.size else None)  # fmt: skip
    check_body(config, format, body, OWN)
    default = Architecture(time_embedding="none")
    own = {name: given for name in OWN if (given := getattr(config.model, name)) != getattr(default, name)}
    if config.model.timestep is not None and body.time_embedding == "none":
        held = f"model.timestep is {config.model.timestep}, but model.init_from is told no timestep"
        raise ValueError(f"{held}: leave it out")
    return body_spec(body, out_channels=classes, timed=config.model.timestep is not None, **own)


def _beginning(config: SegmentConfig, data: PairData) -> tuple[UNetSpec, Callable[[UNet], None] | None]:
    """The network, and what fills a new one where that starts from a denoiser; a run that goes on needs it no more."""
    chosen = config.model.init_from
    if chosen is None:
        return network_spec(config, data, None), None
    if checkpoints(config.folder):
        return load_run(config.folder).unet.spec, None
    run = load_run(chosen)
    denoiser = run.unet
    if not isinstance(denoiser, UNet):
        raise ValueError(f"model.init_from {chosen} is a {type(denoiser).__name__}; expected a run of unetdiff's UNet")
    if config.noisy:
        _check_same_noise(config, run)
    spec = network_spec(config, data, denoiser.spec)

    def initialise(unet: UNet) -> None:
        body = f"channels {list(spec.channels)}, dropout {spec.dropout:g}"
        print(f"from {chosen} ({body}): {take_over(unet, denoiser)}", file=sys.stderr)

    return spec, initialise


def _check_same_noise(config: SegmentConfig, run: Run) -> None:
    """Raise `ValueError` where the denoiser's timesteps stand for other noise than those of `noise_input`."""
    noise = make_noise_input(asdict(config.noise_input))
    assert noise is not None
    ours, theirs = noise.objective.scheduler.alphas_cumprod, getattr(run.beside.scheduler, "alphas_cumprod", None)
    if theirs is None or ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-4):
        held = f"noise_input.schedule is {config.noise_input.schedule} with {len(ours)} timesteps"
        raise ValueError(f"{held}, but model.init_from was trained with another: expected the same")


def logits_workload(config: SegmentConfig, batch_size: int) -> Workload:
    """The data, the network and the task of a run."""
    data = open_pairs(config.data)
    spec, initialise = _beginning(config, data)
    noise = asdict(config.noise_input) if config.noisy else None
    stored = {"timestep": config.model.timestep, **({"noise_input": noise} if noise else {})}
    task = LogitsTask(
        objective=make_objective(config, data),
        beside=companions(config, data, **stored),
        timesteps=timesteps_of(config.model.timestep),
        noise=make_noise_input(noise),
        seed=config.seed,
        frozen=config.model.freeze,
        freeze_steps=config.model.freeze_steps,
        **shared_parts(config, data),
    )
    loader = partial(training_loader, weighted(data.train, config.objective), config.data)
    return Workload(spec, task, loader, data.fingerprint(), initialise)
