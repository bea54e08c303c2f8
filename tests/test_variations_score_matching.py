"""score_matching: both losses, both samplers and the density of the ODE, against closed forms."""

import pytest
import torch
from chapters import main

import ddpm
from ebm import langevin
from variations import score_matching as sm

END = sm.SIGMAS[-1]


def noise_of(score):
    """ε̂ = −σ s, as a network gives it."""
    return lambda x, sigma: -sigma * score(x, sigma)


def test_the_true_density_integrates_to_one_and_its_score_leads_to_the_mean_of_the_gaussians():
    line = torch.linspace(-2, 2, 161)
    x = torch.cartesian_prod(line, line)
    for sigma in (0.01, 0.1):
        total = sm.true_log_p(x, torch.tensor(sigma)).exp().sum() * 0.025**2
        assert total.item() == pytest.approx(1, abs=2e-3)
    sigma = torch.full((1000, 1), 0.3)
    x = 2 * torch.rand(1000, 2) - 1
    variance = 0.1**2 + 0.3**2
    shares = (-(x[:, None] - sm.MIDDLES).square().sum(2) / (2 * variance)).softmax(1)
    torch.testing.assert_close(
        sm.true_score(x, sigma), (shares @ sm.MIDDLES - x) / variance, atol=1e-4, rtol=1e-4
    )


def test_the_mean_noise_near_a_place_is_minus_sigma_times_the_score():
    """What least squares learns: the mean of ε over all the data that may be at x."""
    torch.manual_seed(0)
    c, _ = sm.draw(2_000_000, "cpu")
    eps = torch.randn_like(c)
    for sigma, place in ((0.5, (0.0, 0.0)), (0.5, (-0.8, 0.6)), (0.2, (0.6, 0.4))):
        near = (c + sigma * eps - torch.tensor(place)).norm(dim=1) < 0.04
        right = -sigma * sm.true_score(torch.tensor([place]), torch.tensor(sigma))[0]
        torch.testing.assert_close(eps[near].mean(0), right, atol=0.06, rtol=0)


def test_both_losses_differ_by_a_constant_for_any_network():
    """½ E‖ε − ε̂‖² = ½ E‖ε‖² − E[ε · ε̂] + ½ E‖ε̂‖², and by parts E[ε · ε̂] = σ E[tr ∂ε̂/∂x]."""
    torch.manual_seed(0)
    c, sigma = sm.draw(60_000, "cpu")
    for _ in range(2):
        model = sm.Score()
        torch.nn.init.normal_(model.network[-1].weight, std=0.3)
        with torch.no_grad():
            denoising = sm.denoising_loss(model, c, sigma).item()
            sliced = sm.sliced_loss(model, c, sigma).item()
        assert denoising / 2 == pytest.approx(1 + sliced, abs=0.04)


def test_sliced_equals_the_trace_for_a_quadratic_log_density():
    """s = −A x: the loss is σ² (½ E‖A x‖² − tr A), whatever stands beside A's diagonal."""
    torch.manual_seed(0)
    A = torch.tensor([[2.0, 0.7], [-0.4, 0.5]])
    c, _ = sm.draw(100_000, "cpu")
    sigma = torch.tensor(0.5)
    x = c + sigma * torch.randn_like(c)
    right = 0.25 * (0.5 * (x @ A.T).square().sum(1).mean() - A.trace())
    drawn = sm.sliced_loss(noise_of(lambda x, _: -x @ A.T), c, sigma)
    assert drawn.item() == pytest.approx(right.item(), abs=0.02)


@pytest.mark.parametrize("loss", [sm.denoising_loss, sm.sliced_loss])
def test_the_true_score_has_the_least_loss(loss):
    c, _ = sm.draw(20_000, "cpu")
    sigma = torch.tensor(0.5)
    losses = []
    for k in (-0.3, 0, 0.3):
        torch.manual_seed(1)
        wrong = noise_of(lambda x, s, k=k: sm.true_score(x, s) + k * torch.sin(3 * x))
        losses.append(loss(wrong, c, sigma).item())
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_the_ode_gives_the_known_density_if_it_has_the_true_score():
    torch.manual_seed(0)
    c, _ = sm.draw(200, "cpu")
    x = c + END * torch.randn_like(c)
    gap = sm.log_density(sm.true_score, x) - sm.true_log_p(x, END)
    assert gap.mean().abs() < 0.01 and gap.abs().max() < 0.05


@pytest.mark.parametrize("random", [True, False])
def test_noise_undone_by_the_true_score_is_distributed_as_the_data(random):
    torch.manual_seed(0)
    c, _ = sm.draw(2000, "cpu")
    entropy = -sm.true_log_p(c + END * torch.randn_like(c), END).mean()
    x = sm.undo_noise(sm.true_score, 10 * torch.randn(2000, 2), random)
    assert -sm.true_log_p(x, END).mean().item() == pytest.approx(entropy.item(), abs=0.1)
    torch.testing.assert_close(x.T.cov(), c.T.cov(), atol=0.06, rtol=0)


def test_the_chains_of_ebm_keep_the_density_of_a_level():
    torch.manual_seed(0)
    sigma = torch.tensor(0.2)
    c, _ = sm.draw(3000, "cpu")
    x = c + sigma * torch.randn_like(c)
    after = langevin(sm.at_level(sm.true_score, sigma), x, None, 100)
    before, after = (sm.true_log_p(points, sigma).mean().item() for points in (x, after))
    assert after == pytest.approx(before, abs=0.1)


def test_ddpm_finds_the_mean_image_if_its_noise_is_minus_the_score():
    model = ddpm.DDPM(channels=4, timesteps=100)
    torch.manual_seed(0)
    images = torch.rand(5, 1, 28, 28) - 0.5
    alpha_bar = model.alpha_bar[90]

    def log_p(x):
        squares = (x - alpha_bar.sqrt() * images).square().sum((1, 2, 3))
        return (-squares / (2 * (1 - alpha_bar)).squeeze()).logsumexp(0)

    x = model.add_noise(images[:1], 90, torch.randn(1, 1, 28, 28))
    score = torch.func.grad(log_p)(x)
    squares = (x - alpha_bar.sqrt() * images).square().sum((1, 2, 3))
    shares = (-squares / (2 * (1 - alpha_bar)).squeeze()).softmax(0)
    assert 0.01 < shares.max() < 0.99
    found = model.predict_x0(x, 90, -(1 - alpha_bar).sqrt() * score)
    right = (shares.view(5, 1, 1, 1) * images).sum(0, keepdim=True)
    torch.testing.assert_close(found, right, atol=1e-3, rtol=0)


def test_both_networks_are_loaded_and_sample(tmp_path):
    main("variations.score_matching", tmp_path)
    models = [sm.load(tmp_path / "model.pt", way=way) for way in ("denoising", "sliced")]
    with torch.inference_mode():
        drawn = [model.sample(3) for model in models]
    assert drawn[0].shape == (3, 2) and models[0].sample(0).shape == (0, 2)
    assert not torch.equal(models[0].network[0].weight, models[1].network[0].weight)
