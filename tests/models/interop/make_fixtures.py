"""Write the small reference networks in `fixtures/`: `python -m tests.models.interop.make_fixtures`.

Their outputs are OURS, computed at a revision that reproduced the outputs of the libraries themselves (in eleven
networks of guided-diffusion, EDM and EDM2) to a relative error of 7e-7. They guard against change where those
references are not at hand; they prove nothing by themselves. Weights are drawn here and rounded to float16, which
halves the files; everything is computed in float32.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.interop.reference import OWN, OWN_NAMES, labels
from unetdiff import UNet
from unetdiff.models.interop import LIBRARIES
from unetdiff.models.interop.weights import translate_back

_ADM = {"image_size": 8, "in_channels": 2, "model_channels": 4, "num_res_blocks": 1, "channel_mult": [8, 8], "dims": 1}
_EDM = {
    "img_resolution": 8,
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 8,
    "num_blocks": 1,
    "label_dim": 3,
    "channel_mult_emb": 1,
}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "adm_additive": ("guided-diffusion", {**_ADM, "out_channels": 2, "attention_resolutions": [2], "num_heads": 2}),
    "adm_scale_shift": (
        "guided-diffusion",
        {
            **_ADM,
            "out_channels": 4,
            "attention_resolutions": [1],
            "num_head_channels": 16,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
            "num_classes": 3,
            "use_new_attention_order": True,
        },
    ),
    "edm2": (
        "edm2",
        {
            "img_resolution": 8,
            "img_channels": 2,
            "label_dim": 3,
            "model_channels": 4,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [4],
            "channels_per_head": 4,
        },
    ),
    # Attention needs a width of 64, which is cheapest at one level.
    "edm_dhariwal": ("edm", {**_EDM, "class_name": "DhariwalUNet", "channel_mult": [8, 1], "attn_resolutions": [8]}),
    "edm_ncsnpp": (
        "edm",
        {
            **_EDM,
            "class_name": "SongUNet",
            "channel_mult": [1, 2],
            "attn_resolutions": [4],
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
            "channel_mult_noise": 2,
        },
    ),
}
assert tuple(NETWORKS) == OWN_NAMES


def _draw(name: str, shape: torch.Size, library: str) -> Tensor:
    """A random weight, none of them zero, with signals of moderate size throughout."""
    noise = torch.randn(shape)
    if len(shape) > 1:
        return noise if library == "edm2" else noise / math.sqrt(math.prod(shape[1:]))
    return 0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise


def state_dict(library: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under the library's names."""
    found = LIBRARIES[library]
    arguments = found.complete(config)
    unet = UNet(**found.settings(arguments))
    own, state = unet.state_dict(), {}
    for weight in found.weights(unet.layout, arguments):
        if weight.theirs[0] == "map_label.weight":  # a linear layer of one-hot labels there, a table here
            width = own[weight.ours].shape[1]
            state |= {"map_label.weight": torch.randn(width, arguments["label_dim"])}
            state |= {name: 0.1 * torch.randn(width) for name in weight.theirs[1:]}
        elif weight.ours in own:
            for name, held in translate_back([weight], own).items():
                # Frequencies and phases are random as they are.
                state[name] = held if ".waves." in weight.ours else _draw(name, held.shape, library)
    return {name: tensor.half() for name, tensor in state.items()}


def call(unet: UNet, library: str) -> dict[str, Tensor]:
    """What a network is called with, under the library's names; labels end with the null class where there is one."""
    spec = unet.spec
    given = {"sample": torch.randn(2, spec.in_channels, *(8,) * spec.dims)}
    if library == "guided-diffusion":
        given["timestep"] = torch.tensor([3, 801])
        return given | ({"class_labels": torch.tensor([2, 0])} if spec.num_classes else {})
    given["c_noise"] = torch.tensor([-0.7, 0.9])
    assert spec.num_classes
    return given | {"class_onehot": torch.eye(spec.num_classes)[1] * torch.tensor([[1.0], [0.0]])}


def make(name: str) -> None:
    """Write one reference network."""
    torch.manual_seed(0)
    library, config = NETWORKS[name]
    weights = state_dict(library, config)
    unet = UNet.from_foreign(library, config, weights)
    given = call(unet, library)
    conditions = [given[key] for key in ("timestep", "c_noise", "class_labels") if key in given]
    conditions += [labels(given["class_onehot"])] if "class_onehot" in given else []
    with torch.no_grad():
        output = unet(given["sample"], *conditions).sample
    tensors = {f"weights.{key}": tensor for key, tensor in weights.items()}
    tensors |= {f"input.{key}": tensor for key, tensor in given.items()}
    metadata = {"library": library, "config": json.dumps(config)}
    save_file({**tensors, "output": output}, OWN / f"{name}.safetensors", metadata)


if __name__ == "__main__":
    for network in NETWORKS:
        make(network)
