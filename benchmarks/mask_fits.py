"""Fitting a segmentation network in one plain loop, ours or another library's, and measuring it on whole images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.models.unet import UNetOutput
from unetdiff.progress import progress
from unetdiff.run_config import TrainConfig
from unetdiff.segment_config import SegmentConfig
from unetdiff.segmentation.metrics import SegmentationMetrics
from unetdiff.segmentation.predict import predict_image
from unetdiff.spec import UNetSpec
from unetdiff.training.ema import WeightAverages
from unetdiff.training.kinds.task import MaskTask
from unetdiff.training.schedule import learning_rate
from unetdiff.training.segment import segment_workload
from unetdiff.training.start import Workload


class MonaiNetwork(nn.Module):
    """MONAI's `UNet` (24-48-96-192, two residual units, instance norm), called as ours is."""

    def __init__(self, spec: UNetSpec) -> None:
        from monai.networks.nets.unet import UNet as MonaiUNet

        super().__init__()
        assert spec.out_channels is not None
        self.net = MonaiUNet(
            spec.dims, spec.in_channels, spec.out_channels, (24, 48, 96, 192), (2, 2, 2), num_res_units=2
        )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def forward(self, sample: Tensor, timestep: None = None) -> UNetOutput:
        scores = self.net(sample)
        return UNetOutput(scores, {"sample": scores})


NETWORKS: dict[str, Callable[[Workload], nn.Module]] = {
    "unetdiff": lambda work: work.build(work.spec),
    "monai": lambda work: MonaiNetwork(work.spec),
}
"""By library: the network of a workload. All are fitted in float32."""


def fit(network: nn.Module, work: Workload, config: SegmentConfig) -> tuple[WeightAverages, list[float]]:
    """Train to the last step; the averages of the weights, and the loss of every step."""
    train: TrainConfig = config.train
    device = next(network.parameters()).device
    betas = (train.betas[0], train.betas[1])
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.0, betas=betas, weight_decay=train.weight_decay)
    averages = WeightAverages(network, config.ema)
    batches = work.loader(batch_size=train.batch_size, seed=config.seed, prepare=work.task.prepare, device=device)
    losses = []
    network.train()
    for step in progress(desc="training", unit="step", iterable=range(train.steps)):
        batch = next(batches)
        optimizer.param_groups[0]["lr"] = learning_rate(train, step)
        loss = work.task.loss(network, batch)
        loss.backward()
        for parameter in work.task.held(network, step):  # pyright: ignore[reportArgumentType] # called as ours
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averages.update(step + 1)
        losses.append(loss.item())
    batches.close()
    return averages, losses


def measure(network: nn.Module, task: MaskTask) -> dict[str, Any]:
    """The metrics of whole held-out images, in float32."""
    metrics, held_out = SegmentationMetrics(task.options), task.held_out
    predict = task.predictor(network)  # pyright: ignore[reportArgumentType] # any network that is called as ours
    for index in range(len(held_out)):
        arrays = held_out.read([index])
        image = held_out.format.encode(arrays["sample"])[0]
        probabilities = predict_image(predict, image, task.inference, (1,) * (image.ndim - 1))
        name = Path(held_out.name(index)).name  # results are shared, paths of a machine are not
        metrics.update(probabilities[None], torch.from_numpy(arrays["mask"]), names=[name])
    return metrics.compute()


def fit_and_measure(name: str, config: SegmentConfig, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Fit and measure one of NETWORKS; the result as JSON. conditions: what tells it from results of other settings."""
    work = segment_workload(config, config.train.batch_size)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = NETWORKS[name](work)
    if work.initialise is not None:
        work.initialise(network)  # pyright: ignore[reportArgumentType]
    network.to(device)
    start = time.perf_counter()
    averages, losses = fit(network, work, config)
    seconds = time.perf_counter() - start
    network.eval()
    assert isinstance(work.task, MaskTask)
    with averages.swapped():
        figures = measure(network, work.task)
    spans = torch.tensor(losses).tensor_split(min(20, len(losses)))
    return {
        "network": name,
        "seed": config.seed,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "precision": "float32",
        "training_loss": [span.mean().item() for span in spans],
        "figures": figures,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "conditions": dict(conditions),
    }
