"""M2: the bound without a label against sums and integrals, and who learns from what."""

import math

import pytest
import torch
from chapters import TINY, check_samples, short_run
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from variations import semi_supervised as semi

PRIOR = Normal(0.0, 1.0)
Z = torch.linspace(-8, 8, 4001)[:, None]  # a grid of one latent dimension
DZ = 16 / 4000


def test_the_bound_is_the_sum_over_classes_and_bayes_rule_is_best():
    torch.manual_seed(0)
    L, logits = torch.randn(2, 6, 4, dtype=torch.double) * 3
    logits.requires_grad_()
    U = semi.unlabelled_bound(L, logits)
    q = logits.softmax(1)
    by_hand = [sum(q[i, y] * (L[i, y] - q[i, y].log()) for y in range(4)) for i in range(6)]
    torch.testing.assert_close(U, torch.stack(by_hand))
    bayes = L.softmax(1)
    gap = kl_divergence(Categorical(q), Categorical(bayes))
    torch.testing.assert_close(U, L.logsumexp(1) - gap)
    at_best = L.clone().requires_grad_()  # exp L / Z
    best = semi.unlabelled_bound(L, at_best)
    torch.testing.assert_close(best, L.logsumexp(1))
    assert torch.autograd.grad(best.sum(), at_best)[0].abs().max() < 1e-12
    slope = q * (L - q.log() - U[:, None])  # of the opening: next to 0 where q is
    torch.testing.assert_close(torch.autograd.grad(U.sum(), logits)[0], slope)


def test_the_example_of_the_opening():
    L = torch.tensor([[-100.0, -102.0]])
    assert L.softmax(1)[0].tolist() == pytest.approx([0.88, 0.12], abs=0.005)
    assert semi.unlabelled_bound(L, L).item() == pytest.approx(-99.87, abs=0.005)
    assert semi.unlabelled_bound(L, torch.zeros(1, 2)).item() == pytest.approx(-100.31, abs=0.005)


@torch.no_grad()
def test_the_bound_of_a_model_against_integrals_over_z():
    torch.manual_seed(1)
    model = semi.M2(hidden=16, latent=1, classes=3)
    model.encoder.last.bias[1] -= 0.7  # a q that is not the posterior
    x = torch.bernoulli(model.decode(torch.tensor([[1.5]]), torch.tensor([2])).sigmoid())
    L, log_p = [], []
    for label in range(3):
        coins = Bernoulli(logits=model.decode(Z, torch.full((len(Z),), label)))
        log_joint = PRIOR.log_prob(Z[:, 0]) + coins.log_prob(x).sum((1, 2, 3)) - math.log(3)
        mean, log_var = model.encode(x, torch.tensor([label]))
        log_q = Normal(mean, (log_var / 2).exp()).log_prob(Z)[:, 0]
        L.append((log_q.exp() * (log_joint - log_q)).sum() * DZ)
        log_p.append(log_joint.logsumexp(0) + math.log(DZ))
    logits = model.classifier(x.flatten(1))
    q = logits.softmax(1)[0]
    exact = (q * (torch.stack(L) - q.log())).sum().item()
    draws = semi.unlabelled_bound(model.bounds(x.expand(4000, -1, -1, -1)), logits.expand(4000, 3))
    error = draws.std().item() / 4000**0.5
    assert draws.mean().item() == pytest.approx(exact, abs=5 * error)
    assert exact < torch.stack(log_p).logsumexp(0).item() - 0.01  # log p(x)


@torch.no_grad()
def test_each_image_is_tried_as_each_class():
    torch.manual_seed(0)
    model = semi.M2(hidden=8, latent=2, classes=4)
    model.encoder.last.weight[2:] = 0
    model.encoder.last.bias[2:] = -60.0  # σ is 0: a draw is its mean
    x = torch.rand(5, 1, 28, 28).round()
    bounds = model.bounds(x)
    for label in range(4):
        expected = model.elbo(x, torch.full((5,), label)) - math.log(4)
        torch.testing.assert_close(bounds[:, label], expected)


def test_who_learns_from_what():
    torch.manual_seed(0)
    model, x = semi.M2(hidden=8, latent=2, classes=3), torch.rand(4, 1, 28, 28).round()

    def learns(value):
        names = ("classifier", "alone", "encoder", "decoder")
        weights = [getattr(model, name).first.weight for name in names]
        found = torch.autograd.grad(value.sum(), weights, allow_unused=True)
        return {name for name, gradient in zip(names, found) if gradient is not None}

    assert learns(model.elbo(x, torch.tensor([0, 1, 2, 0]))) == {"encoder", "decoder"}
    U = semi.unlabelled_bound(model.bounds(x), model.classifier(x.flatten(1)))
    assert learns(U) == {"classifier", "encoder", "decoder"}


def test_the_classifier_sees_digits_moved_by_up_to_two_pixels_and_without_a_fifth():
    x = torch.zeros(500, 1, 28, 28)
    x[:, 0, 10, 20] = 1
    places = set()
    for _ in range(200):
        seen = semi.altered(x)
        assert seen.shape == (500, 784) and set(seen.unique().tolist()) == {0, 1.25}
        place = seen.amax(0).argmax().item()
        assert seen.count_nonzero().item() == pytest.approx(400, abs=60)
        assert seen[:, place].count_nonzero() == seen.count_nonzero()  # all by the same step
        places.add((place // 28 - 10, place % 28 - 20))
    assert {abs(step) for move in places for step in move} == {0, 1, 2}


def test_labels_are_as_many_of_each_class_and_the_rest_keeps_none():
    y = torch.randint(9, (3000,), generator=torch.Generator().manual_seed(1)) + 1  # no class 0
    known, rest = semi.split_labels(y, 7, seed=0)
    assert y[known].bincount().tolist() == [0] + [7] * 9
    assert torch.equal(torch.cat([known, rest]).sort().values, torch.arange(3000))
    assert not torch.equal(known, semi.split_labels(y, 7, seed=1)[0])


def test_the_baseline_starts_from_the_same_weights_as_the_classifier():
    model = semi.M2(hidden=8, latent=2)
    for a, b in zip(model.classifier.parameters(), model.alone.parameters()):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_model_samples(more):
    model, saved = short_run(semi, f"{TINY['variations.semi_supervised']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)
