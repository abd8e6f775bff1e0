"""sample/masks.py as a user meets it: images of every form, large ones in parts, figures, objects, and mistakes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.testing import assert_close

from tests.networks import redraw
from tests.runs import ROOT, command, one_sentence
from tests.training.test_segment import fit_masks
from unetdiff import UNet, load_run
from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import MaskEncoding
from unetdiff.masks import command as mask_command
from unetdiff.masks import inputs as mask_inputs
from unetdiff.presets import preset
from unetdiff.runs import Companions, write_network
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.segmenting import segment

RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float32": (-1.0, 1.0)}
ENCODING = MaskEncoding(kind="values", values=(0, 100, 200), class_names=("ground", "cell", "wall"), ignore=(255,))
SMALL: dict[str, Any] = {"channels": [4, 8], "blocks": 1, "time_embedding": "none", "middle": False}
SIZE = (37, 52)


def run_folder(path: Path, dtype: str = "uint8", bands: int = 1, dims: int = 2, **settings: Any) -> Path:
    """A network of three classes that was never trained, all of which it says somewhere, as a run folder."""
    form = {"dims": dims, "in_channels": bands, "out_channels": 3}
    network = redraw(UNet(**{**SMALL, **settings, **form}), 0.6).eval()
    size = network.layout.fitting_size([32] * dims)
    with torch.no_grad():
        said = network(torch.rand(1, bands, *size) * 2 - 1).sample.movedim(1, -1).flatten(0, -2)
        [bias for name, bias in network.head.named_parameters() if name.endswith("bias")][-1].sub_(said.mean(0))
    low, high = RANGES[dtype]
    format = DataFormat(dims=dims, channels=bands, dtype=dtype, low=low, high=high)
    path.mkdir(parents=True)
    write_network(path, network, Companions(format, masks=ENCODING, settings={"timestep": None}))
    return path


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Numbers over the range of a dtype."""
    low, high = RANGES[dtype]
    return (low + (high - low) * np.random.default_rng(0).random(shape)).astype(dtype)


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Path:
    """Grey images of 8 bits, norms over groups, a stride of 2."""
    return run_folder(tmp_path_factory.mktemp("grey") / "run")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The same with norms over the channels of one position: what it says of a position hangs on its surroundings."""
    norms = {"out": "layer", **{side: {"pos": "pre", "norm": "layer"} for side in ("encoder", "middle", "decoder")}}
    return run_folder(tmp_path_factory.mktemp("local") / "run", norm={"preset": "ddpm", **norms, "time": "none"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    fit_masks(run)
    return run


@pytest.fixture
def masks(run_script, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """The command, on the folder `images` (where no other is named) into the folder `out` of this test."""

    def run(*words: object, images: Path = tmp_path / "images", out: Path = tmp_path / "out") -> tuple[int, str, str]:
        runs = [str(word) for word in words if isinstance(word, Path)]
        rest = [str(word) for word in words if not isinstance(word, Path)]
        return run_script("sample/masks.py", *runs, str(images), "--out", str(out), *rest)

    return run


def saved(folder: Path, **images: np.ndarray) -> Path:
    """Images as files: PNG where it holds them, .npy for floats."""
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        if image.dtype == np.float32:
            np.save(folder / f"{name}.npy", image)
        else:
            Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def finite(folder: Path, name: str, space: tuple[int, ...]) -> None:
    """Whether the results of an image are numbers, of its size."""
    with np.load(folder / f"{name}.npz") as held:
        assert held["probabilities"].shape == (3, *space)
        assert_close(held["probabilities"].astype(np.float32).sum(0), np.ones(space, np.float32), rtol=0, atol=2e-3)
        assert all(np.isfinite(held[entry]).all() for entry in held)


@pytest.mark.parametrize("words", [[], ["--tta", "0,1", "--tile", "8"], ["--tile", "8", "--blend", "mirror"]], ids=str)
def test_odd_images(words: list[str], grey: Path, masks, tmp_path: Path) -> None:
    """A constant image, one position, and images smaller than the stride or a tile."""
    shapes = {"constant": (20, 13), "dot": (1, 1), "line": (1, 9), "tiny": (3, 2)}
    saved(tmp_path / "images", **{name: np.full(shape, 7, np.uint8) for name, shape in shapes.items()})
    code, said, errors = masks(grey, *words, "--instances", "distance")
    assert code == 0, errors
    assert "4 masks" in said
    for name, shape in shapes.items():
        finite(tmp_path / "out", name, shape)
        mask = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert mask.shape == shape
        assert set(mask.ravel().tolist()) <= {0, 100, 200}
        assert (tmp_path / "out" / f"{name}_overlay.png").is_file()


FORMS = {
    "grey, 8 bits": ("uint8", 1, SIZE),
    "grey, 16 bits": ("uint16", 1, SIZE),
    "RGB": ("uint8", 3, (*SIZE, 3)),
    "RGBA": ("uint8", 4, (*SIZE, 4)),
    "floats": ("float32", 1, SIZE),
    "six channels": ("float32", 6, (*SIZE, 6)),
    "a signal": ("float32", 1, (40,)),
    "a volume": ("float32", 2, (5, 9, 7, 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_of_every_form(form: str, masks, tmp_path: Path) -> None:
    dtype, channels, shape = FORMS[form]
    dims = len(shape) - (channels > 1)
    run = run_folder(tmp_path / "run", dtype, channels, dims)
    saved(tmp_path / "images", x=noise(*shape, dtype=dtype))
    code, _, errors = masks(run, "--instances", "components")
    assert code == 0, errors
    finite(tmp_path / "out", "x", shape[:dims])


def write_text(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")


def write_nan(folder: Path) -> None:
    np.save(folder / "x.npy", np.array([[0.0, np.nan], [0.5, 1.0]], np.float32))


def write_damaged(folder: Path) -> None:
    saved(folder, a=noise(9, 9), z=noise(9, 9))
    whole = (folder / "a.png").read_bytes()
    (folder / "m.png").write_bytes(whole[: len(whole) // 2])


def write_twice(folder: Path) -> None:
    saved(folder, a=noise(9, 9))
    np.save(folder / "a.npy", noise(9, 9))


def one_grey(folder: Path) -> None:
    saved(folder, a=noise(9, 9))


# What is wrong: what makes the images, the arguments, and what the sentence must name.
MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "nothing": (lambda folder: None, [], r"images holds no files"),
    "no images": (write_text, [], r"images holds only other files .*notes\.txt"),
    "not a number": (write_nan, [], r"x\.npy has 1 channels of float32 in 2-D; .* takes 1 of uint8"),
    "damaged": (write_damaged, [], r"m\.png cannot be decoded"),
    "channels": (lambda folder: saved(folder, a=noise(9, 9, 3)), [], r"a\.png has 3 channels of uint8"),
    "bits": (lambda folder: saved(folder, a=noise(9, 9, dtype="uint16")), [], r"a\.png has 1 channels of uint16"),
    "a volume": (lambda folder: tifffile.imwrite(folder / "a.tif", noise(5, 9, 9)), [], r"a\.tif has 5 channels"),
    "two of a name": (write_twice, [], r"2 files called a"),
    "names that clash": (
        lambda folder: saved(folder, a=noise(9, 9), a_overlay=noise(9, 9)),
        [],
        r"a and a_overlay would share a file",
    ),
    "no truth": (one_grey, ["--truth", "{tmp}/empty"], r"empty has no mask called a"),
    "truth of another size": (
        one_grey,
        ["--truth", "{tmp}/small"],
        r"a\.png has size \[4, 4\]; the image has \[9, 9\]",
    ),
    "truth of other values": (one_grey, ["--truth", "{tmp}/other"], r"other/a\.png has values 7; expected 0, 100, 200"),
    "truth of colours": (one_grey, ["--truth", "{tmp}/colours"], r"a\.png has 3 channels; expected 1"),
    "into the images": (one_grey, ["--out", "{tmp}/images"], r"--out .* lies in the folder of IMAGES"),
    "below the images": (one_grey, ["--out", "{tmp}/images/masks"], r"--out .* lies in the folder of IMAGES"),
    "into the truth": (one_grey, ["--truth", "{tmp}/empty", "--out", "{tmp}/empty"], r"in the folder of --truth"),
    "into a file": (one_grey, ["--out", "{tmp}/images/a.png"], r"a\.png is a file; expected a folder"),
    "tile": (one_grey, ["--tile", "-1"], r"--tile of at least 0"),
    "overlap": (one_grey, ["--overlap", "1"], r"--overlap of 0 to below 1"),
    "membrane": (one_grey, ["--truth", "{tmp}/empty", "--membrane", "nucleus"], r"--membrane names 'nucleus'.*ground"),
    "depth alone": (one_grey, ["--depth", "2"], r"nothing reads --depth without --instances"),
    "size of objects alone": (one_grey, ["--min_size", "1"], r"nothing reads --min_size without --instances"),
    "background alone": (one_grey, ["--background", "0"], r"nothing reads --background without --instances"),
    "membrane alone": (one_grey, ["--membrane", "0"], r"nothing reads --membrane without --truth"),
    "distances alone": (one_grey, ["--hd95"], r"nothing reads --hd95 without --truth"),
    "seed alone": (one_grey, ["--seed", "0"], r"nothing reads --seed without --passes"),
    "depth of components": (one_grey, ["--instances", "components", "--depth", "2"], r"--depth is 2\.0"),
    "size of objects": (one_grey, ["--instances", "components", "--min_size", "0"], r"--min_size is 0"),
    "axes of flips unknown": (
        one_grey,
        ["--tta"],
        r"data\.augment\.flips .* of .*/run, .*name them, such as --tta 0,1",
    ),
    "axes of flips": (one_grey, ["--tta", "0,2"], r"--tta names axis 2; expected axes from 0 to 1 of 2-D images"),
    "axes twice": (one_grey, ["--tta", "1,1"], r"--tta: expected .* each once, such as 0,1; got '1,1'"),
    "words for axes": (one_grey, ["--tta", "all"], r"--tta: expected .* such as 0,1; got 'all'"),
    "passes without dropout": (
        one_grey,
        ["--passes", "3"],
        r"run was trained without dropout; expected --passes 1, or a run with model\.dropout above 0",
    ),
    "no such weights": (one_grey, ["--weights", "ema:7"], r"no weights 'ema:7'"),
    "no such option": (one_grey, ["--tiles", "4"], r"--tiles"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name: str, grey: Path, masks, tmp_path: Path) -> None:
    make, words, expected = MISTAKES[name]
    (tmp_path / "images").mkdir()
    make(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "small", a=np.zeros((4, 4), np.uint8))
    saved(tmp_path / "other", a=np.full((9, 9), 7, np.uint8))
    saved(tmp_path / "colours", a=np.zeros((9, 9, 3), np.uint8))
    code, _, errors = masks(grey, *(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert code == 2
    assert re.search(expected, one_sentence(errors)), errors


@pytest.mark.parametrize("size", [None, (4, 4)], ids=["missing", "of another size"])
@pytest.mark.parametrize("kind", ["png", "npy", "tif", "jpg"])
def test_truth_is_looked_at_before_the_first_image_is_segmented(
    kind: str, size: tuple[int, int] | None, grey: Path, masks, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "truth").mkdir()
    for name, space in (("a", (9, 9)), ("b", size)):
        Image.fromarray(noise(9, 9)).save(tmp_path / "images" / f"{name}.{'jpg' if kind == 'jpg' else 'png'}")
        if space is not None and kind == "npy":
            np.save(tmp_path / "truth" / f"{name}.npy", np.zeros(space, np.uint8))
        elif space is not None:
            suffix = "tif" if kind == "tif" else "png"
            Image.fromarray(np.zeros(space, np.uint8)).save(tmp_path / "truth" / f"{name}.{suffix}")
    code, _, errors = masks(grey, "--truth", f"{tmp_path}/truth")
    assert code == 2
    expected = "has no mask called b" if size is None else r"b\.\w+ has size \[4, 4\]; the image has \[9, 9\]"
    assert re.search(expected, one_sentence(errors))
    assert not list((tmp_path / "out").glob("*"))


def test_values_that_are_no_numbers_are_named(masks, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "float32")
    (tmp_path / "images").mkdir()
    write_nan(tmp_path / "images")
    code, _, errors = masks(run)
    assert code == 2
    assert re.search(r"x\.npy holds NaN or infinity; expected finite numbers", one_sentence(errors))


def test_no_image_at_all_and_text_for_an_image(grey: Path, masks, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for name, expected in (("nowhere", "there is no"), ("notes.txt", "is no image")):
        code, _, errors = masks(grey, images=tmp_path / name)
        assert code == 2
        assert expected in one_sentence(errors)


def test_a_denoiser_and_other_classes_are_refused(grey: Path, masks, trained: Path, tmp_path: Path) -> None:
    saved(tmp_path / "images", a=noise(9, 9))
    code, _, errors = masks(grey, trained)
    assert code == 2
    assert "was trained on other data or classes" in one_sentence(errors)


def test_a_second_run_writes_the_same(grey: Path, masks, tmp_path: Path) -> None:
    saved(tmp_path / "images", a=noise(*SIZE))
    found = []
    for _ in range(2):
        assert masks(grey, "--instances", "probability")[0] == 0
        found.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".npz"})
    assert found[0] == found[1]


def test_truth_that_is_all_ignored(grey: Path, masks, tmp_path: Path) -> None:
    """Alone no figure is defined; among others the image counts nowhere."""
    saved(tmp_path / "images", a=noise(9, 9))
    truth = saved(tmp_path / "truth", a=np.full((9, 9), 255, np.uint8), b=np.zeros((9, 9), np.uint8))
    code, said, errors = masks(grey, "--truth", truth.as_posix())
    assert code == 0, errors
    assert "mean IoU –, mean Dice –" in said
    saved(tmp_path / "images", b=noise(9, 9))
    assert masks(grey, "--truth", truth.as_posix())[0] == 0
    computed = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (computed["positions"], computed["ignored"]) == (81, 81)
    assert computed["mean_iou"] == computed["per_image"][1]["mean_iou"]
    assert "NaN" not in (tmp_path / "out" / "metrics.json").read_text()


def test_figures_as_pages_lists_and_numbers(trained: Path, masks, tmp_path: Path) -> None:
    """What a run measured in training is measured by default; images come the worst first."""
    from unetdiff.data.scenes import scenes

    samples, labels = scenes("test")
    for number in range(3):
        saved(tmp_path / "images", **{f"scene{number}": samples[number, ..., 0]})
        saved(tmp_path / "truth", **{f"scene{number}": labels[number].astype(np.uint8)})
    code, said, errors = masks(trained, "--truth", tmp_path.as_posix() + "/truth", "--membrane", "0", "--hd95")
    assert code == 0, errors
    computed = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert f"mean IoU {computed['mean_iou']:.4f}" in said
    assert {"v_rand", "mean_hd95", "mean_boundary_f", "ece"} <= computed.keys()
    page = (tmp_path / "out" / "metrics.md").read_text()
    assert all(label in page for label in ("| V-Rand |", "| class | IoU | Dice |", "worst first", "| background |"))
    with (tmp_path / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    dice = [float(row["mean_dice"]) for row in rows]
    assert dice == sorted(dice)
    assert [row["image"] for row in rows] == re.findall(r"^\| (scene\d)", page, flags=re.MULTILINE)


def test_objects_as_numbers_pictures_and_tables(grey: Path, masks, tmp_path: Path) -> None:
    from skimage.measure import label

    saved(tmp_path / "images", a=noise(*SIZE))
    code, said, errors = masks(grey, "--instances", "components", "--min_size", "2", "--background", "cell")
    assert code == 0, errors
    mask = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    ids = np.asarray(Image.open(tmp_path / "out" / "a_instances.png"))
    assert ids.dtype == np.uint16
    expected = label(np.where(mask == 100, -1, mask.astype(int)), background=-1, connectivity=1)
    sizes = np.bincount(expected.ravel())
    assert ids.max() == (sizes[1:] >= 2).sum() > 1
    assert f"a: {ids.max()} objects" in said
    with (tmp_path / "out" / "a_objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == ids.max()
    for row in rows:
        there = np.argwhere(ids == int(row["object"]))
        assert len(there) == int(row["positions"])
        assert set(mask[tuple(there.T)]) == {ENCODING.values[int(row["class"])]}
        assert row["class_name"] == ENCODING.class_names[int(row["class"])]
        assert np.allclose(there.mean(0), [float(row["y"]), float(row["x"])], atol=0.006)
    assert Image.open(tmp_path / "out" / "a_objects.png").size == SIZE[::-1]


def test_a_network_without_padding(masks, tmp_path: Path) -> None:
    """By tiles and as a whole, the 2015 network sees the image mirrored at its borders."""
    settings = {**preset("unet2015"), "channels": [4, 8], "decoder_blocks": [1, 0], "sample_size": None}
    run = run_folder(tmp_path / "run", **settings)
    saved(tmp_path / "images", a=noise(*SIZE))
    found = []
    for words in ([], ["--tile", "24"], ["--tile", "30", "--blend", "mirror"]):
        code, _, errors = masks(run, *words)
        assert code == 0, errors
        with np.load(tmp_path / "out" / "a.npz") as held:
            found.append(held["probabilities"].astype(np.float32))
    assert found[0].shape == (3, *SIZE)
    for other in found[1:]:
        assert_close(other, found[0], rtol=0, atol=1e-3)  # float16


@pytest.fixture
def predictions(monkeypatch) -> list[np.ndarray]:
    """The probabilities of the images that the command segments, before they are rounded to float16."""
    seen: list[np.ndarray] = []
    write = mask_command.write_segmentation

    def keep(folder, name, image, found, *rest):
        seen.append(found.probabilities)
        write(folder, name, image, found, *rest)

    monkeypatch.setattr(mask_command, "write_segmentation", keep)
    return seen


def test_tiles_with_context_equal_the_whole_image(local: Path, masks, predictions, tmp_path: Path) -> None:
    """A context of 24 covers the receptive field of three convolutions at stride 2 and four at stride 1."""
    saved(tmp_path / "images", a=noise(150, 133))
    for words in ([], ["--tile", "64", "--overlap", "0.75", "--blend", "mirror"]):
        code, _, errors = masks(local, *words)
        assert code == 0, errors
    whole, tiled = map(torch.from_numpy, predictions)
    assert whole.std() > 0.05
    assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_flips_are_those_of_training(grey: Path, masks, predictions, tmp_path: Path) -> None:
    """Of several runs, those that all were trained with."""
    saved(tmp_path / "images", a=noise(*SIZE))
    known = [tmp_path / name for name in ("one", "other")]
    for path, flips in zip(known, ("[0, 1]", "[1]"), strict=True):
        shutil.copytree(grey, path)
        (path / "config.yaml").write_text(f"data: {{augment: {{flips: {flips}}}}}\n")
    for words in ([grey, "--tta", "0,1"], [known[0], "--tta"], [grey, "--tta", "1"], [*known, "--tta"], [grey]):
        code, _, errors = masks(*words)
        assert code == 0, errors
    all_axes, of_one, last_axis, of_both, none = map(torch.from_numpy, predictions)
    assert_close(of_one, all_axes)
    assert_close(of_both, last_axis)
    assert (all_axes - last_axis).abs().max() > 0.01 < (none - last_axis).abs().max()


@pytest.mark.parametrize("held", ["{}", "data: {}", "data: {augment: {flips: []}}"])
def test_flips_of_no_training_are_refused(held: str, grey: Path, masks, tmp_path: Path) -> None:
    saved(tmp_path / "images", a=noise(9, 9))
    shutil.copytree(grey, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(held + "\n")
    code, _, errors = masks(tmp_path / "run", "--tta")
    assert code == 2
    assert "name them, such as --tta 0,1" in one_sentence(errors)


def test_several_processes_share_the_images_out(grey: Path, tmp_path: Path) -> None:
    """Masks, objects, figures and what is said are those of one process."""
    images = saved(tmp_path / "images", **{name: noise(9, 9 + place) for place, name in enumerate("abcde")})
    truth = saved(tmp_path / "truth", **{name: noise(9, 9 + place) % 3 * 100 for place, name in enumerate("abcde")})
    said = {}
    for count in (1, 2):
        out = tmp_path / f"out{count}"
        words = [str(grey), str(images), "--out", str(out), "--truth", str(truth), "--instances", "components"]
        done = command("sample/masks.py", *words, processes=count)
        assert done.returncode == 0, done.stderr
        said[count] = done.stdout.replace(str(out), "OUT")
    assert said[1] == said[2]
    names = sorted(path.name for path in (tmp_path / "out1").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out2").iterdir())
    for name in names:
        if not name.endswith(".npz"):  # zip files hold the time
            assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes(), name


def test_a_damaged_image_ends_every_process(grey: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_damaged(tmp_path / "images")  # m.png, the second of three
    words = [str(grey), str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    done = command("sample/masks.py", *words, processes=2, timeout=100)
    assert done.returncode != 0
    spoken = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(spoken) == 1
    assert "m.png cannot be decoded" in spoken[0]


def test_networks_are_loaded_on_the_device_of_the_process(grey: Path, masks, monkeypatch, tmp_path: Path) -> None:
    saved(tmp_path / "images", a=noise(9, 9))
    devices = []
    monkeypatch.setattr(mask_command, "device_of", lambda state: torch.device("cuda", 1))
    monkeypatch.setattr(
        mask_command, "load_run", lambda path, weights, device: (devices.append(device), load_run(path))[1]
    )
    assert masks(grey, grey)[0] == 0
    assert devices == ["cuda:1"] * 2


def test_tiles_are_those_of_the_settings(grey: Path, masks, predictions, tmp_path: Path) -> None:
    saved(tmp_path / "images", a=noise(*SIZE))
    shutil.copytree(grey, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("evaluation: {tile: 16, overlap: 0.5}\n")
    run = tmp_path / "run"
    given = ([run], [grey, "--tile", "16", "--overlap", "0.5"], [run, "--overlap", "0.25"], [grey, "--tile", "16"])
    for words in (*given, [run, "--tile", "0"], [grey]):
        code, _, errors = masks(*words)
        assert code == 0, errors
    for first, second in zip(predictions[::2], predictions[1::2], strict=True):
        assert (first == second).all()
    assert np.abs(predictions[0] - predictions[2]).max() > 1e-4 < np.abs(predictions[0] - predictions[4]).max()


def test_members_with_other_strides(grey: Path, masks, predictions, tmp_path: Path) -> None:
    """Networks whose tiles end in other rows are read in step."""
    deep = run_folder(tmp_path / "deep", channels=[4, 4, 8])
    saved(tmp_path / "images", a=noise(*SIZE))
    for members in ([grey, deep], [grey], [deep]):
        code, _, errors = masks(*members, "--tile", "24")
        assert code == 0, errors
    both, first, second = map(torch.from_numpy, predictions)
    assert_close(both, (first + second) / 2, rtol=0, atol=1e-6)


@pytest.fixture
def everything_is_large(monkeypatch) -> None:
    monkeypatch.setattr(mask_inputs, "LARGE", 1)
    monkeypatch.setattr(mask_inputs, "TILES", {2: 24})
    monkeypatch.setattr(mask_command, "TILES", {2: 24})


@pytest.mark.parametrize("kind", [".npy", ".png", "tiles", "strips", "stack of planes"])
def test_large_images_in_parts(kind: str, masks, predictions, request, tmp_path: Path) -> None:
    """The results of an image that is read and written in parts are those of the whole one; so are its figures."""
    run = run_folder(tmp_path / "run", bands=3)
    image, labels = noise(*SIZE, 3), noise(*SIZE) % 3 * 100
    (tmp_path / "images").mkdir()
    (tmp_path / "truth").mkdir()
    tiff: dict[str, dict[str, Any]] = {
        "tiles": {"tile": (16, 16), "compression": "zlib", "bigtiff": True},
        "strips": {"rowsperstrip": 5, "compression": "zlib", "predictor": True},
        "stack of planes": {"planarconfig": "separate"},
    }
    if kind in tiff:
        stored = np.moveaxis(image, -1, 0) if "planarconfig" in tiff[kind] else image
        tifffile.imwrite(tmp_path / "images" / "a.tif", stored, photometric="rgb", **tiff[kind])
        tifffile.imwrite(tmp_path / "truth" / "a.tif", labels, tile=(16, 16), compression="zlib")
    else:
        saved(tmp_path / "images", a=image) if kind == ".png" else np.save(tmp_path / "images" / "a.npy", image)
        np.save(tmp_path / "truth" / "a.npy", labels)
    words = [run, "--tile", "24", "--truth", f"{tmp_path}/truth"]
    assert masks(*words, out=tmp_path / "whole")[0] == 0
    request.getfixturevalue("everything_is_large")
    code, _, errors = masks(*words, out=tmp_path / "parts")
    assert code == 0, errors
    assert len(predictions) == 1  # the second was not held
    held = np.load(tmp_path / "parts" / "a_probabilities.npy").astype(np.float32)
    assert_close(held, predictions[0], rtol=0, atol=1e-3)
    mask = np.asarray(Image.open(tmp_path / "whole" / "a.png"))
    assert (np.load(tmp_path / "parts" / "a.npy") == mask).all()
    whole, parts = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "parts"))
    assert parts["confusion"] == whole["confusion"]
    assert parts["per_image"][0]["mean_dice"] == whole["per_image"][0]["mean_dice"]
    assert parts["nll"] == pytest.approx(whole["nll"], rel=1e-6)
    assert parts["ece"] == pytest.approx(whole["ece"], rel=1e-6)
    assert (parts["images"], parts["images_whole"], parts.get("mean_boundary_f")) == (1, 0, None)


def test_objects_of_large_images_are_refused(grey: Path, masks, everything_is_large, tmp_path: Path) -> None:
    saved(tmp_path / "images", b=noise(9, 9))
    np.save(tmp_path / "images" / "a.npy", noise(9, 9))
    for name in ("a.npy", "b.png"):
        code, _, errors = masks(grey, "--instances", "components")
        assert code == 2
        assert f"{name} is too large for --instances" in one_sentence(errors)
        (tmp_path / "images" / name).unlink()
    assert not list((tmp_path / "out").glob("*"))


def test_large_and_small_images_are_measured_together(grey: Path, masks, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mask_inputs, "LARGE", 200)
    saved(tmp_path / "images", small=noise(9, 9), large=noise(20, 20))
    truth = saved(tmp_path / "truth", small=np.zeros((9, 9), np.uint8), large=np.full((20, 20), 100, np.uint8))
    code, _, errors = masks(grey, "--truth", truth.as_posix())
    assert code == 0, errors
    computed = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (computed["images"], computed["images_whole"], computed["positions"]) == (2, 1, 481)
    assert computed["mean_boundary_f"] is not None
    assert "of the 1 images that are held whole" in (tmp_path / "out" / "metrics.md").read_text()


def test_masks_of_nifti_volumes_lie_where_the_images_lie(masks, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    run = run_folder(tmp_path / "run", "float32", dims=3)
    form = load_run(run)
    encoding = MaskEncoding(**{**form.masks.__dict__, "suffix": ".nii.gz"})
    write_network(run, form.unet, Companions(form.format, masks=encoding, settings={"timestep": None}))  # pyright: ignore
    affine = np.diag([0.5, 0.5, 3.0, 1.0]) + np.eye(4, k=3) * 7
    (tmp_path / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(noise(9, 7, 5, dtype="float32"), affine), tmp_path / "images" / "a.nii.gz")
    code, _, errors = masks(run, "--instances", "components")
    assert code == 0, errors
    for name in ("a.nii.gz", "a_instances.nii.gz"):
        held = nibabel.load(tmp_path / "out" / name)
        assert held.shape == (9, 7, 5)
        assert_close(held.affine, affine)


def test_distances_in_nifti_volumes_are_in_millimetres(masks, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    run = run_folder(tmp_path / "run", "float32", dims=3)
    for folder in ("images", "truth"):
        (tmp_path / folder).mkdir()
    image, truth = noise(9, 7, 5, dtype="float32"), 100 * (noise(9, 7, 5) % 3)
    turned = np.array([[0, 0, 3.0, 1], [0.25, 0, 0, 2], [0, 0.5, 0, 3], [0, 0, 0, 1]])  # axes in another order
    nibabel.save(nibabel.Nifti1Image(image, turned), tmp_path / "images" / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(truth.astype(np.uint8), turned), tmp_path / "truth" / "a.nii.gz")
    code, _, errors = masks(run, "--truth", f"{tmp_path}/truth", "--hd95")
    assert code == 0, errors
    metrics = SegmentationMetrics(MetricOptions(class_names=load_run(run).masks.class_names, hd95=True))
    found = segment(load_run(run), image.T[..., None])
    labels = torch.from_numpy(truth.T // 100).long()[None]
    metrics.update(torch.from_numpy(found.probabilities)[None], labels, (3.0, 0.5, 0.25))
    computed = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert computed["hd95"] == pytest.approx(metrics.compute()["hd95"])


PEAK = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(run: Path, side: int, folder: Path) -> float:
    """MiB that the command takes at most for an image (side, side) in tiles of 256, in a process of its own."""
    folder.mkdir()
    np.save(folder / "a.npy", noise(side, side))
    words = [str(run), str(folder / "a.npy"), "--out", str(folder / "out"), "--tile", "256"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "sample/masks.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak ")[1]) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """Results of 3,000 x 3,000 positions are 130 MB; held whole they and what they are made of take 500 MB and more."""
    run = run_folder(tmp_path / "run")
    small, large = (peak_memory(run, side, tmp_path / str(side)) for side in (256, 3000))
    assert large - small < 200, (small, large)
