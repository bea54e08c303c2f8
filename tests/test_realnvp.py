"""RealNVP against exact answers: the full Jacobian, quadrature, the way there and back."""
import math

import pytest
import torch
from scipy import integrate, stats

import realnvp


def model_of(seed=0, std=0.15, conditional=True):
    """Random weights everywhere, in float64: an untrained coupling would hide mistakes behind its zeros."""
    torch.manual_seed(seed)
    model = realnvp.RealNVP(3, 6, conditional).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def grey(n=1):
    """uint8 images of all levels."""
    return torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8)


def test_log_det_of_a_digit_against_the_full_jacobian():
    model = model_of()
    x = torch.randn(1, 1, 28, 28).double()
    J = torch.autograd.functional.jacobian(lambda v: model(v, 3)[0][0], x, vectorize=True).view(784, 784)
    sign, log_det = torch.linalg.slogdet(J)
    assert sign.abs() == 1 and log_det.item() == pytest.approx(model(x, 3)[1].item(), abs=1e-3)
    assert abs(log_det.item()) > 10  # so that a missing term shows


def test_log_det_of_the_logit_against_autograd():
    v = torch.rand(2, 1, 28, 28).double().requires_grad_()
    z, log_det = realnvp.logit(v)
    slope, = torch.autograd.grad(z.sum(), v)
    assert torch.allclose(slope.log().flatten(1).sum(1), log_det)
    assert torch.allclose((z.sigmoid() - realnvp.EDGE) / (1 - 2 * realnvp.EDGE), v)


@pytest.mark.parametrize("y", [None, 2, torch.tensor([0, 9, 10, 4])])
def test_there_and_back(y):
    model, x, z = model_of(), torch.randn(4, 1, 28, 28).double(), torch.randn(4, 784).double()
    with torch.no_grad():
        assert not torch.allclose(model(x, y)[0].view_as(x), x, atol=0.1)
        assert torch.allclose(model.inverse(model(x, y)[0], y), x, atol=1e-3)
        assert torch.allclose(model(model.inverse(z, y), y)[0], z, atol=1e-3)


@pytest.mark.parametrize("mask", realnvp.MASKS)
def test_a_coupling_is_triangular_with_its_scales_on_the_diagonal(mask):
    torch.manual_seed(0)
    layer, x = realnvp.Coupling(mask, 2, 3).double(), torch.randn(1, 4, 2, 2).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    y = torch.tensor([3])
    J = torch.autograd.functional.jacobian(lambda v: layer(v, y)[0], x).view(16, 16)
    passes = torch.tensor(mask).repeat_interleave(4) == 1
    assert torch.equal(J[passes], torch.eye(16).double()[passes])
    scale = layer.log_scale_shift(x, y)[0].detach().exp().flatten()
    assert torch.allclose(J[~passes][:, ~passes], scale[~passes].diag(), atol=1e-6)
    assert (J[~passes][:, passes] != 0).all() and (scale[~passes] != 1).all()
    assert layer(x, y)[1].item() == pytest.approx(torch.linalg.slogdet(J)[1].item(), abs=1e-5)


def test_a_scale_is_at_most_e_squared():
    torch.manual_seed(0)
    layer, x = realnvp.Coupling(realnvp.MASKS[0], 2, 3), 1e3 * torch.randn(50, 4, 2, 2)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=3)
    log_scale, _ = layer.log_scale_shift(x, torch.zeros(50, dtype=torch.long))
    assert log_scale.abs().max().item() == pytest.approx(2)


def test_masks_complement_each_other_and_a_chessboard_is_two_channels():
    for a, b in zip(realnvp.MASKS[::2], realnvp.MASKS[1::2]):
        assert [i + j for i, j in zip(a, b)] == [1, 1, 1, 1]
    i = torch.arange(28)
    row, column = torch.meshgrid(i, i, indexing="ij")
    for pattern, mask in ((row + column) % 2 == 0, 0), (row % 2 == 0, 2), (column % 2 == 0, 4):
        squeezed = torch.nn.functional.pixel_unshuffle(pattern.view(1, 1, 28, 28).float(), 2)
        assert torch.equal(squeezed, torch.tensor(realnvp.MASKS[mask]).view(1, 4, 1, 1).expand_as(squeezed))
    model = realnvp.RealNVP(3, 6)
    for layers, C in ((model.fine, 4), (model.coarse, 8)):
        masks = torch.stack([layer.mask.flatten() for layer in layers])
        assert masks.shape[1] == C and (masks[0] + masks[1] == 1).all()


def test_every_number_is_changed_by_a_coupling_on_each_scale():
    """Of the untrained flow, with the shift of a coupling's network at 1."""
    model, x = realnvp.RealNVP(3, 2), torch.zeros(1, 1, 28, 28)
    assert (model(x)[0] == 0).all()
    with torch.no_grad():
        for layer in model.fine:
            layer.out.bias.fill_(1)
        fine = model(x)[0]
        for layer in model.coarse:  # one coupling: half of its numbers
            layer.out.bias.fill_(1)
        assert (fine != 0).all() and ((model(x)[0] != fine).sum() == 196)


def test_log_prob_is_the_change_of_variables_with_the_gaussian_of_the_class():
    model, x = model_of(), grey(3)
    for y, classes in (torch.tensor([1, 7, 10]), [1, 7, 10]), (4, [4] * 3), (None, [realnvp.NULL] * 3):
        torch.manual_seed(5)
        got = model.log_prob(x, y).detach()
        torch.manual_seed(5)
        v = (x + torch.rand(x.shape)) / 256
        a = realnvp.EDGE + (1 - 2 * realnvp.EDGE) * v
        z, log_det = model((a / (1 - a)).log(), torch.tensor(classes))
        prior = stats.norm(model.mean[classes].detach(), model.log_std[classes].detach().exp())
        slope = ((1 - 2 * realnvp.EDGE) / (a * (1 - a)) / 256).log().flatten(1).sum(1)  # of the logit
        by_hand = torch.tensor(prior.logpdf(z.detach()).sum(1)) + log_det + slope
        assert torch.allclose(got.double(), by_hand.detach(), rtol=1e-4)
    with torch.no_grad():
        values = []
        for y in (1, 2, None):
            torch.manual_seed(5)
            values.append(model.log_prob(x, y))
    assert (values[0] - values[1]).abs().min() > 1 and (values[0] - values[2]).abs().min() > 1


def test_the_dequantised_bound_against_the_exact_log_probability_of_independent_pixels():
    """Of an untrained flow pixels are independent; P(level) is a difference of normal probabilities."""
    torch.manual_seed(0)
    model = realnvp.RealNVP(3, 2).double()
    with torch.no_grad():
        model.shift.fill_(3)
        model.log_scale.fill_(-1)
    levels = torch.tensor([0, 0, 0, 1, 100, 255]).repeat(131)[:784]

    def z(v):
        a = realnvp.EDGE + (1 - 2 * realnvp.EDGE) * v
        return math.log(a / (1 - a)) * math.exp(-1) + 3

    def term(u, level):  # what the bound is the mean of: the log density on the scale of levels
        v = (level + u) / 256
        a = realnvp.EDGE + (1 - 2 * realnvp.EDGE) * v
        return stats.norm.logpdf(z(v)) - 1 + math.log((1 - 2 * realnvp.EDGE) / (a * (1 - a)) / 256)

    exact = {k: math.log(stats.norm.cdf(z((k + 1) / 256)) - stats.norm.cdf(z(k / 256)))
             for k in (0, 1, 100, 255)}
    bound = {k: integrate.quad(term, 0, 1, args=(k,))[0] for k in exact}
    assert all(bound[k] < exact[k] for k in exact)
    x = levels.byte().view(1, 1, 28, 28).expand(300, 1, 28, 28)
    with torch.no_grad():
        draws = model.log_prob(x)
    expected, error = sum(bound[k] for k in levels.tolist()), draws.std().item() / 300**0.5
    assert draws.mean().item() == pytest.approx(expected, abs=4 * error)
    assert draws.mean().item() + 4 * error < sum(exact[k] for k in levels.tolist())


def test_at_temperature_0_a_sample_is_the_image_of_the_mean():
    model = model_of()
    for y in (3, 8):
        x = model.sample(3, y, temperature=0)
        with torch.no_grad():
            mean = model.inverse(model.mean[y][None], y).sigmoid()
        assert torch.equal(x[0], x[1]) and torch.equal(x[1], x[2])
        assert (x[:1] - mean).abs().max() < 0.01
    assert not torch.equal(model.sample(1, 3, temperature=0), model.sample(1, 8, temperature=0))


def test_a_sample_is_the_way_back_of_its_noise_to_whole_levels():
    """The noise that gives the z of a dequantised image gives the image."""
    model, x, y = model_of(), grey(4), torch.tensor([0, 5, 9, 10])
    with torch.no_grad():
        z, _ = model(realnvp.logit((x + 0.5) / 256)[0].double(), y)
    for temperature in (1.0, 0.5):
        eps = (z - model.mean[y]) / model.log_std[y].exp() / temperature
        assert torch.equal((255 * model.sample(4, y, temperature, eps)).round().byte(), x)


def test_samples_are_8_bit_levels_between_0_and_1():
    x = model_of().sample(20)
    levels = 255 * x
    assert x.shape == (20, 1, 28, 28) and x.min() == 0 and x.max() == 1
    assert torch.allclose(levels, levels.round(), atol=1e-4) and len(levels.round().unique()) > 100


def test_an_unconditional_model_has_one_gaussian_and_ignores_the_class():
    model, samples, scores, x = model_of(conditional=False), [], [], grey(2)
    for y in (3, 8):
        torch.manual_seed(0)
        samples.append(model.sample(2, y))
        scores.append(model.log_prob(x, y))
    assert torch.equal(*samples) and torch.equal(*scores)
    assert model.labels(None, 4).tolist() == [realnvp.NULL] * 4
    drawn = model_of().labels(None, 5000).bincount(minlength=11) / 5000
    assert drawn.tolist() == pytest.approx([0.1] * 10 + [0], abs=4 * (0.09 / 5000) ** 0.5)
