"""Coins as latents: each method's gradient against the sum over all tosses of three coins."""

import itertools
import math

import pytest
import torch
from chapters import TINY, check_samples, short_run
from torch.distributions import Bernoulli, Categorical, kl_divergence

from variations import discrete_latents as discrete

ALL = torch.tensor(list(itertools.product((0.0, 1), repeat=3)))  # all tosses of three coins
LOGITS = torch.tensor([-1.0, 0.3, 0.8])
SLOPES = torch.tensor([1.0, -2, 3])


class Toy:
    """Where a model stands, one with a reward r that is known for all h, and no KL."""

    def __init__(self, r):
        self.r = r

    def bound(self, x, y, h, logits):
        return self.r(h)


def line(h):
    return h @ SLOPES - 100


def bent(h):
    return line(h) + 4 * h[:, 0] * h[:, 1] - 2 * (h**2).sum(1) - 3 * h.prod(1)


def estimates(method, r, draws, **options):
    """Many gradients in the logits, (draws, 3)."""
    logits = LOGITS.expand(draws, 3).clone().requires_grad_()
    bounds = method(Toy(r), logits, None, None, **options)
    return torch.autograd.grad(bounds.sum(), logits)[0]


def truth(r):
    logits = LOGITS.clone().requires_grad_()
    q = Bernoulli(logits=logits).log_prob(ALL).sum(1).exp()
    return torch.autograd.grad((q * r(ALL)).sum(), logits)[0]


def off(found, expected):
    """How many standard errors the means lie from what is expected, at most."""
    return ((found.mean(0) - expected) / (found.std(0) / len(found) ** 0.5 + 1e-6)).abs().max()


@pytest.mark.parametrize("r", [line, bent])
@pytest.mark.parametrize("method", [discrete.reinforce, discrete.no_baseline])
def test_reinforce_is_right_on_average(method, r):
    torch.manual_seed(0)
    assert off(estimates(method, r, 200_000), truth(r)) < 4.5


def test_the_second_draw_takes_away_most_of_the_noise():
    torch.manual_seed(0)
    plain, paired = (estimates(m, bent, 20_000) for m in (discrete.no_baseline, discrete.reinforce))
    assert (plain.std(0) > 15 * paired.std(0)).all()


def test_straight_through_is_right_for_a_line_and_biased_where_it_is_bent():
    torch.manual_seed(0)
    steady = estimates(discrete.straight_through, line, 100)
    torch.testing.assert_close(steady, truth(line).expand(100, 3), atol=1e-3, rtol=1e-3)
    h = ALL.clone().requires_grad_()
    slopes = torch.autograd.grad(bent(h).sum(), h)[0]  # ∂r/∂h at each toss
    q = LOGITS.sigmoid()
    weights = Bernoulli(probs=q).log_prob(ALL).sum(1).exp()
    expected = q * (1 - q) * (weights @ slopes)
    found = estimates(discrete.straight_through, bent, 100_000)
    assert off(found, expected) < 4.5
    assert off(found, truth(bent)) > 50


def test_a_low_temperature_is_nearly_right_and_noisy_a_high_one_wrong_and_steady():
    torch.manual_seed(0)
    sharp = estimates(discrete.gumbel_softmax, bent, 200_000, temperature=0.05)
    soft = estimates(discrete.gumbel_softmax, bent, 200_000, temperature=2.0)
    error = [(e.mean(0) - truth(bent)).norm().item() for e in (sharp, soft)]
    assert error[0] < 0.1 * error[1]
    assert (sharp.std(0) > 3 * soft.std(0)).all()


def test_the_soft_coin_falls_on_1_as_often_as_the_coin():
    torch.manual_seed(0)
    seen = []
    estimates(discrete.gumbel_softmax, lambda s: seen.append(s) or s.sum(1), 100_000)
    shares = (seen[0] > 0.5).float().mean(0)
    torch.testing.assert_close(shares, LOGITS.sigmoid(), atol=0.006, rtol=0)


def test_the_numbers_of_the_opening():
    r = {1.0: -98.0, 0.0: -100.0}
    score = {1.0: 2.0, 0.0: -2.0}  # the derivative of log q in q, at 1/2
    plain = [r[h] * score[h] for h in (1.0, 0.0)]
    assert plain == [-196, 200]
    pairs = itertools.product((1.0, 0.0), repeat=2)
    paired = [(r[h] - r[o]) * (score[h] - score[o]) / 2 for h, o in pairs]
    assert sorted(paired) == [0, 0, 4, 4]
    posterior = Categorical(logits=torch.tensor([0.0, -70, -70, 0]))  # of 00, 01, 10, 11
    keeps, fair = Categorical(torch.tensor([1.0, 0, 0, 0])), Categorical(torch.ones(4))
    assert kl_divergence(keeps, posterior).item() == pytest.approx(math.log(2))
    assert kl_divergence(posterior, fair).item() == pytest.approx(math.log(2))
    assert kl_divergence(fair, posterior) > 30  # half of its tosses fit nothing


class Small(discrete.CoinVAE):
    """A model whose pixels are paper but for three, so that all its dreams can be counted."""

    def decode(self, h, y):
        paper = torch.full((len(h), 784), -60.0)
        three = 4 * (super().decode(h, y).flatten(1)[:, :3] * 20).tanh()
        return torch.cat([three, paper[:, 3:]], dim=1).view(-1, 1, 28, 28)


def test_sleep_minimises_the_kl_the_other_way_round():
    torch.manual_seed(0)
    model = Small(hidden=16, latent=3, classes=1)
    images = torch.zeros(8, 784)
    images[:, :3] = ALL
    images = images.view(-1, 1, 28, 28)
    y = torch.zeros(8, dtype=torch.long)
    joint = torch.stack(  # p(x, h) for 8 images, 8 tosses
        [discrete.log_likelihood(images, model.decode(h.expand(8, 3), y)).exp() / 8 for h in ALL], 1
    ).detach()
    log_q = Bernoulli(logits=model.encode(images, y)[:, None]).log_prob(ALL).sum(2)
    kl = (joint * ((joint / joint.sum(1, keepdim=True)).log() - log_q)).sum()
    weights = [model.encoder.last.weight, model.encoder.last.bias]
    expected = torch.autograd.grad(kl, weights)
    n = 40_000
    x, y = images[:1].expand(n, -1, -1, -1), torch.zeros(n, dtype=torch.long)
    bound = discrete.wake_sleep(model, torch.zeros(n, 3), x, y).mean()
    found = torch.autograd.grad(-bound, weights)
    for a, b in zip(found, expected):
        assert (a - b).norm() < 0.05 * b.norm()


@torch.no_grad()
def test_the_elbo_is_that_of_the_sum_over_all_tosses():
    torch.manual_seed(1)
    model = discrete.CoinVAE(hidden=16, latent=3, classes=2)
    x, y = torch.rand(1, 1, 28, 28).round(), torch.tensor([1])
    log_joint = discrete.log_likelihood(x.expand(8, -1, -1, -1), model.decode(ALL, y.expand(8)))
    log_joint = log_joint - 3 * math.log(2)
    log_q = discrete.log_prob(ALL, model.encode(x, y).expand(8, 3))
    exact = (log_q.exp() * (log_joint - log_q)).sum().item()
    draws = model.elbo(x.expand(4000, -1, -1, -1), y.expand(4000))
    assert draws.mean().item() == pytest.approx(exact, abs=5 * draws.std().item() / 4000**0.5)
    assert exact <= log_joint.logsumexp(0).item()


def test_who_learns_from_what():
    torch.manual_seed(0)
    model = discrete.CoinVAE(hidden=8, latent=3, classes=2)
    x, y = torch.rand(5, 1, 28, 28).round(), torch.tensor([0, 1, 0, 1, 1])
    for name, method in discrete.METHODS.items():
        bound = method(model, model.encode(x, y), x, y)
        found = torch.autograd.grad(bound.sum(), list(model.parameters()), allow_unused=True)
        assert all(gradient is not None and gradient.any() for gradient in found), name
        if name != "gumbel_softmax":  # its value is no bound; those of the others estimate it
            torch.manual_seed(3)
            many = [method(model, model.encode(x, y), x, y).sum().item() for _ in range(300)]
            honest = [model.elbo(x, y).sum().item() for _ in range(300)]
            assert sum(many) / 300 == pytest.approx(sum(honest) / 300, abs=0.5)


def test_a_saved_run_gives_four_models_that_sample_and_have_learnt():
    flags = TINY["variations.discrete_latents"] + " --steps 60 --batch-size 32 --lr 0.01"
    model, saved = short_run(discrete, flags + " --save-every 30")
    check_samples(model)
    assert set(discrete.METHODS) <= set(saved["curve"][-1])
    assert all(saved["curve"][-1][name] < 400 for name in discrete.METHODS)  # at first 543
