"""GAN: the game's value for two histograms, the penalty, and what the two networks depend on."""

import functools
import math

import pytest
import torch
from chapters import TINY, check_samples, class_accuracy, digits, edited, short_run

import gan

COUNTS_P = torch.tensor([1, 2, 5, 8, 4])  # of 20 real images: five different ones
COUNTS_Q = torch.tensor([6, 2, 1, 3, 8])  # of 20 generated images


def loss_of_table(logits):
    """D's loss where D is a table: a logit for each of five images."""
    return gan.discriminator_loss(
        logits.repeat_interleave(COUNTS_P), logits.repeat_interleave(COUNTS_Q)
    )


def test_the_best_discriminator_is_p_over_p_plus_q():
    p, q = COUNTS_P / 20, COUNTS_Q / 20
    logits = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss_of_table(logits).backward()
        optimizer.step()
    torch.testing.assert_close(logits.sigmoid(), p / (p + q), rtol=0, atol=1e-3)
    m = (p + q) / 2
    jensen_shannon = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()).item() / 2
    best = 2 * math.log(2) - 2 * jensen_shannon
    assert loss_of_table(logits).item() == pytest.approx(best, abs=1e-5)
    assert loss_of_table(torch.zeros(5)).item() == pytest.approx(2 * math.log(2))


def test_the_generator_is_pushed_hardest_where_it_fails():
    logits = torch.linspace(-9, 9, 7, requires_grad=True)
    loss = gan.generator_loss(logits)
    torch.testing.assert_close(loss, -logits.sigmoid().log().mean())
    (slopes,) = torch.autograd.grad(7 * loss, logits)
    torch.testing.assert_close(slopes, -(1 - logits.sigmoid()))


def test_r1_is_the_mean_squared_slope_and_can_be_trained_on():
    torch.manual_seed(0)
    w, x = torch.randn(784, requires_grad=True), torch.rand(6, 1, 28, 28, requires_grad=True)
    penalty = gan.r1_penalty(x.flatten(1) @ w + 3, x)
    torch.testing.assert_close(penalty, w.square().sum())
    torch.testing.assert_close(torch.autograd.grad(penalty, w)[0], 2 * w)
    bent = x.flatten(1).square() @ w  # its slope, 2 w x, differs from image to image
    by_hand = (2 * w * x.flatten(1)).square().sum(1).mean()
    torch.testing.assert_close(gan.r1_penalty(bent, x), by_hand)


@pytest.mark.parametrize(("gamma", "expected"), [(0, 0), (1, 2)])
def test_the_penalty_comes_every_fourth_step_unless_gamma_is_zero(monkeypatch, gamma, expected):
    calls, penalty = [], gan.r1_penalty
    monkeypatch.setattr(gan, "r1_penalty", lambda *inputs: calls.append(1) or penalty(*inputs))
    short_run(gan, f"{TINY['gan']} --steps 9 --gamma {gamma}")
    assert len(calls) == expected


def test_the_discriminator_answers_with_the_logit_of_the_class():
    torch.manual_seed(0)
    D, y = gan.Discriminator(4, classes=3), torch.tensor([0, 1, 2, 2, 1, 0])
    x = torch.rand(6, 1, 28, 28, requires_grad=True)
    before = D(x, y)
    (slope,) = torch.autograd.grad(before[0], x)
    assert (slope[0] != 0).all() and (slope[1:] == 0).all()  # each image by itself, all pixels
    with torch.no_grad():
        D.logits.bias += torch.tensor([10.0, 20.0, 30.0])
    torch.testing.assert_close(D(x, y) - before, 10.0 + 10 * y, rtol=0, atol=1e-4)


def test_the_generator_depends_on_z_and_class_image_by_image():
    torch.manual_seed(0)
    G, z = gan.Generator(4, latent=5, classes=3), torch.randn(1, 5, requires_grad=True)
    images = G(z.expand(3, -1), torch.arange(3))
    assert torch.pdist(images.flatten(1)).min() > 1e-3
    assert (torch.autograd.grad(images.sum(), z)[0] != 0).all()
    torch.testing.assert_close(G(z, torch.tensor([2])), images[2:])


def test_the_nearest_image():
    known = torch.rand(500, 1, 28, 28)
    images = known[[7, 300, 7]] + 0.1 * torch.randn(3, 1, 28, 28)
    assert gan.nearest(images, known).tolist() == [7, 300, 7]


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_generator_samples(more):
    model, saved = short_run(gan, f"{TINY['gan']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)


FLAGS = "--steps 250 --batch-size 32 --channels 8 --lr 2e-3 --save-every 125"


@functools.cache
def game(*edits, more=""):
    """After a short run: the share of samples of the right class, D's loss, and D's mean squared
    slope at real images."""
    model, saved = short_run(edited("gan", *edits), f"{FLAGS} {more}")
    D, asked = gan.Discriminator(channels=8), torch.arange(300) % 10
    D.load_state_dict(saved["D"])
    real = (digits()[0][:500] / 255).requires_grad_()
    slope = gan.r1_penalty(D(real, digits()[1][:500]), real).item()
    return class_accuracy(model.sample(asked), asked), saved["curve"][-1]["training"], slope


@pytest.mark.slow
def test_break_a_generator_that_helps_the_discriminator():
    _, loss, _ = game(("return F.softplus(-fake).mean()", "return F.softplus(fake).mean()"))
    assert loss < 0.05 and game()[1] > 0.6


@pytest.mark.slow
def test_break_other_labels_for_the_generator():
    right, _, _ = game(("fake = G(z, labels)", "fake = G(z, labels.flip(0))"))
    assert right < 0.3 and game()[0] > 0.8


@pytest.mark.slow
def test_break_no_penalty():
    _, _, slope = game(more="--gamma 0")
    assert slope > 10 * game()[2]
