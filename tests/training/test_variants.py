"""Networks that are built in another way, through the whole loop: exact resume, folders that load, two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.networks import RESNET
from tests.runs import command, command_arguments, fit, left_behind, relative_difference
from unetdiff.runs import load_run

NESTED: dict[str, Any] = {"channels": [8, 8, 16], "decoder_kind": "nested", "deep_supervision": True}
STAGES = {"channels": [8, 8, 16, 16], "backbone": {"config": {**RESNET, "out_features": ["stage1", "stage2"]}}}

VARIANTS: dict[str, dict[str, Any]] = {
    "nested": NESTED,
    "supervised": {"channels": [8, 8, 16], "deep_supervision": True},
    "transformer": {"transformer_layers": 1, "position_grid": 4, "dropout": 0.2},
    "separable": {"block_convolutions": "separable"},
    "frozen_backbone": STAGES,
    "trained_backbone": {**STAGES, "backbone": {**STAGES["backbone"], "frozen": False}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    for run, steps in ((straight, 4), (halted, 2), (halted, 4)):
        torch.manual_seed(0)  # a backbone without a name draws its weights
        fit(run, model=VARIANTS[name], steps=steps)
    assert_close(left_behind(halted), left_behind(straight), rtol=0, atol=0)
    unet = load_run(straight).unet
    held = load_file(straight / "unet" / "diffusion_pytorch_model.safetensors")
    assert_close(unet.state_dict(), held, rtol=0, atol=0)


def test_a_named_backbone_is_read_when_training_starts_and_stays(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**RESNET)
    theirs = transformers.AutoBackbone.from_config(config)
    theirs.save_pretrained(tmp_path / "theirs")
    chosen = {"name": str(tmp_path / "theirs"), "features": ["stage1", "stage2"]}
    fit(tmp_path / "run", model={**STAGES, "backbone": chosen}, steps=2)
    (tmp_path / "theirs").rename(tmp_path / "elsewhere")
    fit(tmp_path / "run", model={**STAGES, "backbone": chosen}, steps=3)  # looks nothing up
    loaded = load_run(tmp_path / "run").unet.encoder["backbone"].module.backbone
    own = loaded.state_dict()
    assert_close(own, {name: theirs.state_dict()[name] for name in own}, rtol=0, atol=0)


def test_several_processes_train_every_depth(tmp_path: Path) -> None:
    """Each output of a deeply supervised network counts, or the processes would wait for gradients that never come."""
    fit(tmp_path / "one", model=NESTED)
    words = command_arguments(tmp_path / "two", processes=2)
    words += ["--model.channels", "[8,8,16]", "--model.decoder_kind", "nested", "--model.deep_supervision", "true"]
    done = command("train/denoise.py", *words, processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(tmp_path / "one"), left_behind(tmp_path / "two")) < 1e-5


def test_a_preset_trains_by_command(tmp_path: Path) -> None:
    words = command_arguments(tmp_path / "run", steps=2)
    words += ["--model.preset", "mobile_unet"]
    done = command("train/denoise.py", *words)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "unet" / "config.json").read_text())
    assert (config["block_convolutions"], config["channels"]) == ("separable", [8, 8])
