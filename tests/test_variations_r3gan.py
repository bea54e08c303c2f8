"""R3GAN's loss: the best judge of pairs, what it measures, the walls between modes, R1 and R2."""

import math

import pytest
import torch
from chapters import TINY, check_samples, short_run

import gan
from variations import r3gan


def best_value(value, points, steps=600, lr=0.3):
    """The largest value(D) over all tables D of a number for each of the points, and that table."""
    D = torch.zeros(points, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([D], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (-value(D)).backward()
        optimizer.step()
    return value(D).item(), D.detach()


def test_the_best_judge_and_what_it_measures():
    p = torch.tensor([1, 2, 5, 8, 4], dtype=torch.double) / 20
    q = torch.tensor([6, 2, 1, 3, 8], dtype=torch.double) / 20
    P = p[:, None] * q
    J, D = best_value(lambda D: (P * (D[:, None] - D).sigmoid().log()).sum(), 5, lr=0.05)
    logits = (p / q).log()
    torch.testing.assert_close(D - D[0], logits - logits[0], rtol=0, atol=1e-4)
    M = (P + P.T) / 2
    both = (P * (P / M).log()).sum() / 2 + (P.T * (P.T / M).log()).sum() / 2
    assert J == pytest.approx(both.item() - math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("fakes", "one_by_one", "for_life", "anew"),
    [
        ((0, 0), -0.955, -0.347, -0.347),
        ((0, 2), -0.693, -0.347, -0.173),
        ((0, 1), -1.386, -0.693, -0.693),
    ],
)
def test_the_table_of_two_modes(fakes, one_by_one, for_life, anew):
    real, fake = torch.tensor([0, 1]), torch.tensor(fakes)  # of three images, 2 is "another"
    games = {
        one_by_one: lambda D: -gan.discriminator_loss(D[real], D[fake]),
        for_life: lambda D: -r3gan.pairing_loss(D[real], D[fake]),
        anew: lambda D: -r3gan.pairing_loss(D[real.repeat(2)], D[fake.repeat_interleave(2)]),
    }
    for expected, value in games.items():
        assert best_value(value, 3)[0] == pytest.approx(expected, abs=2e-3)


def test_the_slope_of_a_judge_under_both_penalties():
    x = torch.linspace(-3, 3, 121, dtype=torch.double)
    p = (-((x - 0.7) ** 2)).softmax(0)
    q = (-((x + 0.3) ** 2)).softmax(0)
    dx, gamma = x[1] - x[0], 1e4  # so strong that D stays small
    between = (p + q)[:-1] / 2 + (p + q)[1:] / 2

    def loss(slope):
        D = torch.cat([slope.new_zeros(1), (slope * dx).cumsum(0)])
        J = (p[:, None] * q * (D[:, None] - D).sigmoid().log()).sum()
        return gamma / 2 * (between * slope**2).sum() - J

    slope = torch.zeros(120, dtype=torch.double, requires_grad=True)
    (push,) = torch.autograd.grad(loss(slope), slope)
    step = -push / (gamma * between)  # Newton's, exact for a small D
    predicted = (q - p).cumsum(0)[:-1] * dx / (2 * gamma * between)  # (p + q) dx is the share
    torch.testing.assert_close(step, predicted, rtol=1e-9, atol=0)
    (rest,) = torch.autograd.grad(loss(step.requires_grad_()), step)
    assert rest.norm() < 1e-3 * push.norm()


def test_a_number_added_to_the_judge_changes_nothing():
    torch.manual_seed(0)
    D, y = gan.Discriminator(4, classes=3), torch.tensor([0, 1, 2, 1])
    real, fake = torch.rand(2, 4, 1, 28, 28)
    r3gan.pairing_loss(D(real, y), D(fake, y)).backward()
    assert D.logits.bias.grad.abs().max() < 1e-7 < 1e-4 < D.logits.weight.grad.abs().max()
    tied = torch.full((5,), 3.7)
    assert r3gan.pairing_loss(tied, tied).item() == pytest.approx(math.log(2))


def test_the_penalty_of_a_linear_and_of_a_bent_judge():
    torch.manual_seed(0)
    w = torch.randn(784, requires_grad=True)
    real, fake = torch.rand(2, 6, 784).requires_grad_().unbind()
    penalty = r3gan.gradient_penalty(0.5, real @ w, real, fake @ w, fake)
    torch.testing.assert_close(penalty, 0.5 * w.square().sum())  # γ/2 (R1 + R2), each ‖w‖²
    torch.testing.assert_close(torch.autograd.grad(penalty, w)[0], w)
    bent = r3gan.gradient_penalty(3.0, real.square() @ w, real, fake.square() @ w, fake)
    by_hand = [(2 * w * part).square().sum(1).mean() for part in (real, fake)]
    torch.testing.assert_close(bent, 1.5 * sum(by_hand))


@pytest.mark.slow
def test_penalties_open_the_collapse():
    for game, for_life in ((gan.discriminator_loss, False), (r3gan.pairing_loss, False)):
        stuck = r3gan.escape(game, for_life, gamma=0.0, steps=800)
        free = r3gan.escape(game, for_life, gamma=1.0, steps=800)
        assert (stuck[-1] < 0.5).all() and 0.3 < (free[-1] > 0.5).float().mean() < 0.7


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_generator_samples(more):
    model, saved = short_run(r3gan, f"{TINY['variations.r3gan']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)
