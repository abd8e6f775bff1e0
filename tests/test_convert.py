"""From another library's checkpoint, by command, to a folder that samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from tests.models.interop.reference import OWN, small
from tests.models.interop.test_files import Runs, cut
from tests.networks import small_diffusers
from tests.runs import one_sentence
from unetdiff import load_run

MODULE = "unetdiff.models.interop"


def words_of(name: str) -> list[str]:
    """The command's words for one of our reference networks, whose file says all but the library."""
    return ["--library", small(name).library, str(OWN / f"{name}.safetensors")]


@pytest.mark.parametrize("name", ["adm_scale_shift", "adm_additive", "edm2", "edm_ncsnpp", "edm_dhariwal"])
def test_a_checkpoint_becomes_a_folder_that_samples(name: str, tmp_path: Path, run_script) -> None:
    reference, out, samples = small(name), tmp_path / "network", tmp_path / "samples"
    code, output, errors = run_script(MODULE, *words_of(name), "--out", str(out))
    assert code == 0, errors
    assert len(output.splitlines()) == 1
    assert f"{sum(p.numel() for p in reference.ours().parameters()):,} parameters" in output
    assert f"python sample/images.py {out} --num 16" in output
    with torch.no_grad():
        assert_close(load_run(out).unet(**reference.inputs).sample, reference.output, rtol=1e-4, atol=1e-5)
    code, _, errors = run_script("sample/images.py", str(out), "--num", "3", "--steps", "3", "--out", str(samples))
    assert code == 0, errors
    stored = np.load(samples / "samples.npz")
    config = load_run(out).unet.config
    assert stored["images"].shape == (3, *[8] * config["dims"], config["in_channels"])
    assert np.isfinite(stored["images"]).all()
    assert stored["labels"].tolist() == ([0, 1, 2] if config["num_classes"] else [-1] * 3)


def test_networks_of_edm_sample_by_command_with_guidance_and_moving_pictures(tmp_path: Path, run_script) -> None:
    out = tmp_path / "network"
    run_script(MODULE, *words_of("edm2"), "--class_names", "ant, bee,cat", "--out", str(out))
    for name, more in {"whole": [], "parts": ["--batch_size", "2", "--animate"]}.items():
        words = [str(out), "--num", "5", "--steps", "4", "--labels", "cat,ant", "--guidance", "1.5", *more]
        code, _, errors = run_script("sample/images.py", *words, "--out", str(tmp_path / name))
        assert code == 0, errors
    whole, parts = (np.load(tmp_path / name / "samples.npz") for name in ("whole", "parts"))
    assert whole["labels"].tolist() == [2, 0, 2, 0, 2]
    assert_close(whole["images"], parts["images"], rtol=0, atol=1e-4)
    assert (tmp_path / "parts" / "denoising.gif").stat().st_size > 0
    code, _, errors = run_script("sample/images.py", str(out), "--sampler", "heun", "--out", str(tmp_path / "no"))
    assert code == 2
    assert "sampler 'heun' is not one of dpmpp, dpmpp_sde, euler, those of EDM's schedule" in one_sentence(errors)


def test_a_folder_says_what_was_asked_for(tmp_path: Path, run_script) -> None:
    out, names = tmp_path / "network", tmp_path / "names.txt"
    names.write_text("one, of two\nsecond\n\nthird\n")
    words = ["--schedule", "cosine", "--num_train_timesteps", "400", "--target", "v", "--size", "16"]
    words += ["--class_names", str(names), "--out", str(out)]
    code, output, errors = run_script(MODULE, *words_of("adm_scale_shift"), *words)
    assert code == 0, errors
    assert "cosine schedule of 400 timesteps, target v, learned variance" in output
    run = load_run(out)
    assert run.scheduler.config["num_train_timesteps"] == 400
    assert run.scheduler.config["prediction_type"] == "v_prediction"
    assert run.scheduler.config["variance_type"] == "learned_range"
    assert run.scheduler.config["beta_schedule"] == "squaredcos_cap_v2"
    assert run.unet.config["sample_size"] == 16
    assert run.format.class_names == ("one, of two", "second", "third")
    assert (run.format.dtype, run.format.low, run.format.high) == ("float32", -1, 1)  # two channels, 1-D: numbers


def test_a_pipeline_keeps_its_scheduler_and_its_form(tmp_path: Path, run_script) -> None:
    from diffusers import DDIMScheduler, DDPMPipeline

    pipeline = DDPMPipeline(small_diffusers(), DDIMScheduler(beta_start=0.003, prediction_type="v_prediction"))
    pipeline.save_pretrained(tmp_path / "theirs")
    words = ["--library", "diffusers", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")]
    code, output, errors = run_script(MODULE, *words)
    assert code == 0, errors
    assert "theirs/scheduler" in output
    run = load_run(tmp_path / "ours")
    assert type(run.scheduler).__name__ == "DDPMScheduler"
    assert (run.scheduler.config["beta_start"], run.scheduler.config["prediction_type"]) == (0.003, "v_prediction")
    assert (run.format.dtype, run.format.high, run.format.size) == ("uint8", 255, (8, 8))


def test_pipelines_take_networks_of_betas_and_refuse_those_of_edm(tmp_path: Path, run_script) -> None:
    """DDPMPipeline scales no input, so from a network of EDM it would make noise without a word."""
    from diffusers import DDPMPipeline, DiffusionPipeline

    for name in ("adm_additive", "edm2"):
        run_script(MODULE, *words_of(name), "--out", str(tmp_path / name))
    DDPMPipeline.from_pretrained(tmp_path / "adm_additive")
    for kind in (DDPMPipeline, DiffusionPipeline):
        with pytest.raises(ValueError, match=r"expected .*scheduler.* but only"):
            kind.from_pretrained(tmp_path / "edm2")
    assert type(load_run(tmp_path / "edm2").scheduler).__name__ == "EDMEulerScheduler"


def write_mistaken(folder: Path) -> None:
    """The files that MISTAKES name."""
    from diffusers import DDPMPipeline, DDPMScheduler

    reference = small("edm2")
    plain = {name: tensor.contiguous() for name, tensor in reference.weights.items()}
    for name in ("weights", "cut"):
        save_file(plain, folder / f"{name}.safetensors")
    cut(folder / "cut.safetensors")
    torch.save({"ema": Runs(folder / "ran")}, folder / "code.pt")
    (folder / "network.pkl").write_bytes(b"\x80\x02")
    (folder / "good.json").write_text(json.dumps(reference.config))
    (folder / "misspelt.json").write_text(json.dumps({**reference.config, "model_chanels": 8}))
    (folder / "broken.json").write_text("{")
    DDPMPipeline(small_diffusers(), DDPMScheduler()).save_pretrained(folder / "pipeline")
    learned = DDPMScheduler(variance_type="learned_range")
    DDPMPipeline(small_diffusers(), learned).save_pretrained(folder / "variance")
    small_diffusers(out_channels=4).save_pretrained(folder / "classes")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("dear to someone")


EDM2 = ["--library", "edm2", str(OWN / "edm2.safetensors")]
ADM = ["--library", "guided-diffusion", str(OWN / "adm_additive.safetensors")]
PLAIN = ["--library", "edm2", "{tmp}/weights.safetensors"]
GOOD = ["--config", "{tmp}/good.json"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing file": (["--library", "edm2", "{tmp}/no.pt"], "there is no file {tmp}/no.pt"),
    "truncated": (["--library", "edm2", "{tmp}/cut.safetensors", *GOOD], "cut.safetensors cannot be read"),
    "code": (["--library", "edm2", "{tmp}/code.pt", *GOOD], "code.pt is a pickle that may run code"),
    "pickle": (["--library", "edm", "{tmp}/network.pkl", *GOOD], "network.pkl is a pickle that may run code"),
    "library": (["--library", "edm3", "{tmp}/no.safetensors", *GOOD], "invalid choice: 'edm3'"),
    "other library": (["--library", "edm", EDM2[2]], "holds a network of edm2, not of edm"),
    "misspelt": ([*PLAIN, "--config", "{tmp}/misspelt.json"], "model_chanels"),
    "no config": (PLAIN, "does not hold the network's arguments"),
    "broken config": ([*PLAIN, "--config", "{tmp}/broken.json"], "broken.json cannot be read"),
    "full folder": ([*EDM2, "--out", "{tmp}/full"], "--out {tmp}/full is there already"),
    "out is a file": ([*EDM2, "--out", "{tmp}/good.json"], "--out {tmp}/good.json is there already"),
    "no library": ([EDM2[2]], "--library"),
    "schedule of edm": ([*EDM2, "--schedule", "cosine"], "--schedule does not apply"),
    "target of edm": ([*EDM2, "--target", "v"], "--target does not apply"),
    "meaningless": ([*ADM, "--schedule", "zero_terminal_snr"], "target 'epsilon' with schedule 'zero_terminal_snr'"),
    "timesteps": ([*ADM, "--num_train_timesteps", "1"], "num_train_timesteps is 1"),
    "class names": ([*EDM2, "--class_names", "ant,bee"], "--class_names has 2 names; the network has 3 classes"),
    "class name twice": ([*EDM2, "--class_names", "ant,bee,ant"], "--class_names has 'ant' twice"),
    "class names of bytes": ([*EDM2, "--class_names", EDM2[2]], "is no text file"),
    "variance of a pipeline": (["--library", "diffusers", "{tmp}/variance"], "takes a learned variance"),
    "schedule of a pipeline": (
        ["--library", "diffusers", "{tmp}/pipeline", "--target", "v"],
        "pipeline/scheduler says",
    ),
    "no denoiser": (["--library", "diffusers", "{tmp}/classes"], "the network makes 4 channels of 3"),
    "size": ([*EDM2, "--size", "8", "8", "8"], "--size is [8, 8, 8]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name: str, tmp_path: Path, run_script) -> None:
    write_mistaken(tmp_path)
    given, expected = MISTAKES[name]
    words = [word.replace("{tmp}", str(tmp_path)) for word in given]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    code, _, errors = run_script(MODULE, *words)
    assert code == 2
    assert expected.replace("{tmp}", str(tmp_path)) in one_sentence(errors)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_network_without_a_size_needs_one(tmp_path: Path, run_script) -> None:
    unet = small_diffusers()
    unet.register_to_config(sample_size=None)
    unet.save_pretrained(tmp_path / "model")
    words: list[Any] = ["--library", "diffusers", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    code, _, errors = run_script(MODULE, *words)
    assert code == 2
    assert "give --size" in one_sentence(errors)
    code, _, errors = run_script(MODULE, *words, "--size", "8", "12")
    assert code == 0, errors
    assert load_run(tmp_path / "out").format.size == (8, 12)
