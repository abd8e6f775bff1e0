"""Membranes from scratch, beside MONAI's `UNet` of the same size: one JSON per fit, and a table of them.

python benchmarks/membranes.py configs/em_membranes.yaml --data PATH/TO/isbi2012_em
python benchmarks/membranes.py configs/em_membranes.yaml --report

The first fits what is not yet in benchmarks/results/em_membranes, every network on the same crops in the same order,
with the same loss, optimizer, rate and averaging of weights, in one loop; the second writes the table. Held-out slices
are predicted whole, once, after the last step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.resumable import finished, read_results  # noqa: E402
from unetdiff.command import user_errors  # noqa: E402
from unetdiff.data.pairs import PairSource  # noqa: E402
from unetdiff.files import write_json, write_text  # noqa: E402
from unetdiff.models.unet import UNet, UNetOutput  # noqa: E402
from unetdiff.progress import progress  # noqa: E402
from unetdiff.run_config import TrainConfig, read_yaml  # noqa: E402
from unetdiff.segment_config import SegmentConfig, parse_segment  # noqa: E402
from unetdiff.segmentation.metrics import SegmentationMetrics  # noqa: E402
from unetdiff.segmentation.predict import Inference, predict_image, probabilities_of  # noqa: E402
from unetdiff.spec import UNetSpec  # noqa: E402
from unetdiff.training.ema import WeightAverages  # noqa: E402
from unetdiff.training.kinds.task import MaskTask  # noqa: E402
from unetdiff.training.schedule import learning_rate  # noqa: E402
from unetdiff.training.segment import segment_workload  # noqa: E402
from unetdiff.training.start import Workload  # noqa: E402

FIGURES = {"membrane Dice": "dice", "membrane IoU": "iou", "V-Rand": "v_rand", "V-Info": "v_info", "ECE": "ece"}
"""Columns of the table, and the metric of each; of Dice and IoU the membrane's class."""


class MonaiNetwork(nn.Module):
    """MONAI's `UNet` (24-48-96-192, two residual units, instance norm), called as ours is."""

    def __init__(self, spec: UNetSpec) -> None:
        from monai.networks.nets.unet import UNet as MonaiUNet

        super().__init__()
        assert spec.out_channels is not None
        self.net = MonaiUNet(
            spec.dims, spec.in_channels, spec.out_channels, (24, 48, 96, 192), (2, 2, 2), num_res_units=2
        )

    def forward(self, sample: Tensor, timestep: None = None) -> UNetOutput:
        return UNetOutput(sample=self.net(sample))


@dataclass(frozen=True)
class Arm:
    """A network and the precision that it is trained in: for each what suits it, in float32 where in doubt."""

    build: Callable[[UNetSpec], nn.Module]
    bf16: bool


ARMS = {
    "unetdiff": Arm(lambda spec: UNet(**spec.to_json()), bf16=True),
    "monai": Arm(MonaiNetwork, bf16=False),
}


def fit(network: nn.Module, work: Workload, config: SegmentConfig, bf16: bool) -> tuple[WeightAverages, list[float]]:
    """Train to the last step; the averages of the weights, and the loss of every step."""
    train: TrainConfig = config.train
    device = next(network.parameters()).device
    betas = (train.betas[0], train.betas[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, betas=betas, weight_decay=train.weight_decay)
    averages = WeightAverages(network, config.ema)
    batches = work.loader(batch_size=train.batch_size, seed=config.seed, prepare=work.task.prepare)
    losses = []
    network.train()
    for step in progress(desc="training", unit="step", iterable=range(train.steps)):
        batch = {name: tensor.to(device) for name, tensor in next(batches).items()}
        optimizer.param_groups[0]["lr"] = learning_rate(train, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = work.task.loss(network, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averages.update(step + 1)
        losses.append(loss.item())
    batches.close()
    return averages, losses


def measure(network: nn.Module, held_out: PairSource, task: MaskTask) -> dict[str, Any]:
    """The metrics of whole held-out images, in float32."""
    metrics = SegmentationMetrics(task.options)
    predict = probabilities_of(lambda images: network(images).sample, next(network.parameters()).device)
    for index in range(len(held_out)):
        arrays = held_out.read([index])
        image = held_out.format.encode(arrays["sample"])[0]
        probabilities = predict_image(predict, image, Inference(), (1,) * (image.ndim - 1))
        metrics.update(probabilities[None], torch.from_numpy(arrays["mask"]), names=[held_out.name(index)])
    return metrics.compute()


def result_of(name: str, config: SegmentConfig, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Fit and measure one network; the result as JSON. conditions: what tells it from results of other settings."""
    arm = ARMS[name]
    work = segment_workload(config, config.train.batch_size)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = arm.build(work.spec).to(device)
    start = time.perf_counter()
    averages, losses = fit(network, work, config, arm.bf16)
    seconds = time.perf_counter() - start
    network.eval()
    assert isinstance(work.task, MaskTask)
    with averages.swapped():
        figures = measure(network, work.task.held_out, work.task)
    spans = torch.tensor(losses).tensor_split(min(20, len(losses)))
    return {
        "network": name,
        "seed": config.seed,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "precision": "bf16" if arm.bf16 else "float32",
        "training_loss": [span.mean().item() for span in spans],
        "figures": figures,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "conditions": dict(conditions),
    }


def table(results: list[dict[str, Any]], membrane: int) -> str:
    """Mean and standard deviation over seeds of each network, as a Markdown table."""
    lines = [
        f"| network | parameters | seeds | {' | '.join(FIGURES)} | seconds a fit |",
        "|" + "---|" * (len(FIGURES) + 4),
    ]
    for name in ARMS:
        fits = [result for result in results if result["network"] == name]
        if not fits:
            continue
        cells = []
        for key in FIGURES.values():
            values = [result["figures"][key] for result in fits]
            values = [value[membrane] if isinstance(value, list) else value for value in values]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        seconds = statistics.median(result["seconds"] for result in fits)
        row = [f"{name}, {fits[0]['precision']}", f"{fits[0]['parameters']:,}", len(fits), *cells, f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/membranes.py CONFIG", description=__doc__)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--data", metavar="DIR", help="the folder of images and masks")
    parser.add_argument("--networks", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: those of CONFIG")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/ and the name of CONFIG")
    parser.add_argument("--report", action="store_true", help="write the table from the results")
    options = parser.parse_args()
    folder = options.results or ROOT / "benchmarks" / "results" / Path(options.config).stem
    config = parse_segment([options.config, *(["--data.path", options.data] if options.data else [])])
    config = replace(config, train=replace(config.train, steps=options.steps or config.train.steps))
    conditions = {"steps": config.train.steps, "settings": read_yaml(options.config)}
    with user_errors():
        if options.report:
            text = table(read_results(folder), config.evaluation.membrane or 0)
            write_text(folder.with_suffix(".md"), f"# {folder.name}, {config.train.steps} steps\n\n{text}\n")
            print(text)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for name in options.networks:
                path = folder / f"{name}-{seed}.json"
                if not finished(path, conditions):
                    print(f"{name}, seed {seed}", file=sys.stderr)
                    write_json(path, result_of(name, replace(config, seed=seed), conditions))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
