"""Kind `features`: per-pixel networks read what a frozen denoiser computes (Baranchuk et al. 2022)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unetdiff.data.loader import Batch, training_loader
from unetdiff.data.order import indices_at, keys, uniforms
from unetdiff.data.pairs import PairData, open_pairs
from unetdiff.feature_options import FeaturesConfig
from unetdiff.models.feature_network import FeatureNetwork
from unetdiff.models.frozen_features import blocks_of
from unetdiff.models.unet import UNet
from unetdiff.runs import Run, checkpoints, load_run
from unetdiff.segment_config import SegmentConfig
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.predict import probabilities_of
from unetdiff.segmentation.tiles import Predict
from unetdiff.spec import UNetSpec
from unetdiff.training.kinds.logits import check_body
from unetdiff.training.kinds.task import MaskTask, companions, make_objective, shared_parts, weighted
from unetdiff.training.start import Workload
from unetdiff.typed import from_json

SEEN = 8  # training crops whose features are standardised


@dataclass(frozen=True)
class FeaturesTask(MaskTask):
    """Predicting the classes of random positions, by each member of an ensemble on its own.

    seed: of the run. images: how many there are to train on. features: the settings.
    """

    seed: int
    images: int
    features: FeaturesConfig

    def prepare(self, batch: Batch) -> Batch:
        """The batch with `places` (n, M, P), the positions that each member learns from, and `counts` (n, M).

        Positions are drawn with replacement among those with a label. A count is how often a member's own draw of the
        training images, with replacement, has the image: the members of an ensemble differ by what they saw
        (Breiman 1996), not by their first weights alone.
        """
        chosen, positions = self.features, batch["position"].numpy()
        count = chosen.members * chosen.positions
        draws = uniforms(self.seed, "places", positions[:, None] * count + np.arange(count))
        labels = batch["mask"].flatten(1).numpy()
        places = np.stack([_drawn(one, draw) for one, draw in zip(labels, draws, strict=True)])
        shape = (len(positions), chosen.members, chosen.positions)
        counts = self._counts()[:, indices_at(self.seed, positions, self.images)].T.astype(np.float32)
        return {**batch, "places": torch.from_numpy(places.reshape(shape)), "counts": torch.from_numpy(counts)}

    def _counts(self) -> np.ndarray:
        """How often each member's draw has each of the training images: (M, images), each row of that sum."""
        members, images = self.features.members, self.images
        if not self.features.bootstrap:
            return np.ones((members, images), np.int64)
        drawn = keys(self.seed, "bootstrap", np.arange(members * images)).reshape(members, images) % images
        return np.stack([np.bincount(row, minlength=images) for row in drawn])

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean over images and members of the loss at a member's positions of an image, times its count."""
        places = batch["places"]
        scores = network(batch["sample"], places).sample.flatten(0, 1)
        labels, weight = (
            None if values is None else values.flatten(1).gather(1, places.flatten(1)).reshape(-1, places.shape[-1])
            for values in (batch["mask"], batch.get("weight"))
        )
        assert labels is not None
        return (self.objective.loss_per_sample(scores, labels, weight) * batch["counts"].flatten()).mean()

    def predictor(self, network: UNet) -> Predict:
        """The mean of the members' probabilities."""
        return probabilities_of(lambda images: network(images).sample, network.device)


def _drawn(labels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Positions of an image with a label, or any where it has none; labels (positions,), draws (count,) in [0, 1)."""
    known = np.flatnonzero(labels != IGNORE)
    known = known if len(known) else np.arange(len(labels))
    return known[(draws * len(known)).astype(np.int64)]


def open_denoiser(config: SegmentConfig) -> Run:
    """The denoiser that `model.init_from` names.

    Raises:
        ValueError: none is named, it is none of ours, or it cannot be asked without a class.
    """
    if config.model.init_from is None:
        raise ValueError("model.kind features reads a denoiser: expected model.init_from, its run folder")
    run = load_run(config.model.init_from)
    if not isinstance(run.unet, UNet):
        raise ValueError(f"{run.folder} is a {type(run.unet).__name__}; expected a denoiser of unetdiff's UNet")
    if not hasattr(run.scheduler, "alphas_cumprod"):
        raise ValueError(f"{run.folder} has the noise levels of EDM; expected a denoiser whose schedule has betas")
    spec = run.unet.spec
    if spec.num_classes and not spec.null_class:
        raise ValueError(f"{run.folder} needs a class; expected a denoiser without, or with diffusion.label_dropout")
    return run


def alpha_bars_of(run: Run, timesteps: Sequence[int]) -> list[float]:
    """The signal's share of the variance at timesteps of a denoiser; `ValueError` for one that it does not have."""
    table = run.scheduler.alphas_cumprod
    if max(timesteps) >= len(table):
        raise ValueError(f"{run.folder} has timesteps 0 to {len(table) - 1}; expected none of {max(timesteps)}")
    return [float(table[timestep]) for timestep in timesteps]


def random_spec(spec: UNetSpec) -> UNetSpec:
    """The same network without the convolutions that start at zero, which would silence parts of a random one."""
    return replace(spec, norm={**spec.placement.to_json(), "zero_init": []})


def _network_settings(config: SegmentConfig, data: PairData, run: Run) -> dict[str, Any]:
    """The arguments of the `FeatureNetwork` of a run."""
    chosen, denoiser = config.features, run.unet
    assert isinstance(denoiser, UNet)
    check_body(config, data.train.format, denoiser.spec)
    spec = denoiser.spec
    if chosen.random:
        spec = random_spec(spec)
    return {
        "denoiser": spec.to_json(),
        "blocks": chosen.blocks or blocks_of(denoiser.layout, "decoder"),
        "timesteps": chosen.timesteps,
        "alpha_bars": alpha_bars_of(run, chosen.timesteps),
        "classes": data.train.num_classes,
        "members": chosen.members,
        "hidden": chosen.hidden,
    }


def _beginning(
    config: SegmentConfig, data: PairData, loader: Callable[..., Any]
) -> tuple[dict[str, Any], Callable[[FeatureNetwork], None] | None]:
    """The network's arguments, and what fills a new one; a run that goes on needs the denoiser no more."""
    if checkpoints(config.folder):
        held = load_run(config.folder).unet.config
        names = ("denoiser", "blocks", "timesteps", "alpha_bars", "classes", "members", "hidden")
        return {name: held[name] for name in names}, None
    run = open_denoiser(config)

    def initialise(network: FeatureNetwork) -> None:
        if not config.features.random:
            network.features.denoiser.load_state_dict(run.unet.state_dict())
        with closing(loader(batch_size=min(config.train.batch_size, SEEN), seed=config.seed, workers=0)) as batches:
            network.set_statistics(next(batches)["sample"])
        whose = "random weights" if config.features.random else str(run.folder)
        print(f"frozen: {whose}; {len(network.mean)} features per position", file=sys.stderr)

    return _network_settings(config, data, run), initialise


def features_workload(config: SegmentConfig, batch_size: int) -> Workload:
    """The data, the network and the task of a run."""
    if config.model.timestep is not None or config.model.memory != "lean":
        raise ValueError("model.kind features reads neither model.timestep nor model.memory: see features.timesteps")
    data = open_pairs(config.data)
    loader = partial(training_loader, weighted(data.train, config.objective), config.data)
    settings, initialise = _beginning(config, data, loader)
    task = FeaturesTask(
        objective=make_objective(config, data),
        beside=companions(config, data),
        seed=config.seed,
        images=len(data.train),
        features=config.features,
        **shared_parts(config, data),
    )

    def build(spec: UNetSpec) -> Any:
        return FeatureNetwork(**{**settings, "denoiser": spec.to_json()})

    spec = from_json(UNetSpec, settings["denoiser"])
    return Workload(spec, task, loader, data.fingerprint(), initialise, build)  # pyright: ignore
