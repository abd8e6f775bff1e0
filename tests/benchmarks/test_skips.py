"""The study of skips: its tasks against peers, its metrics on closed cases, its demonstrations, resumption and page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks.skip_study import experiments, few_images, flood, gradient, spike
from benchmarks.skip_study.figures import images_needed, over_depth
from benchmarks.skip_study.fitting import ARMS, build, count, fit
from benchmarks.skip_study.images import pack, unpack
from benchmarks.skip_study.report import page, write_report
from benchmarks.skip_study.study import Measurement, read_experiments, run_study

TINY: dict[str, Any] = {
    "channels": [4, 4],
    "blocks": 1,
    "decoder_blocks": 1,
    "middle": False,
    "in_channels": 1,
    "sample_size": 16,
}
UNTIMED: dict[str, Any] = {**TINY, "time_embedding": "none"}
UNTIMED_DDPM: dict[str, Any] = {**UNTIMED, "norm": {"preset": "ddpm", "time": "none"}}

SMALL: dict[str, Any] = {
    "spike": spike.Spike(network=UNTIMED, size=8, most=4, steps=2, batch_size=2, every=2),
    "gradient": gradient.Gradient(depths=(2, 3), channels=4, size=8, batch_size=2, seeds=2),
    "flood": flood.FloodFill(
        network={**UNTIMED_DDPM, "in_channels": 2, "out_channels": 1},
        seeds=(0, 1),
        size=8,
        stride=2,
        steps=2,
        batch_size=2,
        held_out=4,
        watched=2,
        shown=2,
    ),
    "few_images": few_images.FewImages(
        networks=dict.fromkeys(("unet", "autoencoder"), TINY),
        counts=(2, 8),
        seeds=(0, 1),
        steps=2,
        longer=2,
        batch_size=2,
        timesteps=(100, 900),
        held_out=4,
        watched=2,
        shown=2,
    ),
}
SMALL["few_images_x0"] = replace(SMALL["few_images"], experiment="few_images_x0", target="x0", longer=0, seeds=(0,))


def small_measurements() -> Iterator[Measurement]:
    for settings in SMALL.values():
        yield from settings.measurements()


# ---- tasks


def drawn(images: int = 64, size: int = 24, stride: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    walls = flood.winding_walls(images, size, stride, generator)
    return walls, flood.random_seeds(walls, generator)


@pytest.mark.parametrize("kind", ["winding", "scattered"])
def test_flood_fill_is_the_labelled_region_of_the_seed(kind: str) -> None:
    walls, seeds = drawn()
    if kind == "scattered":  # walls that leave diagonal gaps, which a step to the side does not pass
        generator = torch.Generator().manual_seed(1)
        walls = torch.rand(walls.shape, generator=generator) < 0.4
        seeds = flood.random_seeds(walls, generator)
    for wall, seed, filled in zip(walls.numpy(), seeds.numpy(), flood.flood_fill(walls, seeds).numpy(), strict=True):
        labels, _ = ndimage.label(~wall)  # pyright: ignore[reportGeneralTypeIssues]
        np.testing.assert_array_equal(filled, labels == labels[seed].item())


def test_walls_are_thin_and_cut_the_image_in_two() -> None:
    for size in (24, 25):
        walls, _ = drawn(size=size)
        for wall in walls.numpy():
            assert ndimage.label(~wall)[1] >= 2  # pyright: ignore[reportIndexIssue]
            assert ndimage.label(wall, np.ones((3, 3)))[1] == 1  # pyright: ignore[reportIndexIssue]
            assert not (wall[1:, 1:] & wall[1:, :-1] & wall[:-1, 1:] & wall[:-1, :-1]).any()


def test_seeds_are_single_free_pixels() -> None:
    walls, seeds = drawn()
    assert (seeds.flatten(1).sum(1) == 1).all()
    assert not (seeds & walls).any()
    assert len({int(seed.flatten().int().argmax()) for seed in seeds}) > 32


def test_training_images_are_textures_and_few_to_many_spikes() -> None:
    images = spike.training_images(400, 16, 32, torch.Generator().manual_seed(0))
    assert images[::2].var().item() == pytest.approx(1, rel=0.03)
    numbers = (images[1::2] != 0).flatten(1).sum(1)
    assert (numbers.min(), numbers.max()) == (1, 32)
    assert numbers.float().median() < 10
    assert set(images[1::2].unique().tolist()) == {-spike.HEIGHT, 0.0, spike.HEIGHT}


def test_smaller_sets_of_digits_are_parts_of_larger_ones() -> None:
    torch.testing.assert_close(few_images.training_digits(8, 1), few_images.training_digits(32, 1)[:8])
    assert not torch.equal(few_images.training_digits(8, 1), few_images.training_digits(8, 2))
    with pytest.raises(ValueError, match="asks for 2000 training digits; there are 1347"):
        few_images.training_digits(2000, 0)


# ---- metrics


def test_iou_of_closed_cases() -> None:
    left, top, nothing = torch.zeros(3, 4, 4, dtype=torch.bool)
    left[:, :2], top[:2] = True, True
    found, truth = torch.stack([left, left, left, nothing]), torch.stack([left, top, ~left, nothing])
    torch.testing.assert_close(flood.iou(found, truth), torch.tensor([1, 1 / 3, 0, 1]))


def test_response_of_a_copy_and_of_a_blurred_spike() -> None:
    rows, columns = torch.tensor([4, 4]), torch.tensor([5, 5])
    responses = torch.zeros(2, 9, 9)
    responses[0, 4, 5] = 4
    responses[1, 4, 5], responses[1, 4, 2], responses[1, 8, 5] = 2, 1, -1  # three and four pixels away
    found = spike.measure(responses, rows, columns, height=4)
    torch.testing.assert_close(found.returned, torch.tensor([1, 1 / 4]))
    torch.testing.assert_close(found.share, torch.tensor([1, 4 / 6]))
    torch.testing.assert_close(found.width, torch.tensor([0, math.sqrt(25 / 6)]))


def test_images_needed_are_interpolated_between_logarithms() -> None:
    counts, errors = [8, 32, 128], [0.4, 0.2, 0.1]  # falls with the square root
    assert images_needed(counts, errors, 0.4 / math.sqrt(2)) == pytest.approx(16)
    assert images_needed(counts, errors, 0.2) == pytest.approx(32)
    assert images_needed(counts, errors, 0.5) == 8
    assert images_needed(counts, errors, 0.09) is None


def test_depths_have_geometric_means() -> None:
    result = {"gradient_norms": {"unet": [[1.0, 4.0], [1e-3, 1e-3]]}}
    means, deviations = over_depth(result, "unet")
    np.testing.assert_allclose(means, [2, 1e-3])
    np.testing.assert_allclose(deviations, [math.exp(math.log(4) / math.sqrt(2)), 1])


def test_packed_images_come_back() -> None:
    image = np.array([[-1.0, 1.0], [0.2, 7.0]])
    text = pack(image)
    assert text == "2x2:AP+Z/w=="
    np.testing.assert_allclose(unpack(text), [[-1, 1], [0.2, 1]], atol=1 / 255)


def test_a_fit_learns_at_a_falling_rate_and_is_watched_to_the_end() -> None:
    network = build(UNTIMED_DDPM, "unet", 0)
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    moments = iter(range(100))
    seen = fit(network, lambda: (image, None, image), steps=30, learning_rate=1e-2, watch=lambda: next(moments))
    assert [step for step, _ in seen] == [4, 8, 11, 15, 19, 22, 26, 30]
    assert not network.training
    assert (network(image).sample - image).square().mean() < 0.1 * image.square().mean()


# ---- demonstrations


def test_networks_of_one_width_learn_as_many_numbers_with_added_skips_as_without() -> None:
    counts = {arm: count(build(flood.FloodFill().network, arm, 0)) for arm in ARMS}
    assert counts["added"] == counts["autoencoder"] < counts["unet"]


def test_the_control_learns_at_least_as_many_numbers() -> None:
    counts = {arm: count(build(settings, arm, 0)) for arm, settings in few_images.FewImages().networks.items()}
    assert 1 <= counts["autoencoder"] / counts["unet"] < 1.01


def test_a_spike_comes_back_with_skips_alone() -> None:
    settings = spike.Spike(size=16, steps=80, batch_size=8, most=8)
    with_skips, without = (settings.run("bare", arm, 0) for arm in ("unet", "autoencoder"))
    assert with_skips["share"] > 0.95
    assert with_skips["returned"] == pytest.approx(1, abs=0.25)
    assert with_skips["width"] < 1
    assert without["returned"] < 0.2
    assert without["width"] > 2


def test_gradients_vanish_with_depth_without_skips_norms_and_shortcuts() -> None:
    settings = gradient.Gradient(depths=(2, 5), size=32, batch_size=2, seeds=2)
    norms = {arm: over_depth(settings.run("bare_torch"), arm)[0] for arm in ("unet", "autoencoder")}
    assert norms["unet"][1] > 0.1 * norms["unet"][0]
    assert norms["autoencoder"][1] < 1e-6 * norms["autoencoder"][0]
    assert norms["autoencoder"][0] < norms["unet"][0]


def test_shortcuts_carry_gradients_without_skips_too() -> None:
    settings = gradient.Gradient(depths=(5,), size=32, batch_size=2, seeds=2)
    norms = {arm: over_depth(settings.run("ddpm"), arm)[0][0] for arm in ("unet", "autoencoder")}
    assert 0.1 < norms["unet"] / norms["autoencoder"] < 10


@pytest.mark.slow
def test_flood_fill_is_learned_with_skips_and_not_without() -> None:
    reached = {arm: flood.FloodFill().run(arm, 0)["iou"] for arm in ("unet", "autoencoder")}
    assert reached["unet"] >= 0.95
    assert reached["autoencoder"] < 0.95
    assert reached["unet"] - reached["autoencoder"] > 0.05


# ---- running and the page


def test_finished_measurements_are_skipped_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    done: list[str] = []

    def measurement(name: str) -> Measurement:
        def run() -> dict[str, Any]:
            if name == "b" and "b" not in done:
                done.append(name)
                raise KeyboardInterrupt
            done.append(name)
            return {"arm": "unet"}

        return Measurement("spike", name, {"steps": 2}, run)

    with pytest.raises(KeyboardInterrupt):
        run_study(map(measurement, "abc"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert run_study(map(measurement, "abc"), tmp_path) == 2
    assert done == ["a", "b", "b", "c"]
    assert run_study(map(measurement, "abc"), tmp_path) == 0
    assert [result["arm"] for result in read_experiments(tmp_path)["spike"]] == ["unet"] * 3
    other = replace(measurement("a"), conditions={"steps": 3})
    with pytest.raises(ValueError, match="made with steps 2, not 3"):
        run_study([other], tmp_path)


def test_a_measurement_repeats() -> None:
    for settings in SMALL.values():
        measurement = next(settings.measurements())
        assert measurement.run() == measurement.run()


def test_settings_survive_json(tmp_path: Path) -> None:
    """What is compared on resumption is what a file gives back."""
    chosen = [next(settings.measurements()) for settings in SMALL.values()]
    assert run_study(chosen, tmp_path) == len(SMALL)
    assert run_study(chosen, tmp_path) == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of all small experiments."""
    folder = tmp_path_factory.mktemp("project") / "benchmarks" / "results" / "skips"
    run_study(small_measurements(), folder)
    return folder


def test_the_page_is_written_from_results_alone(results: Path) -> None:
    docs = results.parents[2] / "docs"
    write_report(results, docs)
    text = (docs / "skips.md").read_text()
    assert "from the results in `benchmarks/results/skips`" in text
    assert not re.search(r"[{}]|nan|None", text)
    shown = re.findall(r"\(pictures/(\S+)\)", text)
    assert len(shown) == 7
    assert sorted(shown) == sorted(path.name for path in (docs / "pictures").iterdir())


def test_the_page_says_who_learned_and_how_many_images_are_needed(results: Path) -> None:
    found = read_experiments(results)
    scores = {"unet": [0.96, 0.98], "added": [0.94, 0.96], "autoencoder": [0.8, 0.9]}
    for result in found["flood"]:
        result["iou"] = scores[result["arm"]][result["seed"]]
    errors = {"unet": {2: 0.2, 8: 0.1}, "autoencoder": {2: 0.4, 8: 0.1 * math.sqrt(2)}}
    for result in found["few_images"]:
        result["error"] = errors[result["arm"]][result["images"]]
    found["few_images_x0"] = found["few_images"]
    found["longer"][0]["error"] = 0.1
    text = page(found, "somewhere")
    assert "U-Net: learns it: at least 0.960 with every seed" in text
    assert "Skips added: learns it with some seeds: 0.940 to 0.960" in text
    assert "No skips: does not learn it: at most 0.900" in text
    assert "| no skips | " in text
    assert "| 0.850 ± 0.071 |" in text
    rows = [line.split(" | ")[-1] for line in text.splitlines() if re.match(r"\| [28] \|", line)]
    assert rows == ["5 |", "more than 8 |"] * 2  # 2 * 4^(2/3) is 5.04
    assert "before 0.141. What it lacked was mostly steps" in text
    assert "is 1.41 to 2.00 times the U-Net's" in text


def test_a_page_of_some_experiments_has_their_sections_alone(results: Path) -> None:
    text = page({"gradient": read_experiments(results)["gradient"]}, "somewhere")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Gradient at the first layer"]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results; run the study first"):
        write_report(tmp_path, tmp_path / "docs")
    with pytest.raises(ValueError, match="no experiment is called 'spikes'; there are: spike, gradient, flood, few"):
        list(experiments.measurements(["spikes"]))


def test_every_measurement_has_a_file_of_its_own() -> None:
    names = [measurement.name for measurement in experiments.measurements()]
    assert len(set(names)) == len(names)
