"""Grey levels by logistics: bins that sum to 1, safe logarithms, draws, a sampler with a memory."""

import pytest
import torch
import torch.nn.functional as F
from chapters import check_samples
from torch import nn

from variations.pixelcnn_pp import GreyPixelCNN, log_bin

EITHER = pytest.mark.parametrize("logistics", [0, 4])
LEVELS = torch.arange(256, dtype=torch.float64)


def wild(logistics, size=(28, 28)):
    """A model of images of any size, whose outputs differ much from image to image."""
    torch.manual_seed(0)
    model = GreyPixelCNN(4, 2, 3, logistics)
    for weights in model.parameters():
        nn.init.normal_(weights, std=(2 / weights[0].numel()) ** 0.5)
    model.place = nn.Parameter(torch.randn(8, *size))
    return model


def outputs(logistics, seed=0):
    """Outputs of the network for a pixel, (1, 3 K or 256)."""
    torch.manual_seed(seed)
    return torch.randn(1, 3 * logistics if logistics > 0 else 256, dtype=torch.float64)


def probabilities(model, output):
    """p of each level, (256,)."""
    log_p = model.log_level(output[:, :, None].expand(-1, -1, 256), LEVELS[None, None])
    return log_p.exp().flatten()


def test_numbers_of_the_opening():
    middle, scale = torch.tensor(100.0), torch.tensor(2.0)
    p = log_bin(LEVELS.float(), middle, scale).exp()
    assert p[[100, 101, 110]].tolist() == pytest.approx([0.124, 0.117, 0.0034], abs=6e-4)
    assert log_bin(LEVELS, middle - 120, scale).exp()[0].item() == pytest.approx(0.99996, abs=5e-6)


@pytest.mark.parametrize("middle", [-300.0, -3, 0, 127.3, 255, 999])
@pytest.mark.parametrize("scale", [0.2, 3.0, 50.0, 2000.0])
def test_a_level_has_what_the_logistic_has_in_its_bin_and_all_sum_to_one(middle, scale):
    edges = torch.arange(257, dtype=torch.float64) - 0.5
    cdf = ((edges - middle) / scale).sigmoid()
    cdf[0], cdf[-1] = 0, 1
    p = log_bin(LEVELS, *torch.tensor([middle, scale], dtype=torch.float64)).exp()
    torch.testing.assert_close(p, cdf.diff(), atol=1e-12, rtol=0)
    assert p.sum().item() == pytest.approx(1, abs=1e-9)


@EITHER
def test_probabilities_of_the_256_levels_sum_to_one(logistics):
    for seed in range(5):
        p = probabilities(wild(logistics), outputs(logistics, seed))
        assert p.sum().item() == pytest.approx(1, abs=1e-9) and (p > 0).all()


def test_logistics_far_away_and_narrow_or_wide_have_finite_logs_and_gradients():
    output = torch.tensor([-50.0, 0, 50]).repeat_interleave(9)[None]
    ends = torch.tensor([-90.0, 0, 90])
    output = torch.cat([output[:, :9], ends.repeat(3)[None], ends.repeat_interleave(3)[None]], 1)
    output = output[:, :, None].expand(-1, -1, 256).clone().requires_grad_()
    log_p = wild(9).log_level(output, LEVELS.float()[None, None])
    log_p.sum().backward()
    assert log_p.isfinite().all() and output.grad.isfinite().all()


@EITHER
def test_levels_are_drawn_as_often_as_they_are_probable(logistics):
    model, output = wild(logistics), outputs(logistics)
    drawn = model.draw(output.expand(100_000, -1)).flatten().long()
    shares = drawn.bincount(minlength=256) / len(drawn)
    assert (shares - probabilities(model, output)).abs().sum() < 0.08  # expected: 0.05
    assert F.one_hot(drawn, 256).sum(0)[[0, 255]].min() > 0


@EITHER
@torch.no_grad()
def test_probabilities_of_all_images_of_two_pixels_sum_to_one(logistics):
    model = wild(logistics, size=(1, 2))
    x = torch.cartesian_prod(torch.arange(256.0), torch.arange(256.0)).view(-1, 1, 1, 2) / 255
    p = torch.cat([model.log_prob(part, torch.ones(4096).long()) for part in x.split(4096)]).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-3)
    second = p.view(256, 256) / p.view(256, 256).sum(1, keepdim=True)
    assert (second[0] - second[255]).abs().sum() > 0.1  # the second pixel depends on the first


@EITHER
@torch.no_grad()
def test_a_sample_is_what_whole_passes_draw(logistics):
    model, y = wild(logistics), torch.tensor([2, 0])
    torch.manual_seed(1)
    fast = model.sample(y)
    torch.manual_seed(1)
    x = torch.zeros(2, 1, 28, 28)
    for row in range(28):
        for column in range(28):
            x[:, :, row, column] = model.draw(model(x, y)[:, :, row, column]) / 255
    torch.testing.assert_close(fast, x)
    assert len(x.unique()) > 40
    assert torch.equal(fast, (255 * fast).round() / 255)
    check_samples(model)
