"""RealNVP against exact answers: the full Jacobian, a density that sums to 1, quadrature, the way back."""
import math

import pytest
import torch
from scipy import integrate, stats

import realnvp


def model_of(data, seed=0, std=None):
    """Random weights everywhere, in float64: an untrained coupling would hide mistakes behind its zeros."""
    torch.manual_seed(seed)
    model = realnvp.RealNVP(data, 4, 6 if data == "moons" else 4).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std or (0.15 if data == "mnist" else 0.5))
    return model


@pytest.mark.parametrize("y", [None, 1])
def test_log_det_of_points_against_the_full_jacobian(y):
    model, x = model_of("moons"), torch.randn(5, 2).double()
    for point, log_det in zip(x, model(x, y)[1]):
        J = torch.autograd.functional.jacobian(lambda v: model(v[None], y)[0][0], point)
        assert torch.linalg.slogdet(J)[1].item() == pytest.approx(log_det.item(), abs=1e-9)


def test_log_det_of_a_digit_against_the_full_jacobian():
    model, x = model_of("mnist"), torch.randn(1, 1, 28, 28).double()
    J = torch.autograd.functional.jacobian(lambda v: model(v, 3)[0][0], x, vectorize=True).view(784, 784)
    assert torch.linalg.slogdet(J)[1].item() == pytest.approx(model(x, 3)[1].item(), abs=1e-6)


def test_log_det_of_the_logit_transform_against_autograd():
    v = torch.rand(2, 1, 28, 28).double().requires_grad_()
    model = model_of("mnist")
    z, log_det = model.logit(v)
    slope, = torch.autograd.grad(z.sum(), v)
    assert torch.allclose(slope.log().flatten(1).sum(1), log_det)


@pytest.mark.parametrize("y", [None, 1])
def test_the_density_of_the_plane_sums_to_one(y):
    model = model_of("moons", std=0.2)
    line = torch.linspace(-20, 20, 1001).double()
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).view(-1, 2)
    with torch.no_grad():
        total = model.log_prob(grid, y).exp().sum().item() * (line[1] - line[0]).item() ** 2
    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("data, shape", [("moons", (2,)), ("mnist", (1, 28, 28))])
def test_there_and_back(data, shape):
    model, x = model_of(data), torch.randn(4, *shape).double()
    with torch.no_grad():
        assert torch.allclose(model.inverse(model(x, 2)[0], 2), x, atol=1e-8)
        z = torch.randn(4, model.D).double()
        assert torch.allclose(model(model.inverse(z, 2), 2)[0], z, atol=1e-8)


def test_a_chessboard_is_two_channels_of_a_squeezed_image():
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    squeezed, _ = realnvp.Squeeze()(board.view(1, 1, 4, 4).float(), None)
    assert (squeezed[:, realnvp.FINE[0]] == 0).all() and (squeezed[:, realnvp.FINE[1]] == 1).all()
    for masks, C in ((realnvp.FINE, 4), (realnvp.COARSE, 8)):
        for a, b in zip(masks[::2], masks[1::2]):
            assert sorted(a + b) == list(range(C))


def test_grey_levels_survive_dequantisation_and_the_logit_transform():
    model, x = model_of("mnist"), (torch.arange(784) % 256).view(1, 1, 28, 28).double() / 255
    for _ in range(20):
        v, _ = model.dequantise(x)
        assert v.min() > 0 and v.max() < 1
        assert torch.allclose(model.digits(model.logit(v)[0]), x, atol=1e-12)


@pytest.mark.parametrize("peak", [1.0, 4.0])
def test_the_dequantised_bound_against_the_exact_likelihood_of_a_model_of_lone_pixels(peak):
    """With couplings that do nothing, pixels are independent: P(level) is a difference of two normal probabilities."""
    torch.manual_seed(0)
    model = realnvp.RealNVP("mnist", 4, 2, peak).double()
    with torch.no_grad():
        model.fine[1].shift.fill_(3.0)
        model.fine[1].log_scale.fill_(-1.0)
    levels = torch.tensor([0, 0, 0, 1, 100, 255]).repeat(200)[:784]

    def z(v):
        a = model.EDGE + (1 - 2 * model.EDGE) * v
        return (math.log(a / (1 - a)) + 3) * math.exp(-1)

    def term(u, level):  # the bound's integrand: log density − log q(u)
        v, q = (level + u) / 256, stats.beta(peak, peak) if level == 0 else stats.uniform()
        slope = math.exp(-1) * (1 - 2 * model.EDGE) / ((a := model.EDGE + (1 - 2 * model.EDGE) * v) * (1 - a)) / 256
        return q.pdf(u) * (stats.norm.logpdf(z(v)) + math.log(slope) - q.logpdf(u))

    exact = {k: math.log(stats.norm.cdf(z((k + 1) / 256)) - stats.norm.cdf(z(k / 256))) for k in (0, 1, 100, 255)}
    bound = {k: integrate.quad(term, 1e-9, 1 - 1e-9, args=(k,))[0] for k in exact}
    assert all(bound[k] < exact[k] for k in exact)
    x = (levels.double() / 255).view(1, 1, 28, 28).expand(300, 1, 28, 28)
    with torch.no_grad():
        draws = model.log_prob(x)
    expected = sum(bound[k] for k in levels.tolist())
    assert draws.mean().item() == pytest.approx(expected, abs=4 * draws.std().item() / 300**0.5)


def test_actnorm_starts_at_mean_0_and_variance_1():
    norm, x = realnvp.ActNorm(4, 2, 2), 3 * torch.randn(500, 4, 2, 2) + 5
    norm.start(x)
    z, log_det = norm(x, None)
    assert torch.allclose(z.mean(0), torch.zeros(4, 2, 2), atol=1e-5)
    assert torch.allclose(z.std(0), torch.ones(4, 2, 2), atol=1e-5)
    assert torch.allclose(log_det, -x.std(0).log().sum().expand(500), atol=1e-4)
    assert torch.allclose(norm.inverse(z, None), x, atol=1e-4)
