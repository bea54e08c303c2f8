"""The energy model against exact answers: a Gaussian energy, sums over classes, what the replay buffer keeps."""
import math

import pytest
import torch

import ebm


def test_langevin_on_a_gaussian_energy_reaches_its_mean_and_variance():
    torch.manual_seed(0)
    mean, var, rate = 0.5, 0.05**2, 0.05**2 / 20
    x = ebm.langevin(lambda x: (x - mean).square().flatten(1).sum(1) / (2 * var), torch.rand(200, 1, 10, 10), 400,
                     rate, math.sqrt(2 * rate), limit=math.inf)
    exact = 2 * rate / (1 - (1 - rate / var) ** 2)  # of the chain with steps of this size; var as rate goes to 0
    assert exact == pytest.approx(var, rel=0.03)
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(var / x.numel()))
    assert x.var().item() == pytest.approx(exact, rel=4 * math.sqrt(2 / x.numel()))


def test_without_noise_it_is_descent_and_kept_pixels_stay():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 4, 4)
    target, mask = torch.full_like(x, 0.3), torch.arange(4).view(4, 1) < 2
    walked = ebm.langevin(lambda v: (v - 0.3).square().sum((1, 2, 3)), x, 200, 0.1, 0, math.inf, keep=(mask, x))
    assert torch.equal(walked[:, :, :2], x[:, :, :2])
    assert torch.allclose(walked[:, :, 2:], target[:, :, 2:], atol=1e-4)


def test_one_step_is_bounded_and_stays_on_the_paper():
    x = torch.full((1, 1, 2, 2), 0.5)
    step = ebm.langevin(lambda v: 1000 * v.sum((1, 2, 3)), x, 1, rate=1.0, noise=0)
    assert torch.allclose(step, torch.full_like(x, 0.5 - 0.1))
    assert (ebm.langevin(lambda v: 1000 * v.sum((1, 2, 3)), x, 9, rate=1.0, noise=0) == 0).all()


def test_energies_of_the_classes_make_that_of_the_picture_and_a_classifier():
    torch.manual_seed(0)
    model, x = ebm.EBM(4), torch.rand(5, 1, 28, 28)
    e = torch.stack([model.energy(x, d) for d in range(10)], 1)
    assert torch.allclose(e, model.energies(x))
    assert torch.allclose((-model.energy(x)).exp(), (-e).exp().sum(1), rtol=1e-5)
    assert torch.allclose(model.energy(x, torch.tensor([3, 1, 4, 1, 5])), e[range(5), [3, 1, 4, 1, 5]])


def test_the_replay_buffer_gives_chains_back_as_they_were_kept():
    torch.manual_seed(0)
    replay, x = ebm.Replay(20), torch.randint(256, (20, 1, 28, 28)) / 255
    replay.keep(torch.arange(20), x)
    fresh = 0
    for _ in range(50):
        i, chains, asked = replay.draw(8)
        assert len(set(i.tolist())) == 8 and torch.equal(asked, i % 10)
        old = (chains - x[i]).abs().flatten(1).max(1).values < 1e-6
        fresh += (~old).sum().item()
    assert 5 <= fresh <= 40  # one in twenty of 400
