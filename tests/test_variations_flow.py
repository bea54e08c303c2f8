"""Flow matching against closed forms: a Gaussian world where velocity, density and path are known."""
import json
import math
import subprocess
import sys

import pytest
import torch
from harness import ROOT, finished, small
from torch.distributions import MultivariateNormal

from variations import flow_matching as fm

S = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)  # the data: N(0, S) in the plane


def velocity(x, t):
    """The best velocity for data N(0, S): E[ε − x_0 | x_t], both jointly Gaussian with x_t."""
    eye = torch.eye(2, dtype=torch.float64)
    return x @ torch.linalg.solve((1 - t) ** 2 * S + t**2 * eye, t * eye - (1 - t) * S)


def test_the_density_of_a_gaussian_is_exact_with_unit_vectors():
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = [e.expand(50, 2) for e in torch.eye(2, dtype=torch.float64)]
    x1, change = fm.transport(velocity, x, probes, 2000)
    log_p = -(x1.square().sum(1) / 2) - math.log(2 * math.pi) + change
    torch.testing.assert_close(log_p, MultivariateNormal(torch.zeros(2).double(), S).log_prob(x), atol=1e-3, rtol=0)


def test_random_signs_give_the_divergence_on_average():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, dtype=torch.float64, generator=g).expand(4000, 2)
    signs = torch.randint(2, (4000, 2), generator=g).double() * 2 - 1
    exact = fm.transport(velocity, x[:1], [e[None] for e in torch.eye(2, dtype=torch.float64)], 40)[1]
    estimate = fm.transport(velocity, x, [signs], 40)[1]
    assert estimate.std() > 0.01
    assert abs(estimate.mean() - exact) < 4 * estimate.std() / 4000**0.5


@pytest.mark.parametrize("heun, order", [(False, 1), (True, 2)])
def test_the_solvers_have_their_orders(heun, order):
    x, exact = torch.ones(1, dtype=torch.float64), math.exp(-1.0)
    errors = []
    for steps in (50, 100):
        *_, (_, end) = fm.solve(lambda x, t: x, x, torch.linspace(1, 0, steps + 1).tolist(), heun)
        errors.append(abs(end.item() - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


def test_the_loss_is_least_for_the_mean_velocity(monkeypatch):
    """For x_0 always the same image c, x_t tells ε: with v = (x_t − c) / t the loss is 0."""
    monkeypatch.setattr(fm, "dequantise", lambda x: x + 1)
    model = fm.FlowMatching(4, 10)
    c = torch.full((64, 1, 28, 28), 0.2)
    model.velocity = lambda x, t, y=None: (x - c - 1) / t.view(-1, 1, 1, 1)
    torch.manual_seed(0)
    near = model.loss(c)
    model.velocity = lambda x, t, y=None: torch.zeros_like(x)
    assert near < 1e-3 and abs(model.loss(c).item() - (1 + 1.2**2)) < 0.03


def test_both_samplers_carry_noise_to_the_data_s_covariance():
    x = torch.randn(20000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for heun in (False, True):
        *_, (_, end) = fm.solve(velocity, x, torch.linspace(1, 0, 201).tolist(), heun)
        torch.testing.assert_close(end.T.cov(), S, atol=0.05, rtol=0)


def test_dequantised_levels_fill_their_bins():
    x = fm.dequantise(torch.arange(256).repeat(200) / 127.5 - 1)
    levels = (x * 127.5).round().long()
    assert torch.equal(levels, torch.arange(256).repeat(200)) and x.min() < 0 and x.max() > 2


def test_log_prob_of_an_untrained_model_is_that_of_its_linear_flow():
    """The network's first output is its input, v = x: x_1 = e x_0, div v = 784, over bins 2/255 wide."""
    model = fm.FlowMatching(4, 10).eval()
    x = torch.randint(256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    torch.manual_seed(5)
    x0 = fm.dequantise(x)
    exact = (-(math.e * x0).square() / 2 - math.log(2 * math.pi) / 2 + 1 + math.log(2 / 255)).flatten(1).sum(1)
    torch.manual_seed(5)
    torch.testing.assert_close(model.log_prob(x, calls=400).detach(), exact, rtol=1e-3, atol=0.1)


@pytest.mark.slow
def test_a_tiny_run_writes_its_results_and_pictures(tmp_path):
    command = [sys.executable, "-m", "variations.flow_matching", "--steps", "3", "--batch-size", "8", "--channels", "8",
               "--sampling-steps", "1", "--device", "cpu", "--out", str(tmp_path / "a")]
    finished(subprocess.Popen(command, cwd=ROOT, env=small(), text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["script"] == "flow_matching" and metrics["step"] == 3
    assert all(math.isfinite(value) for value in metrics["results"].values())
    for file in ("samples.png", "curve.png", "calls.png", "flow.gif"):
        assert (tmp_path / "a" / file).stat().st_size > 1000
