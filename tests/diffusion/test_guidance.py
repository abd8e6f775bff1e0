import pytest
import torch
from torch.testing import assert_close

from unetdiff.diffusion.guidance import classifier_free, clip_x0
from unetdiff.diffusion.schedule import TARGETS, add_noise, make_schedule, predicted_x0, target_value

NULL = 3
LABELS = torch.tensor([0, 2])
X_T = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
TIMESTEP = torch.tensor([5, 7])


class Recorder:
    """Predicts x_t + label + timestep, and of a learned variance the label; keeps the batch sizes it saw."""

    def __init__(self, learned=False):
        self.learned, self.batches = learned, []

    def __call__(self, x_t, timestep, class_labels):
        self.batches.append(len(x_t))
        labels = class_labels[:, None, None].float()
        prediction = x_t + labels + timestep[:, None, None]
        return torch.cat([prediction, labels.expand_as(x_t)], 1) if self.learned else prediction


def test_guidance_extrapolates_in_one_call():
    denoise = Recorder()
    conditional = X_T + LABELS[:, None, None] + TIMESTEP[:, None, None]
    unconditional = X_T + NULL + TIMESTEP[:, None, None]
    guided = classifier_free(denoise, 2.5, NULL)(X_T, TIMESTEP, LABELS)
    assert_close(guided, 2.5 * conditional - 1.5 * unconditional)
    assert denoise.batches == [4]


def test_scale_one_costs_nothing():
    denoise = Recorder()
    assert classifier_free(denoise, 1.0, NULL) is denoise


def test_a_learned_variance_is_that_of_the_condition():
    output = classifier_free(Recorder(learned=True), 2.0, NULL)(X_T, TIMESTEP, LABELS)
    assert output.shape == (2, 2, 4)
    assert_close(output[:, 1:], LABELS[:, None, None].float().expand(2, 1, 4))
    assert_close(output[:, :1], classifier_free(Recorder(), 2.0, NULL)(X_T, TIMESTEP, LABELS))


@pytest.mark.parametrize("target", TARGETS)
def test_clipping_bounds_x0_and_keeps_the_rest(target):
    scheduler = make_schedule("cosine", target=target)
    timesteps = torch.tensor([10, 600])
    x0 = torch.tensor([[[-3.0, -0.5, 0.5, 3.0]], [[-0.9, 0.0, 1.2, 0.9]]])
    x_t = add_noise(scheduler, x0, X_T, timesteps)

    def denoise(x, t, class_labels):
        return torch.cat([target_value(scheduler, target, x0, X_T, t), torch.full_like(x, 0.25)], dim=1)

    output = clip_x0(denoise, scheduler)(x_t, timesteps, None)
    found = predicted_x0(scheduler, target, x_t, timesteps, output[:, :1])
    assert_close(found, x0.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert_close(output[:, 1:], torch.full_like(x_t, 0.25))


def test_an_epsilon_error_at_a_tiny_snr_is_contained():
    scheduler = make_schedule("cosine")
    timesteps = torch.tensor([999, 999])
    output = clip_x0(lambda x, t, labels: x + 0.01, scheduler)(X_T, timesteps, None)
    assert predicted_x0(scheduler, "epsilon", X_T, timesteps, X_T + 0.01).abs().min() > 100
    assert predicted_x0(scheduler, "epsilon", X_T, timesteps, output).abs().max() < 1.01
