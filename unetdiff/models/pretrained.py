"""A pretrained network in place of the encoder: its features are read by blocks of ours, level by level."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from unetdiff.models.step import INPUT, Step
from unetdiff.spec import UNetSpec
from unetdiff.typed import plain


def resolve(spec: UNetSpec) -> UNetSpec:
    """The settings with everything about the backbone filled in; reads its configuration where only a name is given.

    Raises:
        ValueError: the name is no folder and not on the hub, or its model cannot be a backbone.
    """
    foreign = spec.foreign
    if foreign is None or foreign.channels is not None:
        return spec
    from unetdiff.nn.backbone import probe, read_config

    config = foreign.config if foreign.config is not None else read_config(str(foreign.name), foreign.features)
    if foreign.features is not None:
        config = {**config, "out_features": list(foreign.features)}
    channels, strides = probe(config)
    return replace(spec, backbone=plain(replace(foreign, config=config, channels=channels, strides=strides)))


def load_pretrained(network: nn.Module, given: UNetSpec) -> None:
    """Fill the backbone inside a network with its own weights, where the settings named it and nothing more.

    Settings with everything filled in are those of a saved network, whose weights come with it.
    """
    foreign = given.foreign
    if foreign is None or foreign.name is None or foreign.channels is not None:
        return
    from unetdiff.nn.backbone import PretrainedBackbone, load_weights

    for module in network.modules():
        if isinstance(module, PretrainedBackbone):
            load_weights(module, foreign.name)


def backbone_features(spec: UNetSpec) -> dict[int, list[Step]]:
    """For each level whose entry is a feature of the backbone, the steps that lead to it: the backbone itself at first.

    Raises:
        ValueError: the levels have no such strides.
    """
    foreign = spec.foreign
    assert foreign is not None
    assert foreign.channels is not None
    assert foreign.strides is not None
    reached = [math.prod(row[0] for row in spec.stride_tuples(2)[:level]) for level in range(len(spec.channels))]
    missing = [stride for stride in foreign.strides if stride not in reached]
    if missing:
        raise ValueError(
            f"the backbone has features at strides {list(foreign.strides)}, but levels are at {reached}: expected "
            "strides whose products reach them all, such as [2, 2, 2, 2, 2] for 4 to 32 and [2, 7] for 14"
        )
    first = reached.index(foreign.strides[0])
    network = Step("backbone", "encoder", "backbone", first, spec.in_channels, sum(foreign.channels), source=INPUT)
    entries: dict[int, list[Step]] = {}
    for number, (channels, stride) in enumerate(zip(foreign.channels, foreign.strides, strict=True)):
        level = reached.index(stride)
        feature = Step(
            f"level{level}_feature", "encoder", "feature", level, channels, channels, number=number, source=network.key
        )
        entries[level] = [feature] if number else [network, feature]
    return entries
