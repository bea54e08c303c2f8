"""RealNVP: Jacobians by autograd, the way there and back, integrals over boxes for the bound."""

import functools
import itertools

import numpy as np
import pytest
import torch
from chapters import TINY, check_samples, digits, edited, short_run

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
def tiny(monkeypatch):
    """A flow on images of four pixels with three grey levels, 0, 1 and 2."""
    monkeypatch.setattr(realnvp, "squeeze", lambda x: x.view(len(x), 4, 1, 1))
    model = realnvp.RealNVP(3, couplings=0)
    model.edges = torch.tensor([realnvp.EDGE, 0.5, 0.6, 1 - realnvp.EDGE]).double()
    couplings = [realnvp.Coupling(mask, 1, 3, classes=2) for mask in realnvp.MASKS]
    model.couplings = torch.nn.ModuleList(couplings)
    return wild(model, 0.25)


def gauss_in_boxes(model, patch, points=8):
    """P(x | y = 1) of all 81 images, and these: Gauss's rule for each box, after the logit."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    grid = torch.tensor(list(itertools.product((nodes + 1) / 2, repeat=4)))  # (8^4, 4) in (0, 1)
    weights = torch.tensor(list(itertools.product(weights / 2, repeat=4))).prod(1)
    images = torch.tensor(list(itertools.product([0, 1, 2], repeat=4)))
    y = torch.ones(len(grid), dtype=torch.long)
    p = []
    for x in images:
        left, right = model.edges[x], model.edges[x + 1]
        r = left.logit().lerp(right.logit(), grid)
        v = r.sigmoid()
        u = ((v - left) / (right - left)).view(-1, 1, 2, 2)
        du = (v * (1 - v) * (right.logit() - left.logit()) / (right - left)).prod(1)
        patch.setattr(torch, "rand_like", lambda width, u=u: u)
        log_prob = model.log_prob(x.view(1, 1, 2, 2).expand(len(grid), 1, 2, 2), y)
        p.append((weights * du * log_prob.exp()).sum())
    return torch.stack(p), images.view(-1, 1, 2, 2)


def test_the_coupling_of_the_opening(monkeypatch):
    coupling = realnvp.Coupling([1, 0], 1, 3, classes=1)
    first = torch.tensor([0.0, 1.0]).view(2, 1, 1)  # s = x_1 and t = 5, for the second number
    monkeypatch.setattr(coupling, "s_and_t", lambda x, y: (x[:, :1] * first, 5 * first))
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    z, log_det = coupling(x, None)
    assert z.flatten().tolist() == pytest.approx([1, 10.44], abs=0.005) and log_det.item() == 1
    torch.testing.assert_close(coupling.inverse(z, None), x)


def test_the_squeeze_of_the_comment():
    x = torch.arange(784).view(1, 1, 28, 28)
    assert torch.equal(realnvp.unsqueeze(realnvp.squeeze(x)), x)
    for channel, first in enumerate([0, 1, 28, 29]):  # of the 4 x 4 pixels at the upper left
        assert realnvp.squeeze(x)[0, channel, :2, :2].flatten().tolist() == [
            first + step for step in (0, 2, 56, 58)
        ]


def test_masks_are_a_chessboard_rows_and_columns_each_followed_by_its_opposite():
    row, column = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    patterns = [(row + column) % 2 == 0, row % 2 == 0, column % 2 == 0]
    for pattern, passes, opposite in zip(patterns, realnvp.MASKS[::2], realnvp.MASKS[1::2]):
        channels = realnvp.squeeze(pattern.view(1, 1, 28, 28))[0].flatten(1)
        assert channels.tolist() == torch.tensor(passes).bool()[:, None].expand(4, 196).tolist()
        assert [a + b for a, b in zip(passes, opposite)] == [1, 1, 1, 1]


@pytest.mark.parametrize("mask", realnvp.MASKS)
def test_a_coupling_is_triangular_with_its_scales_on_the_diagonal(mask):
    layer = wild(realnvp.Coupling(mask, 2, 3, classes=5), 0.5)
    x, y = torch.randn(1, 4, 2, 2).double(), torch.tensor([3])
    J = torch.autograd.functional.jacobian(lambda x: layer(x, y)[0], x).view(16, 16)
    passes = torch.tensor(mask).repeat_interleave(4) == 1
    assert torch.equal(J[passes], torch.eye(16).double()[passes])
    s = layer.s_and_t(x, y)[0].flatten()
    expected = s[~passes].double().exp().diag()
    torch.testing.assert_close(J[~passes][:, ~passes], expected, rtol=0, atol=1e-5)
    assert (J[~passes][:, passes] != 0).any(1).all()
    assert layer(x, y)[1].item() == pytest.approx(torch.linalg.slogdet(J)[1].item(), abs=1e-5)


def test_log_det_of_the_logit_and_its_table():
    v = torch.rand(2, 1, 28, 28).double().requires_grad_()
    r, log_det = realnvp.logit(v)
    (slope,) = torch.autograd.grad(r.sum(), v)
    torch.testing.assert_close(slope.log().flatten(1).sum(1), log_det)
    table = realnvp.logit(torch.tensor([[0.01, 0.1, 0.5, 0.9, 0.99]]))[0][0]
    assert table.tolist() == pytest.approx([-4.6, -2.2, 0, 2.2, 4.6], abs=0.01)


def test_log_det_of_the_whole_map_is_that_of_its_jacobian(monkeypatch):
    monkeypatch.setattr(realnvp, "dequantise", lambda v, edges: (v, torch.zeros(len(v))))
    model, y = wild(realnvp.RealNVP(3, 6, classes=2)), torch.tensor([1])
    v = torch.rand(1, 1, 28, 28).double()
    J = torch.autograd.functional.jacobian(lambda v: model(v, y)[0], v, vectorize=True)
    expected = torch.linalg.slogdet(J.view(784, 784))[1]
    assert model(v, y)[1].item() == pytest.approx(expected.item(), abs=1e-3)


def test_intervals_are_as_wide_as_levels_are_frequent_and_points_fall_into_their_own():
    x = torch.tensor([0] * 70 + [9] * 20 + [255] * 10, dtype=torch.uint8).view(1, 1, 10, 10)
    edges = realnvp.level_edges(x)
    widths = edges.diff()
    assert widths[[0, 9, 255]].tolist() == pytest.approx([0.693, 0.198, 0.099], abs=1e-4)
    assert widths.min() > 1e-5 and edges[0] > 0 and edges[-1] < 1  # all levels have room
    v, log_widths = realnvp.dequantise(x.expand(1000, -1, -1, -1), edges)
    assert torch.equal(torch.bucketize(v, edges[1:-1], right=True), x.long().expand_as(v))
    middle = (edges[:-1] + edges[1:])[x.long()] / 2
    torch.testing.assert_close(v.mean(0, keepdim=True), middle, rtol=0, atol=0.05)
    torch.testing.assert_close(log_widths[0], widths[x.long()].log().sum())


@torch.no_grad()
def test_there_and_back(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda width: torch.full_like(width, 0.5))
    model, x, y = wild(realnvp.RealNVP(3, 6)), all_levels(4), torch.tensor([0, 5, 9, 3])
    z, _ = model(x, y)
    assert torch.equal((255 * model.inverse(z, y)).round().byte(), x)
    h = torch.randn(4, 4, 14, 14).double()
    for layer in model.couplings:
        changed, _ = layer(h, y)
        torch.testing.assert_close(layer.inverse(changed, y), h, rtol=0, atol=1e-5)
        assert not torch.allclose(changed, h, atol=0.1)


@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one_and_the_bounds_are_below_them(tiny):
    with pytest.MonkeyPatch.context() as patch:
        p, images = gauss_in_boxes(tiny, patch)
    assert p.sum().item() == pytest.approx(1, abs=0.05) and p.max() > 3 * p.min()
    for i in (0, 40, 77):
        x, y = images[i].expand(8000, 1, 2, 2), torch.ones(8000, dtype=torch.long)
        one = -realnvp.bits_per_dim(tiny, x, y) * realnvp.BIT
        eight = -realnvp.bits_per_dim(tiny, x[:1000], y[:1000], draws=8) * realnvp.BIT
        error = one.std().item() / 8000**0.5
        assert one.mean().item() + 3 * error < eight.mean().item() < p[i].log().item() + 3 * error
        assert one.exp().mean().item() == pytest.approx(p[i].item(), rel=0.1)


@torch.no_grad()
def test_a_sample_is_the_way_back_of_its_noise_and_has_whole_levels():
    model, y = wild(realnvp.RealNVP(3, 6)).float(), torch.arange(20) % 10
    torch.manual_seed(1)
    images = model.sample(y, temperature=0.8)
    torch.manual_seed(1)
    z = 0.8 * torch.randn(20, 784)
    assert torch.equal(images, model.inverse(z, y))
    assert torch.equal(images, (255 * images).round() / 255) and len(images.unique()) > 100


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_model_samples(more):
    model, saved = short_run(realnvp, f"{TINY['realnvp']} {more}")
    assert len(saved["curve"]) == 2 and model.edges[1] > 0.5  # the intervals of the data
    check_samples(model)


FLAGS = "--steps 120 --batch-size 16 --channels 8 --couplings 6 --lr 1e-2 --save-every 120"


@functools.cache
def after_a_short_run(*edits):
    """Its last validation, its bits/dim by the chapter's own log_prob, and the model."""
    broken, saved = short_run(edited("realnvp", *edits), FLAGS)
    honest = realnvp.RealNVP(8, 6)
    honest.load_state_dict(broken.state_dict())
    with torch.no_grad():
        bits = realnvp.bits_per_dim(honest, digits()[2], digits()[3]).mean().item()
    return saved["curve"][-1]["validation"], bits, broken


@pytest.mark.slow
def test_break_noise_in_a_tenth_of_each_interval():
    noise = "+ width * torch.rand_like(width)"
    claimed, true, _ = after_a_short_run((noise, f"{noise} / 10"))
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
