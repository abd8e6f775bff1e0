from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.data.formats import DataFormat, write_images
from unetdiff.data.images import decode_image


def image_format(dtype: str = "uint8", channels: int = 1, **fields) -> DataFormat:
    low, high = {"uint8": (0, 255), "uint16": (0, 65535), "float32": (-3, 5)}[dtype]
    return DataFormat(**{"dims": 2, "channels": channels, "dtype": dtype, "low": low, "high": high} | fields)


def test_format_survives_json():
    form = image_format(size=(4, 6), class_names=("cat", "dog"))
    assert DataFormat.from_dict(json.loads(json.dumps(form.to_dict()))) == form
    assert form.num_classes == 2
    bare = image_format()
    assert DataFormat.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


@pytest.mark.parametrize(("dtype", "count"), [("uint8", 2**8), ("uint16", 2**16)])
def test_every_integer_comes_back(dtype: str, count: int):
    form = image_format(dtype)
    values = np.arange(count, dtype=dtype).reshape(1, -1, 16, 1)
    encoded = form.encode(values)
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded.flatten(), torch.linspace(-1, 1, count), rtol=0, atol=1e-6)
    decoded = form.decode(encoded)
    assert decoded.dtype == values.dtype
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layout_and_range(dims: int):
    form = DataFormat(dims=dims, channels=2, dtype="float32", low=-3.0, high=5.0)
    space = (3, 4, 5)[:dims]
    array = np.random.default_rng(0).uniform(-3, 5, (6, *space, 2)).astype(np.float32)
    encoded = form.encode(array)
    assert encoded.shape == (6, 2, *space)
    assert encoded.is_contiguous()
    np.testing.assert_allclose(encoded[:, 1], (array[..., 1] + 3) / 4 - 1, atol=1e-6)
    np.testing.assert_allclose(form.decode(encoded), array, atol=2e-6)


def test_the_order_of_bytes_does_not_matter():
    array = np.arange(8, dtype=np.uint16).reshape(1, 2, 4, 1)
    form = image_format("uint16")
    torch.testing.assert_close(form.encode(array.astype(">u2")), form.encode(array), rtol=0, atol=0)


def test_encode_leaves_its_input_alone():
    array = np.full((1, 2, 2, 1), 3, np.float32)
    image_format("float32").encode(array)
    assert (array == 3).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_values_beyond_the_range_are_clipped_where_it_says_so(dtype: str):
    array = np.array([0, 10, 30, 50, 250], dtype).reshape(1, 1, 5, 1)
    forms = [image_format(dtype, low=10, high=50, clip=clip) for clip in (True, False)]
    assert forms[0].encode(array).ravel().tolist() == [-1, -1, 0, 1, 1]
    assert forms[1].encode(array).ravel().tolist() == [-1.5, -1, 0, 1, 11]
    assert DataFormat.from_dict(json.loads(json.dumps(forms[0].to_dict()))) == forms[0]


def test_decode_rounds_and_clips_integers_only():
    samples = torch.tensor([-1.5, -1 + 2 * 0.6 / 255, 1.5]).reshape(1, 1, 1, 3)
    assert image_format().decode(samples).ravel().tolist() == [0, 1, 255]
    np.testing.assert_allclose(image_format("float32").decode(samples).ravel()[[0, 2]], [-5, 7])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dims": 4}, "dims is 4"),
        ({"channels": 0}, "channels is 0"),
        ({"dtype": "int64"}, "dtype is 'int64'"),
        ({"low": 255}, "value range"),
        ({"size": (4,)}, "size is"),
    ],
)
def test_bad_fields(fields: dict, words: str):
    with pytest.raises(ValueError, match=words):
        DataFormat.from_dict(image_format().to_dict() | fields)


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint8", 2), ("uint8", 3), ("uint8", 4), ("uint16", 1)])
def test_png_holds_what_was_written(tmp_path: Path, dtype: str, channels: int):
    form = image_format(dtype, channels)
    arrays = np.random.default_rng(0).integers(0, form.high, (2, 5, 7, channels), dtype, endpoint=True)
    paths = write_images(arrays, form, tmp_path / "out")
    assert [path.name for path in paths] == ["00000.png", "00001.png"]
    for path, array in zip(paths, arrays, strict=True):
        read = decode_image(path, str(path))
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
    assert Image.open(paths[0]).size == (7, 5)


@pytest.mark.parametrize(
    ("dims", "dtype", "channels"),
    [(2, "uint8", 5), (2, "uint16", 3), (2, "float32", 1), (1, "uint8", 1), (3, "uint8", 3)],
)
def test_npy_holds_the_rest(tmp_path: Path, dims: int, dtype: str, channels: int):
    form = image_format(dtype, channels, dims=dims)
    array = np.arange(4**dims * channels).reshape(1, *[4] * dims, channels).astype(dtype)
    (path,) = write_images(array, form, tmp_path)
    assert path.name == "00000.npy"
    read = np.load(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array[0])
