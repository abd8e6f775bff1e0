"""Reference networks in files: weights, a call and its output, from the libraries themselves and of our own making.

A file holds `weights.*` (a state dict under the library's names), `input.*` (the call) and `output`; its metadata is
the `library` and the `config`, the constructor's keyword arguments as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from unetdiff import UNet

OWN = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[4] / "shared" / "fixtures"

# What the libraries themselves computed; these files are beside the checkout or they are not.
SHARED_NAMES = (
    "adm_3d",
    "adm_avgpool_1d",
    "adm_class_conditional_new_attention",
    "adm_ddpm_style",
    "adm_scale_shift_updown",
    "edm2_class_conditional",
    "edm2_unconditional",
    "edm_ddpmpp",
    "edm_ddpmpp_labels",
    "edm_dhariwal",
    "edm_ncsnpp",
)
# What our networks call it.
OUR_NAMES: dict[str, str] = {"c_noise": "timestep"}
OWN_NAMES = ("adm_additive", "adm_scale_shift", "edm2", "edm_dhariwal", "edm_ncsnpp")


def fixtures(prefix: str = "") -> list[Any]:
    """The paths of all reference networks whose names start with `prefix`, as parameters of a test."""
    absent = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/fixtures is not beside the checkout")
    own = [(OWN / f"{name}.safetensors", ()) for name in OWN_NAMES if name.startswith(prefix)]
    shared = [(SHARED / f"{name}.safetensors", absent) for name in SHARED_NAMES if name.startswith(prefix)]
    return [pytest.param(path, id=f"{path.parts[-3]}-{path.stem}", marks=marks) for path, marks in own + shared]


@dataclass(frozen=True)
class Reference:
    """One reference network. inputs: what our network is called with; output: what it must return."""

    library: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    output: Tensor

    def ours(self) -> UNet:
        """The network as one of ours."""
        return UNet.from_foreign(self.library, self.config, self.weights)


def read(path: Path) -> Reference:
    """The reference network in a file, in float32."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # not a mapping
    weights, given = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("weights.", "input.")
    )
    inputs = {OUR_NAMES.get(name, name): tensor for name, tensor in given.items()}
    if "class_onehot" in inputs:
        inputs["class_labels"] = labels(inputs.pop("class_onehot"))
    weights = {name: tensor.float() for name, tensor in weights.items()}
    return Reference(metadata["library"], json.loads(metadata["config"]), weights, inputs, tensors["output"])


def labels(hot: Tensor) -> Tensor:
    """One-hot rows (N, classes) as labels (N,); a row of zeros is the null class."""
    return torch.where(hot.any(1), hot.argmax(1), hot.shape[1])


def small(name: str) -> Reference:
    """One of our own reference networks."""
    return read(OWN / f"{name}.safetensors")
