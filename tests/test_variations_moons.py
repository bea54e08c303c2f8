"""Two moons: densities against integrals, the flow against autograd, KL against a closed form."""

import json
import math

import pytest
import torch
from chapters import main, short_run
from scipy.integrate import quad

from variations import moons


def wild(couplings=4, std=0.2):
    """Random weights everywhere, in float64: the zeros of an untrained coupling would hide much."""
    torch.manual_seed(0)
    flow = moons.Flow(couplings)
    for weights in flow.parameters():
        torch.nn.init.normal_(weights, std=std)
    return flow.double()


def squares(edge, side):
    middles = torch.arange(-edge + side / 2, edge, side, dtype=torch.float64)
    return torch.cartesian_prod(middles, middles).split(20_000)


def test_the_density_of_the_data_is_its_integral_over_the_half_circles():
    def density(t, a, b, sign):
        u, v = sign * (math.cos(t) - 0.5), sign * (math.sin(t) - 0.25)
        squared = ((a - u) ** 2 + (b - v) ** 2) / 0.08**2
        return math.exp(-squared / 2) / (2 * math.pi * 0.08**2) / math.pi

    torch.manual_seed(0)
    x = moons.moons(100).double()
    errors = []
    for point, ours in zip(x.tolist(), moons.true_log_prob(x).tolist()):
        exact = sum(quad(density, 0, math.pi, (*point, sign), limit=500)[0] for sign in (1, -1)) / 2
        errors.append(abs(ours - math.log(exact)))
    assert max(errors) < 0.01 and sum(errors) / 100 < 1e-4


def test_the_density_of_the_data_holds_one_and_points_are_drawn_from_it():
    torch.manual_seed(0)
    log_p = torch.cat([moons.true_log_prob(part) for part in squares(2.5, 0.04)])
    p = log_p.exp() * 0.04**2
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    x = moons.moons(20_000)
    drawn = moons.true_log_prob(x)
    error = drawn.std().item() / 20_000**0.5
    assert drawn.mean().item() == pytest.approx((p * log_p).sum().item(), abs=4 * error)
    assert p[log_p < math.log(0.01)].sum().item() == pytest.approx(0.0039, abs=5e-5)
    places = torch.cat(squares(2.5, 0.04))
    covariance = (places * p[:, None]).T @ places  # the mean is 0
    assert torch.allclose(x.T.cov().double(), covariance, atol=0.02)


def test_the_density_of_the_model_holds_one():
    flow = wild()
    with torch.no_grad():
        q = sum(flow.log_prob(part).exp().sum() for part in squares(12, 0.06)) * 0.06**2
    assert q.item() == pytest.approx(1, abs=1e-3)


def test_log_det_is_that_of_autograd_and_stages_go_back():
    flow = wild()
    x = torch.randn(5, 2, dtype=torch.float64)
    for point in x:
        h, log_det = point[None], 0.0
        for coupling in flow.couplings:
            jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v)[0][0], h)[:, 0]
            log_det += jacobian.det().log()
            h = coupling(h)[0]
        expected = log_det - h.square().sum() / 2 - math.log(2 * math.pi)
        assert flow.log_prob(point[None]).item() == pytest.approx(expected.item())
        assert torch.allclose(flow.stages(h)[-1][0], point)


def test_a_coupling_moves_points_along_one_axis_the_other_in_turn():
    stages = wild().stages(torch.randn(50, 2, dtype=torch.float64))
    moved = [(b - a).abs().amax(0).gt(0).tolist() for a, b in zip(stages, stages[1:])]
    assert moved == [[True, False], [False, True]] * 2


def test_the_kl_of_an_untrained_flow_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(moons.Run, "picture", lambda *_: None)
    main("variations.moons", tmp_path, "--steps 0")  # q = N(0, I)
    found = json.loads((tmp_path / "metrics.json").read_text())["results"]
    log_p = torch.cat([moons.true_log_prob(part) for part in squares(2.5, 0.04)])
    entropy = -(log_p.exp() * log_p).sum().item() * 0.04**2
    square = 1 + 0.5**2 + 0.25**2 - 2 * 0.25 * 2 / math.pi + 2 * 0.08**2  # E|x|²: E sin t = 2/π
    kl = square / 2 + math.log(2 * math.pi) - entropy
    assert found["KL(p, q) by quadrature, nats"] == pytest.approx(kl, abs=1e-3)
    assert abs(found["KL(p, q), nats"] - kl) < 4 * found["KL(p, q), standard error"]


def test_a_short_training_beats_a_gaussian():
    model, _ = short_run(moons, "--steps 150 --batch-size 256 --couplings 6")
    torch.manual_seed(1)
    x = moons.moons(2000)
    gaussian = x.std(0).log().sum().item() + math.log(2 * math.pi) + 1
    with torch.inference_mode():
        assert -model.log_prob(x).mean().item() < gaussian - 0.3
        assert model.sample(0).shape == (0, 2)
