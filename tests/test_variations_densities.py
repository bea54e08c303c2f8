"""densities: areas of 1, maximum likelihood, EM that never falls, the flow against autograd."""

import json
import math

import pytest
import torch
from chapters import data_folder
from torch.distributions import Normal

from variations import densities as d


def numbers(n=3000):
    """Two bells of ink, half of the numbers each."""
    torch.manual_seed(0)
    return torch.cat([60 + 12 * torch.randn(n // 2), 130 + 30 * torch.randn(n // 2)]).clamp(5, 500)


def flow():
    """With weights of no particular kind."""
    torch.manual_seed(1)
    model = d.Flow()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.double()


@pytest.mark.parametrize("kind", ["histogram", "mixture", "flow"])
def test_the_area_under_p_is_1(kind):
    x = numbers()
    mixture = d.Mixture(x, 3)
    mixture.em_step(x)
    models = {"histogram": d.Histogram(x, 50), "mixture": mixture, "flow": flow()}
    left, right = (0, 800) if kind == "histogram" else (-3000, 4000)
    middles = torch.arange(left + 0.01, right, 0.02, dtype=torch.float64)
    area = models[kind].log_prob(middles).exp().sum().item() * 0.02
    assert area == pytest.approx(1, abs=1e-3)


def test_shares_are_the_heights_of_greatest_likelihood():
    """Against heights moved about at random, with the number more that keeps bins from 0."""
    x = numbers()
    histogram = d.Histogram(x, 10)
    counts = torch.bincount((x / 80).long(), minlength=10) + 0.1
    best = (counts * histogram.p.log()).sum()
    for _ in range(100):
        p = histogram.p * torch.exp(0.1 * torch.randn(10))
        assert (counts * (p / p.sum() / 80).log()).sum() <= best + 1e-3
    assert torch.isfinite(histogram.log_prob(torch.tensor([0.0, 783.9, 784.0]))).all()


def test_in_em_the_likelihood_never_falls_and_a_mixture_is_found_again():
    x = numbers(20_000).double()
    for bells in (1, 2, 5):
        mixture = d.Mixture(x.float(), bells)
        before = math.inf
        for _ in range(60):
            now = d.nll(mixture, x)
            assert now <= before + 1e-9
            before = now
            mixture.em_step(x)
        if bells == 2:
            found = torch.stack([mixture.mean, mixture.std, mixture.weight])
            true = torch.tensor([[60, 130], [12, 30], [0.5, 0.5]]).double()
            torch.testing.assert_close(found, true, rtol=0.03, atol=0.02)


def test_the_bound_touches_log_p_at_bayes_r_and_the_m_step_is_its_maximum():
    x = numbers().double()
    old = d.Mixture(x.float(), 2)
    joint = old.log_joint(x)
    r = joint.softmax(1)
    torch.testing.assert_close((r * (joint - r.log())).sum(1), old.log_prob(x))
    other = (joint + torch.randn_like(joint)).softmax(1)
    assert ((other * (joint - other.log())).sum(1) < old.log_prob(x)).all()
    new = d.Mixture(x.float(), 2)
    new.em_step(x)
    parts = [part.clone().requires_grad_() for part in (new.mean, new.std)]
    (r * Normal(*parts).log_prob(x[:, None])).mean().backward()
    assert all(part.grad.abs().max() < 1e-9 for part in parts)


def test_the_flow_s_density_is_the_slope_of_its_cdf():
    model = flow()
    x = torch.linspace(-20, 300, 200, dtype=torch.float64)
    with torch.no_grad():
        slope = (model.cdf(x + 1e-4) - model.cdf(x - 1e-4)) / 2e-4
        assert (model.cdf(x).diff() > 0).all()
    torch.testing.assert_close(model.log_prob(x).exp(), slope, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(model.inverse(model.cdf(x)), x, rtol=0, atol=1e-4)


def test_uniform_u_become_samples_of_p():
    model = flow()
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x = model.inverse(u)
    for low, high in ((50, 60), (0, 100), (120, 500)):
        middles = torch.arange(low + 0.005, high, 0.01, dtype=torch.float64)
        area = model.log_prob(middles).exp().sum().item() * 0.01
        assert ((x > low) & (x < high)).double().mean().item() == pytest.approx(area, abs=2e-4)


def test_no_density_beats_the_true_one_on_average():
    """E_t[log p] over a true mixture t, by quadrature: largest for p = t."""
    x = torch.arange(0.05, 800, 0.1, dtype=torch.float64)
    true = d.Mixture(numbers(), 2)
    t = true.log_prob(x).exp()
    for p in (d.Mixture(numbers(), 1), d.Histogram(numbers(), 64), flow()):
        assert (t * p.log_prob(x)).sum() < (t * true.log_prob(x)).sum()


@pytest.mark.pictures
def test_a_run_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(data_folder(tmp_path / "data", train=600)))
    d.main(["--steps", "20", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert all(f"{name}: {value:.4g}" in printed for name, value in results.items())
    assert (tmp_path / "out" / "densities.png").stat().st_size > 20_000


def test_other_digits_get_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(data_folder(tmp_path / "data", labels=[2, 3])))
    with pytest.raises(OSError, match="zeros and ones"):
        d.main(["--out", str(tmp_path / "out")])
