"""MADE against exact answers: enumeration, the chain rule, autograd, the plain way of sampling."""
import math

import pytest
import torch

import made

CONDITIONS = [None, 3]


def model_of(D=9, hidden=24, layers=2, orderings=1, seed=0, scale=1.0):
    """A MADE with random weights everywhere, in float64: an untrained one would hide mistakes behind its zeros."""
    torch.manual_seed(seed)
    model = made.MADE(D, hidden, layers, orderings).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    return model


def all_images(D=9):
    return torch.tensor([[(n >> i) & 1 for i in range(D)] for n in range(2**D)], dtype=torch.float64).view(-1, 1, 3, 3)


def order_of(model, k):
    return model.degrees(k)[0].argsort()


@pytest.mark.parametrize("y", CONDITIONS)
@pytest.mark.parametrize("orderings", [1, 3])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_probabilities_of_all_images_sum_to_one(layers, orderings, y):
    model = model_of(layers=layers, orderings=orderings)
    for k in (None, *range(orderings)):
        assert model.log_prob(all_images(), y, k).exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_every_logit_depends_on_the_pixels_before_it_and_on_no_other(k):
    model = model_of(D=49, hidden=150, orderings=3)
    x = torch.rand(49, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None], k=k)[0], x)  # (logit, pixel)
    place = order_of(model, k).argsort()
    before = place[None, :] < place[:, None]
    assert (jacobian[~before] == 0).all()
    assert (jacobian[before] != 0).all()
    torch.nn.init.zeros_(model.direct.weight)  # through hidden units alone, too, though at a given x some are at 0
    x = torch.randn(100, 49, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, k=k).sum(0), x)  # (logit, image, pixel)
    assert torch.equal((jacobian != 0).any(1), before)


def test_the_784_pixel_model_is_autoregressive_at_every_output():
    """One gradient per output, of a model of the default depth; every pixel from the output's own on must get none."""
    model = model_of(D=784, hidden=400, scale=0.05)
    x = torch.rand(784, dtype=torch.float64).expand(784, 784).clone().requires_grad_()
    gradient, = torch.autograd.grad(model(x).diagonal().sum(), x)  # row i: d logit i / d pixels
    before = torch.ones(784, 784).tril(-1).bool()
    assert (gradient[~before] == 0).all()
    assert (gradient[before] != 0).double().mean() > 0.99


@pytest.mark.parametrize("y", CONDITIONS)
@pytest.mark.parametrize("k", [0, 1])
def test_log_prob_is_the_product_of_conditionals_taken_one_by_one(k, y):
    model = model_of(orderings=2)
    x = (torch.rand(5, 9, dtype=torch.float64) < 0.5).double()
    slow = torch.zeros(5, dtype=torch.float64)
    seen = torch.full_like(x, 0.77)  # what must not be looked at
    for i in order_of(model, k):
        p = model(seen, y, k)[:, i].sigmoid()
        slow += torch.where(x[:, i] == 1, p, 1 - p).log()
        seen[:, i] = x[:, i]
    assert torch.allclose(model.log_prob(x.view(5, 1, 3, 3), y, k), slow, atol=1e-12)


def test_an_ensemble_is_the_mean_of_likelihoods_not_of_logits():
    model, x = model_of(orderings=4), all_images()
    mean = torch.stack([model.log_prob(x, k=k).exp() for k in range(4)]).mean(0).log()
    assert torch.allclose(model.log_prob(x), mean, atol=1e-12)
    logits = torch.stack([model(x.flatten(1), k=k) for k in range(4)]).mean(0)
    wrong = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none").sum(1)
    assert not torch.allclose(model.log_prob(x), wrong, atol=1e-2)


@pytest.mark.parametrize("y", [10, 7, torch.arange(20) % 10])
@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("layers", [1, 3])
def test_sampling_gives_the_same_pixels_as_the_plain_way(layers, k, y):
    model = model_of(D=784, hidden=100, layers=layers, orderings=2, scale=0.05)
    torch.manual_seed(5)
    fast = model.sample(20, y, k=k)
    torch.manual_seed(5)
    x = torch.zeros(20, 784, dtype=torch.float64)
    for i in order_of(model, k):
        x[:, i] = (torch.rand(20) < model(x, y, k)[:, i].sigmoid()).double()
    assert fast.shape == (20, 1, 28, 28) and torch.equal(fast.flatten(1).double(), x)
    assert 0.1 < x.mean() < 0.9


@pytest.mark.parametrize("y, classes", [(made.NULL, [made.NULL]), (4, [4]), (None, range(10))])
def test_sampling_follows_the_conditionals(y, classes):
    """Of 3,000 samples' first three pixels, all eight patterns come as often as log_prob's factors say; without a
    class, as often as in the mixture of all ten classes."""
    model = model_of(D=784, hidden=100, scale=0.05)
    with torch.no_grad():
        model.label[-1].weight *= 30  # classes that differ
    torch.manual_seed(1)
    patterns = torch.tensor([[(n >> i) & 1 for i in range(3)] for n in range(8)]).double()
    p = torch.zeros(8).double()
    for label in classes:
        logits = model(torch.nn.functional.pad(patterns, (0, 781)), label)[:, :3]
        p += torch.where(patterns == 1, logits.sigmoid(), 1 - logits.sigmoid()).prod(1) / len(classes)
    draws = model.sample(3000, y)[:, 0, 0, :3]
    seen = torch.bincount((draws @ torch.tensor([1.0, 2, 4]).double()).long(), minlength=8) / 3000
    assert p.sum().item() == pytest.approx(1) and ((seen - p).abs() <= 4 * (p * (1 - p) / 3000).sqrt()).all()


def test_given_pixels_are_kept_and_the_rest_is_conditioned_on_them():
    model = model_of(D=784, hidden=100, scale=0.05)
    given = (torch.rand(6, 300) < 0.5).double()
    x = model.sample(6, given=given)
    assert torch.equal(x.flatten(1)[:, :300].double(), given)


def test_class_and_no_class_are_different_paths_and_both_get_gradients():
    model = model_of(D=784, hidden=100, scale=0.05)
    x = (torch.rand(4, 1, 28, 28) < 0.5).double()
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x))
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x, 3))
    (-model.log_prob(x, torch.tensor([2, 2, 10, 5])).sum()).backward()
    for table in model.label:
        assert ((table.weight.grad != 0).any(1)).nonzero()[:, 0].tolist() == [2, 5, 10]


def test_an_untrained_model_scores_784_ln_2():
    x = (torch.rand(3, 1, 28, 28) < 0.5).float()
    assert torch.allclose(made.MADE().log_prob(x), torch.tensor(-784 * math.log(2)))


def test_binarisation_is_a_bernoulli_draw_and_fixed_by_its_seed():
    grey = torch.tensor([0, 51, 127, 255], dtype=torch.uint8).repeat(20000, 1)
    mean = made.binarise(grey, seed=3).mean(0)
    assert mean[0] == 0 and mean[3] == 1
    assert mean.tolist() == pytest.approx([0, 0.2, 127 / 255, 1], abs=0.015)
    assert torch.equal(made.binarise(grey, seed=3), made.binarise(grey, seed=3))
    assert not torch.equal(made.binarise(grey), made.binarise(grey))


def test_masked_weights_are_never_used():
    model = model_of(D=49, hidden=60)
    x = torch.rand(3, 49, dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        for i, layer in enumerate(model.hidden):
            layer.weight += 1e3 * (1 - model.get_buffer(f"mask_0_{i}"))
        model.out.weight += 1e3 * (1 - model.get_buffer("mask_0_out"))
        model.direct.weight += 1e3 * (1 - model.get_buffer("mask_0_direct"))
    assert torch.equal(before, model(x))


def test_samples_without_a_class_are_of_the_mixture_over_classes():
    """p(x) = Σ_y p(y) p(x | y): sample(n) draws the class first; of an unconditional model it is the null label."""
    model = model_of(D=784, hidden=100, scale=0.05)
    with torch.no_grad():  # the class decides the first pixel: black in 3 of 10 classes, never under the null label
        model.label[-1].weight[:, 0] = torch.tensor([50.0] * 3 + [-50.0] * 8)
    assert model.sample(4000)[:, 0, 0, 0].mean().item() == pytest.approx(0.3, abs=0.03)
    model.conditional = False
    assert model.sample(100)[:, 0, 0, 0].sum() == 0


def test_the_marginal_over_the_classes_is_a_distribution():
    model = model_of()
    by_class = torch.stack([model.log_prob(all_images(), y) for y in range(10)])
    assert (by_class.logsumexp(0) - math.log(10)).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_no_class_is_the_null_label_and_labels_are_dropped_at_the_rate():
    model, x = model_of(), all_images()[:7]
    assert torch.equal(model.log_prob(x), model.log_prob(x, made.NULL))
    y = torch.arange(20000) % 10
    dropped = made.drop_labels(y, 0.1)
    assert ((dropped == y) | (dropped == made.NULL)).all()
    assert (dropped == made.NULL).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (made.drop_labels(y, 1.0) == made.NULL).all() and torch.equal(made.drop_labels(y, 0.0), y)
