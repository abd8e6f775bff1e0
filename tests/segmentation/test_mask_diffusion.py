"""Masks as data of a diffusion model: codes, the forward process, the loss in closed form, drawing with an oracle."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from unetdiff.diffusion.options import SamplerName
from unetdiff.diffusion.sampler import SAMPLERS
from unetdiff.mask_diffusion_options import MaskDiffusionConfig, MaskTargetName
from unetdiff.segmentation.mask_diffusion import LabelCodes, MaskDiffusion
from unetdiff.segmentation.options import IGNORE

CODED: Any = ("one_hot", "bits")


def labels_of(classes: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def made(classes: int = 5, **settings: Any) -> MaskDiffusion:
    return MaskDiffusion.of(MaskDiffusionConfig(**settings), classes)


class Oracle:
    """A network that knows the mask of each image: the features it makes are the labels; it counts its calls."""

    device = torch.device("cpu")

    def __init__(self, diffusion: MaskDiffusion) -> None:
        self.diffusion, self.feature_calls, self.calls = diffusion, 0, 0

    def features(self, images: Tensor) -> Tensor:
        self.feature_calls += 1
        return images

    def denoise(self, features: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
        self.calls += 1
        labels, codes, scheduler = features[:, 0].long(), self.diffusion.codes, self.diffusion.objective.scheduler
        if self.diffusion.by_classes is not None:
            return 1e4 * F.one_hot(labels, codes.classes).movedim(-1, 1).float()
        # From the published definitions, with x_t brought back from what the network is shown.
        table = scheduler.alphas_cumprod
        low, high = (table[end(timestep.float()).long()].logit() for end in (torch.floor, torch.ceil))
        signal = torch.lerp(low, high, timestep.float() % 1).sigmoid()
        alpha, sigma = (part.sqrt().reshape(-1, *[1] * (sample.ndim - 1)) for part in (signal, 1 - signal))
        x_t = sample * ((codes.scale * alpha) ** 2 + sigma**2).sqrt()
        x0 = codes.encode(labels)
        noise = (x_t - alpha * x0) / sigma
        return {"x0": x0, "epsilon": noise, "v": alpha * noise - sigma * x0}[self.diffusion.objective.target]


@pytest.mark.parametrize("encoding", CODED)
@pytest.mark.parametrize("classes", range(2, 12))
def test_codes_there_and_back(encoding: Any, classes: int) -> None:
    codes = LabelCodes(encoding, classes, scale=0.3)
    labels = labels_of(classes, 2, 6, 7)
    numbers = codes.encode(labels)
    assert numbers.shape == (2, classes if encoding == "one_hot" else math.ceil(math.log2(classes)), 6, 7)
    assert_close(numbers.unique(), torch.tensor([-0.3, 0.3]))
    assert (codes.labels(numbers) == labels).all()
    assert len(codes.table.unique(dim=0)) == classes
    assert (codes.labels(torch.randn(1, codes.channels, 5000)) < classes).all()  # bits have codes of no class


def test_bits_are_binary_digits() -> None:
    assert LabelCodes("bits", 6).encode(torch.tensor([[5]])).flatten().tolist() == [1, -1, 1]
    assert LabelCodes("bits", 6).encode(torch.tensor([[1]])).flatten().tolist() == [1, -1, -1]


@pytest.mark.parametrize("encoding", CODED)
def test_the_expected_code_is_the_mean_over_classes(encoding: Any) -> None:
    codes, p = LabelCodes(encoding, 5, scale=0.5), torch.randn(2, 5, 3, 4).softmax(1)
    by_hand = sum(p[:, k, None] * codes.encode(torch.full((2, 3, 4), k)) for k in range(5))
    assert_close(codes.expected(p), by_hand)
    if encoding == "one_hot":
        assert_close(codes.expected(p), 0.5 * (2 * p - 1))


@pytest.mark.parametrize(("encoding", "scale"), [("one_hot", 1.0), ("bits", 0.1)])
def test_noisy_masks_have_the_marginals_of_the_closed_form(encoding: Any, scale: float) -> None:
    """Mean sqrt(alpha_bar) b and deviation sqrt(1 - alpha_bar) for every code; at the end both codes look alike."""
    diffusion = made(2, encoding=encoding, scale=scale, target="epsilon")
    labels = torch.tensor([0, 1]).repeat_interleave(20_000)[:, None]
    cosine = [math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2 for share in (0.5, 1.0, 0.0)]
    for timestep, signal in ((499, cosine[0] / cosine[2]), (999, 0.0)):
        noise = torch.randn(40_000, diffusion.codes.channels, 1, generator=torch.Generator().manual_seed(timestep))
        x_t = diffusion.noisy(labels, noise, torch.full((40_000,), timestep))[:, 0, 0]
        sign = diffusion.codes.encode(labels)[:, 0, 0].sign()
        for one in (-1, 1):
            part = x_t[sign == one]
            assert part.mean() == pytest.approx(one * scale * math.sqrt(signal), abs=0.02)
            assert part.std() == pytest.approx(math.sqrt(1 - signal), abs=0.02)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_network_sees_unit_mean_square_at_every_timestep(scale: float) -> None:
    diffusion = made(4, scale=scale)
    labels, timesteps = labels_of(4, 6, 4000), torch.tensor([0, 100, 400, 700, 900, 999])
    noise = torch.randn(6, 4, 4000, generator=torch.Generator().manual_seed(0))
    seen = diffusion.seen(diffusion.noisy(labels, noise, timesteps), timesteps)
    assert_close(seen.square().mean((1, 2)), torch.ones(6), rtol=0, atol=0.05)


@pytest.mark.parametrize("target", ["x0", "epsilon", "v"])
def test_the_squared_error_counts_what_is_not_ignored(target: Any) -> None:
    diffusion = made(3, target=target, scale=0.5)
    labels = labels_of(3, 2, 4, 5)
    labels[0, :3] = IGNORE
    timesteps = torch.tensor([10, 700])
    noise, output = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5, requires_grad=True)
    x_t = diffusion.noisy(labels, noise, timesteps)
    loss = diffusion.loss_per_sample(output, labels, x_t, noise, timesteps)
    table = diffusion.objective.scheduler.alphas_cumprod[timesteps].reshape(2, 1, 1, 1)
    x0 = 0.5 * (2 * F.one_hot(labels.clamp(min=0), 3).movedim(-1, 1).float() - 1)
    truth = {"x0": x0, "epsilon": noise, "v": table.sqrt() * noise - (1 - table).sqrt() * x0}[target]
    error = (output - truth).square()
    assert_close(loss[0], error[0, :, 3].mean())
    assert_close(loss[1], error[1].mean())
    loss.sum().backward()
    assert output.grad is not None
    assert (output.grad[0, :, :3] == 0).all()
    assert (output.grad[1] != 0).any()


def test_the_cross_entropy_is_torchs() -> None:
    diffusion = MaskDiffusion.of(MaskDiffusionConfig(), 3, class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1)
    labels = labels_of(3, 2, 4, 5)
    labels[0, :3] = IGNORE
    output, noise, timesteps = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.tensor([10, 700])
    found = diffusion.loss_per_sample(output, labels, diffusion.noisy(labels, noise, timesteps), noise, timesteps)
    weights = torch.tensor([1.0, 2.0, 0.5])
    for sample in range(2):
        expected = F.cross_entropy(
            output[sample, None], labels[sample, None], weights, ignore_index=IGNORE, label_smoothing=0.1
        )
        assert_close(found[sample], expected)


@pytest.mark.parametrize("target", get_args(MaskTargetName))
def test_a_sample_without_positions_has_no_loss(target: Any) -> None:
    diffusion = made(3, target=target)
    labels, noise, timesteps = torch.full((1, 6), IGNORE), torch.randn(1, 3, 6), torch.tensor([500])
    x_t = diffusion.noisy(labels, noise, timesteps)
    assert diffusion.loss_per_sample(torch.randn(1, 3, 6), labels, x_t, noise, timesteps).item() == 0
    alpha_bar = diffusion.objective.scheduler.alphas_cumprod[500]
    assert_close(x_t, (1 - alpha_bar).sqrt() * noise)  # nothing of a class in it


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("target", "encoding", "scale"), [
    *[(target, "one_hot", 1.0) for target in get_args(MaskTargetName)],
    ("cross_entropy", "bits", 0.1), ("v", "bits", 0.1),
])  # fmt: skip
def test_a_perfect_network_draws_the_truth(sampler: Any, target: Any, encoding: Any, scale: float) -> None:
    diffusion = made(5, target=target, encoding=encoding, scale=scale)
    truth = labels_of(5, 2, 6, 7)
    for steps in (1, 2, 7, 20):
        oracle = Oracle(diffusion)
        drawn = diffusion.masks(oracle, truth[:, None].float(), seeds=[3, 4], steps=steps, sampler=sampler)
        assert (drawn == truth[:, None]).all(), steps
        # As many calls as steps, not as many as the schedule has timesteps.
        assert oracle.calls == (2 * steps - 1 if sampler == "heun" else steps)


def test_what_is_drawn_stays_in_the_range_of_the_codes() -> None:
    """A network that is wildly off: clipped at the scale, masks still are masks; not at 1, nor at 0."""
    diffusion = made(3, target="epsilon", scale=0.2)

    class Wild(Oracle):
        def denoise(self, features: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
            return -50 * torch.ones_like(sample)

    predict = diffusion._denoiser(Wild(diffusion), torch.zeros(1, 1, 4))
    x_t, timestep = torch.randn(1, 3, 4), torch.tensor([900])
    signal = diffusion.objective.scheduler.alphas_cumprod[900]
    x0 = (x_t - (1 - signal).sqrt() * predict(x_t, timestep, None)) / signal.sqrt()
    assert_close(x0, torch.full_like(x0, 0.2), rtol=0, atol=1e-4)


class Unsure(Oracle):
    """Scores that hang on the noisy mask, the image and the timestep, position by position."""

    def denoise(self, features: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
        self.calls += 1
        return 2 * sample + features * torch.linspace(-1, 1, sample.shape[1])[:, None] - timestep[:, None, None] / 1e3


def test_a_mask_is_the_same_beside_any_others() -> None:
    """For every seed and image: in any number, any order, any batch."""
    diffusion = made(4)
    images = torch.randn(3, 1, 200, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"steps": 5, "sampler": "ddpm"}
    many = diffusion.masks(Unsure(diffusion), images, seeds=range(6), **how)
    assert (many[:, 0] != many[:, 1]).any()
    few = diffusion.masks(Unsure(diffusion), images[1:2], seeds=[4, 2], batch=1, **how)
    assert (few[0] == many[1, [4, 2]]).all()
    torch.manual_seed(7)  # no draw comes from the global generator
    again = diffusion.masks(Unsure(diffusion), images, seeds=range(6), batch=4, **how)
    assert (again == many).all()


def test_features_are_made_once_per_image_whatever_is_drawn() -> None:
    diffusion = made(4)
    network = Unsure(diffusion)
    diffusion.masks(network, torch.randn(2, 1, 50), seeds=range(9), steps=13, sampler="ddim", batch=4)
    assert network.feature_calls == 1
    assert network.calls == 13 * math.ceil(2 * 9 / 4)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_cannot_be(steps: int) -> None:
    diffusion = made(4)
    with pytest.raises(ValueError, match=f"steps is {steps}; expected 1 to 1000"):
        diffusion.masks(Unsure(diffusion), torch.randn(2, 1, 50), seeds=[0], steps=steps, sampler="ddim")


def test_every_sampler_of_the_project_is_a_word_of_the_settings() -> None:
    assert set(get_args(SamplerName)) == set(SAMPLERS)
