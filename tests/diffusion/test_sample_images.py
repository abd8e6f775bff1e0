from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from diffusers import UNet2DModel
from torch import nn
from torch.testing import assert_close

from unetdiff.diffusion.sampler import SAMPLERS, sample_images
from unetdiff.diffusion.schedule import make_schedule

SCHEDULER = make_schedule("cosine", target="v")


class Tiny(nn.Module):
    """A small convolutional network with a timestep, classes and dropout, that notes how it was called."""

    def __init__(self, *, num_classes=None, null_class=False, dims=2, sample_size=6, learned=False):
        super().__init__()
        self.config = {
            "in_channels": 2,
            "sample_size": sample_size,
            "dims": dims,
            "num_classes": num_classes,
            "null_class": null_class,
        }
        torch.manual_seed(0)
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.embedding = nn.Embedding((num_classes or 0) + 1, 8)
        self.first, self.last = convolution(2, 8, 3, padding=1), convolution(8, 4 if learned else 2, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def forward(self, sample, timestep, class_labels=None):
        self.calls.append((len(sample), None if class_labels is None else class_labels.tolist()))
        labels = torch.zeros(len(sample), dtype=torch.int64) if class_labels is None else class_labels
        embedded = self.embedding(labels) + (timestep.to(sample.dtype) / 1000)[:, None]
        hidden = self.first(sample) + embedded.reshape(len(sample), 8, *[1] * (sample.ndim - 2))
        return SimpleNamespace(sample=self.last(self.dropout(hidden.sigmoid())))


def images(num=7, *, unet=None, scheduler=SCHEDULER, steps=4, **arguments):
    return sample_images(unet or Tiny(), scheduler, num, steps=steps, **arguments)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_alone_and_in_any_batch(sampler):
    together = images(7, sampler=sampler, seed=5)
    assert together.shape == (7, 2, 6, 6)
    assert (together.abs() <= 1).all()
    assert_close(images(7, sampler=sampler, seed=5, batch_size=3), together, rtol=0, atol=1e-4)
    assert_close(images(1, sampler=sampler, seed=8), together[3:4], rtol=0, atol=1e-4)


def _share(rank, folder, num):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    unet = Tiny(num_classes=3, null_class=True)
    found = images(num, unet=unet, labels=[0, 2, 1], guidance=1.5, sampler="ddpm", batch_size=2)
    torch.save((found, images(1, unet=unet)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_make_the_images_of_one(tmp_path):
    torch.multiprocessing.spawn(_share, args=(tmp_path, 7), nprocs=2)
    unet = Tiny(num_classes=3, null_class=True)
    expected = images(7, unet=unet, labels=[0, 2, 1], guidance=1.5, sampler="ddpm")
    for rank in range(2):
        found, single = torch.load(tmp_path / f"{rank}.pt")
        assert_close(found, expected, rtol=0, atol=1e-4)
        assert_close(single, images(1, unet=unet), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims,size,space", [(1, 9, (9,)), (2, [5, 7], (5, 7)), (3, None, (6, 6, 6))])
def test_signals_images_and_volumes_of_any_size(dims, size, space):
    assert images(2, unet=Tiny(dims=dims), size=size).shape == (2, 2, *space)


def test_labels_are_cycled_over_the_images():
    unet = Tiny(num_classes=4)
    images(5, unet=unet, labels=[3, 0], steps=1, batch_size=3)
    images(2, unet=unet, labels=1, steps=1)
    assert unet.calls == [(3, [3, 0, 3]), (2, [0, 3]), (2, [1, 1])]


def test_without_labels_the_null_class_is_used():
    unet = Tiny(num_classes=4, null_class=True)
    images(2, unet=unet, steps=1)
    assert unet.calls == [(2, [4, 4])]


def test_guidance_doubles_the_batch_with_the_null_class():
    unet = Tiny(num_classes=4, null_class=True)
    images(2, unet=unet, labels=[1, 2], guidance=2.0, steps=1)
    assert unet.calls == [(4, [1, 2, 4, 4])]


class TwoSided(nn.Module):
    """Predicts x0 = 0.5 for class 0, 3 for class 1 and 0 for the null class, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([0.5, 3.0, 0.0]))
        self.config = {"in_channels": 1, "sample_size": 3, "num_classes": 2, "null_class": True}

    def forward(self, sample, timestep, class_labels=None):
        return SimpleNamespace(sample=self.values[class_labels][:, None, None, None].expand_as(sample))


@pytest.mark.parametrize("clip,expected", [(True, [0.8, 1.6]), (False, [0.8, 4.8])])
def test_clipping_bounds_the_network_not_the_guidance(clip, expected):
    seen = []

    def look(step, steps, x_t, x0):
        seen.append(x0[:, 0, 0, 0].tolist())

    found = images(
        2,
        unet=TwoSided(),
        scheduler=make_schedule("linear", target="x0"),
        labels=[0, 1],
        guidance=1.6,
        clip=clip,
        on_step=look,
    )
    assert all(row == pytest.approx(expected, rel=1e-4) for row in seen)
    assert_close(found[:, 0, 0, 0], torch.tensor([0.8, 1.0]), rtol=1e-4, atol=1e-4)


def test_network_is_evaluated_without_gradient_and_left_as_it_was():
    unet = Tiny().train()
    first = images(2, unet=unet)
    assert torch.equal(images(2, unet=unet), first)  # dropout would differ
    assert unet.training
    assert not first.requires_grad


def test_learned_variance_and_low_precision_networks():
    scheduler = make_schedule("cosine", target="v", variance="learned")
    for sampler in ("ddpm", "dpmpp"):
        found = images(2, unet=Tiny(learned=True), scheduler=scheduler, sampler=sampler)
        assert found.shape == (2, 2, 6, 6)
    assert images(2, unet=Tiny().to(torch.bfloat16)).dtype == torch.float32


def test_a_network_of_diffusers():
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        num_class_embeds=3,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    assert images(2, unet=unet, labels=[0, 2], steps=2).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="trained with labels only"):
        images(2, unet=unet)


CONDITIONAL = {"num_classes": 3}


@pytest.mark.parametrize(
    "network,arguments,message",
    [
        (CONDITIONAL, {"labels": [0, 3, -1]}, r"labels \[3, -1\] are not classes of the network, 0 to 2"),
        (CONDITIONAL, {"labels": []}, r"labels \[\] are not classes"),
        (CONDITIONAL, {"labels": 0, "guidance": 2.0}, "guidance 2.0 needs a network trained with a null class"),
        ({**CONDITIONAL, "null_class": True}, {"guidance": 2.0}, "guidance 2.0 needs labels"),
        ({}, {"guidance": 2.0}, "guidance 2.0 needs a network trained with a null class"),
        ({}, {"labels": 1}, "labels 1 were given, but the network has no classes"),
        (CONDITIONAL, {}, "trained with labels only: give labels, from 0 to 2"),
        ({}, {"sampler": "plms"}, "sampler 'plms' is not one of ddpm"),
        ({}, {"steps": 0}, "steps is 0; it must be from 1 to 1000"),
        ({}, {"steps": 1001}, "steps is 1001; it must be from 1 to 1000"),
        ({}, {"num": 0}, "num is 0"),
        ({}, {"batch_size": 0}, "batch_size is 0"),
        ({"sample_size": None}, {}, "names no sample_size"),
        ({}, {"size": [4, 4, 4]}, r"size \[4, 4, 4\] is not 2 positive numbers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(network, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        images(unet=Tiny(**network), **arguments)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)
