"""DDPM against closed forms: on Gaussian data the optimal denoiser is known, and with it every term of the bound."""
import math

import pytest
import torch
from torch import nn

import ddpm

MU, S2 = 0.1, 0.03**2  # data N(MU, S2) in every pixel: narrow, so that clamping to [-1, 1] never acts


class OptimalNet(nn.Module):
    """v̂ = E[v | x_t] for that data, in place of the U-Net."""

    def __init__(self, alpha_bar, s2):
        super().__init__()
        self.alpha_bar, self.s2, self.asked = alpha_bar, s2, []

    def forward(self, x, t, y):
        self.asked += t.tolist()
        a = self.alpha_bar[t].view(-1, 1, 1, 1).to(x)
        x0 = MU + a.sqrt() * self.s2 / (a * self.s2 + 1 - a) * (x - a.sqrt() * MU)  # E[x0 | x_t]
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return a.sqrt() * eps - (1 - a).sqrt() * x0


def optimal(T=1000, s2=S2):
    model = ddpm.DDPM(channels=8, timesteps=T).double()
    beta = torch.linspace(0.1, 20, T, dtype=torch.float64).div(T).clamp(max=0.999)  # the same chain in float64
    model.alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    model.net = OptimalNet(model.alpha_bar, s2)
    return model


def gaussian_data(n, seed=0):
    torch.manual_seed(seed)
    return MU + math.sqrt(S2) * torch.randn(n, 1, 28, 28, dtype=torch.float64)


def test_the_chain_is_the_papers_and_ends_in_noise():
    model = ddpm.DDPM()
    beta = 1 - model.alpha_bar[1:].double() / model.alpha_bar[:-1].double()
    assert torch.allclose(beta, torch.linspace(1e-4, 0.02, 1000).double(), atol=2e-6)
    assert model.alpha_bar[0] == 1 and model.alpha_bar[-1] < 1e-4
    for T in (10, 100, 4000):
        assert ddpm.DDPM(timesteps=T).alpha_bar[-1] < 2e-3


def test_q_sample_has_the_mean_and_variance_of_t_single_steps():
    torch.manual_seed(0)
    model = ddpm.DDPM(timesteps=20)
    x = x0 = torch.full((200, 1, 28, 28), 0.7)
    for t in range(1, 13):
        beta = 1 - model.alpha_bar[t] / model.alpha_bar[t - 1]
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn_like(x)
    jump = model.q_sample(x0, 12, torch.randn_like(x0))
    assert x.mean().item() == pytest.approx(jump.mean().item(), abs=0.01)
    assert x.var().item() == pytest.approx(jump.var().item(), abs=0.02)


@pytest.mark.parametrize("t, s", [(2, 1), (500, 499), (1000, 999), (700, 350), (10, 0)])
def test_posterior_is_bayes_rule_for_gaussians(t, s):
    model = optimal()
    a_t, a_s = model.alpha_bar[t], model.alpha_bar[s]
    x0, x = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64), torch.full((1, 1, 1, 1), -0.8, dtype=torch.float64)
    mean, var = model.posterior(x0, x, t, s)
    if s == 0:
        assert mean.item() == pytest.approx(0.3) and var.item() == 0
        return
    # prior x_s ~ N(√a_s x0, 1 - a_s), likelihood x_t ~ N(√k x_s, 1 - k): precisions add
    k = a_t / a_s
    precision = 1 / (1 - a_s) + k / (1 - k)
    assert var.item() == pytest.approx(1 / precision.item(), rel=1e-9)
    expected = (a_s.sqrt() * 0.3 / (1 - a_s) + k.sqrt() * -0.8 / (1 - k)) / precision
    assert mean.item() == pytest.approx(expected.item(), rel=1e-9)


def test_bound_terms_of_the_optimal_denoiser_are_the_closed_form():
    """KL_t = (coefficient of x̂0)² · Var(x0 | x_t) / (2 β̃_t) a pixel, since x̂0 = E[x0 | x_t]."""
    model, x0 = optimal(), gaussian_data(400)
    for t in (2, 3, 10, 100, 500, 1000):
        torch.manual_seed(t)
        a, b = model.alpha_bar[t], model.alpha_bar[t - 1]
        beta = 1 - a / b
        var = S2 * (1 - a) / (a * S2 + 1 - a)
        tilde = (1 - b) / (1 - a) * beta
        expected = 784 * (b.sqrt() * beta / (1 - a)) ** 2 * var / (2 * tilde)
        term = model.bound_term(x0, torch.full((400,), t))
        assert term.shape == (400,)
        assert term.mean().item() == pytest.approx(expected.item(), rel=0.01)


def test_first_term_is_a_probability_over_the_256_grey_levels():
    """exp(−L_0), summed over all grey levels of a pixel, is 1: each level gets its share of the Gaussian."""
    model = ddpm.DDPM(channels=8)
    levels = torch.arange(256).view(256, 1, 1, 1).expand(256, 1, 28, 28) / 127.5 - 1
    model.q_sample = lambda x0, t, eps: torch.full_like(x0, 0.2)  # the same x_1 for every level
    model.x0_hat = lambda x, t, eps: torch.full_like(x, 0.2)
    torch.manual_seed(0)
    nats = model.bound_term(levels, torch.ones(256, dtype=torch.long)) / 784
    # clamped at 1e-12 far from 0.2, so that the sum may exceed 1 by 256e-12
    assert nats.double().neg().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_prior_term_is_the_kl_of_torch_distributions():
    model, x0 = ddpm.DDPM(timesteps=10), gaussian_data(3).float()
    a = model.alpha_bar[-1]
    q = torch.distributions.Normal(a.sqrt() * x0, (1 - a).sqrt())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(model.prior_term(x0), expected, rtol=1e-3, atol=1e-4)


def test_elbo_sums_every_term_once_and_bounds_the_likelihood():
    model = optimal(T=30)
    x = (gaussian_data(8) * 127.5 + 127.5).round().clamp(0, 255) / 255
    torch.manual_seed(3)
    elbo = model.elbo(x)
    assert sorted(model.net.asked) == [t for t in range(1, 31) for _ in range(8)]
    edges = torch.distributions.Normal(MU, math.sqrt(S2))
    exact = (edges.cdf(2 * x - 1 + 1 / 255) - edges.cdf(2 * x - 1 - 1 / 255)).log().flatten(1).sum(1)
    assert elbo.shape == (8,) and (elbo < exact).all()
    torch.manual_seed(3)
    terms = [model.bound_term(2 * x - 1, torch.full((8,), t)) for t in range(1, 31)]
    assert torch.allclose(elbo.double(), -(sum(terms) + model.prior_term(2 * x - 1)).double(), rtol=1e-5)


def test_test_bound_agrees_with_the_closed_form():
    model, x0 = optimal(T=50), gaussian_data(500)
    terms, error = ddpm.test_bound(model, x0, each=40)
    assert terms.shape == (51,) and error > 0
    a, b = model.alpha_bar[2:], model.alpha_bar[1:-1]
    beta, var = 1 - a / b, S2 * (1 - a) / (a * S2 + 1 - a)
    expected = 784 * (b.sqrt() * beta / (1 - a)) ** 2 * var / (2 * (1 - b) / (1 - a) * beta)
    assert terms[1:-1].sum().item() == pytest.approx(expected.sum().item(), rel=0.02)


@pytest.mark.parametrize("ancestral, steps", [(True, 1000), (True, 1), (False, 200)])
def test_samples_with_the_optimal_denoiser_have_the_data_s_mean_and_variance(ancestral, steps):
    model = optimal(s2=0.2**2)
    torch.manual_seed(0)
    *_, (t, x, _) = model.chain(torch.randn(16, 1, 28, 28).double(), steps=steps, ancestral=ancestral)
    assert t == 0 and x.mean().item() == pytest.approx(MU, abs=0.01)
    if steps == 1:  # one stride: the mean of all data, and no noise is added at the end
        assert x.std().item() < 1e-2
    else:
        assert x.std().item() == pytest.approx(0.2, rel=0.04)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_time_asked_for_in_sampling_is_one_that_training_draws(steps):
    model = optimal(T=50)
    for ancestral in (True, False):
        model.net.asked.clear()
        *_, _ = model.chain(torch.randn(1, 1, 28, 28).double(), steps=steps, ancestral=ancestral)
        asked = model.net.asked
        assert asked[0] == 50 and min(asked) >= 1 and asked == sorted(set(asked), reverse=True) and len(asked) <= steps
        assert len(asked) == steps or not ancestral
    model.net.asked.clear()
    x0 = gaussian_data(1000)
    for _ in range(3):
        model.loss(x0, torch.zeros(1000, dtype=torch.long))
    assert set(model.net.asked) == set(range(1, 51))


def test_ddim_is_undone_by_encode():
    model = optimal()
    x0 = gaussian_data(4)
    *_, (_, back, _) = model.chain(model.encode(x0, steps=200), steps=200)
    assert (back - x0).abs().max() < 1e-2
    z = model.encode(x0, steps=1000)
    assert z.std().item() == pytest.approx(1, abs=0.05)


def random_model():
    torch.manual_seed(0)
    model = ddpm.DDPM(channels=8, timesteps=20, ddim_steps=3)
    for p in model.net.parameters():
        nn.init.normal_(p, std=0.1)
    return model


def test_guidance_mixes_told_and_untold():
    model, x, y = random_model(), torch.randn(3, 1, 28, 28), torch.tensor([1, 2, 3])
    told, untold = model.eps(x, 7, y), model.eps(x, 7)
    assert not torch.allclose(told, untold)
    for w in (0.0, 1.0, 2.5):
        assert torch.allclose(model.eps(x, 7, y, w), untold + w * (told - untold), atol=1e-5)


def test_eps_and_v_are_the_same_prediction():
    model, x0, eps = random_model(), torch.rand(2, 1, 28, 28), torch.randn(2, 1, 28, 28)
    t, y = torch.tensor([3, 15]), torch.tensor([1, 10])
    a = model.abar(t)
    v_hat = model.net(model.q_sample(x0, t, eps), t, y)
    v_error = (a.sqrt() * eps - (1 - a).sqrt() * x0 - v_hat).square().flatten(1).mean(1)
    assert torch.allclose(model.error(x0, t, y, eps) / model.alpha_bar[t], v_error, rtol=1e-3)


def test_eps_is_minus_sigma_times_the_score():
    """For x_t ~ N(√ᾱ MU, ᾱ S2 + 1 − ᾱ), the score by autograd against −ε̂ / √(1 − ᾱ) of the optimal denoiser."""
    model = optimal()
    for t in (1, 100, 1000):
        a = model.alpha_bar[t]
        x = torch.randn(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
        log_p = torch.distributions.Normal(a.sqrt() * MU, (a * S2 + 1 - a).sqrt()).log_prob(x).sum()
        score, = torch.autograd.grad(log_p, x)
        assert torch.allclose(score, -model.eps(x, t) / (1 - a).sqrt(), rtol=1e-6)


@pytest.mark.parametrize("y", [None, 4, torch.tensor([1, 2, 3, 4, 5])])
def test_samples_are_pixels(y):
    x = random_model().sample(5, y)
    assert x.shape == (5, 1, 28, 28) and x.min() >= 0 and x.max() <= 1


def test_inpainting_keeps_what_is_known():
    model, x0 = random_model(), torch.rand(2, 1, 28, 28) * 2 - 1
    mask = torch.arange(28).view(28, 1) < 14
    *_, (_, x, _) = model.chain(torch.randn(2, 1, 28, 28), ancestral=True, steps=20, known=(x0, mask))
    assert torch.allclose(x[:, :, :14], x0[:, :, :14], atol=1e-6)
    assert not torch.allclose(x[:, :, 14:], x0[:, :, 14:], atol=0.1)


def test_an_untrained_network_predicts_v_as_zero():
    x = torch.randn(2, 1, 28, 28)
    assert (ddpm.DDPM(channels=8).net(x, torch.tensor([1, 900]), torch.tensor([3, 10])) == 0).all()


def test_pixel_histogram_is_the_categorical_nll_pixel_by_pixel():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (50, 1, 28, 28), dtype=torch.uint8)
    new = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    slow = 0.0
    for i in range(784):
        counts = torch.bincount(x.flatten(1)[:, i].long(), minlength=256) + 0.1
        slow -= (counts / counts.sum()).log()[new.flatten(1)[:, i].long()].sum() / 3
    assert ddpm.pixel_histogram(x, new) == pytest.approx(slow.item(), rel=1e-4)
