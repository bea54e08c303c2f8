"""Two levels of latents: Bayes' rule of Gaussians, and the bounds against integrals on a grid."""

import math

import pytest
import torch
from chapters import TINY, check_samples, short_run
from torch.distributions import Bernoulli, Normal, kl_divergence

from variations import hierarchical_vae as ladder

PRIOR = Normal(0.0, 1.0)
Z = torch.linspace(-7, 7, 281)  # a grid for each level
DZ = 14 / 280


@pytest.fixture
def model():
    """With one dimension a level, and networks that make much of them."""
    torch.manual_seed(3)
    model = ladder.HierarchicalVAE(hidden=16, lower=1, upper=1, classes=3)
    with torch.no_grad():
        for network in (model.prior, model.summary, model.encoder):
            network.last.weight *= 3
    return model


def an_image(model, n=1):
    """An image that the model may draw and its class, n times; always the same."""
    y = torch.tensor([2])
    ink = model.decode(torch.tensor([[1.2]]), y).sigmoid().detach()
    x = torch.bernoulli(ink, generator=torch.Generator().manual_seed(5))
    return x.expand(n, -1, -1, -1), y.expand(n)


@torch.no_grad()
def log_p(model):
    """log p(x) by a double sum over the grid."""
    x, y = an_image(model)
    many = y.expand(len(Z))
    coins = Bernoulli(logits=model.decode(Z[:, None], many))
    log_x = coins.log_prob(x).sum((1, 2, 3))
    mean, log_var = model.two(model.prior, Z[:, None], many)
    log_z1 = Normal(mean, (log_var / 2).exp()).log_prob(Z)  # (z₂, z₁)
    total = PRIOR.log_prob(Z)[:, None] + log_z1 + log_x
    return total.logsumexp((0, 1)).item() + 2 * math.log(DZ)


def test_q_is_the_product_of_forecast_and_message():
    torch.manual_seed(0)
    m, s, prior_mean, prior_log_var = torch.randn(4, 50, dtype=torch.double)
    q = ladder.gaussian(*ladder.combine(m, s, prior_mean, prior_log_var))
    prior = ladder.gaussian(prior_mean, prior_log_var)
    share = torch.sigmoid(s - 1)
    message = Normal(m / share, q.stddev / share.sqrt())
    z = torch.linspace(-2, 2, 9, dtype=torch.double)[:, None]
    rest = prior.log_prob(z) + message.log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(rest, rest[:1].expand(9, 50))  # no z is left
    precision = 1 / prior.variance + 1 / message.variance
    torch.testing.assert_close(1 / q.variance, precision)


@pytest.mark.parametrize("variance, mean, expected", [(1.0, 1.0, 0.5), (1 / 9, 1.8, 0.1)])
def test_the_examples_of_the_opening(variance, mean, expected):
    share = torch.tensor(1 / variance / (1 + 1 / variance))  # forecast N(0, 1), message N(2, ·)
    found = ladder.combine(2 * share, share.logit() + 1, torch.tensor(0.0), torch.tensor(0.0))
    assert found[0].item() == pytest.approx(mean)
    assert found[1].exp().item() == pytest.approx(expected)
    weights = torch.tensor([-100.0, -98])
    assert weights.logsumexp(0).item() - math.log(2) == pytest.approx(-98.57, abs=0.005)


def test_a_silent_message_leaves_the_forecast_at_no_price():
    nothing = torch.zeros(4), torch.full((4,), -40.0)
    forecast = torch.randn(4), torch.randn(4)
    for found, expected in zip(ladder.combine(*nothing, *forecast), forecast):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_bound_is_a_reconstruction_and_a_price_for_each_level(model):
    x, y = an_image(model, 10_000)
    q_upper, z2, p_lower, q_lower = model.infer(x, y)
    reconstruction = ladder.log_likelihood(x, model.decode(q_lower.sample(), y))
    lower = kl_divergence(q_lower, p_lower).sum(1)
    upper = kl_divergence(q_upper, PRIOR).sum(1)
    expected = (reconstruction - lower - upper).mean().item()
    elbo = model.elbo(x, y)
    assert elbo.mean().item() == pytest.approx(expected, abs=6 * elbo.std().item() / 100)
    assert elbo.mean().item() < log_p(model) - 0.01


@torch.no_grad()
def test_more_draws_come_closer_to_log_p_and_weights_average_to_p(model):
    torch.manual_seed(0)
    exact = log_p(model)
    x, y = an_image(model)
    weights = model.log_weights(x, y, 10_000)[0]
    ratio = (weights - exact).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=6 * ratio.std().item() / 10_000**0.5)
    bounds = [model.elbo(*an_image(model, 500), draws).mean().item() for draws in (1, 5, 50)]
    assert bounds[0] < bounds[1] < bounds[2] < exact + 0.05
    assert exact - bounds[2] < 0.2 * (exact - bounds[0])


def test_the_gradient_of_the_pixels_reaches_the_upper_level(model):
    x, y = an_image(model, 4)
    _, _, _, q_lower = model.infer(x, y)
    pixels = ladder.log_likelihood(x, model.decode(q_lower.rsample(), y)).sum()
    for network in (model.summary, model.prior):
        assert torch.autograd.grad(pixels, network.last.weight, retain_graph=True)[0].any()


@torch.no_grad()
def test_draws_of_one_image_belong_together():
    torch.manual_seed(0)
    model = ladder.HierarchicalVAE(hidden=8, lower=3, upper=2, classes=3)
    x, y = torch.rand(4, 1, 28, 28).round(), torch.tensor([0, 2, 1, 2])
    many = model.log_weights(x, y, 2000)
    assert many.shape == (4, 2000)
    for i in range(4):
        alone = model.log_weights(x[i : i + 1], y[i : i + 1], 2000)[0]
        error = (alone.var() + many[i].var()).sqrt().item() / 2000**0.5
        assert many[i].mean().item() == pytest.approx(alone.mean().item(), abs=5 * error)


@torch.no_grad()
def test_samples_are_z2_then_z1_then_pixels(model):
    model.prior.last.weight[1:] = 0
    model.prior.last.bias[1:] = -60.0  # σ_p is 0: z₂ decides all
    z2, y = torch.randn(5, 1), torch.arange(5) % 3
    assert torch.equal(model.draw_lower(z2, y), model.draw_lower(z2, y))
    mean, _ = model.two(model.prior, z2, y)
    torch.testing.assert_close(model.draw_lower(z2, y), model.decode(mean, y).sigmoid())


@pytest.mark.parametrize("more", ["", "--classes 1 --draws 3"])
def test_a_saved_model_samples(more):
    model, saved = short_run(ladder, f"{TINY['variations.hierarchical_vae']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)
