"""Networks of other libraries from files: what is read, and one sentence for what is not."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from tests.models.interop.reference import OWN, Reference, small
from tests.networks import small_diffusers
from unetdiff import load_foreign

NAME = "edm2"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return small(NAME)


def agrees(path: Path, reference: Reference, **given: Any) -> None:
    """A file gives the network whose output is known."""
    unet = load_foreign(path, library=reference.library, **given)
    assert not unet.training
    with torch.no_grad():
        assert_close(unet(**reference.inputs).sample, reference.output, rtol=1e-4, atol=1e-5)


def test_safetensors_that_say_what_they_are(reference: Reference) -> None:
    agrees(OWN / f"{NAME}.safetensors", reference)


@pytest.mark.parametrize("as_file", [True, False])
def test_safetensors_of_weights_alone(as_file: bool, reference: Reference, tmp_path: Path) -> None:
    save_file(reference.weights, tmp_path / "weights.safetensors")
    (tmp_path / "model.json").write_text(json.dumps(reference.config))
    agrees(tmp_path / "weights.safetensors", reference,
           config=tmp_path / "model.json" if as_file else reference.config)  # fmt: skip


def test_safetensors_with_arguments_beside_weights_by_their_own_names(reference: Reference, tmp_path: Path) -> None:
    metadata = {"library": reference.library, "config": json.dumps(reference.config)}
    save_file(reference.weights, tmp_path / "weights.safetensors", metadata=metadata)
    agrees(tmp_path / "weights.safetensors", reference)


# What torch.save was given, from the state dict.
SAVED: dict[str, Callable[[dict], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "ema": lambda state: {"ema": state},
    "parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "parallel model": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("form", SAVED)
def test_state_dicts_in_torch_files(form: str, suffix: str, reference: Reference, tmp_path: Path) -> None:
    torch.save(SAVED[form](reference.weights), tmp_path / f"model{suffix}")
    agrees(tmp_path / f"model{suffix}", reference, config=reference.config)


@pytest.mark.parametrize("legacy", [True, False])
def test_folders_of_diffusers(legacy: bool, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    theirs = small_diffusers()
    pipeline = DDPMPipeline(theirs, DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipeline", safe_serialization=not legacy)
    theirs.save_pretrained(tmp_path / "model", safe_serialization=not legacy)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        expected = theirs(x, time).sample
        for folder in ("pipeline", "model"):
            found = load_foreign(tmp_path / folder, library="diffusers")(x, time).sample
            assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Runs:
    """A value that runs a command when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt", ".ckpt"])
@pytest.mark.parametrize("saved", ["torch", "pickle"])
def test_pickles_that_run_code_are_not_loaded(suffix: str, saved: str, tmp_path: Path) -> None:
    path, trace = tmp_path / f"network{suffix}", tmp_path / "ran"
    held = {"ema": Runs(trace)}
    if saved == "torch":
        torch.save(held, path)
    else:
        path.write_bytes(pickle.dumps(held, protocol=2))
    sentence = refusal(path, library="edm", config={})
    assert "never loaded" in sentence
    assert "docs/interop.md" in sentence
    assert not trace.exists()


def refusal(path: Path, **given: Any) -> str:
    """The one sentence with which a file is refused; it names the file."""
    with pytest.raises(ValueError) as raised:
        load_foreign(path, **given)
    sentence = str(raised.value)
    assert str(path) in sentence
    return sentence


def cut(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize("share", [0.9, 0.3, 0.001, 0])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files(suffix: str, share: float, reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(reference.weights, path)
    else:
        save_file(reference.weights, path)
    assert "cannot be read" in refusal(cut(path, share), library="edm2", config=reference.config)


def test_what_is_not_there(tmp_path: Path, reference: Reference) -> None:
    assert "there is no file" in refusal(tmp_path / "none.pt", library="edm2")
    (tmp_path / "weights.npz").write_bytes(b"")
    assert "expected .safetensors, .pt" in refusal(tmp_path / "weights.npz", library="edm2")
    assert "no diffusers model; expected config.json" in refusal(tmp_path, library="diffusers")
    save_file(reference.weights, tmp_path / "weights.safetensors")
    bare = refusal(tmp_path / "weights.safetensors", library="edm2")
    assert "does not hold the network's arguments" in bare
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read"):
        load_foreign(tmp_path / "weights.safetensors", library="edm2", config=tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"list\.json holds list; expected a JSON object"):
        load_foreign(tmp_path / "weights.safetensors", library="edm2", config=tmp_path / "list.json")


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (lambda state: {"model": state, "ema": state}, "holds 'model', 'ema'; expected a state dict, or one alone"),
        (lambda state: {"network": state}, "holds 'network'"),
        (lambda state: {"model": {}, "step": 3}, "holds 'model', 'step'"),
        (lambda state: {}, "holds a dict"),
        (lambda state: list(state.values()), "holds a list"),
        (lambda state: {"module.a": torch.ones(1), **state}, "'module.a'"),
    ],
)
def test_what_is_no_state_dict_is_named(held: Any, named: str, reference: Reference, tmp_path: Path) -> None:
    torch.save(held(reference.weights), tmp_path / "model.pt")
    assert named in refusal(tmp_path / "model.pt", library=reference.library, config=reference.config)


@pytest.mark.parametrize(
    ("library", "change", "named"),
    [
        ("edm3", {}, "holds a network of edm2, not of edm3"),
        ("edm", {}, "holds a network of edm2, not of edm"),
        ("edm2", {"model_chanels": 8}, "'model_chanels'"),
        ("edm2", {"resample_filter": [1, 3, 3, 1]}, "resample_filter [1, 3, 3, 1] is not supported"),
        ("edm2", {"model_channels": 12}, "does not fit this configuration"),
        ("edm2", ["model_channels"], "the arguments are list; expected them by name"),
        ("edm2", {"img_resolution": "8"}, "img_resolution is '8'; expected a whole number"),
    ],
)
def test_another_library_or_network_is_named(library: str, change: Any, named: str, reference: Reference) -> None:
    config = {**reference.config, **change} if isinstance(change, dict) else change
    assert named in refusal(OWN / f"{NAME}.safetensors", library=library, config=config)


def test_an_unknown_library_is_named(reference: Reference, tmp_path: Path) -> None:
    save_file(reference.weights, tmp_path / "weights.safetensors")
    sentence = refusal(tmp_path / "weights.safetensors", library="adm", config=reference.config)
    assert "no library is called 'adm'; there are: diffusers, guided-diffusion, edm, edm2, monai" in sentence
