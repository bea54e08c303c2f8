"""maf: a chain of Gaussians is a flow: triangular Jacobians, densities that sum to 1, samples."""

import math

import pytest
import torch
from chapters import check_samples, data_folder, main
from torch.distributions import Normal

import realnvp
from variations import maf


def wild(model):
    """Weights so large that μ and a differ much from point to point."""
    torch.manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=1 / weights.shape[-1] ** 0.5)
    return model


def test_the_example_of_the_opening():
    chain = maf.Chain(D=2, hidden=4, classes=1, reverse=False)
    y = torch.tensor([0])

    def mu_and_a(x, y):
        zero = torch.zeros(len(x))
        return torch.stack([zero, x[:, 0] ** 2], 1), torch.stack([zero, zero + math.log(0.5)], 1)

    chain.mu_and_a = mu_and_a
    x = chain.inverse(torch.tensor([[2.0, 1.0]]), y)
    torch.testing.assert_close(x, torch.tensor([[2.0, 4.5]]))
    z, log_det = chain(x, y)
    torch.testing.assert_close(z, torch.tensor([[2.0, 1.0]]))
    assert log_det.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden", [3, 40])
def test_the_jacobian_is_a_triangle_and_its_diagonal_the_determinant(reverse, hidden):
    chain = wild(maf.Chain(6, hidden, 3, reverse))
    x, y = torch.randn(1, 6), torch.tensor([2])
    J = torch.autograd.functional.jacobian(lambda x: chain(x, y)[0], x)[0, :, 0]
    beyond = J.tril(-1) if reverse else J.triu(1)
    assert (beyond == 0).all() and (J.diagonal() > 0).all()
    assert torch.count_nonzero(J) == 21  # each z_i sees every number before, by whichever way
    torch.testing.assert_close(chain(x, y)[1][0], J.slogdet().logabsdet)


def test_chains_upon_chains_have_the_density_of_the_change_of_variables():
    model = wild(maf.MAF(hidden=20, chains=3, classes=2, D=5))
    x, y = torch.randn(1, 5), torch.tensor([1])

    def noise(x):
        for chain in model.chains:
            x, _ = chain(x, y)
        return x

    J = torch.autograd.functional.jacobian(noise, x)[0, :, 0]
    right = Normal(0.0, 1.0).log_prob(noise(x)).sum() + J.slogdet().logabsdet
    torch.testing.assert_close(model.log_density(x, y)[0], right)


def test_one_chain_is_the_product_rule_of_gaussians():
    model = wild(maf.MAF(hidden=20, chains=1, classes=1, D=5))
    x, y = torch.randn(7, 5), torch.zeros(7, dtype=torch.long)
    total = torch.zeros(7)
    for i in range(5):
        before = torch.cat([x[:, :i], torch.zeros(7, 5 - i)], 1)
        mu, a = model.chains[0].mu_and_a(before, y)
        total += Normal(mu[:, i], a[:, i].exp()).log_prob(x[:, i])
    torch.testing.assert_close(model.log_density(x, y), total)


@torch.no_grad()
def test_drawing_undoes_the_way_to_noise():
    for reverse in (False, True):
        chain = wild(maf.Chain(6, 20, 3, reverse))
        z, y = torch.randn(50, 6), torch.arange(50) % 3
        torch.testing.assert_close(chain(chain.inverse(z, y), y)[0], z, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_densities_integrate_to_one_and_samples_follow_them():
    model = wild(maf.MAF(hidden=20, chains=2, classes=1, D=2))
    line = torch.arange(-20, 20, 0.05)
    x = torch.cartesian_prod(line, line)
    p = model.log_density(x, torch.zeros(len(x), dtype=torch.long)).exp() * 0.05**2
    assert p.sum().item() == pytest.approx(1, abs=0.01)
    drawn = model.draw(torch.zeros(20_000, dtype=torch.long))
    for inside in (lambda x: x[:, 0] > 0.5, lambda x: (x[:, 0] > 0) & (x[:, 1] < 0.3)):
        share = inside(drawn).float().mean().item()
        assert share == pytest.approx(p[inside(x)].sum().item(), abs=0.03)


def test_untrained_it_gives_images_the_bound_of_an_untrained_realnvp():
    """Both leave numbers as they are: what stands before the flow is the same."""
    images = torch.randint(256, (4, 1, 28, 28))
    y = torch.arange(4)
    bounds = []
    for model in (maf.MAF(hidden=16, chains=2), realnvp.RealNVP(channels=4, couplings=2)):
        torch.manual_seed(3)
        bounds.append(model.log_prob(images, y))
    torch.testing.assert_close(bounds[0], bounds[1], rtol=1e-4, atol=0.1)


def test_four_chains_fit_moons_better_than_one():
    torch.manual_seed(0)
    points, y = maf.moons(2000), torch.zeros(2000, dtype=torch.long)
    nats = [-maf.fit_moons(chains, 250).log_density(points, y).mean().item() for chains in (1, 4)]
    assert nats[1] < nats[0] - 0.1


@pytest.mark.parametrize("classes", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_gives_a_model_that_samples(classes, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(data_folder(tmp_path / "digits")))
    main("variations.maf", tmp_path, f"--classes {classes}")
    model = maf.load(tmp_path / "model.pt")
    assert model.classes == classes and not torch.equal(model.edges, maf.MAF(hidden=4).edges)
    check_samples(model)
