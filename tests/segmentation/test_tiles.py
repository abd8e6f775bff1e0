"""Tiles against MONAI's sliding windows, against whole images, and against what may be read and held."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.runs import ROOT
from unetdiff.models.unet import UNet
from unetdiff.nn.dims import AVERAGE_POOL, CONV
from unetdiff.segmentation.tile_layout import GaussianTiles, MirrorTiles, Tiles
from unetdiff.segmentation.tiles import mirrored, predict_tiles


@dataclass
class Windows:
    """(C, *space) in memory or memory-mapped; remembers what was read."""

    array: np.ndarray
    read_windows: list[tuple[slice, ...]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    def read(self, window: tuple[slice, ...], /) -> np.ndarray:
        assert all(0 <= part.start < part.stop <= size for part, size in zip(window, self.shape, strict=True))
        self.read_windows.append(window)
        return np.asarray(self.array[:, *window], np.float32)


def tiled(predict: Callable[[Tensor], Tensor], image: Tensor, tiles: Tiles, batch: int = 1) -> Tensor:
    """The whole result (1, K, *space) for an image (1, C, *space); its rows come in order, each once."""
    parts, expected = [], 0
    for start, rows in predict_tiles(predict, Windows(image[0].numpy()), tiles, batch):
        assert start == expected
        parts.append(torch.from_numpy(rows))
        expected += rows.shape[1]
    assert expected == image.shape[2]
    return torch.cat(parts, 1)[None]


def local_network(dims: int, padding: int = 1, stride: int = 1) -> nn.Module:
    """Three convolutions of 3, so that 3 positions to either side are read; 4 * stride at most with a pooling."""
    layers: list[nn.Module] = [CONV[dims](2, 8, 3, padding=padding), nn.SiLU()]
    if stride > 1:
        layers.append(AVERAGE_POOL[dims](stride))
    layers += [CONV[dims](8, 8, 3, padding=padding), nn.SiLU(), CONV[dims](8, 3, 3, padding=padding)]
    if stride > 1:
        layers.append(nn.Upsample(scale_factor=stride))
    return nn.Sequential(*layers, nn.Softmax(1)).eval()


def picture(*shape: int) -> Tensor:
    return torch.rand(1, 2, *shape) * 2 - 1


SIZES = {1: (61,), 2: (41, 58), 3: (13, 17, 21)}
TILES = {1: (16,), 2: (16, 24), 3: (8, 8, 12)}


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gaussian_tiles_give_what_monai_gives(dims: int, overlap: float) -> None:
    from monai.inferers.utils import sliding_window_inference

    network, image, tile = local_network(dims), picture(*SIZES[dims]), TILES[dims]
    with torch.no_grad():
        wanted = sliding_window_inference(image, tile, 3, network, overlap=overlap, mode="gaussian")
    torch.testing.assert_close(tiled(network, image, GaussianTiles(tile, overlap), 3), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(11, 40), (11, 13), (24, 23), (24, 24)])
def test_gaussian_tiles_pad_small_images_as_monai_does(shape: tuple[int, ...]) -> None:
    from monai.inferers.utils import sliding_window_inference

    network, image = local_network(2), picture(*shape)
    with torch.no_grad():
        wanted = sliding_window_inference(
            image, (24, 24), 2, network, overlap=0.25, mode="gaussian", sigma_scale=0.3, padding_mode="reflect"
        )
    found = tiled(network, image, GaussianTiles((24, 24), 0.25, sigma_scale=0.3), 2)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_mirror_tiles_give_what_the_whole_image_gives(dims: int) -> None:
    network, image = local_network(dims), picture(*SIZES[dims])
    with torch.no_grad():
        wanted = network(image)
    enough, too_little = MirrorTiles(TILES[dims], (3,) * dims), MirrorTiles(TILES[dims], (2,) * dims)
    torch.testing.assert_close(tiled(network, image, enough, 4), wanted, atol=1e-6, rtol=0)
    assert (tiled(network, image, too_little, 4) - wanted).abs().max() > 1e-4


def test_the_borders_may_be_mirrored_instead_of_left_to_the_network() -> None:
    network, image = local_network(2), picture(41, 58)
    with torch.no_grad():
        wanted = network(nn.functional.pad(image, (5, 5, 5, 5), mode="reflect"))[..., 5:-5, 5:-5]
    found = tiled(network, image, MirrorTiles((20, 22), (5, 5), border=(5, 5)))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_tiles_that_begin_at_multiples_of_the_stride_give_what_the_whole_image_gives() -> None:
    network, image = local_network(2, stride=4), picture(59, 74)
    with torch.no_grad():  # as the U-Net does: padded to a multiple at the end, cropped
        wanted = network(nn.functional.pad(image, (0, 2, 0, 1), mode="reflect"))[..., :59, :74]
    aligned, not_aligned = (MirrorTiles((36, 40), (13, 13), multiple=to) for to in [(4, 4), None])
    torch.testing.assert_close(tiled(network, image, aligned), wanted, atol=1e-6, rtol=0)
    assert (tiled(network, image, not_aligned) - wanted).abs().max() > 1e-4


@pytest.mark.parametrize(("norm", "most"), [("none", 1e-5), ("pixel", 1e-5), ("group", 0.6)])
def test_tiles_of_the_unet_give_what_it_gives_for_the_whole_image(norm: Any, most: float) -> None:
    """Where its norms are local; group norm reads the tile, and is nearer to the whole image in larger tiles."""
    layer = {"kind": norm, "groups": 4}
    placement = {"encoder": {"norm": layer}, "decoder": {"norm": layer}, "out": layer, "zero_init": []}
    network = UNet(
        channels=[8, 16],
        blocks=1,
        in_channels=2,
        out_channels=3,
        time_embedding="none",
        attention=False,
        middle_attention=False,
        norm=placement,
    ).eval()

    def predict(x: Tensor) -> Tensor:
        return network(x).sample.softmax(1)

    image = picture(143, 101) * torch.linspace(0.1, 1, 101)
    with torch.no_grad():
        wanted = predict(image)
    near, far = (
        float((tiled(predict, image, MirrorTiles((size, size), (32, 32), multiple=(2, 2))) - wanted).abs().max())
        for size in (98, 70)
    )
    assert max(near, far) < most
    assert norm != "group" or 1e-4 < near < far


def test_gaussian_tiles_may_begin_at_multiples_of_the_stride() -> None:
    tiles = GaussianTiles((16,), 0.3, multiple=(4,))
    assert [(span.start, span.stop) for span in tiles.spans(0, 37)] == [(0, 16), (8, 24), (16, 32), (24, 37)]
    assert [(span.start, span.stop) for span in tiles.spans(0, 5)] == [(-4, 5)]
    network, image = local_network(2, stride=4), picture(61, 74)
    with torch.no_grad():
        wanted = network(nn.functional.pad(image, (0, 2, 0, 3), mode="reflect"))[..., :61, :74]
    aligned, not_aligned = (
        float((tiled(network, image, GaussianTiles((32, 32), multiple=to)) - wanted).abs().mean())
        for to in [(4, 4), None]
    )
    assert aligned < not_aligned / 2


@pytest.mark.parametrize("shape", [(11, 58), (11, 13), (58, 20)])
def test_fitted_tiles_leave_short_axes_to_the_network(shape: tuple[int, ...]) -> None:
    network, image = local_network(2), picture(*shape)
    with torch.no_grad():
        wanted = network(image)
    tiles = MirrorTiles((20, 22), (3, 3)).fitted(shape)
    torch.testing.assert_close(tiled(network, image, tiles), wanted, atol=1e-6, rtol=0)
    assert GaussianTiles((20, 22), multiple=(4, 4)).fitted(shape).tile == tuple(
        min(length, -(-size // 4) * 4) for length, size in zip((20, 22), shape, strict=True)
    )
    for fixed in (MirrorTiles((18, 18), (3, 3), (12, 12)), GaussianTiles((18, 18), output=(12, 12))):
        assert fixed.fitted(shape) is fixed


@pytest.mark.parametrize("shape", [(41, 58), (9, 7), (1, 2), (18, 18)])
@pytest.mark.parametrize("kind", [MirrorTiles, GaussianTiles])
def test_valid_networks_lose_their_border_to_mirrored_context(kind: Any, shape: tuple[int, ...]) -> None:
    network, image = local_network(2, padding=0), picture(*shape)
    settings = {"context": (3, 3)} if kind is MirrorTiles else {}
    with torch.no_grad():
        padded = np.pad(image.numpy(), [(0, 0), (0, 0), (3, 3), (3, 3)], mode="reflect")
        wanted = network(torch.from_numpy(padded))
    found = tiled(network, image, kind((18, 18), output=(12, 12), **settings), 2)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_the_sizes_of_2015() -> None:
    spans = MirrorTiles((572,), (92,), (388,)).spans(0, 1000)
    assert [(span.start, span.first, span.stop) for span in spans] == [(-92, 0, 388), (296, 388, 612), (520, 612, 1000)]
    assert all(span.origin == span.start + 92 for span in spans)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (20, 1), (2, 30)])
@pytest.mark.parametrize("tiles", [GaussianTiles((16, 16)), MirrorTiles((16, 16), (2, 2), multiple=(4, 4))])
def test_images_smaller_than_a_tile_come_back_at_their_size(tiles: Tiles, shape: tuple[int, ...]) -> None:
    image = picture(*shape)
    found = tiled(lambda x: x, image, tiles)
    torch.testing.assert_close(found, image, atol=1e-6, rtol=0)


def test_mirrored_positions_are_those_of_numpy() -> None:
    for size in (2, 3, 7):
        wanted = np.pad(np.arange(size), (size - 1, size - 1), mode="reflect")
        np.testing.assert_array_equal(mirrored(np.arange(1 - size, 2 * size - 1), size), wanted)
    np.testing.assert_array_equal(mirrored(np.arange(-5, 9), 3), [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0])
    np.testing.assert_array_equal(mirrored(np.arange(-2, 3), 1), np.zeros(5))


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
@pytest.mark.parametrize("tiles", [GaussianTiles((9, 10), 0.6), MirrorTiles((12, 10), (2, 3))])
def test_the_batch_does_not_matter_and_is_kept_to(tiles: Tiles, batch: int) -> None:
    image, sizes = picture(33, 29), []

    def predict(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x * torch.linspace(0, 1, x.shape[-1])

    found = tiled(predict, image, tiles, batch)
    assert set(sizes[:-1]) <= {batch}
    assert 1 <= sizes[-1] <= batch
    assert torch.equal(found, tiled(lambda x: x * torch.linspace(0, 1, x.shape[-1]), image, tiles, 3))


def test_rows_are_handed_over_as_soon_as_no_later_tile_touches_them() -> None:
    windows = Windows(picture(100, 40)[0].numpy())
    parts = predict_tiles(lambda x: x, windows, GaussianTiles((20, 20), 0.25))  # three tiles side by side
    read_before = {start: len(windows.read_windows) for start, _ in parts}
    assert read_before == {0: 4, 15: 7, 30: 10, 45: 13, 60: 16, 75: 19, 80: 21}


def test_what_was_handed_over_stays() -> None:
    image = picture(64, 16)
    parts = list(predict_tiles(lambda x: x, Windows(image[0].numpy()), GaussianTiles((16, 16), 0.7)))
    whole = torch.from_numpy(np.concatenate([rows for _, rows in parts], axis=1))
    torch.testing.assert_close(whole, image[0], atol=1e-6, rtol=0)


def test_no_gradients_are_kept_and_none_are_turned_off_outside() -> None:
    network, seen = local_network(2), []

    def predict(x: Tensor) -> Tensor:
        seen.append(network(x).requires_grad)
        return x

    for _ in predict_tiles(predict, Windows(picture(20, 20)[0].numpy()), GaussianTiles((16, 16))):
        assert torch.is_grad_enabled()
    assert not any(seen)


def test_a_memory_mapped_image_streams_through(tmp_path: Path) -> None:
    """16 times the height costs no more memory, in a process of its own, whose peak is theirs alone."""
    paths = [str(tmp_path / f"{height}.npy") for height in (1024, 16 * 1024)]
    for path in paths:
        np.lib.format.open_memmap(path, "w+", np.uint8, (1, int(Path(path).stem), 1024)).flush()
    program = f"from tests.segmentation.test_tiles import stream; [stream(path) for path in {paths!r}]"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    small, large = (int(peak) for peak in run.stdout.split())
    assert large - small < 48 * 1024  # 15 MiB of the file's pages; the result alone has 128 MiB


def stream(path: str) -> None:
    """Predict an image and drop the result; prints the peak of resident memory in KiB, the image's pages included."""
    image = np.load(path, mmap_mode="r")
    for _ in predict_tiles(lambda x: torch.cat([x, 1 - x], 1), Windows(image), GaussianTiles((256, 256)), 4):
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianTiles((16,), overlap=1.0), "overlap is 1.0"),
        (lambda: GaussianTiles((16,), sigma_scale=0.0), "sigma_scale is 0.0"),
        (lambda: GaussianTiles((16,), output=(17,)), "output"),
        (lambda: GaussianTiles((16,), output=(13,)), "even number"),
        (lambda: MirrorTiles((16, 16), (2,)), "context is .* expected 2 numbers"),
        (lambda: MirrorTiles((16,), (2,), output=(8,)), "at least 4"),
        (lambda: MirrorTiles((16,), (2,), border=(3,)), "context at least border"),
        (lambda: MirrorTiles((16,), (8,)), "leaves nothing"),
        (lambda: MirrorTiles((16,), (7,), multiple=(4,)), "leaves nothing"),
        (lambda: MirrorTiles((16,), (2,), multiple=(0,)), "at least 1"),
        (lambda: GaussianTiles((16,), multiple=(4, 4)), "multiple is .* expected 1 numbers"),
        (lambda: tiled(lambda x: x, picture(20), GaussianTiles((16, 16))), "expected 2 axes"),
        (lambda: tiled(lambda x: x[..., 1:-1], picture(20), GaussianTiles((16,))), "predicted as \\(14,\\)"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
