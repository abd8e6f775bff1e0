"""The table of the libraries whose networks come in and go out, and the two ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unetdiff.models.interop.diffusers import DIFFUSERS
from unetdiff.models.interop.edm import EDM
from unetdiff.models.interop.edm2 import EDM2
from unetdiff.models.interop.guided_diffusion import GUIDED_DIFFUSION
from unetdiff.models.interop.library import Library
from unetdiff.models.interop.monai import MONAI
from unetdiff.models.interop.weights import misfit, translate, translate_back

if TYPE_CHECKING:
    from unetdiff.models.unet import UNet

LIBRARIES: dict[str, Library] = {
    "diffusers": DIFFUSERS,
    "guided-diffusion": GUIDED_DIFFUSION,
    "edm": EDM,
    "edm2": EDM2,
    "monai": MONAI,
}


def _library(name: str) -> Library:
    if not isinstance(name, str) or name not in LIBRARIES:
        raise ValueError(f"no library is called {name!r}; there are: {', '.join(LIBRARIES)}")
    return LIBRARIES[name]


def from_foreign(library: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> UNet:
    """The network that another library's constructor arguments and weights describe, as one of ours.

    Args:
        library: a key of LIBRARIES.
        config: the constructor's keyword arguments; what they leave out has the library's default.
        state_dict: its weights under its own names, all of them and no others.

    Returns:
        A `UNet` in evaluation mode. For EDM and EDM2 its `timestep` is the library's noise label.

    Raises:
        ValueError: an argument that is unknown or unsupported, a weight that is missing, left over or of another
            shape; each by name.
    """
    from unetdiff.models.unet import UNet

    found = _library(library)
    arguments = found.complete(config)
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"the weights are {type(state_dict).__name__}; expected a state dict, tensors by name")
    unet = UNet(**found.settings(arguments))
    own = unet.state_dict()
    listed = [weight for weight in found.weights(unet.layout, arguments) if weight.ours in own]
    theirs = found.prepare(arguments, state_dict)
    state = translate(listed, theirs)
    for weight in listed:
        if state[weight.ours].shape != own[weight.ours].shape:
            raise misfit(weight, theirs)
    unet.load_state_dict(state)
    return unet.eval()


def to_foreign(unet: UNet, library: str, **choices: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The constructor arguments and the weights under which another library has this network.

    Args:
        unet: a network that the library can express.
        library: one that takes networks: `diffusers` or `guided-diffusion`.
        choices: its arguments that our network leaves open, such as `use_new_attention_order`.

    Raises:
        ValueError: the library only gives networks, has no such argument, or cannot express this network; it says
            which setting stands in the way.
    """
    found = _library(library)
    if found.export is None:
        takers = ", ".join(name for name, entry in LIBRARIES.items() if entry.export)
        raise ValueError(f"networks go out to {takers}; from {library} they only come in")
    arguments = found.export(unet.spec, choices)
    own = unet.state_dict()
    listed = [weight for weight in found.weights(unet.layout, arguments) if weight.ours in own]
    return arguments, translate_back(listed, own)
