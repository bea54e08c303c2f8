"""An image as a line: which pixels reach a logit, probabilities that sum to 1, queues."""

import itertools

import pytest
import torch
from chapters import check_samples

from variations.wavenet_pixels import PixelWaveNet, fewest_steps, influence, parse_flags


def wild(dilations, channels=8, classes=3):
    """A model with weights so large that its outputs differ much from image to image."""
    torch.manual_seed(0)
    model = PixelWaveNet(channels, dilations, classes).double()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    return model


@pytest.mark.parametrize("dilations", [[1, 2, 4], [3, 1, 7], [1, 1, 10]])
def test_the_fewest_steps_are_those_of_the_best_choice_of_layers(dilations):
    best = [float("inf")] * 784
    for n in range(len(dilations) + 1):
        for chosen in itertools.combinations(dilations, n):
            best[sum(chosen)] = min(best[sum(chosen)], n)
    assert fewest_steps(dilations).tolist() == best


def test_steps_of_the_opening():
    far = [0, 26, 27, 28, 55]
    doubling = fewest_steps([2**i for i in range(10)])
    ten = fewest_steps(parse_flags([]).dilations)
    assert doubling[far].tolist() == [0, 3, 4, 3, 5] and doubling.isfinite().all()
    assert ten[far].tolist() == [0, 2, 3, 1, 4]
    assert ten[:476].isfinite().all() and not ten[476:].isfinite().any()


@pytest.mark.parametrize("dilations", [[1, 2, 4], [3, 28], [5, 1, 30, 60]])
def test_a_logit_depends_on_the_earlier_pixels_within_reach_and_on_no_others(dilations):
    x = torch.rand(20, 1, 28, 28, dtype=torch.float64)
    for t in (0, 1, 300, 783):
        seen = influence(wild(dilations), x, torch.arange(20) % 3, t).flatten() > 0
        within = fewest_steps(dilations)[:t].flip(0).isfinite()
        assert torch.equal(seen[:t], within) and not seen[t:].any()


@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one():
    x = torch.cartesian_prod(*[torch.arange(2.0)] * 9).view(512, 1, 3, 3).double()
    model = wild([1, 2, 4])
    p = torch.stack([model.log_prob(x, torch.full((512,), k)).exp() for k in range(3)])
    torch.testing.assert_close(p.sum(1), torch.ones(3, dtype=torch.float64))
    assert p.max() > 3 / 512 and (p[0] - p[1]).abs().max() > 1e-3


@torch.no_grad()
def test_queues_draw_what_passes_over_the_whole_line_draw():
    model, y = wild([1, 2, 28]), torch.tensor([2, 0])
    torch.manual_seed(0)
    fast = model.sample(y)
    torch.manual_seed(0)
    line = torch.zeros(2, 0, dtype=torch.float64)
    for _ in range(784):
        p = model(line, y)[:, -1:].double().sigmoid()
        line = torch.cat([line, torch.bernoulli(p)], dim=1)
    assert torch.equal(fast.flatten(1), line) and 0.1 < line.mean() < 0.9
    check_samples(model)
