"""Finite scalar quantisation: closed forms, all letters of grids, and whom the loss teaches."""

import itertools
import math
import types
from pathlib import Path

import pytest
import torch
from chapters import check_samples, digits, short_run

import vqvae
from variations import fsq

GRIDS = [(4, 4), (8, 8), (5, 5, 5), (3, 4), (7,), (2, 2, 2, 2), (6, 3, 5)]
every_grid = pytest.mark.parametrize("levels", GRIDS)


def test_the_table_of_the_opening():
    v = torch.tensor([[-2.0], [-0.5], [0.1], [1.5]]).tanh()
    assert v.flatten().tolist() == pytest.approx([-0.964, -0.462, 0.100, 0.905], abs=5e-4)
    levels = torch.tensor([4])
    n = fsq.round_to_levels(v, levels)
    assert n.flatten().tolist() == [0, 1, 2, 3]
    assert fsq.values(n, levels).flatten().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    borders = torch.tensor([-2 / 3, 0, 2 / 3])[:, None]
    assert fsq.round_to_levels(borders - 1e-4, levels).flatten().tolist() == [0, 1, 2]
    assert fsq.round_to_levels(borders + 1e-4, levels).flatten().tolist() == [1, 2, 3]
    assert fsq.letters(torch.tensor([2.0, 1]), torch.tensor([4, 4])) == 9
    assert fsq.letters(torch.tensor([4.0, 0, 3]), torch.tensor([5, 5, 5])) == 103


@every_grid
def test_there_is_one_letter_for_each_choice_of_levels(levels):
    model = fsq.FSQVAE(2, levels, 8)
    choices = list(itertools.product(*[range(size) for size in levels]))
    assert len(model.entries) == len(choices) == math.prod(levels)
    by_hand = [[2 * n / (size - 1) - 1 for n, size in zip(c, levels)] for c in choices]
    torch.testing.assert_close(model.entries, torch.tensor(by_hand))
    n = fsq.round_to_levels(model.entries, model.levels)
    assert fsq.letters(n, model.levels).tolist() == list(range(len(choices)))


@every_grid
def test_rounding_finds_the_nearest_entry_and_reaches_every_one(levels):
    torch.manual_seed(0)
    model = fsq.FSQVAE(2, levels, 8)
    z = 1.5 * torch.randn(1000, 16, len(levels), dtype=torch.float64)
    v = z.tanh()
    k = fsq.letters(fsq.round_to_levels(v, model.levels), model.levels)
    assert torch.equal(k, vqvae.nearest(v, model.entries.double()))
    assert k.unique().tolist() == list(range(len(model.entries)))
    far = (v - model.entries.double()[k]).abs().amax((0, 1))
    assert (far <= 1 / (torch.tensor(levels) - 1) + 1e-6).all()


@every_grid
def test_the_straight_through_gradient_does_not_depend_on_the_levels(levels):
    z = torch.randn(6, 16, len(levels), dtype=torch.float64, requires_grad=True)
    v, sizes = z.tanh(), torch.tensor(levels)
    e = vqvae.straight_through(v, fsq.values(fsq.round_to_levels(v, sizes), sizes))
    slopes = torch.autograd.grad(e.sum(), z)[0]
    assert torch.allclose(slopes, 1 - z.tanh() ** 2)


def test_the_bound_is_the_log_probability_of_one_page():
    torch.manual_seed(0)
    model = fsq.FSQVAE(4, (3, 4), 8, classes=3)
    with torch.no_grad():
        model.encoder[-1].weight.mul_(30)  # so that many letters are used
    x, y = torch.rand(3, 1, 28, 28).round(), torch.arange(3)
    z = model.encoder(x).flatten(2).transpose(1, 2)
    a = (z[:, :, 0].tanh() + 1).round()
    b = (1.5 * (z[:, :, 1].tanh() + 1)).round()
    k = (4 * a + b).long()
    assert len(k.unique()) > 3
    e = torch.stack([a - 1, b / 1.5 - 1], dim=2)
    log_p = vqvae.log_likelihood(x, model.decode(e, y)) + model.prior.log_prob(k, y)
    torch.testing.assert_close(model.elbo(x, y), log_p)


def test_the_loss_teaches_encoder_decoder_and_prior_and_there_is_nothing_else():
    model = fsq.FSQVAE(4, (4, 4), 8)
    x, y = torch.rand(6, 1, 28, 28).round(), torch.arange(6)
    v = model.encode(x)
    n = fsq.round_to_levels(v, model.levels)
    e = vqvae.straight_through(v, fsq.values(n, model.levels))
    price = model.prior.log_prob(fsq.letters(n, model.levels), y)
    (vqvae.log_likelihood(x, model.decode(e, y)) + price).sum().backward()
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder", "prior"}
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("text", ["1", "0", "-3", "x"])
def test_fewer_than_two_levels_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        fsq.parse_flags(["--levels", "4", text])
    assert "--levels" in capsys.readouterr().err


@pytest.mark.parametrize("levels", ["5", "3 2 4"])
def test_a_short_training_is_loaded_with_its_levels(levels):
    flags = f"--steps 60 --batch-size 16 --channels 8 --width 8 --classes 1 --levels {levels}"
    model, saved = short_run(fsq, flags)
    assert saved["curve"][-1]["validation"] < 450  # at first 543
    assert model.levels.tolist() == [int(word) for word in levels.split()]
    check_samples(model)


def share_of_flat_tanh(module):
    flags = "--steps 100 --batch-size 32 --width 8 --classes 1"
    model, _ = short_run(module, flags)
    with torch.no_grad():
        v = model.encode(vqvae.binarise(digits()[0][:200]))
    return (v.abs() > 0.99).float().mean().item()


@pytest.mark.slow
def test_without_the_first_bias_all_numbers_end_where_tanh_is_flat():
    line = "    nn.init.constant_(model.decoder[-1].bias, ink.logit().item())\n"
    text = Path(fsq.__file__).read_text(encoding="utf-8")
    assert text.count(line) == 1
    broken = types.ModuleType("broken")
    exec(compile(text.replace(line, ""), "broken", "exec"), vars(broken))
    assert share_of_flat_tanh(fsq) < 0.2
    assert share_of_flat_tanh(broken) > 0.8
