"""flow_matching: why the mean velocity is right, solvers, densities, each against closed forms."""

import math

import pytest
import torch
from chapters import check_samples
from torch.distributions import MultivariateNormal

from variations import flow_matching as fm

S = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)  # the data: N(0, S) in the plane


def velocity(x, t):
    """E[ε − x_0 | x_t] for data N(0, S), jointly Gaussian with x_t."""
    eye = torch.eye(2, dtype=torch.float64)
    return x @ torch.linalg.solve((1 - t) ** 2 * S + t**2 * eye, t * eye - (1 - t) * S)


def normal(*size):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_least_for_the_mean_velocity_of_the_lines():
    """For x_0 always c, x_t tells ε: the velocity (x_t − c) / t costs 0, and nothing 1 + c²."""
    c = torch.full((500, 1, 28, 28), 0.2)
    y = torch.zeros(500, dtype=torch.long)
    model = fm.FlowMatching(4, 10)
    model.network.forward = lambda x, t, y: (x - 0.2) / (t.view(-1, 1, 1, 1) / 1000)
    assert model.loss(c, y) < 1e-3
    model.network.forward = lambda x, t, y: torch.zeros_like(x)
    assert model.loss(c, y).item() == pytest.approx(1.04, abs=0.02)


def test_two_points_is_the_mean_over_lines_that_pass_close_by():
    torch.manual_seed(0)
    eps = torch.randn(2_000_000)
    x0 = torch.randint(2, eps.shape) * 2.0 - 1
    for t, place in ((0.5, 0.0), (0.5, 0.6), (0.8, -1.0)):
        near = ((1 - t) * x0 + t * eps - place).abs() < 0.02
        mean = (eps - x0)[near].mean().item()
        assert fm.two_points(torch.tensor(place), t).item() == pytest.approx(mean, abs=0.05)


def test_paths_are_distributed_as_lines_at_every_time_and_keep_their_order():
    eps = torch.linspace(0.5e-4, 1 - 0.5e-4, 10_000).double()
    eps = torch.special.ndtri(eps)  # evenly over the quantiles of N(0, 1)
    times = torch.linspace(1, 0, 401).tolist()
    for t, x in fm.solve(fm.two_points, eps, times):
        if t in times[40:400:40]:
            assert (x[1:] > x[:-1]).all()
            assert x.square().mean().item() == pytest.approx((1 - t) ** 2 + t**2, rel=0.01)
            fourth = (1 - t) ** 4 + 6 * (1 - t) ** 2 * t**2 + 3 * t**4  # of a ±(1 − t) and t ε
            assert x.pow(4).mean().item() == pytest.approx(fourth, rel=0.02)


@pytest.mark.parametrize("heun, order", [(False, 1), (True, 2)])
def test_solvers_have_their_orders_and_carry_noise_to_the_data(heun, order):
    errors = []
    for steps in (50, 100):
        times = torch.linspace(1, 0, steps + 1).tolist()
        *_, (_, end) = fm.solve(lambda x, t: x, torch.ones(1).double(), times, heun)
        errors.append(abs(end.item() - math.exp(-1)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)
    *_, (_, end) = fm.solve(velocity, normal(20_000, 2), times, heun)
    torch.testing.assert_close(end.T.cov(), S, atol=0.05, rtol=0)


def test_the_density_is_exact_for_a_gaussian_if_all_signs_are_averaged():
    """Over all four vectors of signs the mean of e_i e_j is exactly that of Hutchinson's proof."""
    x = normal(50, 2)
    signs = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0])).double()
    draws = [fm.log_density(velocity, x, e.expand(50, 2), 1000) for e in signs]
    assert torch.stack(draws).std(0).max() > 0.01
    exact = MultivariateNormal(torch.zeros(2).double(), S).log_prob(x)
    torch.testing.assert_close(torch.stack(draws).mean(0), exact, atol=1e-3, rtol=0)


def test_the_trace_equals_autograd_s_for_a_network():
    """One Euler-thin slice of time: log p changes by tr J of the velocity there."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()
    x = normal(4, 3)
    J = torch.stack([torch.autograd.functional.jacobian(net, row) for row in x])
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()
    scale = 1e-5  # a flow so slow that x stays, over t from 0 to 1
    draws = [fm.log_density(lambda x, t: scale * net(x), x, e.expand(4, 3), 1) for e in signs]
    x1 = x + scale * net(x)
    log_normal = (-0.5 * x1**2 - 0.5 * math.log(2 * math.pi)).sum(1)
    change = (torch.stack(draws).mean(0) - log_normal) / scale
    torch.testing.assert_close(change, J.diagonal(dim1=1, dim2=2).sum(1), atol=1e-3, rtol=0)


def test_log_prob_of_an_untrained_model_is_that_of_its_linear_flow():
    """Without its last layer the network is x_t: v = x, x_1 = e x_0, tr J = 784."""
    model = fm.FlowMatching(4, 10)
    torch.nn.init.zeros_(model.network.head.bias)
    levels = torch.randint(256, (3, 1, 28, 28))
    torch.manual_seed(5)
    x1 = math.e * fm.dequantise(levels)
    one = -0.5 * x1**2 - 0.5 * math.log(2 * math.pi) + 1 - math.log(128)
    torch.manual_seed(5)
    with torch.inference_mode():
        log_p = model.log_prob(levels / 255, torch.arange(3), 60)
    torch.testing.assert_close(log_p, one.flatten(1).sum(1), rtol=1e-3, atol=0.1)
    nothing = torch.zeros(0, 1, 28, 28)
    assert model.log_prob(nothing, torch.arange(0), 2).shape == (0,)


def test_each_level_fills_an_interval_and_comes_back():
    levels = torch.arange(256).repeat(100)
    x = fm.dequantise(levels)
    assert torch.equal((x * 128).floor().long(), levels)
    assert (fm.to_grey((levels + 0.5) / 128) * 255 - levels).abs().max() < 1e-3


def test_samples_and_guidance():
    torch.manual_seed(0)
    model = fm.FlowMatching(4, 10)
    check_samples(model)
    torch.nn.init.normal_(model.network.head.weight)
    x, y = torch.randn(2, 1, 28, 28), torch.tensor([3, 4])
    with torch.no_grad():
        none, plain, twice = (model.velocity(x, 0.5, y, w) for w in (0.0, 1.0, 2.0))
        times = torch.full((2,), 500.0)
        torch.testing.assert_close(plain, model.network(x, times, y))
        torch.testing.assert_close(none, model.network(x, times, torch.full_like(y, 10)))
    torch.testing.assert_close(twice - plain, plain - none, atol=1e-4, rtol=1e-4)
