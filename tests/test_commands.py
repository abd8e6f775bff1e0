"""The commands as a user meets them: what they print, what they write, and one sentence for every mistake."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.networks import small_diffusers
from tests.runs import ROOT, command, command_arguments, fit, one_sentence
from unetdiff.pipeline_config import read_pipeline


def write_png(path: Path, shape: Sequence[int] = (8, 8, 3), value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(shape, value, np.uint8)
    Image.fromarray(array[..., 0] if shape[-1] == 1 else array).save(path)
    return path


def folder(tmp_path: Path) -> Path:
    """A folder of sixteen images that is fine."""
    for number in range(16):
        write_png(tmp_path / "images" / f"{number:02d}.png", value=number)
    return tmp_path / "images"


def truncated(path: Path) -> None:
    picture = folder(path) / "03.png"
    picture.write_bytes(picture.read_bytes()[:40])


def mixed_channels(path: Path) -> None:
    write_png(folder(path) / "05.png", (8, 8, 1))


def mixed_sizes(path: Path) -> None:
    write_png(folder(path) / "05.png", (9, 8, 3))


def no_images(path: Path) -> None:
    (path / "images").mkdir()
    (path / "images" / "notes.txt").write_text("no image")


def fine(path: Path) -> None:
    folder(path)


FROM_FOLDER = ["--data.source", "folder", "--data.path", "{tmp}/images"]

# What is wrong: how to make it, the arguments beyond those of a small run, and what the sentence must name.
MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "misspelt setting": (fine, ["--model.chanels", "[8]"], ["chanels", "model.channels"]),
    "misspelt preset": (fine, ["--model.preset", "dppm"], ["dppm", "ddpm_cifar10"]),
    "wrong type": (fine, ["--train.steps", "many"], ["train.steps", "many"]),
    "wrong length": (fine, ["--model.attention", "[true]"], ["attention has 1", "channels 2"]),
    "heads": (fine, ["--model.attention_heads", "3"], ["channels 8", "attention_heads 3"]),
    "memory": (fine, ["--model.memory", "small"], ["model.memory", "small", "lean"]),
    "levels of checkpoints": (fine, ["--model.checkpoint_levels", "[0]"], ["model.checkpoint_levels", "lean"]),
    "no such level": (
        fine,
        ["--model.memory", "checkpoint", "--model.checkpoint_levels", "[2]"],
        ["checkpoint_levels is [2]", "0 to 1"],
    ),
    "no such folder": (fine, ["--data.source", "folder", "--data.path", "{tmp}/nowhere"], ["{tmp}/nowhere"]),
    "no path": (fine, ["--data.source", "folder"], ["data.path"]),
    "empty folder": (lambda path: (path / "images").mkdir(), FROM_FOLDER, ["{tmp}/images"]),
    "no images": (no_images, FROM_FOLDER, ["{tmp}/images", "txt"]),
    "truncated": (truncated, FROM_FOLDER, ["03.png"]),
    "mixed channels": (mixed_channels, FROM_FOLDER, ["05.png", "1 channels", "3"]),
    "mixed sizes": (mixed_sizes, FROM_FOLDER, ["05.png", "9, 8", "data.size"]),
    "too few": (fine, [*FROM_FOLDER, "--train.batch_size", "64"], ["train.batch_size 64"]),
    "fp16 on a CPU": (fine, ["--train.precision", "fp16"], ["fp16", "CPU"]),
    "too few processes": (fine, ["--train.processes", "2"], ["1 process", "2 were asked"]),
    "indivisible batch": (fine, ["--train.accumulation", "3"], ["train.batch_size 8", "3"]),
    "meaningless": (
        fine,
        ["--diffusion.target", "epsilon", "--diffusion.schedule", "zero_terminal_snr"],
        ["epsilon", "zero_terminal_snr"],
    ),
    "other column": (
        lambda path: write_table(path / "table.parquet"),
        ["--data.source", "dataset", "--data.path", "{tmp}/table.parquet"],
        ["image", "picture"],
    ),
    "no settings file": (fine, ["--config", "{tmp}/no.yaml"], ["{tmp}/no.yaml"]),
}


def write_table(path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"picture": [1, 2]}).to_parquet(path)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name: str, tmp_path: Path, run_script) -> None:
    prepare, words, expected = MISTAKES[name]
    prepare(tmp_path)
    run = tmp_path / "run"
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    code, _, errors = run_script("train/denoise.py", *command_arguments(run), *words)
    assert code == 2
    sentence = one_sentence(errors)
    assert all(part.replace("{tmp}", str(tmp_path)) in sentence for part in expected), sentence
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("words", [["--seed", "5"], ["--model.channels", "[8,16]"]])
def test_folder_of_another_run_is_left_alone(words: list[str], tmp_path: Path, run_script) -> None:
    run = tmp_path / "run"
    fit(run, steps=3)
    before = (run / "config.yaml").read_text()
    code, _, errors = run_script("train/denoise.py", *command_arguments(run), *words)
    assert code == 2
    assert words[0].removeprefix("--") in one_sentence(errors)
    assert (run / "config.yaml").read_text() == before


def test_checkpoint_of_another_network_is_named_by_the_command(tmp_path: Path, run_script) -> None:
    """Someone edits the settings of a run in its folder, and gives the same ones."""
    run = tmp_path / "run"
    fit(run, steps=3)
    saved = run / "config.yaml"
    saved.write_text(saved.read_text().replace("  - 8\n  - 8\n", "  - 8\n  - 16\n", 1))
    code, _, errors = run_script("train/denoise.py", *command_arguments(run), "--model.channels", "[8,16]")
    assert code == 2
    assert "is of another network: at decoder.level0_block0" in one_sentence(errors)
    assert (run / "checkpoints" / "step-00000003").is_dir()


def test_folder_of_something_else_is_left_alone(tmp_path: Path, run_script) -> None:
    (tmp_path / "thesis.tex").write_text("dear to someone")
    code, _, errors = run_script("train/denoise.py", *command_arguments(tmp_path))
    assert code == 2
    assert "holds other files" in one_sentence(errors)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A finished run on digits."""
    run = tmp_path_factory.mktemp("digits") / "run"
    fit(run)
    return run


SAMPLING_MISTAKES = {
    "no run": (["{tmp}/nowhere"], "{tmp}/nowhere"),
    "no network": (["{tmp}"], "holds no network"),
    "steps": (["{run}", "--steps", "0"], "steps is 0"),
    "label": (["{run}", "--labels", "12"], "[12]"),
    "label name": (["{run}", "--labels", "cat"], "cat"),
    "sampler": (["{run}", "--sampler", "magic"], "magic"),
    "size": (["{run}", "--size", "8", "8", "8"], "size"),
    "guidance": (["{run}", "--guidance", "2", "--labels", "none"], "guidance"),
    "checkpoint": (["{run}", "--checkpoint", "step-1"], "step-00000006"),
    "number": (["{run}", "--num", "0"], "num is 0"),
    "interval": (["{run}", "--cache_interval", "0"], "cache_interval is 0"),
    "divided at": (["{run}", "--cache_interval", "2", "--cache_step", "level9"], "cache_step is 'level9'; expected"),
    "divided without reuse": (["{run}", "--cache_step", "stem"], "'stem' needs a cache_interval above 1"),
}


@pytest.mark.parametrize("name", SAMPLING_MISTAKES)
def test_sampling_mistakes_end_in_one_sentence(name: str, digits: Path, tmp_path: Path, run_script) -> None:
    words, expected = SAMPLING_MISTAKES[name]
    words = [word.replace("{run}", str(digits)).replace("{tmp}", str(tmp_path)) for word in words]
    code, _, errors = run_script("sample/images.py", *words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert expected.replace("{tmp}", str(tmp_path)) in one_sentence(errors)


def test_sampling_writes_what_it_says(digits: Path, tmp_path: Path, run_script) -> None:
    out = tmp_path / "out"
    words = [
        str(digits),
        "--num",
        "6",
        "--steps",
        "3",
        "--labels",
        "3,1",
        "--guidance",
        "2",
        "--animate",
        "--seed",
        "4",
        "--precision",
        "auto",
    ]
    code, said, errors = run_script("sample/images.py", *words, "--out", str(out))
    assert code == 0, errors
    assert "a call of the network takes" in said
    stored = np.load(out / "samples.npz")
    assert stored["images"].shape == (6, 16, 16, 1)
    assert stored["images"].dtype == np.uint8
    assert stored["labels"].tolist() == [3, 1] * 3
    assert stored["seeds"].tolist() == [4, 5, 6, 7, 8, 9]
    picture = np.asarray(Image.open(out / "00002.png"))
    assert np.array_equal(picture, stored["images"][2, ..., 0])
    assert Image.open(out / "grid.png").width > 100
    assert getattr(Image.open(out / "denoising.gif"), "n_frames", 1) > 1


def test_sampling_does_not_depend_on_the_batch_or_the_processes(digits: Path, tmp_path: Path) -> None:
    words = ["sample/images.py", str(digits), "--num", "7", "--steps", "4", "--sampler", "ddpm"]
    words += ["--cache_interval", "3", "--out"]
    for name, more, processes in (("whole", [], 1), ("parts", ["--batch_size", "2"], 1), ("shared", [], 2)):
        done = command(*words, str(tmp_path / name), *more, processes=processes)
        assert done.returncode == 0, done.stderr
    whole, parts, shared = (
        np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in ("whole", "parts", "shared")
    )
    # 1e-4 of the range may move a rounded value by one.
    assert np.abs(whole - parts).max() <= 1
    assert np.abs(whole - shared).max() <= 1


@pytest.mark.parametrize(("source", "dims"), [("waveforms", 1), ("blobs", 3)])
def test_signals_and_volumes_train_resume_and_sample(source: str, dims: int, tmp_path: Path, run_script) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    for steps in (2, 4):
        words = [*command_arguments(run, steps=steps), "--data.source", source]
        code, _, errors = run_script("train/denoise.py", *words)
        assert code == 0, errors
    code, _, errors = run_script("sample/images.py", str(run), "--num", "2", "--steps", "2", "--out", str(out))
    assert code == 0, errors
    assert np.load(out / "samples.npz")["images"].ndim == dims + 2
    assert {"grid.png", "00000.png", "00001.png"} <= {path.name for path in out.iterdir()}


def test_diffusers_folder_is_sampled_too(tmp_path: Path, run_script) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(small_diffusers(), DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    words = [str(tmp_path / "theirs"), "--num", "2", "--steps", "2", "--out", str(tmp_path / "out")]
    code, _, errors = run_script("sample/images.py", *words)
    assert code == 0, errors
    assert np.load(tmp_path / "out" / "samples.npz")["images"].shape == (2, 8, 8, 3)


@pytest.mark.parametrize("words", [["--help"], ["configs/digits.yaml", "--train.stps", "3"]])
def test_settings_answer_at_once(words: list[str]) -> None:
    seconds = []
    for _ in range(4):  # the first warms up; other tests run beside this one, so the fastest counts
        start = time.perf_counter()
        done = command("train/denoise.py", *words)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == (0 if words == ["--help"] else 2)
    assert min(seconds) < 0.6


def test_printed_settings_are_a_settings_file(tmp_path: Path) -> None:
    printed = command("train/denoise.py", "configs/digits.yaml", "--train.steps", "7", "--print_config").stdout
    (tmp_path / "again.yaml").write_text(printed)
    again = command("train/denoise.py", str(tmp_path / "again.yaml"), "--print_config").stdout
    assert "steps: 7" in printed
    assert again == printed


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_settings_file_is_accepted(path: Path) -> None:
    header = path.read_text().split("\n", 1)[0]
    script = header.split()[2]
    assert header.startswith(f"# python {script} configs/{path.name}")
    if script == "train/pipeline.py":
        assert read_pipeline(str(path), None).stages
        return
    assert script in ("train/denoise.py", "train/segment.py")
    done = command(script, str(path), "--print_config")
    assert done.returncode == 0, done.stderr


def test_copied_run_still_loads(digits: Path, tmp_path: Path) -> None:
    from unetdiff import load_run

    shutil.copytree(digits, tmp_path / "elsewhere")
    assert load_run(tmp_path / "elsewhere").format.class_names is not None
