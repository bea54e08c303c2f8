"""DDPM against closed forms: on Gaussian data the optimal denoiser is known, and with it every term of the bound."""
import math

import pytest
import torch
from torch import nn

import ddpm

MU, S2 = 0.1, 0.03**2  # data N(MU, S2) in every pixel: narrow, so that clamping to [-1, 1] never acts
FLAT = torch.full((256,), 1 / 256, dtype=torch.float64)  # a histogram


class OptimalNet(nn.Module):
    """ε̂ = E[ε | x_t] for that data, in place of the U-Net; it notes the times that it is asked for."""

    def __init__(self, model, s2):
        super().__init__()
        self.alpha_bar, self.s2, self.asked = model.alpha_bar, s2, []

    def forward(self, x, t, y):
        self.asked += t.tolist()
        a = self.alpha_bar[t]
        x0 = MU + a.sqrt() * self.s2 / (a * self.s2 + 1 - a) * (x - a.sqrt() * MU)  # E[x0 | x_t]
        return (x - a.sqrt() * x0) / (1 - a).sqrt()


def optimal(T=1000, s2=S2):
    model = ddpm.DDPM(channels=8, timesteps=T)
    beta = torch.cat([torch.zeros(1).double(), (torch.linspace(0.1, 20, T).double() / T).clamp(max=0.999)])
    model.beta = beta.view(-1, 1, 1, 1)
    model.alpha_bar = (1 - model.beta).cumprod(0)
    model.net = OptimalNet(model, s2)
    return model


def random_model(T=20):
    torch.manual_seed(0)
    model = ddpm.DDPM(channels=8, timesteps=T)
    for p in model.net.parameters():
        nn.init.normal_(p, std=0.1)
    return model


def gaussian_data(n, s2=S2):
    return MU + math.sqrt(s2) * torch.randn(n, 1, 28, 28, dtype=torch.float64)


def last(path):
    return list(path)[-1][1]


def test_the_chain_is_the_papers_and_ends_in_noise():
    model = ddpm.DDPM()
    assert torch.allclose(model.beta[1:].flatten(), torch.linspace(1e-4, 0.02, 1000))
    assert model.alpha_bar[0] == 1 and model.alpha_bar[-1] < 1e-4 and len(model.alpha_bar) == 1001
    for T in (10, 100, 4000):
        assert ddpm.DDPM(timesteps=T).alpha_bar[-1] < 2e-3


def test_q_sample_has_the_mean_and_variance_of_t_single_steps():
    torch.manual_seed(0)
    model = ddpm.DDPM(timesteps=20)
    x = x0 = torch.full((200, 1, 28, 28), 0.7)
    for t in range(1, 13):
        x = (1 - model.beta[t]).sqrt() * x + model.beta[t].sqrt() * torch.randn_like(x)
    jump = model.q_sample(x0, 12, torch.randn_like(x0))
    assert x.mean().item() == pytest.approx(jump.mean().item(), abs=0.01)
    assert x.var().item() == pytest.approx(jump.var().item(), abs=0.02)


def test_the_loss_is_algorithm_1():
    model, x0, y = random_model(), torch.rand(6, 1, 28, 28) * 2 - 1, torch.arange(6)
    torch.manual_seed(3)
    loss = model.loss(x0, y)
    torch.manual_seed(3)
    t, eps = torch.randint(1, 21, (6,)), torch.randn_like(x0)
    a = model.alpha_bar[t]
    by_hand = ((eps - model.net(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, y)) ** 2).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_training_draws_every_time_from_1_to_T():
    model = optimal(T=50)
    for _ in range(3):
        model.loss(gaussian_data(1000))
    assert set(model.net.asked) == set(range(1, 51))


def test_algorithm_2_with_the_optimal_denoiser_has_the_data_s_mean_and_variance():
    model = optimal(s2=0.2**2)
    torch.manual_seed(0)
    x = 2 * model.sample(16) - 1
    assert model.net.asked[::16] == list(range(1000, 0, -1))
    assert x.mean().item() == pytest.approx(MU, abs=0.01) and x.std().item() == pytest.approx(0.2, rel=0.04)


@pytest.mark.parametrize("T", [1, 60])
def test_algorithm_2_adds_noise_after_every_step_but_the_last(T):
    model = random_model(T)
    torch.manual_seed(1)
    sample = model.sample(2, 3)
    torch.manual_seed(1)
    x = torch.randn(2, 1, 28, 28)
    for t in range(T, 0, -1):
        mean = x - model.beta[t] / (1 - model.alpha_bar[t]).sqrt() * model.eps(x, t, 3).detach()
        x = mean / (1 - model.beta[t]).sqrt()
        if t > 1:
            x = x + model.beta[t].sqrt() * torch.randn(2, 1, 28, 28)
    assert torch.allclose(sample, (x.clamp(-1, 1) + 1) / 2, atol=1e-5)
    assert ((sample > 0) & (sample < 1)).float().mean() > 0.1  # where the clamp does not act


@pytest.mark.parametrize("t", [2, 3, 10, 100, 500, 1000])
def test_bound_terms_of_the_optimal_denoiser_are_the_closed_form(t, monkeypatch):
    """L_{t−1} = (coefficient of x̂0)² · Var(x0 | x_t) / (2 β̃_t) a pixel, since x̂0 = E[x0 | x_t]; T − 1 of them."""
    torch.manual_seed(t)
    model, x0 = optimal(), gaussian_data(400)
    a, b = model.alpha_bar[t].item(), model.alpha_bar[t - 1].item()
    beta = 1 - a / b
    var = S2 * (1 - a) / (a * S2 + 1 - a)
    expected = 784 * (b**0.5 * beta / (1 - a)) ** 2 * var / (2 * (1 - b) / (1 - a) * beta)
    monkeypatch.setattr(torch, "multinomial", lambda p, n, _: torch.full((n,), t - 2))
    term = ddpm.bound_terms(model, x0, FLAT)[1]
    weight = t * sum(1 / k for k in range(2, 1001))  # one over the probability of this t
    assert term.shape == (400,) and term.mean().item() == pytest.approx(weight * expected, rel=0.01)


def test_the_first_term_is_bayes_rule_summed_over_256_levels():
    """p(x0 = k | x_1) ∝ h(k) N(x_1; √ᾱ_1 k, β_1), by a loop; over all levels it sums to 1, and h counts."""
    torch.manual_seed(0)
    model, h = optimal(), torch.rand(256, dtype=torch.float64)
    h /= h.sum()
    x0 = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)  # images of one pixel, of every level
    for x1 in (2.1 * torch.rand(20) - 1.05).tolist():
        model.q_sample = lambda x0, t, eps: torch.full_like(x0, x1)  # one x_1 for every level
        p, flat = ((-ddpm.bound_terms(model, x0, histogram)[0]).exp() for histogram in (h, FLAT))
        joint = [h[k].item() * math.exp(-(x1 - (1 - 1e-4) ** 0.5 * (k / 127.5 - 1)) ** 2 / (2 * 1e-4))
                 for k in range(256)]
        assert p.sum().item() == pytest.approx(1, abs=1e-9)
        assert p.tolist() == pytest.approx([v / sum(joint) for v in joint], rel=1e-3, abs=1e-12)
        assert not torch.allclose(p, flat, rtol=0.1)


def test_l_0_adds_up_over_pixels_and_x_1_is_one_step_of_noise():
    torch.manual_seed(0)
    model, h, levels = optimal(), torch.rand(256).double(), torch.randint(256, (2, 1, 3, 3))
    model.q_sample, usual = lambda x0, t, eps: calls.append((t, eps)) or usual(x0, t, eps), model.q_sample
    calls = []
    term = ddpm.bound_terms(model, levels.double() / 127.5 - 1, h / h.sum())[0]
    (_, _), (t, eps) = calls
    x1 = usual(levels.double() / 127.5 - 1, 1, eps)
    centre = model.alpha_bar[1].sqrt().flatten() * (torch.arange(256) / 127.5 - 1)
    p = h * torch.distributions.Normal(centre, model.beta[1].sqrt().flatten()).log_prob(x1[..., None]).exp()
    by_hand = -(p / p.sum(-1, keepdim=True)).gather(-1, levels[..., None]).log().flatten(1).sum(1)
    assert t == 1 and eps.std() > 0.5 and term.shape == (2,) and torch.allclose(term, by_hand, rtol=1e-4)


def test_the_last_term_is_the_kl_of_torch_distributions():
    torch.manual_seed(0)
    model, x0 = optimal(), gaussian_data(3)
    for a in (model.alpha_bar[-1].item(), 0.3):  # the schedule's own, and one under which x_T still shows x0
        model.alpha_bar[-1] = a
        q = torch.distributions.Normal(a**0.5 * x0, (1 - a) ** 0.5)
        expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
        assert torch.allclose(ddpm.bound_terms(model, x0, FLAT)[2], expected, rtol=1e-6)


def test_the_terms_add_up_to_a_bound_of_the_likelihood(monkeypatch):
    torch.manual_seed(0)
    model = optimal(T=30)
    levels = (gaussian_data(8) * 127.5 + 127.5).round().clamp(0, 255)
    edges = torch.distributions.Normal(MU, math.sqrt(S2))
    h = torch.arange(256).double() / 127.5 - 1
    h = (edges.cdf(h + 1 / 255) - edges.cdf(h - 1 / 255)).clamp(min=1e-30)  # the true histogram
    exact = h.log()[levels.long()].flatten(1).sum(1)
    draws, p = 0, 1 / torch.arange(2.0, 31)
    for t in range(2, 31):  # the mean over t, without the noise of drawing it
        monkeypatch.setattr(torch, "multinomial", lambda p, n, _, t=t: torch.full((n,), t - 2))
        terms = torch.stack([ddpm.bound_terms(model, levels / 127.5 - 1, h).sum(0).mean() for _ in range(10)])
        draws = draws - terms * p[t - 2] / p.sum()
    assert set(model.net.asked) == set(range(2, 31))  # L_0 needs no network
    assert draws.mean() + 3 * draws.std() / 10**0.5 < exact.mean() < 0.9 * draws.mean()


@pytest.mark.parametrize("steps", [1, 200])
def test_ddim_with_the_optimal_denoiser_has_the_data_s_mean_and_variance(steps):
    model = optimal(s2=0.2**2)
    torch.manual_seed(0)
    x = last(ddpm.ddim(model, torch.randn(16, 1, 28, 28).double(), steps=steps))
    assert x.mean().item() == pytest.approx(MU, abs=0.01)
    assert x.std().item() == pytest.approx(0.2, rel=0.04) if steps > 1 else x.std().item() < 1e-2


@pytest.mark.parametrize("T, steps, times", [(16, 4, [16, 9, 4, 1, 0]), (1000, 1, [1000, 0]), (3, 9, [3, 1, 0])])
def test_ddim_leads_from_T_to_0_in_strides_that_grow_shorter(T, steps, times):
    assert [t for t, _, _ in ddpm.ddim(optimal(T), torch.randn(1, 1, 28, 28).double(), steps=steps)] == times


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_time_asked_for_in_sampling_is_one_that_training_draws(steps):
    model, x = optimal(T=50), torch.randn(1, 1, 28, 28).double()
    last(ddpm.ddim(model, x, steps=steps, w=1))
    asked = model.net.asked
    assert asked[0] == 50 and min(asked) >= 1 and asked == sorted(set(asked), reverse=True) and len(asked) <= steps


def test_guidance_mixes_the_conditional_and_the_null_prediction():
    model, x, y = random_model(), torch.randn(3, 1, 28, 28), torch.tensor([1, 2, 3])
    given, null = model.eps(x, 7, y), model.eps(x, 7)
    assert not torch.allclose(given, null) and torch.equal(null, model.eps(x, 7, ddpm.NULL))
    for w in (0.0, 1.0, 2.5):
        assert torch.allclose(model.eps(x, 7, y, w), null + w * (given - null), atol=1e-5)
        assert torch.equal(model.eps(x, 7, None, w), null)
    calls, usual = [], model.net.forward
    model.net.forward = lambda x, t, y: calls.append(y.tolist()) or usual(x, t, y)
    model.eps(x, 7, y, 1)
    model.eps(x, 7, y, 2.0)
    assert calls == [[1, 2, 3], [1, 2, 3], [ddpm.NULL] * 3]  # without guidance one pass


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
    for x in (random_model().sample(5, y), ddpm.ddim_sample(random_model(), 5, y, 3)):
        assert x.shape == (5, 1, 28, 28) and x.min() >= 0 and x.max() <= 1


def test_samples_without_a_class_draw_it_first():
    model, asked = random_model(), []
    usual = model.net.forward
    model.net.forward = lambda x, t, y: asked.append(y) or usual(x, t, y)
    ddpm.ddim_sample(model, 200, steps=1, w=1)
    model.sample(200)
    assert all(set(y.tolist()) == set(range(10)) for y in asked)
    assert all(torch.equal(y, asked[1]) for y in asked[1:])  # one class from T to 0
    model.conditional = False
    asked.clear()
    model.sample(5)
    assert all((y == ddpm.NULL).all() for y in asked)


def test_the_class_reaches_every_sampler_and_every_term_with_a_network():
    model, x = random_model(), torch.rand(3, 1, 28, 28) * 2 - 1
    a, b, none = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]), torch.full((3,), ddpm.NULL)
    for f in (lambda y: last(ddpm.ddim(model, x, y, 5)), lambda y: ddpm.bound_terms(model, x, FLAT.float(), y)[1],
              lambda y: model.sample(3, y),
              lambda y: ddpm.ddim_sample(model, 3, y, 5), lambda y: model.loss(x, y).view(1).expand(3)):
        out = []
        for y in (a, b, none):
            torch.manual_seed(0)
            out.append(f(y).detach())
        assert not torch.allclose(out[0][2], out[1][2]) and not torch.allclose(out[0], out[2])


def test_an_untrained_network_predicts_its_input():
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(ddpm.DDPM(channels=8).net(x, torch.tensor([1, 900]), torch.tensor([3, 10])), x)
