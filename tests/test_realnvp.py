"""RealNVP: Jacobians by autograd, the way there and back, integrals over boxes for the bound."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chapters import TINY, check_samples, digits, edited, short_run
from scipy.stats import kstest
from torch.distributions import Normal

import realnvp


def wild(model, std=0.2):
    """Random weights everywhere, in float64: the zeros of an untrained coupling would hide much."""
    torch.manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=std)
    return model.double()


def all_levels(n):
    return torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8)


@pytest.fixture
def tiny():
    """A flow on images of four pixels with three grey levels, 0, 1 and 2."""
    model = realnvp.RealNVP(3, couplings=0)
    model.edges = torch.tensor([-torch.inf, 0, 2.3, torch.inf]).double()
    couplings = [realnvp.Coupling(mask, 1, 3, 1, classes=2) for mask in realnvp.MASKS]
    model.couplings = torch.nn.ModuleList(couplings)
    return wild(model, 0.15)


def gauss(points):
    """Nodes (N, 4) in (0, 1)^4 and weights (N,) of Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    nodes = torch.tensor(list(itertools.product((nodes + 1) / 2, repeat=4)))
    return nodes, torch.tensor(list(itertools.product(weights / 2, repeat=4))).prod(1)


def integral_over_box(model, x, nodes, weights):
    """P(x | y = 1) of an image of four levels: the integral of p(r | y)."""
    edges = model.edges.clamp(-6, 8)
    left, right = edges[x], edges[x + 1]
    y = torch.ones(len(nodes), dtype=torch.long)
    z, log_det = model(left.lerp(right, nodes).view(-1, 1, 2, 2), y)
    density = (realnvp.log_normal(z).sum(1) + log_det).exp()
    return (weights * density).sum() * (right - left).prod()


def test_the_coupling_of_the_opening(monkeypatch):
    coupling = realnvp.Coupling([1, 0], 1, 3, 1, classes=1)
    first = torch.tensor([0.0, 1.0]).view(2, 1, 1)  # s = x_1 and t = 5, for the second number
    monkeypatch.setattr(coupling, "s_and_t", lambda x, y: (x[:, :1] * first, 5 * first))
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    z, log_det = coupling(x, None)
    assert z.flatten().tolist() == pytest.approx([1, 10.44], abs=0.005) and log_det.item() == 1
    torch.testing.assert_close(coupling.inverse(z, None), x)


def test_the_squeeze_of_the_comment():
    x = torch.arange(784).view(1, 1, 28, 28)
    for channel, first in enumerate([0, 1, 28, 29]):  # of the 4 x 4 pixels at the upper left
        assert F.pixel_unshuffle(x, 2)[0, channel, :2, :2].flatten().tolist() == [
            first + step for step in (0, 2, 56, 58)
        ]


def test_masks_are_a_chessboard_rows_and_columns_each_followed_by_its_opposite():
    row, column = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    patterns = [(row + column) % 2 == 0, row % 2 == 0, column % 2 == 0]
    for pattern, passes, opposite in zip(patterns, realnvp.MASKS[::2], realnvp.MASKS[1::2]):
        channels = F.pixel_unshuffle(pattern.view(1, 1, 28, 28).int(), 2)[0].flatten(1)
        assert channels.tolist() == torch.tensor(passes)[:, None].expand(4, 196).tolist()
        assert [a + b for a, b in zip(passes, opposite)] == [1, 1, 1, 1]


@pytest.mark.parametrize("mask", realnvp.MASKS)
def test_a_coupling_is_triangular_with_its_scales_on_the_diagonal(mask):
    layer = wild(realnvp.Coupling(mask, 2, 3, 1, classes=5), 0.3)
    x, y = torch.randn(1, 4, 2, 2).double(), torch.tensor([3])
    J = torch.autograd.functional.jacobian(lambda x: layer(x, y)[0], x).view(16, 16)
    passes = torch.tensor(mask).repeat_interleave(4) == 1
    assert torch.equal(J[passes], torch.eye(16).double()[passes])
    s = layer.s_and_t(x, y)[0].flatten()
    expected = s[~passes].double().exp().diag()
    torch.testing.assert_close(J[~passes][:, ~passes], expected, rtol=0, atol=1e-5)
    assert (J[~passes][:, passes] != 0).any(1).all()
    assert layer(x, y)[1].item() == pytest.approx(torch.linalg.slogdet(J)[1].item(), abs=1e-5)


@torch.no_grad()
def test_numbers_far_out_are_scaled_and_shifted_by_no_more_than_the_bounds():
    layer, y = wild(realnvp.Coupling([1, 0, 0, 1], 2, 3, 1, classes=5), 9.0), torch.tensor([3])
    x = 1e4 * torch.randn(1, 4, 2, 2).double()
    s, t = layer.s_and_t(x, y)
    assert 0.5 < s.abs().max() <= 1 < t.abs().max() <= 8
    assert torch.equal(s, layer.s_and_t(7 * x, y)[0])  # what lies beyond ±6 is seen as ±6


def test_log_det_of_the_whole_map_is_that_of_its_jacobian():
    model, y = wild(realnvp.RealNVP(3, 6, 1, classes=2)), torch.tensor([1])
    r = torch.randn(1, 1, 28, 28).double()
    J = torch.autograd.functional.jacobian(lambda r: model(r, y)[0], r, vectorize=True)
    expected = torch.linalg.slogdet(J.view(784, 784))[1]
    assert model(r, y)[1].item() == pytest.approx(expected.item(), abs=1e-3)


def some_levels():
    return torch.tensor([0] * 60 + [9] * 20 + [200] * 15 + [255] * 5, dtype=torch.uint8)


def test_a_level_of_ink_is_as_large_a_share_of_its_bell_as_it_is_frequent():
    edges = realnvp.level_edges(some_levels())
    assert edges[0] == -torch.inf and edges[1] == 0 and edges[-1] == torch.inf
    assert (edges.diff() > 0).all()  # all levels have room, also those never seen
    bell = Normal(2, 1)
    shares = bell.cdf(edges[1:]).diff() / (1 - bell.cdf(torch.tensor(0.0)))
    assert shares[[8, 199, 254]].tolist() == pytest.approx([0.5, 0.375, 0.125], abs=0.02)
    assert shares.sum().item() == pytest.approx(1)


def test_edges_rise_from_minus_to_plus_infinity_whatever_the_counts():
    for n in range(1, 300, 7):
        edges = realnvp.level_edges(torch.randint(256, (n,), dtype=torch.uint8) // 9)
        assert (edges.diff() > 0).all() and edges.isinf().sum() == 2


def test_the_slice_of_the_comment():
    assert 2 + Normal(0, 1).icdf(torch.tensor(0.53)).item() == pytest.approx(2.08, abs=0.005)


def test_points_fall_into_their_own_interval_and_log_q_is_the_density_they_are_drawn_from():
    torch.manual_seed(0)
    x = some_levels().view(1, 1, 10, 10).expand(4000, -1, -1, -1)
    edges = realnvp.level_edges(x)
    r, _ = realnvp.dequantise(x, edges)
    assert r.isfinite().all()
    assert torch.equal(torch.bucketize(r, edges[1:-1], right=True), x.long())
    for k in (0, 60, 99):  # a pixel of level 0, 9 and 255
        middle = -2 if k == 0 else 2
        level, drawn = x[0].flatten()[k].long(), r.flatten(1)[:, k].double()
        low, high = Normal(middle, 1).cdf(edges[level : level + 2]).double().tolist()
        shares = (Normal(middle, 1).cdf(drawn) - low) / (high - low)
        assert kstest(shares, "uniform").pvalue > 1e-3
    one = level.view(1, 1, 1, 1).expand(500, -1, -1, -1)
    point, log_q = realnvp.dequantise(one, edges)
    expected = Normal(2, 1).log_prob(point.flatten()) - math.log(high - low)
    torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_there_and_back(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda width: torch.full_like(width, 0.5))
    model, x, y = wild(realnvp.RealNVP(3, 6, 1)), all_levels(4), torch.tensor([0, 5, 9, 3])
    r, _ = realnvp.dequantise(x, model.edges)
    z, _ = model(r, y)
    assert torch.equal((255 * model.inverse(z, y)).round().byte(), x)
    h = torch.randn(4, 4, 14, 14).double()
    for layer in model.couplings:
        changed, _ = layer(h, y)
        torch.testing.assert_close(layer.inverse(changed, y), h, rtol=0, atol=1e-5)
        assert not torch.allclose(changed, h, atol=0.1)


@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one_and_the_bound_is_below_them(tiny):
    images = torch.tensor(list(itertools.product([0, 1, 2], repeat=4)))
    p = torch.stack([integral_over_box(tiny, x, *gauss(7)) for x in images])
    assert p.sum().item() == pytest.approx(1, abs=0.01) and p.max() > 3 * p.min()
    for i in (0, 40, 77):
        x, y = images[i].view(1, 1, 2, 2).expand(8000, 1, 2, 2), torch.ones(8000, dtype=torch.long)
        bounds = tiny.log_prob(x, y)
        assert bounds.mean().item() + 3 * bounds.std().item() / 8000**0.5 < p[i].log().item()


@torch.no_grad()
def test_the_mean_over_q_of_p_by_q_is_the_probability_of_the_box(tiny, monkeypatch):
    u, weights = gauss(16)
    monkeypatch.setattr(torch, "rand_like", lambda low: u.view(-1, 1, 2, 2))
    for x in ([0, 0, 0, 0], [1, 1, 1, 1], [2, 1, 2, 0]):
        x, y = torch.tensor(x), torch.ones(len(u), dtype=torch.long)
        ratio = tiny.log_prob(x.view(1, 1, 2, 2).expand(len(u), 1, 2, 2), y).exp()
        expected = integral_over_box(tiny, x, *gauss(12)).item()
        assert (weights * ratio).sum().item() == pytest.approx(expected, rel=0.02)


@torch.no_grad()
def test_a_sample_is_the_way_back_of_its_noise_and_has_whole_levels():
    model, y = wild(realnvp.RealNVP(3, 6, 1)).float(), torch.arange(20) % 10
    torch.manual_seed(1)
    images = model.sample(y, temperature=0.8)
    torch.manual_seed(1)
    z = 0.8 * torch.randn(20, 784)
    assert torch.equal(images, model.inverse(z, y))
    assert torch.equal(images, (255 * images).round() / 255) and len(images.unique()) > 100


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_model_samples(more):
    model, saved = short_run(realnvp, f"{TINY['realnvp']} {more}")
    assert len(saved["curve"]) == 2 and not torch.equal(model.edges, realnvp.RealNVP().edges)
    check_samples(model)


FLAGS = (
    "--steps 120 --batch-size 16 --channels 8 --couplings 6 --blocks 1 --lr 1e-2 --save-every 120"
)


@functools.cache
def after_a_short_run(*edits):
    """Its last validation, its bits/dim by the chapter's own log_prob, and the model."""
    broken, saved = short_run(edited("realnvp", *edits), FLAGS)
    honest = realnvp.RealNVP(8, 6, 1)
    honest.load_state_dict(broken.state_dict())
    with torch.no_grad():
        bits = -honest.log_prob(digits()[2], digits()[3]).mean().item() / realnvp.BIT
    return saved["curve"][-1]["validation"], bits, broken


@pytest.mark.slow
def test_break_noise_in_a_tenth_of_each_interval():
    noise = "low.lerp(high, torch.rand_like(low)"
    claimed, true, _ = after_a_short_run((f"{noise})", f"{noise} / 10)"))
    assert claimed < 0 < after_a_short_run()[1] < true


@pytest.mark.slow
def test_break_scales_that_do_not_count():
    edit = "t, s.flatten(1).sum(1)", "t, 0 * s.flatten(1).sum(1)"
    claimed, true, _ = after_a_short_run(edit)
    assert claimed < after_a_short_run()[0] - 0.3 and true > after_a_short_run()[1] + 0.3


@pytest.mark.slow
def test_break_half_of_the_pixels_pass_everywhere():
    old = f"MASKS = {realnvp.MASKS}"
    claimed, _, broken = after_a_short_run((old, "MASKS = [[1, 0, 0, 1]] * 6"))
    assert claimed > after_a_short_run()[0] + 0.1
    assert all(layer.mask.flatten().tolist() == [1, 0, 0, 1] for layer in broken.couplings)
