from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from unetdiff.config import DataConfig
from unetdiff.data import sources
from unetdiff.data.formats import DataFormat
from unetdiff.data.loader import Batch, fixed_batches, training_loader
from unetdiff.data.order import batch_indices
from unetdiff.data.sources import Source, open_source

from .conftest import SaveImage

SETTINGS = DataConfig(source="waveforms", random_flip=True, random_crop=3)


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(SETTINGS)


def batches(source: Source, count: int, settings: DataConfig = SETTINGS, **options) -> list[Batch]:
    stream = training_loader(source, settings, **{"batch_size": 12, "seed": 4} | options)
    taken = list(islice(stream, count))
    stream.close()
    return taken


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_batches_are_the_samples_of_the_order(source: Source):
    plain = DataConfig(source="waveforms")
    (batch,) = batches(source, 1, plain, start_step=3)
    indices, positions = batch_indices(4, 3, 12, len(source))
    read = source.read(indices)
    assert batch["sample"].shape == (12, 1, 64)
    assert batch["sample"].dtype == torch.float32
    assert batch["position"].tolist() == positions.tolist()
    assert batch["label"].tolist() == read["label"].tolist()
    torch.testing.assert_close(batch["sample"], source.format.encode(read["sample"]), rtol=0, atol=0)
    assert batch["sample"].abs().max() <= 1 + 1e-6


def test_samples_travel_as_they_are_stored_and_are_scaled_on_the_device(monkeypatch):
    source = open_source(DataConfig(source="digits"))
    seen = []

    def scale(self: DataFormat, values: torch.Tensor) -> torch.Tensor:
        seen.append((values.device.type, values.dtype))
        return whole(self, values)

    whole = DataFormat.scale
    monkeypatch.setattr(DataFormat, "scale", scale)
    away = next(training_loader(source, DataConfig(source="digits"), batch_size=4, seed=0, device="meta"))
    assert seen == [("meta", torch.uint8)]
    assert (away["sample"].device.type, away["sample"].dtype) == ("meta", torch.float32)
    assert (away["label"].device.type, away["position"].device.type) == ("meta", "cpu")


def test_resuming_and_workers_change_nothing(source: Source):
    straight = batches(source, 6)
    assert_same(straight[4:], batches(source, 2, start_step=4))
    assert_same(straight, batches(source, 6, workers=2))
    assert_same(straight[4:], batches(source, 2, start_step=4, workers=1))


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (1, 3), (2, 2)])
def test_processes_and_accumulation_join_to_the_same_batch(source: Source, world_size: int, micro_batches: int):
    (whole,) = batches(source, 1, start_step=2)
    parts = [
        part
        for rank in range(world_size)
        for part in batches(
            source, micro_batches, start_step=2, rank=rank, world_size=world_size, micro_batches=micro_batches
        )
    ]
    assert_same([whole], [{key: torch.cat([part[key] for part in parts]) for key in whole}])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_left_alone(source: Source, workers: int):
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    with_first_seed = batches(source, 3, workers=workers)
    torch.testing.assert_close((torch.rand(3), np.random.rand(3)), expected, rtol=0, atol=0)
    assert_same(with_first_seed, batches(source, 3, workers=workers))


def test_large_images_are_cut_at_random_places_in_training_and_at_the_centre_else(
    tmp_path: Path, save_image: SaveImage
):
    for i in range(3):
        save_image(tmp_path / f"{i}.png", (8, 40, 3), seed=i)
    settings = DataConfig(source="folder", path=str(tmp_path), size=8, validation_fraction=0.0)
    source = open_source(settings)
    many = batches(source, 3, settings)
    views = torch.cat([batch["sample"] for batch in many])
    assert views.shape == (36, 3, 8, 8)
    assert len(torch.unique(views, dim=0)) > 20
    assert_same(many, batches(source, 3, settings, workers=1))
    (fixed,) = fixed_batches(source, [0], 1)
    torch.testing.assert_close(fixed["sample"], source.format.encode(source.read([0])["sample"]))


def test_fixed_batches(source: Source):
    taken = list(fixed_batches(source, [5, 1, 9, 1, 0], 2))
    assert [batch["position"].tolist() for batch in taken] == [[0, 1], [2, 3], [4]]
    torch.testing.assert_close(taken[0]["sample"][1], taken[1]["sample"][1])
    assert torch.cat([batch["label"] for batch in taken]).tolist() == [1, 1, 1, 1, 0]
    assert_same(taken, list(fixed_batches(source, [5, 1, 9, 1, 0], 2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_later_is_named_in_one_line(
    image_folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    settings = DataConfig(source="folder", path=str(image_folder), validation_fraction=0.0)
    source = open_source(settings)
    (image_folder / "ant" / "4.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^.*ant/4\.png is not a readable image; [^\n]*\.$"):
        batches(source, 1, settings, workers=workers)
    assert not multiprocessing.active_children()


def test_batch_size_is_checked_at_once(source: Source):
    with pytest.raises(ValueError, match=r"train\.batch_size 12"):
        training_loader(source, SETTINGS, batch_size=12, seed=0, world_size=5)


SCRIPT = """
import os, signal, time
from unetdiff.config import DataConfig
from unetdiff.data import open_source, training_loader
if __name__ == "__main__":
    settings = DataConfig(source="waveforms")
    signal.signal(signal.SIGTERM, lambda *_: print("told to stop", flush=True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = training_loader(open_source(settings), settings, batch_size=8, seed=0, workers=2)
    for _ in range(4):  # until both workers have begun
        next(stream)
    os.killpg(0, signal.SIGTERM)
    os.killpg(0, signal.SIGINT)
    time.sleep(0.2)
    for _ in range(20):
        next(stream)
    print("went on", flush=True)
    print(time.monotonic())
"""


def test_signals_to_the_whole_group_reach_the_main_process_only():
    """As a batch system sends them; the workers go on, and end at once with a stream that nobody closed."""
    import time

    command = [sys.executable, "-c", SCRIPT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=40)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    lines = output.split("\n")
    assert (process.returncode, lines[:2]) == (0, ["told to stop", "went on"])
    assert time.monotonic() - float(lines[2]) < 4


def test_importing_the_package_does_not_import_torch():
    code = "import sys, unetdiff.data as d; d.key; d.StepBatchSampler; d.open_source; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
