"""The page of the named networks: what each is, how large, what it costs, its settings and its plan.

python benchmarks/networks.py

Writes docs/networks.md in seconds: networks are counted without storage, and no weights are made or downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from unetdiff.models.cost import bytes_kept
from unetdiff.models.plan import Plan
from unetdiff.models.unet import UNet
from unetdiff.presets import PRESETS, preset
from unetdiff.spec import UNetSpec
from unetdiff.typed import plain

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"

# Configurations of the backbones that presets name, which would have to be downloaded otherwise.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "microsoft/resnet-18": {
        "model_type": "resnet",
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
}

HEADING = """\
# Networks by name

Written by `python benchmarks/networks.py` from `unetdiff/presets.py` and the networks that it describes.

`UNet.from_preset("adm_64")` builds one, with other settings by keyword; in a settings file, `model.preset` names it.
All figures are for one sample of the preset's own `sample_size`, which is the size of the input given here.

- **parameters**: all of them, those of a frozen backbone included.
- **Gflop**: operations of one call, 2 per multiply-add, in convolutions, linear layers and attention.
- **MiB kept**: what one more image in the batch keeps in training, in float32, from the forward to the backward pass:
  the tensors that autograd saves, on a CPU and with `memory: lean`, the loss not counted
  (`unetdiff.models.cost.bytes_kept`).

A backbone ({backbones}) is built from its configuration alone: no figure here depends on weights.
"""

COLUMNS = ["name", "source", "what it is", "input -> output", "parameters", "Gflop", "MiB kept"]


def build(name: str) -> UNet:
    """A preset's network, with shapes but no storage."""
    backbone = preset(name).get("backbone")
    settings = {} if backbone is None else {"backbone": {"config": CONFIGURATIONS[backbone]}}
    with torch.device("meta"):
        return UNet.from_preset(name, **settings)


def shape(channels: int, size: Sequence[int]) -> str:
    """A sample's shape in words."""
    return " x ".join(map(str, (channels, *size)))


def row(name: str, unet: UNet, plan: Plan) -> str:
    """A network's line in the table."""
    out_channels = sum(unet.spec.outputs.values())
    taken, returned = shape(unet.spec.in_channels, plan.size), shape(out_channels, plan.output_size(plan.size))
    cells = [
        f"[{name}](#{name})",
        f"[{PRESETS[name].source}]({PRESETS[name].url})",
        PRESETS[name].note,
        f"{taken} -> {returned}",
        f"{unet.num_parameters():,}",
        f"{sum(step.operations for step in plan.steps) / 1e9:,.1f}",
        f"{bytes_kept(unet, plan.size) / 2**20:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def section(name: str, plan: Plan) -> str:
    """A network's settings where they are not the defaults, and its plan."""
    defaults = UNetSpec().to_json()
    settings = {key: value for key, value in plain(preset(name)).items() if value != defaults[key]}
    written = yaml.safe_dump(settings, default_flow_style=None, sort_keys=False, width=110)
    summary = f"<summary>{len(plan.steps)} steps</summary>"
    parts = [f"## {name}", f"```yaml\n{written}```", f"<details>{summary}", f"```\n{plan}\n```", "</details>"]
    return "\n\n".join(parts)


def page() -> str:
    """The whole page."""
    rows, sections = [f"| {' | '.join(COLUMNS)} |", "|---" * 4 + "|---:" * 3 + "|"], []
    for name in PRESETS:
        unet = build(name)
        plan = unet.plan
        rows.append(row(name, unet, plan))
        sections.append(section(name, plan))
    heading = HEADING.format(backbones=", ".join(CONFIGURATIONS))
    return "\n".join([heading, *rows]) + "\n\n" + "\n\n".join(sections) + "\n"


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
