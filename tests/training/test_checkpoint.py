"""Checkpoints and folders: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import fit, trainer
from unetdiff.files import remove_leftovers, write_folder
from unetdiff.runs import AVERAGE, RAW_WEIGHTS, checkpoints, load_run
from unetdiff.training.checkpoint import clear_leftovers, newest_step


def test_folder_that_was_not_finished_does_not_appear(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    write_folder(target, lambda inner: (inner / "a").write_text("old"))

    def fail(inner: Path) -> None:
        (inner / "a").write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(target, fail)
    assert (target / "a").read_text() == "old"
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_half_written_checkpoint_is_ignored_and_cleared(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run)
    (run / "checkpoints" / ".tmp-step-00000009").mkdir()
    (run / "checkpoints" / "step-00000008").mkdir()
    clear_leftovers(run)
    assert newest_step(run) == 6
    assert not (run / "checkpoints" / ".tmp-step-00000009").exists()


def test_every_checkpoint_loads_like_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run)
    final = load_run(run)
    last = load_run(run, checkpoint="step-00000006")
    own = load_run(checkpoints(run)[-1])
    for other in (last, own):
        assert all(torch.equal(a, b) for a, b in zip(final.unet.parameters(), other.unet.parameters(), strict=True))
    raw = load_run(run, weights="raw")
    stored = load_file(checkpoints(run)[-1] / RAW_WEIGHTS)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in raw.unet.state_dict().items())
    assert any(not torch.equal(tensor, final.unet.state_dict()[name]) for name, tensor in stored.items())
    second = load_run(run, weights="ema:1")
    stored = load_file(checkpoints(run)[-1] / AVERAGE.format(1))
    assert all(torch.equal(tensor, stored[name]) for name, tensor in second.unet.state_dict().items())


def test_run_without_final_network_loads_its_newest_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run)
    (run / "model_index.json").unlink()
    assert load_run(run).folder == checkpoints(run)[-1]


def test_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run, steps=3)
    (run / "config.yaml").unlink()
    for name in ("runtime.json", "metrics.jsonl"):
        (run / name).unlink()
    import shutil

    keep = tmp_path / "keep"
    shutil.move(run / "checkpoints", keep)
    shutil.rmtree(run)
    made = trainer(run, model={"channels": [8, 16]})
    shutil.move(keep, run / "checkpoints")
    with pytest.raises(ValueError, match=r"is of another network: at decoder\.level0_block0.*shape"):
        made.fit()


def rewrite(path: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


LOADING = {
    "there is no folder": lambda run: load_run(run / "nowhere"),
    "holds no network": lambda run: load_run(run / "samples"),
    "no complete checkpoint 'step-1'": lambda run: load_run(run, checkpoint="step-1"),
}


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"middle_attention": False}, "of another network: unexpected decoder.middle_block0"),
        ("unet/config.json", {"blocks": 2}, "unet"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch"),
        ("data_format.json", {"dims": 7}, "data_format.json cannot be read"),
        ("model_index.json", {"unet": ["somewhere", "Else"]}, "names the network somewhere.Else"),
    ],
)
def test_folder_that_does_not_fit_itself_is_refused(file: str, changes: dict, message: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run)
    rewrite(run / file, **changes)
    with pytest.raises(ValueError, match=message):
        load_run(run)


@pytest.mark.parametrize("weights", ["ema:7", "ema:x", "best"])
def test_weights_that_are_not_there_are_named(weights: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run)
    with pytest.raises(ValueError, match=weights):
        load_run(run, weights=weights)


@pytest.mark.parametrize("message", LOADING)
def test_what_cannot_be_loaded_is_named(message: str, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    with pytest.raises(ValueError, match=message):
        LOADING[message](tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run)
    weights = run / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_run(run)


@pytest.mark.filterwarnings("ignore:batch norm mixes the samples")
def test_running_statistics_of_batch_norm_are_saved_and_loaded(tmp_path: Path) -> None:
    """They are buffers: with the averaged weights and with the raw ones alike, and back in a run that goes on."""
    run = tmp_path / "run"
    made = fit(run, steps=3, model={"norm": {"preset": "ddpm", "out": {"kind": "batch"}}})
    running = made.unet.get_buffer("head.sample.0.running_mean").clone()
    assert running.abs().max() > 0
    for weights in ("ema", "ema:1", "raw"):
        loaded = load_run(run, weights=weights).unet.get_buffer("head.sample.0.running_mean")
        assert torch.equal(loaded, running)
    again = fit(run, steps=4, model={"norm": {"preset": "ddpm", "out": {"kind": "batch"}}})
    assert again.unet.get_buffer("head.sample.0.num_batches_tracked") == 4
