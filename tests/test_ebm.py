"""EBM: the gradient without Z, Langevin dynamics, noise and its removal, against exact answers."""

import functools
import math

import pytest
import torch
from chapters import TINY, check_samples, class_accuracy, digits, edited, short_run

import ebm


class Line:
    """A model of one pixel whose slope is given."""

    def __init__(self, noise, slope):
        self.noise = noise
        self.slope = lambda x, y: slope(x)


def wild(**more):
    """An EBM with random weights so large that energies differ much from image to image."""
    torch.manual_seed(0)
    model = ebm.EBM(channels=2, **more)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    return model


def flat(**more):
    """An EBM with f = 0."""
    model = ebm.EBM(channels=2, **more)
    torch.nn.init.zeros_(model.net[-1].weight)
    torch.nn.init.zeros_(model.net[-1].bias)
    return model


def gradient(number, model):
    grads = torch.autograd.grad(number, list(model.parameters()), retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads])


def test_the_loss_has_the_gradient_of_the_log_likelihood_where_z_is_a_sum():
    model, images = wild(classes=3, noise=5.0), torch.rand(7, 1, 28, 28)
    x, y = images[:2], torch.tensor([2, 0])
    energies = model.energies(images)
    log_p = -energies - torch.logsumexp(-energies, dim=0)  # log p(x | y), (7, 3)
    log_p_class = energies.neg().log_softmax(1)  # log p(y | x)
    exact = -gradient((log_p + log_p_class)[[0, 1], y].mean(), model)
    mean = torch.zeros_like(exact)  # over chains at each of the seven, as frequent as p says
    for i in range(7):
        for j in range(2):
            chain, chain_y = images[i : i + 1], y[j : j + 1]
            weight = log_p[i, chain_y].exp().detach() / 2
            mean += weight * gradient(ebm.loss_of(model, x, y, chain, chain_y), model)
    torch.testing.assert_close(mean, exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())
    assert log_p.exp().max() > 1.2 * log_p.exp().min()


def test_the_gradient_in_small_is_that_of_the_comment():
    energies = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    loss = energies[:2].mean() + torch.logsumexp(-energies, dim=0)
    (grad,) = torch.autograd.grad(loss, energies)
    assert grad.tolist() == pytest.approx([-0.17, 0.26, -0.09], abs=0.006)
    assert (-energies).softmax(0).tolist() == pytest.approx([0.67, 0.24, 0.09], abs=0.006)


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_in_a_round_valley_the_variance_is_that_of_the_closed_form(k):
    s, n = 0.4, 20_000
    sigma, curvature = s / 2, k / s**2
    x = ebm.langevin(Line(s, lambda x: curvature * x), torch.zeros(n), None, 60)
    exact = sigma**2 / (1 - (1 - sigma**2 / 2 * curvature) ** 2)
    assert x.var().item() == pytest.approx(exact, rel=5 * math.sqrt(2 / n))
    assert k != 1 or exact == pytest.approx(1.07 * s**2, rel=0.01)  # of the comment


def test_langevin_dynamics_comes_to_each_place_as_often_as_p_says():
    torch.manual_seed(0)
    two_valleys = Line(0.2, lambda x: 8 * x * (x**2 - 1) + 0.5)  # E = 2 (x² − 1)² + x / 2
    x = ebm.langevin(two_valleys, torch.randn(20_000), None, 1500)
    grid = torch.linspace(-3, 3, 6001)
    p = torch.softmax(-(2 * (grid**2 - 1) ** 2 + grid / 2), dim=0)
    for edge in (-1, -0.5, 0, 0.5, 1):
        share = p[grid > edge].sum().item()
        assert (x > edge).float().mean().item() == pytest.approx(share, abs=0.015)


def test_removing_noise_gives_the_mean_of_the_digits_that_may_be_there():
    s, c, frequency = 0.3, torch.tensor([0.0, 0.5, 1.2]), torch.tensor([0.5, 0.2, 0.3])

    def slope(x):  # of E = −log Σ_c p(c) N(x; c, s²)
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            log_n = torch.distributions.Normal(c, s).log_prob(x[:, None])
            energy = -torch.logsumexp(frequency.log() + log_n, dim=1)
            return torch.autograd.grad(energy.sum(), x)[0]

    x = torch.linspace(-1, 2, 50)
    likelihood = torch.distributions.Normal(c, s).log_prob(x[:, None]).exp() * frequency
    mean = (likelihood * c).sum(1) / likelihood.sum(1)
    torch.testing.assert_close(ebm.remove_noise(Line(s, slope), x, None), mean)


def test_without_f_the_energy_is_that_of_noise_on_empty_paper():
    model, x = flat(noise=0.3, sample_steps=50), 0.3 * torch.randn(5, 1, 28, 28)
    log_n = torch.distributions.Normal(0.0, 0.3).log_prob(x).sum((1, 2, 3))
    same = model.energies(x) + log_n[:, None]
    torch.testing.assert_close(same, same[:1, :1].expand(5, 10), rtol=0, atol=1e-3)
    y = torch.arange(5)
    chains = ebm.langevin(model, ebm.start(y), y, 50)
    assert chains.std().item() == pytest.approx(0.3 * math.sqrt(1.07), rel=0.05)
    assert ebm.remove_noise(model, chains, y).abs().max() < 1e-5


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_each_slope_is_that_of_its_own_energy_in_any_mode(mode):
    model, up = wild(), torch.randn(3, 1, 28, 28)
    up /= up.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    with mode():
        x, y = torch.rand(3, 1, 28, 28), torch.tensor([4, 0, 9])
        slope = model.slope(x, y)
        rise = model.energy(x + 0.01 * up, y) - model.energy(x - 0.01 * up, y)
        alone = model.slope(x[1:2], y[1:2])
    torch.testing.assert_close((slope * up).sum((1, 2, 3)), rise / 0.02, rtol=0.02, atol=0.5)
    torch.testing.assert_close(slope[1:2], alone, rtol=1e-3, atol=1e-2)


def test_the_buffer_gives_chains_back_and_one_in_twenty_begins_again():
    torch.manual_seed(0)
    y = torch.randint(10, (3000,))
    buffer = ebm.ReplayBuffer(y)
    buffer.x += 100  # no start looks like that
    places, chains, chains_y = buffer.draw(2500)
    assert len(places.unique()) == 2500 and torch.equal(chains_y, y[places])
    kept = (chains == buffer.x[places]).flatten(1).all(1)
    assert (~kept).float().mean().item() == pytest.approx(0.05, abs=0.02)
    assert chains[~kept].abs().max() < 10
    assert len(buffer.draw(5000)[0]) == 3000  # there are no more


def test_a_sample_is_a_chain_from_noise_without_its_noise():
    model, y = wild(sample_steps=3), torch.tensor([7, 1])
    torch.manual_seed(1)
    images = model.sample(y)
    torch.manual_seed(1)
    x = ebm.start(y)
    for _ in range(3):
        x = x - 0.1**2 / 2 * model.slope(x, y) + 0.1 * torch.randn_like(x)
    torch.testing.assert_close(images, (x - 0.2**2 * model.slope(x, y)).clamp(0, 1))


def test_inpainting_moves_only_what_is_not_known(monkeypatch):
    monkeypatch.setattr(ebm, "remove_noise", lambda model, chains, y: chains)
    model, x = wild(sample_steps=2), torch.rand(2, 1, 28, 28)
    known = torch.arange(28)[:, None] < 14
    drawn = ebm.inpaint(model, x, torch.arange(2), known)
    assert torch.equal(drawn[:, :, :14], x[:, :, :14])
    assert (drawn[:, :, 14:] != x[:, :, 14:]).float().mean() > 0.99


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_model_samples(more):
    model, saved = short_run(ebm, f"{TINY['ebm']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)


FLAGS = "--steps 300 --batch-size 32 --channels 8 --buffer 256 --lr 2e-3 --save-every 300"


@functools.cache
def energies_and_accuracy(*edits):
    """After a short run: mean E of test digits, mean E of samples, share of these that fit."""
    model, _ = short_run(edited("ebm", *edits), FLAGS)
    y = torch.arange(100) % 10
    samples = model.sample(y)
    with torch.no_grad():
        of_digits = model.energy(ebm.add_noise(digits()[2] / 255, 0.2), digits()[3]).mean()
        of_samples = model.energy(ebm.add_noise(samples, 0.2), y).mean()
    return of_digits.item(), of_samples.item(), class_accuracy(samples, y)


@pytest.mark.slow
def test_break_nothing_is_raised():
    of_digits, _, accuracy = energies_and_accuracy(("of_digits - of_chains + F", "of_digits + F"))
    assert of_digits < energies_and_accuracy()[0] - 5000
    assert accuracy < 0.6 and energies_and_accuracy()[2] > 0.8


@pytest.mark.slow
def test_break_all_chains_begin_again_each_time():
    edit = ("device=y.device) < 0.05", "device=y.device) < 2")
    of_digits, of_samples, _ = energies_and_accuracy(edit)
    whole = energies_and_accuracy()
    assert of_samples < of_digits - 200 and abs(whole[1] - whole[0]) < 200


@pytest.mark.slow
def test_break_steps_as_long_as_the_valley_is_wide():
    wide, y = edited("ebm", ("sigma = model.noise / 2", "sigma = 2 * model.noise")), torch.arange(9)
    sizes = []
    for module in (ebm, wide):
        for steps in (100, 400):
            sizes.append(module.langevin(flat(), ebm.start(y), y, steps).std().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05) and sizes[3] > 1.5 * sizes[2]
