"""Gated PixelCNN: what its stacks see, probabilities that sum to 1, samplers that agree."""

import functools

import pytest
import torch
from chapters import TINY, check_samples, edited, short_run
from torch import nn

import gated_pixelcnn

BITS = torch.tensor([0.0, 1.0])


def wild(channels=4, layers=2, classes=10, size=(28, 28)):
    """A GatedPixelCNN of images of any size, whose outputs differ much from image to image."""
    torch.manual_seed(0)
    model = gated_pixelcnn.GatedPixelCNN(channels, layers, classes)
    for weights in model.parameters():
        nn.init.normal_(weights, std=(2 / weights[0].numel()) ** 0.5)
    nn.init.normal_(model.head.weight, std=0.5)
    model.head.weight.data -= model.head.weight.data.mean()
    nn.init.zeros_(model.head.bias)
    model.v_place = nn.Parameter(torch.randn(channels // 2, *size))
    model.h_place = nn.Parameter(torch.randn(2 * channels, *size))
    return model


@torch.no_grad()
def test_a_convolution_sees_the_pixels_in_its_comment():
    row = torch.tensor([1.0, 10, 100, 1000]).view(1, 1, 1, 4)  # a b c d
    for zeros, seen in (((2, 0, 0, 0), 111), ((3, -1, 0, 0), 11)):
        conv = gated_pixelcnn.PaddedConv(1, 1, (1, 3), zeros)
        nn.init.ones_(conv.weight)
        assert (conv(row) - conv.bias)[0, 0, 0, 2].item() == pytest.approx(seen, abs=1e-3)


def test_the_gate_is_a_product_with_the_numbers_of_the_opening():
    ab = torch.tensor([[2.0, 2.0], [3.0, -3.0]])  # a, b for two images side by side
    gated = gated_pixelcnn.gate(ab.T[:, :, None, None])
    assert gated.flatten().tolist() == pytest.approx([0.92, 0.05], abs=5e-3)


@pytest.mark.parametrize("row, column", [(0, 0), (0, 27), (8, 14), (27, 5)])
def test_an_output_sees_all_within_reach_and_nothing_after_it(row, column):
    model, x = wild(8, layers=3), torch.rand(50, 1, 28, 28)
    seen = gated_pixelcnn.seen_by(model, x, torch.arange(50) % 10, row, column)
    up, aside = 3 + 2 * 3, 3 + 2 * 3  # the first layer's reach, and that of three more
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[max(0, row - up) : row, max(0, column - aside) : column + aside + 1] = True
    expected[row, max(0, column - aside) : column] = True
    assert torch.equal(seen, expected)


def test_the_class_counts_at_every_pixel():
    model, x = wild(16), torch.zeros(2, 1, 28, 28)
    a, b = model(x, torch.tensor([0, 1]))
    assert (a != b).all()


def test_probabilities_of_all_images_sum_to_one():
    images = torch.cartesian_prod(*[BITS] * 6).view(64, 1, 2, 3)
    model = wild(classes=2, size=(2, 3))
    p = torch.stack([model.log_prob(images, torch.full((64,), k)).exp() for k in (0, 1)])
    torch.testing.assert_close(p.sum(1), torch.ones(2))
    assert p.max() > 4 / 64


@torch.no_grad()
def test_many_images_in_parts_are_scored_as_at_once():
    model, x, y = wild(), torch.rand(130, 1, 28, 28).round(), torch.arange(130) % 10
    torch.testing.assert_close(gated_pixelcnn.log_prob_of_many(model, x, y), model.log_prob(x, y))


def test_both_samplers_draw_the_same_from_the_same_random_numbers():
    model, y = wild(), torch.tensor([3, 0, 9])
    torch.manual_seed(0)
    plain = model.sample(y)
    torch.manual_seed(0)
    assert torch.equal(gated_pixelcnn.cached_sample(model, y), plain) and 0.1 < plain.mean() < 0.9


def test_a_saved_model_samples():
    model, saved = short_run(gated_pixelcnn, TINY["gated_pixelcnn"])
    assert len(saved["curve"]) == 2
    check_samples(model)


FLAGS = "--steps 200 --batch-size 16 --channels 8 --layers 2 --lr 1e-2 --save-every 200"


@functools.cache
def intact():
    return short_run(gated_pixelcnn, FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        ("zeros=(3, 3, 3, -1)", "zeros=(3, 3, 2, 0)"),
        ("block(v, h, one_hot)", "block(v + h[:, :4], h, one_hot)"),
    ],
)
def test_break_what_is_hidden(edit):
    _, saved = short_run(edited("gated_pixelcnn", edit), FLAGS)
    assert saved["curve"][-1]["validation"] < 0.3 * intact()[1]["curve"][-1]["validation"]


@pytest.mark.slow
def test_break_a_horizontal_stack_that_is_not_told_what_is_above():
    blind = edited("gated_pixelcnn", ("gate(found + to_h)", "gate(found)"))
    _, saved = short_run(blind, FLAGS)
    assert saved["curve"][-1]["validation"] > 1.2 * intact()[1]["curve"][-1]["validation"]
