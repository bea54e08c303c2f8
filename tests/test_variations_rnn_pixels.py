"""Readers of an image: what reaches them, probabilities that sum to 1, samples along diagonals."""

import pytest
import torch
from chapters import check_samples
from torch import nn

from variations.rnn_pixels import PixelRNN

LAGS = pytest.mark.parametrize("lag", [1, 2, 3])


def wild(rows, columns, lag=3, hidden=6):
    """A model of images of any size, whose outputs differ much from image to image."""
    torch.manual_seed(0)
    model = PixelRNN(hidden, 28, lag, classes=3)
    model.place = nn.Parameter(torch.zeros(rows, columns, 64))
    for weights in model.parameters():
        nn.init.normal_(weights, std=0.4)
    return model.double()


def seen_from(model, row, column):
    """The pixels that change the logit at (row, column), True or False."""
    x = torch.rand(20, *model.place.shape[:2], dtype=torch.float64, requires_grad=True)
    logits = model.walk(x, torch.arange(20) % 3)
    return (torch.autograd.grad(logits[:, row, column].sum(), x)[0] != 0).any(0)


def test_what_is_known_is_as_drawn_in_the_opening():
    known = [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert seen_from(wild(3, 5), 2, 1).int().tolist() == known


@LAGS
def test_a_logit_depends_on_no_pixel_from_its_own_on(lag):
    model = wild(4, 6, lag)
    for row in range(4):
        for column in range(6):
            seen = seen_from(model, row, column).flatten()
            place = 6 * row + column
            assert not seen[place:].any()
            assert column == 0 or seen[place - 1]  # the pixel to the left
            if row > 0 and lag > 1 and 0 < column + lag - 2 < 5:
                assert seen[6 * (row - 1) + column + lag - 2]  # the lag shows this one, above


@LAGS
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one(lag):
    x = torch.cartesian_prod(*[torch.arange(2.0)] * 6).view(64, 2, 3).double()
    for k in range(3):
        logits = wild(2, 3, lag).walk(x, torch.full((64,), k))
        p = torch.where(x == 1, logits, -logits).sigmoid().flatten(1).prod(1)
        assert p.sum().item() == pytest.approx(1) and p.max() > 3 / 64


@LAGS
@torch.no_grad()
def test_all_pixels_of_one_time_at_once_are_what_one_by_one_would_be(lag):
    model, y = wild(4, 5, lag), torch.tensor([2, 0, 1])
    noise = torch.rand(3, 4, 5, dtype=torch.float64)
    fast = torch.zeros_like(noise)
    logits = model.walk(fast, y, noise)
    plain = torch.zeros_like(noise)
    for row in range(4):
        for column in range(5):
            p = model.walk(plain, y)[:, row, column].sigmoid()
            plain[:, row, column] = (noise[:, row, column] < p).double()
    assert torch.equal(fast, plain) and 0.1 < plain.mean() < 0.9
    torch.testing.assert_close(logits, model.walk(plain, y))


@torch.no_grad()
def test_one_reader_is_the_lstm_of_the_chapter_on_a_line():
    model, x, y = wild(1, 20), torch.rand(2, 1, 20).double().round(), torch.tensor([1, 2])
    before = torch.cat([torch.zeros(2, 1), 2 * x[:, 0, :-1] - 1], dim=1)
    own = model.pixel(before[:, :, None].double()) + model.place[0] + model.label(y)[:, None]
    empty = torch.zeros(2, 6, dtype=torch.float64)
    h, _, _ = model.lstm(torch.cat([own, torch.zeros(2, 20, 6)], dim=2), empty, empty)
    # Logits leave the model in float32.
    torch.testing.assert_close(model.walk(x, y)[:, 0].float(), model.head(h)[:, :, 0].float())


@pytest.mark.parametrize("readers", [1, 28])
@torch.no_grad()
def test_images_have_a_likelihood_and_samples(readers):
    model = PixelRNN(4, readers, classes=3)
    x, y = torch.rand(2, 1, 28, 28).round(), torch.tensor([0, 2])
    assert model(x, y).shape == x.shape and model.log_prob(x, y).shape == (2,)
    check_samples(model)
