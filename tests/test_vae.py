"""VAE against exact answers: a linear-Gaussian model, quadrature, enumeration, sums by hand."""
import itertools
import math

import pytest
import torch
from scipy import integrate, stats

import vae


class LinearGaussian(vae.VAE):
    """x = W z + b + s noise in 3 numbers, z ~ N(0, I); q the true posterior, or one off by `off` and `wide`."""

    def __init__(self, off=0.0, wide=1.0):
        super().__init__(hidden=2, latent_dim=2)
        self.double()
        self.W = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.5, 0.0]], dtype=torch.float64)  # its columns are orthogonal
        self.b, self.s = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), 0.7
        self.off, self.wide = off, wide

    def posterior(self, x):
        var = 1 / (1 + self.W.square().sum(0) / self.s**2)  # diagonal, since W is
        return var * ((x.view(-1, 3) - self.b) @ self.W) / self.s**2, var.sqrt().expand(len(x), 2)

    def encode(self, x, y=None):
        mean, std = self.posterior(x)
        return mean + self.off, 2 * (std * self.wide).log()

    def decode(self, z, y=None):
        return (z.double() @ self.W.T + self.b).view(-1, 1, 1, 3)


@pytest.fixture
def gaussian(monkeypatch):
    def log_prob(x, mean, s=0.7):
        return (-(x - mean).square() / (2 * s**2) - math.log(s * math.sqrt(2 * math.pi))).flatten(1).sum(1)
    monkeypatch.setattr(vae, "bernoulli_log_prob", log_prob)
    torch.manual_seed(0)
    x = torch.randn(4, 1, 1, 3, dtype=torch.float64)
    model = LinearGaussian()
    exact = stats.multivariate_normal(model.b, model.W @ model.W.T + model.s**2 * torch.eye(3, dtype=torch.float64))
    return x, torch.tensor(exact.logpdf(x.view(4, 3)))


def test_with_the_true_posterior_every_draw_of_the_weights_is_log_p(gaussian):
    x, exact = gaussian
    assert torch.allclose(vae.importance_bound(LinearGaussian(), x, samples=3), exact, atol=1e-9)


@pytest.mark.parametrize("off, wide", [(0.0, 1.0), (0.2, 1.0), (0.0, 1.5), (-0.1, 0.8)])
def test_the_elbo_falls_short_of_log_p_by_the_kl_to_the_posterior(gaussian, off, wide):
    x, exact = gaussian
    model = LinearGaussian(off, wide)
    _, std = model.posterior(x)
    kl = (wide**2 + (off / std).square() - 1) / 2 - math.log(wide)
    draws = torch.stack([model.elbo(x) for _ in range(4000)])
    error = 4 * draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - (exact - kl.sum(1))).abs() <= error).all()


def test_more_samples_tighten_the_bound_up_to_log_p(gaussian):
    x, exact = gaussian
    model = LinearGaussian(0.3, 1.3)
    many = x.repeat(2000, 1, 1, 1)
    bounds = [vae.importance_bound(model, many, samples=n).view(2000, 4).mean(0) for n in (1, 5, 50)]
    assert (bounds[0] < bounds[1]).all() and (bounds[1] < bounds[2]).all() and (bounds[2] < exact + 0.02).all()
    assert torch.allclose(vae.importance_bound(model, x, samples=20000), exact, atol=0.05)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (1.5, 0.3), (-0.7, 2.0)])
def test_kl_against_quadrature(mean, std):
    q, p = stats.norm(mean, std), stats.norm(0, 1)
    exact, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mean - 12 * std, mean + 12 * std)
    kl = vae.gaussian_kl(torch.tensor(mean), torch.tensor(2 * math.log(std)))
    assert kl.item() == pytest.approx(exact, rel=1e-5, abs=1e-5)


def test_kl_is_that_of_torch_distributions():
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, 5, 3).double()
    q, p = torch.distributions.Normal(mean, torch.exp(log_var / 2)), torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(vae.gaussian_kl(mean, log_var), torch.distributions.kl_divergence(q, p))


def test_beta_weighs_the_kl_alone():
    torch.manual_seed(0)
    model, x = vae.VAE(16, 3), torch.rand(5, 1, 28, 28).round()
    bounds = []
    for beta in (0.0, 1.0, 3.0):
        torch.manual_seed(1)
        bounds.append(model.elbo(x, 3, beta))
    kl = vae.gaussian_kl(*model.encode(x, 3)).sum(1)
    assert torch.allclose(bounds[0] - bounds[1], kl, atol=1e-3)
    assert torch.allclose(bounds[0] - bounds[2], 3 * kl, atol=1e-3)


def test_one_importance_sample_is_the_elbo_on_average():
    torch.manual_seed(0)
    model, y, x = vae.VAE(16, 3), torch.tensor([4, 10]), torch.rand(2, 1, 28, 28).round()
    a, b = (torch.stack([f().detach() for _ in range(1000)]) for f in (
        lambda: vae.importance_bound(model, x, y, 1), lambda: model.elbo(x, y)))
    assert ((a.mean(0) - b.mean(0)).abs() <= 4 * ((a.var(0) + b.var(0)) / 1000).sqrt() + 1e-6).all()


def test_three_estimates_of_the_elbo_s_gradient_agree(gaussian):
    """∂ELBO / ∂mean and ∂ log-variance of q: autograd through `elbo`, the score function, minus the KL's gradient."""
    x, model = gaussian[0][:1].expand(100000, -1, -1, -1), LinearGaussian()
    m, s = model.posterior(x)
    mean, log_var = (m + 0.3).requires_grad_(), (2 * s.log() + 0.4).requires_grad_()
    model.encode = lambda x, y: (mean, log_var)
    pathwise = torch.autograd.grad(model.elbo(x).sum(), (mean, log_var))
    q = torch.distributions.Normal(mean, torch.exp(log_var / 2))
    with torch.no_grad():
        z = q.sample()
        log_w = vae.bernoulli_log_prob(x, model.decode(z)) - (q.log_prob(z) + z**2 / 2).sum(1)
    score = torch.autograd.grad(((log_w - log_w.mean())[:, None] * q.log_prob(z)).sum(), (mean, log_var))
    exact = (m - mean) / s**2, (1 - log_var.exp() / s**2) / 2
    for a, b, c in zip(pathwise, score, exact):
        for estimate in (a, b):
            assert ((estimate.mean(0) - c[0]).abs() <= 4 * estimate.std(0) / len(x)**0.5).all()
        assert (b.std(0) > 1.3 * a.std(0)).all()  # why z is reparameterised


def test_probabilities_of_all_small_images_sum_to_one():
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)), dtype=torch.float64).view(-1, 1, 3, 3)
    logits = torch.randn(1, 1, 3, 3, dtype=torch.float64).expand(512, 1, 3, 3)
    assert vae.bernoulli_log_prob(every, logits).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_an_untrained_vae_scores_about_784_ln_2_and_no_class_is_the_null_label():
    torch.manual_seed(0)
    model, x = vae.VAE(64, 3), torch.rand(50, 1, 28, 28).round()
    assert model.elbo(x).mean().item() == pytest.approx(-784 * math.log(2), abs=5)
    z = torch.randn(5, 3)
    assert torch.equal(model.decode(z), model.decode(z, vae.NULL))
    assert not torch.equal(model.decode(z), model.decode(z, 3))
    for no_class, null, three in zip(model.encode(x), model.encode(x, vae.NULL), model.encode(x, 3)):
        assert torch.equal(no_class, null) and not torch.equal(no_class, three)
    elbos = []
    for y in (None, vae.NULL, 3):
        torch.manual_seed(0)
        elbos.append(model.elbo(x, y))
    assert torch.equal(elbos[0], elbos[1]) and not torch.equal(elbos[0], elbos[2])


def test_samples_decode_z_of_the_prior():
    """Of a linear decoder, the logits of samples are N(b, W Wᵀ)."""
    torch.manual_seed(0)
    model = LinearGaussian()
    logits = model.sample(50000).logit().view(-1, 3)
    assert torch.allclose(logits.mean(0), model.b, atol=4 * (2 / 50000) ** 0.5)  # variances are 2 at most
    assert torch.allclose(logits.T.cov(), model.W @ model.W.T, atol=4 * (8 / 50000) ** 0.5)


def test_samples_without_a_class_draw_it_first():
    torch.manual_seed(0)
    model = vae.VAE(64, 3)
    with torch.no_grad():  # the first hidden layer hears of the class alone, and loudly
        model.decoder[0].weight[:, :3] = 0
        model.decoder[0].weight[:, 3:] *= 30
    of_each = torch.stack([model.decode(torch.zeros(1, 3), y)[0] for y in range(11)]).sigmoid().flatten(1)
    drawn = torch.cdist(model.sample(5000).flatten(1), of_each).argmin(1)
    shares = drawn.bincount(minlength=11) / 5000
    assert shares.tolist() == pytest.approx([0.1] * 10 + [0], abs=4 * (0.09 / 5000) ** 0.5)
    assert (torch.cdist(model.sample(100, 7).flatten(1), of_each).argmin(1) == 7).all()
    model.conditional = False
    assert (torch.cdist(model.sample(100).flatten(1), of_each).argmin(1) == vae.NULL).all()
