"""VAE: the KL, the trick, and the bounds, against integrals over z done on a grid."""

import functools

import pytest
import torch
from chapters import TINY, check_samples, digits, edited, short_run
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as kl_of_torch

import vae

PRIOR = Normal(0.0, 1.0)
Z = torch.linspace(-8, 8, 8001)[:, None]  # a grid of one latent dimension
DZ = 16 / 8000


@pytest.fixture
def model():
    """With one latent dimension, and a q that is not the posterior: σ is about 0.7."""
    torch.manual_seed(1)
    model = vae.VAE(hidden=16, latent=1, classes=3)
    with torch.no_grad():
        model.encoder.last.bias[1] -= 0.7
    return model


def an_image(model, n=1):
    """An image that the model drew and its class, n times."""
    y = torch.tensor([2])
    x = torch.bernoulli(model.decode(torch.tensor([[1.5]]), y).sigmoid()).detach()
    return x.expand(n, -1, -1, -1), y.expand(n)


def log_joint(model, x, label):
    """log p(x, z | y) for each z of the grid."""
    coins = Bernoulli(logits=model.decode(Z, torch.full((len(Z),), label)))
    return PRIOR.log_prob(Z[:, 0]) + coins.log_prob(x[:1].expand(len(Z), -1, -1, -1)).sum((1, 2, 3))


def log_p(model, x, label=2):
    return (log_joint(model, x, label).logsumexp(0) + torch.tensor(DZ).log()).item()


def elbo_by_integration(model, x, y):
    mean, log_var = model.encode(x[:1], y[:1])
    log_q = Normal(mean, (log_var / 2).exp()).log_prob(Z)[:, 0]
    return (log_q.exp() * (log_joint(model, x, 2) - log_q)).sum() * DZ


def test_kl_of_two_gaussians():
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, 7, 5)
    kl, q = vae.kl_divergence(mean, log_var), Normal(mean, (log_var / 2).exp())
    torch.testing.assert_close(kl, kl_of_torch(q, PRIOR))
    z = q.sample((20_000,))
    by_draws = q.log_prob(z) - PRIOR.log_prob(z)
    assert ((by_draws.mean(0) - kl).abs() < 5 * by_draws.std(0) / 20_000**0.5).all()
    table = vae.kl_divergence(torch.tensor([0.0, 1, 1]), 2 * torch.tensor([1, 1, 0.1]).log())
    assert table.tolist() == pytest.approx([0, 0.5, 2.31], abs=0.005)  # of the comment


def test_a_reparameterised_draw_and_its_derivatives():
    mean = torch.full((50_000, 1), 3.0, requires_grad=True)
    sigma = torch.full((50_000, 1), 0.5, requires_grad=True)
    z = vae.reparameterise(mean, 2 * sigma.log())
    assert z.mean().item() == pytest.approx(3, abs=0.02)
    assert z.std().item() == pytest.approx(0.5, abs=0.01)
    by_mean, by_sigma = torch.autograd.grad(z.sum(), (mean, sigma))
    torch.testing.assert_close(by_mean, torch.ones_like(mean))
    torch.testing.assert_close(by_sigma, (z - 3) / 0.5, rtol=1e-4, atol=1e-4)  # ε


def test_log_likelihood_is_that_of_independent_coins():
    x, logits = torch.rand(4, 1, 28, 28).round(), 5 * torch.randn(4, 1, 28, 28)
    expected = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(vae.log_likelihood(x, logits), expected)


@torch.no_grad()
def test_elbo_importance_bounds_and_log_p_in_their_order(model):
    x, y = an_image(model, 20_000)
    exact, integral = log_p(model, x), elbo_by_integration(model, x, y).item()
    elbo = model.elbo(x, y)
    error = elbo.std().item() / 20_000**0.5
    assert elbo.mean().item() == pytest.approx(integral, abs=5 * error)
    one, three, many = [
        vae.importance_bound(model, x[:n], y[:n], samples).mean().item()
        for n, samples in ((6000, 1), (2000, 3), (2, 3000))
    ]
    assert one == pytest.approx(integral, abs=10 * error)
    assert integral < three < exact
    assert many == pytest.approx(exact, abs=0.1)


def test_the_gradient_of_the_elbo_is_that_of_the_integral(model):
    x, y = an_image(model, 20_000)
    bias = model.encoder.last.bias  # moves μ and log σ²
    (expected,) = torch.autograd.grad(elbo_by_integration(model, x, y), bias)
    (estimate,) = torch.autograd.grad(model.elbo(x, y).mean(), bias)
    torch.testing.assert_close(estimate, expected, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_the_bounds_are_exact_where_q_is_the_posterior(model):
    for weights in (model.encoder.last.weight, model.encoder.last.bias, model.decoder.first.weight):
        torch.nn.init.zeros_(weights)  # x says nothing about z, and q is the prior
    x, y = an_image(model)
    assert model.elbo(x, y).item() == pytest.approx(log_p(model, x), abs=0.01)
    assert vae.importance_bound(model, x, y, 5).item() == pytest.approx(log_p(model, x), abs=0.01)


@torch.no_grad()
def test_beta_weighs_the_kl():
    torch.manual_seed(0)
    model, x, y = vae.VAE(16, latent=3), torch.rand(5, 1, 28, 28).round(), torch.arange(5)
    elbos = []
    for beta in (0.0, 4.0):
        torch.manual_seed(0)
        elbos.append(model.elbo(x, y, beta))
    mean, log_var = model.encode(x, y)
    kl = kl_of_torch(Normal(mean, (log_var / 2).exp()), PRIOR).sum(1)
    torch.testing.assert_close(elbos[0] - elbos[1], 4 * kl, rtol=1e-3, atol=1e-3)


def test_bounds_by_class(model):
    x, _ = an_image(model, 2)
    bounds = vae.bound_by_class(model, x, samples=1000)
    for label in range(3):
        assert bounds[label].tolist() == pytest.approx([log_p(model, x, label)] * 2, abs=0.3)


@torch.no_grad()
def test_samples_decode_draws_from_the_prior(model):
    images = model.sample(torch.full((20_000,), 2))
    weights = (PRIOR.log_prob(Z).exp() * DZ)[..., None, None]
    expected = (weights * model.decode(Z, torch.full((len(Z),), 2)).sigmoid()).sum(0)
    torch.testing.assert_close(images.mean(0), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_model_samples(more):
    model, saved = short_run(vae, f"{TINY['vae']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)


FLAGS = "--steps 400 --batch-size 100 --hidden 200 --latent 8 --save-every 400"


@functools.cache
def kl_and_loss(*edits, more=""):
    """After a short run: the KL of each dimension of z, and −ELBO, means over test digits."""
    model, _ = short_run(edited("vae", *edits), f"{FLAGS} {more}")
    x, y = vae.binarise(digits()[2]), digits()[3]
    with torch.no_grad():
        kl, loss = vae.kl_divergence(*model.encode(x, y)).mean(0), -vae.VAE.elbo(model, x, y).mean()
    return kl, loss


@pytest.mark.slow
def test_break_a_draw_without_gradient():
    kl, loss = kl_and_loss(("(x, self.decode(z, y))", "(x, self.decode(z.detach(), y))"))
    assert kl.sum() < 0.01 and kl_and_loss()[0].sum() > 5 and loss > kl_and_loss()[1] + 20


@pytest.mark.slow
def test_break_a_mean_instead_of_a_sum():
    kl, loss = kl_and_loss(("by_pixel.flatten(1).sum(1)", "by_pixel.flatten(1).mean(1)"))
    assert kl.max() < 0.01 and loss > kl_and_loss()[1] + 20


@pytest.mark.slow
def test_break_no_price_for_what_z_says():
    kl, loss = kl_and_loss(more="--beta 0")
    assert kl.sum() > 5 * kl_and_loss()[0].sum() and loss > 2 * kl_and_loss()[1]
