"""PixelCNN: what its masks hide, probabilities that sum to 1, samplers that agree."""

import functools
import re

import pytest
import torch
from chapters import TINY, check_samples, edited, short_run
from torch import nn

import pixelcnn

BITS = torch.tensor([0.0, 1.0])


def wild(channels=4, layers=2, classes=10, size=(28, 28)):
    """A PixelCNN of images of any size, whose outputs differ much from image to image."""
    torch.manual_seed(0)
    model = pixelcnn.PixelCNN(channels, layers, classes)
    for weights in model.parameters():
        nn.init.normal_(weights, std=(4 / weights[0].numel()) ** 0.5)
    model.place = nn.Parameter(torch.randn(2 * channels, *size))
    return model


def view(layers, size=13):
    """Which pixels the middle of an image sees through masked convolutions."""
    x = torch.zeros(1, 1, size, size, requires_grad=True)
    h = x
    for layer in layers:
        nn.init.ones_(layer.weight)
        h = layer(h)
    (gradient,) = torch.autograd.grad(h[0, 0, size // 2, size // 2], x)
    return gradient[0, 0] > 0


def test_views_are_those_drawn_in_the_opening():
    drawing = re.search(r"\n\n( +1.*?)\n\nA step", pixelcnn.__doc__, re.S).group(1)
    rows = [row.ljust(50) for row in drawing.split("\n")]
    for depth, left in ((1, 4), (2, 15), (3, 30)):  # layers, and where their drawing begins
        layers = [pixelcnn.MaskedConv(1, 1, 2, 3, kind) for kind in "ABB"[:depth]]
        seen = view(layers)[6 - depth : 7, 6 - depth : 7 + depth]
        drawn = [row[left : left + 4 * depth + 2].split() for row in rows[-depth - 1 :]]
        assert [[mark == "1" for mark in row] for row in drawn] == seen.tolist()


@pytest.mark.parametrize("row, column", [(0, 0), (0, 27), (14, 14), (27, 5)])
def test_an_output_sees_what_the_masks_let_through_and_nothing_after_it(row, column):
    model, x = wild(), torch.rand(50, 1, 28, 28)
    seen = pixelcnn.seen_by(model, x, torch.arange(50) % 10, row, column)
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[row, column] = True
    for conv in [*(block.conv for block in model.blocks), model.stem]:
        flipped = torch.zeros_like(expected)
        for r, c in expected.nonzero().tolist():
            for i, j in conv.mask.nonzero().tolist():
                above, left = r + i - conv.above, c + j - conv.side
                if 0 <= above and 0 <= left < 28:
                    flipped[above, left] = True
        expected = flipped
    assert torch.equal(seen, expected)
    assert not seen.flatten()[28 * row + column :].any()


def test_the_class_counts_at_every_pixel():
    model, x = wild(), torch.zeros(2, 1, 28, 28)
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
    torch.testing.assert_close(pixelcnn.log_prob_of_many(model, x, y), model.log_prob(x, y))


def test_both_samplers_draw_the_same_from_the_same_random_numbers():
    model, y = wild(), torch.tensor([3, 0, 9])
    torch.manual_seed(0)
    plain = model.sample(y)
    torch.manual_seed(0)
    assert torch.equal(pixelcnn.cached_sample(model, y), plain) and 0.1 < plain.mean() < 0.9


def test_a_completion_keeps_the_rows_that_are_known():
    model, x, y = wild(), torch.rand(3, 1, 28, 28).round(), torch.arange(3)
    before = x.clone()
    drawn = pixelcnn.cached_sample(model, y, x, known=20)
    assert torch.equal(drawn[:, :, :20], x[:, :, :20]) and torch.equal(x, before)
    assert not torch.equal(drawn[:, :, 20:], x[:, :, 20:])
    assert torch.equal(pixelcnn.cached_sample(model, y, x, known=28), x)


def test_a_saved_model_samples():
    model, saved = short_run(pixelcnn, TINY["pixelcnn"])
    assert len(saved["curve"]) == 2
    check_samples(model)


FLAGS = "--steps 200 --batch-size 16 --channels 8 --layers 2 --lr 1e-2 --save-every 200"


@functools.cache
def intact():
    return short_run(pixelcnn, FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        ('4, 7, kind="A")', '4, 7, kind="B")'),
        ("mask[-1, self.side + 1 :]", "mask[-1, self.side + 2 :]"),
    ],
)
def test_break_a_mask(edit):
    model, saved = short_run(edited("pixelcnn", edit), FLAGS)
    sound = intact()[1]["curve"][-1]["validation"]
    assert saved["curve"][-1]["validation"] < 0.3 * sound
    if "kind" in edit[0]:
        assert model.sample(torch.arange(10)).mean() < 0.01  # empty images


@pytest.mark.slow
def test_break_drawing_column_by_column():
    row, column = "for row in range(28):\n", "for column in range(28):\n"
    first = "            h = model.stem"
    loops = f"    {row}        {column}{first}", f"    {column}        {row}{first}"
    broken = edited("pixelcnn", loops)
    model, y = intact()[0], torch.arange(20) % 10
    with torch.no_grad():
        nll = [-model.log_prob(m.cached_sample(model, y), y).mean() for m in (pixelcnn, broken)]
    assert (nll[1] - nll[0]).abs() > 0.3 * nll[0]  # other images than those the model means
