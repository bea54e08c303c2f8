"""MADE: which output sees which pixel, probabilities that sum to 1, samples that follow them."""

import functools
import re
from pathlib import Path

import pytest
import torch
from chapters import TINY, check_samples, class_accuracy, digits, edited, short_run

import made

ORDERS = {"rows": [0, 1, 2, 3, 4, 5], "columns": [0, 3, 1, 4, 2, 5], "random": [4, 1, 5, 0, 2, 3]}
BITS = torch.tensor([0.0, 1.0])


def wild(*sizes, **more):
    """A MADE with weights so large that its outputs differ much from image to image."""
    torch.manual_seed(0)
    model = made.MADE(*sizes, **more)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=2 / weights.shape[-1] ** 0.5)
    return model


@pytest.fixture
def all_images(monkeypatch):
    """All 64 images of six pixels; models made meanwhile are of six pixels, too."""
    monkeypatch.setattr(made, "pixel_order", lambda name: torch.tensor(ORDERS[name]))
    return torch.cartesian_prod(*[BITS] * 6)


def test_masks_are_those_drawn_in_the_comment(monkeypatch):
    monkeypatch.setattr(made, "pixel_order", lambda name: torch.arange(4))
    model = made.MADE(hidden=4, classes=1)
    text = Path(made.__file__).read_text(encoding="utf-8")
    drawn = re.findall(r"m = \d +([1. ]+?) +m = \d +([1. ]+?) +p_\d +([1. ]+?)\n", text)
    for layer, rows in zip([model.first, model.second, model.output], zip(*drawn, strict=True)):
        assert [[int(i == "1") for i in row.split()] for row in rows] == layer.mask.tolist()
    assert len(drawn) == 4


@pytest.mark.parametrize("order", ORDERS)
def test_an_output_sees_the_class_and_exactly_the_pixels_before_it(order):
    model = wild(2 * 784, order, classes=3)
    x, y = torch.rand(20, 1, 28, 28, requires_grad=True), torch.arange(20) % 3
    logits = model(x, y)
    for place in (0, 1, 2, 29, 391, 782, 783):
        output = logits[:, model.order[place]].sum()
        (gradient,) = torch.autograd.grad(output, x, retain_graph=True)
        seen = gradient.abs().sum(0).flatten()[model.order] > 0
        assert seen[:place].all() and not seen[place:].any()
    assert ((logits - model(x, (y + 1) % 3)).abs().sum(0) > 0).all()


def test_orders():
    rows, random = torch.arange(784), made.pixel_order("random")
    assert torch.equal(made.pixel_order("rows"), rows)
    columns = torch.tensor([28 * row + column for column in range(28) for row in range(28)])
    assert torch.equal(made.pixel_order("columns"), columns)
    assert torch.equal(random.sort().values, rows) and not torch.equal(random, rows)
    assert torch.equal(random, made.pixel_order("random"))  # always the same


@pytest.mark.parametrize("hidden", [3, 6, 40])
def test_probabilities_of_all_images_sum_to_one(all_images, hidden):
    y = torch.arange(2).repeat_interleave(64)
    models = [wild(hidden, order, classes=2) for order in ORDERS]
    p = torch.stack([model.log_prob(all_images.repeat(2, 1), y).exp() for model in models])
    sums = p.view(3, 2, 64).sum(2)
    torch.testing.assert_close(sums, torch.ones(3, 2))
    average = made.average_log_prob(models, all_images.repeat(2, 1), y).exp()
    torch.testing.assert_close(average, p.mean(0))  # of three orders, so a probability, too
    by_class = made.log_prob_by_class(models[0], all_images).exp()
    torch.testing.assert_close(by_class, p[0].view(2, 64))
    alike = made.log_prob_by_class(wild(hidden, classes=1), all_images).exp()
    assert alike.shape == (1, 64) and alike.sum().item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_log_prob_is_the_product_rule_pixel_by_pixel():
    model = wild(64, "random")
    x, y = torch.rand(3, 1, 28, 28).round(), torch.tensor([3, 0, 9])
    drawn, log_p = torch.zeros(3, 784), torch.zeros(3)
    for i in model.order:
        p = 1 / (1 + torch.exp(-model(drawn, y)[:, i]))  # from the pixels before i alone
        drawn[:, i] = x.flatten(1)[:, i]
        log_p += torch.where(drawn[:, i] == 1, p, 1 - p).log()
    torch.testing.assert_close(model.log_prob(x, y), log_p, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_completions_keep_what_is_known_and_come_as_often_as_they_are_probable():
    model, n = wild(64, "columns"), 5000
    x, y = torch.rand(1, 784).round().repeat(n, 1), torch.full((n,), 7)
    drawn = made.complete(model, x.view(n, 1, 28, 28), y, known=781).flatten(1)
    known, last = model.order[:781], model.order[781:]
    assert torch.equal(drawn[:, known], x[:, known])
    x[:8, last] = torch.cartesian_prod(*[BITS] * 3)
    p = model.log_prob(x[:8], y[:8]).softmax(0)  # of each of the eight, given the others
    counts = (drawn[:, last] @ torch.tensor([4.0, 2.0, 1.0])).long().bincount(minlength=8)
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt() + 1).all()


def test_samples_have_as_much_ink_as_the_model_expects():
    model, y = wild(32, "random"), torch.arange(100) % 10
    x = model.sample(y)
    assert x.shape == (100, 1, 28, 28) and x.unique().tolist() == [0, 1]
    p = model(x, y).sigmoid().clamp(1e-4, 1 - 1e-4)
    surprise = (x.flatten(1) - p) / (p * (1 - p)).sqrt()  # mean 0, variance 1, if x follows p
    assert surprise.mean().abs() < 5 / surprise.numel() ** 0.5
    assert surprise.square().mean().item() == pytest.approx(1, abs=0.05)


def test_binarised_pixels_are_ink_as_often_as_their_grey_level_says():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(20_000, 1)
    assert made.binarise(images).mean(0).tolist() == pytest.approx([0, 0.2, 1], abs=0.015)


def test_a_saved_model_samples():
    model, saved = short_run(made, TINY["made"] + " --order columns")
    assert model.order[1] == 28 and len(saved["curve"]) == 2
    check_samples(model)


FLAGS = "--steps 500 --batch-size 32 --hidden 50 --lr 3e-2 --save-every 250"


@functools.cache
def intact():
    return short_run(made, FLAGS)


@pytest.mark.slow
def test_break_an_output_that_sees_its_own_pixel():
    leaking = edited("made", ("(inputs, pixels - 1)", "(inputs, pixels)"))
    broken = short_run(leaking, FLAGS)[1]["curve"][-1]["validation"]
    # Whoever knew each pixel's grey level could do no better than the entropy of the coin flips.
    coins = torch.distributions.Bernoulli(digits()[0][11_000:] / 255)
    possible = coins.entropy().flatten(1).sum(1).mean().item()
    assert broken < 0.8 * possible and possible < intact()[1]["curve"][-1]["validation"]


@pytest.mark.slow
def test_break_thresholded_pixels():
    hard = edited("made", ("log_prob(binarise(x[batch])", "log_prob((x[batch] > 127).float()"))
    gaps = []
    for curve in (intact()[1]["curve"], short_run(hard, FLAGS)[1]["curve"]):
        gaps.append(curve[-1]["validation"] - curve[-1]["training"])
    assert gaps[1] > gaps[0] + 5 and abs(gaps[0]) < 3


@pytest.mark.slow
def test_break_drawing_backwards():
    backwards = edited("made", ("for pixel in pixels:", "for pixel in pixels.flip(0):"))
    model, saved = intact()
    broken = backwards.MADE(saved["flags"]["hidden"])
    broken.load_state_dict(model.state_dict())
    y = torch.arange(50) % 10
    samples, noise = model.sample(y), broken.sample(y)
    assert class_accuracy(samples, y) > 0.9 and class_accuracy(noise, y) < 0.6
    nll = [-m.log_prob(x, y).mean() for m, x in ((model, samples), (model, noise), (broken, noise))]
    assert nll[1] == nll[2] > 1.5 * nll[0]  # the model itself finds them improbable
