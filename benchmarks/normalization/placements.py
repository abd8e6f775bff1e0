"""The placements that are compared: a table. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from unetdiff.placement import NONE, PLACEMENTS, Norm, NormPlacement, Site

BARE = Site("none")
PIXEL = Norm("pixel", eps=1e-4, affine=False)


@dataclass(frozen=True)
class Arm:
    """A placement of the study.

    title: in tables and plots. build: the placement, from the group norm that the study uses. activation: of the
    network.
    """

    title: str
    build: Callable[[Norm], NormPlacement]
    activation: str = "silu"


def _sides(encoder: bool, decoder: bool) -> Callable[[Norm], NormPlacement]:
    """Group norm before the convolutions of one side, both or none; the middle goes with the encoder."""

    def build(group: Norm) -> NormPlacement:
        site = Site("pre", group)
        return NormPlacement(encoder=site if encoder else BARE, decoder=site if decoder else BARE, out=NONE, time="add")

    return build


def _ddpm(group: Norm, **rest: Any) -> NormPlacement:
    return replace(_sides(True, True)(group), out=group, **rest)


ARMS: dict[str, Arm] = {
    "none": Arm("none", _sides(False, False)),
    "encoder": Arm("encoder only", _sides(True, False)),
    "decoder": Arm("decoder only", _sides(False, True)),
    "both": Arm("both, no out norm", _sides(True, True)),
    "ddpm": Arm("both + out (DDPM)", _ddpm),
    "before_concat": Arm("DDPM + norm before concat", lambda group: _ddpm(group, skip="before_concat")),
    "decoder_main": Arm("DDPM + decoder main path", lambda group: _ddpm(group, decoder=Site("pre", group, main=group))),
    "encoder_main": Arm(
        "encoder main path (pixel)",
        lambda group: replace(_sides(False, False)(group), encoder=Site("none", main=PIXEL), middle=BARE),
    ),
    "nnunet": Arm("nnU-Net (instance)", lambda group: PLACEMENTS["nnunet"], "leaky_relu"),
    "input_rms": Arm("DDPM + input RMS", lambda group: _ddpm(group, input=Norm("rms", groups=1, affine=False))),
    "input_instance": Arm("DDPM + input instance", lambda group: _ddpm(group, input=Norm("instance", affine=False))),
    "edm2": Arm("EDM2", lambda group: PLACEMENTS["edm2"]),
}


def find_arm(name: str) -> Arm:
    """A placement by name; `ValueError` lists those there are."""
    if name not in ARMS:
        raise ValueError(f"the study has no placement {name!r}; there are: {', '.join(ARMS)}")
    return ARMS[name]


def network_settings(name: str, groups: int, conditioned: bool) -> dict[str, Any]:
    """What a placement, and whether the network is told the noise level, decide of a `UNet`'s settings."""
    arm = find_arm(name)
    placement = arm.build(Norm("group", groups=groups))
    if not conditioned:
        placement = replace(placement, time="none")
    embedding = {} if conditioned else {"time_embedding": "none"}
    return {"norm": placement.to_json(), "activation": arm.activation, **embedding}
