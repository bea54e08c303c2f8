"""Transformer: what a position sees, probabilities that sum to 1, the cache equal to no cache."""

import functools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from chapters import TINY, check_samples, edited, short_run

import transformer_ar
from transformer_ar import Transformer, attention, cached_sample, to_images, to_tokens

SIZES = {"width": 16, "layers": 2, "heads": 2}


def wild(module=transformer_ar, **sizes):
    """A model with weights so large that its outputs differ much from image to image."""
    torch.manual_seed(0)
    model = module.Transformer(**(SIZES | sizes))
    for name, weights in model.named_parameters():
        torch.nn.init.normal_(weights, std=1.0 if weights.dim() == 1 else 0.4)
        if "head" in name:
            torch.nn.init.normal_(weights, std=0.3)
    return model


def random_images(n):
    return torch.rand(n, 1, 28, 28).round()


def test_attention_in_the_numbers_of_the_comment():
    text = Path(transformer_ar.__file__).read_text(encoding="utf-8")
    rows = re.findall(r"#     q_\d = (\d+)((?: +[\d.]+)+)\n", text)
    table = torch.tensor([[float(q), *(float(f"0{n}") for n in rest.split())] for q, rest in rows])
    q, k, v = table[:, 0], torch.tensor([0.0, 1, 2, 1]), torch.tensor([10.0, 20, 30, 40])
    means, weights = attention(*[part.view(1, 1, 4, 1) for part in (q, k, v)])
    torch.testing.assert_close(table[:, 1:5], torch.outer(q, k))
    masked = table[:, 5:9]
    torch.testing.assert_close(masked, torch.outer(q, k).tril())  # a point reads as 0
    torch.testing.assert_close(table[:, 9:13], weights[0, 0], rtol=0, atol=0.006)
    torch.testing.assert_close(table[:, 13], means[0, 0, :, 0], rtol=0, atol=0.06)


def test_attention_is_that_of_torch():
    q, k, v = torch.randn(3, 5, 2, 7, 4)
    means, weights = attention(q, k, v)
    torch.testing.assert_close(means, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    torch.testing.assert_close(weights.sum(3), torch.ones(5, 2, 7))
    assert torch.equal(weights, weights.tril())


def test_heads_do_not_mix_before_their_results_are_put_together():
    block, h = transformer_ar.Block(8, heads=2), torch.randn(1, 5, 8)
    q, k, v = block.queries_keys_values(h)
    alone = torch.cat(
        [attention(q[:, i : i + 1], k[:, i : i + 1], v[:, i : i + 1])[0] for i in (0, 1)], 3
    )
    expected = h + block.out(alone[:, 0])
    torch.testing.assert_close(block(h), expected + block.mlp(expected))


@pytest.mark.parametrize("patch, kinds", [(1, 2), (2, 16)])
def test_tokens_there_and_back(patch, kinds):
    x = random_images(5)
    tokens = to_tokens(x, patch)
    assert tokens.shape == (5, (28 // patch) ** 2) and tokens.unique().tolist() == list(
        range(kinds)
    )
    assert torch.equal(to_images(tokens, patch), x)
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, patch : 2 * patch, 3 * patch + patch - 1] = 1  # in the second row, fourth column
    place = 28 // patch + 3
    assert to_tokens(x, patch)[0, place] == {1: 1, 2: 10}[patch]  # 10: the comment's example
    assert to_tokens(x, patch).count_nonzero() == 1


@pytest.mark.parametrize("patch", [1, 2])
@torch.no_grad()
def test_a_position_sees_the_class_and_all_tokens_before_it_and_no_other(patch):
    model, x, y = wild(patch=patch, classes=3), random_images(8), torch.arange(8) % 3
    tokens = to_tokens(x, patch)[:, :-1]
    logits = model(tokens, y)
    assert ((logits - model(tokens, (y + 1) % 3)).abs().amax((0, 2)) > 0).all()
    for s in (0, 1, 30, model.T - 2):
        other = tokens.clone()
        other[:, s] = (other[:, s] + 1) % 2
        changed = (logits - model(other, y)).abs().amax((0, 2))
        assert (changed[: s + 1] == 0).all() and (changed[s + 1 :] > 0).all()


@pytest.mark.parametrize("patch, n", [(1, 8), (2, 3)])
@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one(patch, n):
    model = wild(patch=patch)
    kinds = torch.arange(2 ** (patch * patch))
    tokens = torch.cartesian_prod(*[kinds] * n)
    for y in (0, 9):
        log_p = model(tokens[:, :-1], torch.full((len(tokens),), y)).log_softmax(2)
        p = log_p.gather(2, tokens[..., None]).sum((1, 2)).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-4) and p.max() > 3 * p.mean()


@torch.no_grad()
def test_log_prob_is_the_product_rule_token_by_token():
    model, x, y = wild(), random_images(3), torch.tensor([3, 0, 9])
    tokens, log_p = to_tokens(x, 2), torch.zeros(3)
    for t in range(196):
        p = model(tokens[:, :t], y)[:, -1].softmax(1)  # from the tokens before t alone
        log_p += p[torch.arange(3), tokens[:, t]].log()
    torch.testing.assert_close(model.log_prob(x, y), log_p, rtol=1e-4, atol=1e-3)
    parts = transformer_ar.log_prob_in_parts(model, x.repeat(20, 1, 1, 1), y.repeat(20))
    torch.testing.assert_close(parts, log_p.repeat(20), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_only_the_places_tell_where_a_token_lies():
    model, y = wild(layers=1), torch.zeros(1, dtype=torch.long)
    tokens = torch.arange(16).repeat(1, 3)
    shuffled = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], dim=1)
    ordered = model(tokens, y)[:, -1]
    assert not torch.allclose(ordered, model(shuffled, y)[:, -1], atol=0.01)
    for table in (model.row, model.column):
        torch.nn.init.zeros_(table.weight)
    torch.testing.assert_close(model(tokens, y)[:, -1], model(shuffled, y)[:, -1])


@pytest.mark.parametrize("patch, n", [(1, 2), (2, 7)])
def test_the_cache_changes_nothing(patch, n):
    model, y = wild(patch=patch, width=8), torch.arange(n)
    torch.manual_seed(0)
    plain = model.sample(y)
    torch.manual_seed(0)
    assert torch.equal(cached_sample(model, y), plain)
    assert cached_sample(model, y[:0]).shape == (0, 1, 28, 28)


@torch.no_grad()
def test_samples_come_as_often_as_they_are_probable():
    model, y = wild(), torch.arange(300) % 10
    tokens = to_tokens(cached_sample(model, y), 2)
    log_p = model(tokens[:, :-1], y).log_softmax(2)
    p, drawn = log_p.exp(), F.one_hot(tokens, 16)
    surprise = ((drawn - p) * log_p).sum(2)  # log p of what was drawn, less its mean
    variance = (p * log_p**2).sum(2) - (p * log_p).sum(2) ** 2
    assert surprise.sum().abs() < 5 * variance.sum().sqrt()
    assert surprise.square().sum().item() == pytest.approx(variance.sum().item(), rel=0.05)
    expected = p.sum((0, 1))
    assert ((drawn.sum((0, 1)) - expected).abs() < 5 * expected.sqrt()).all()


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(OSError, match="--width 8 is not a multiple of --heads 3"):
        Transformer(width=8, heads=3)


@torch.no_grad()
def test_the_picture_shows_weights_that_sum_to_one():
    model, x = wild(), random_images(1)
    for t in (1, 100, 196):
        panels = transformer_ar.attention_picture(model, x, torch.tensor([3]), t).axes
        assert len(panels) == 4
        for axes in panels:
            shown = axes.images[0].get_array() ** 2
            assert shown.sum() + float(axes.get_xlabel()[-4:]) == pytest.approx(1, abs=0.006)
            assert (shown.reshape(-1)[t - 1 :] == 0).all()


PIXELS = pytest.param("--patch 1 --classes 1", marks=pytest.mark.slow)


@pytest.mark.parametrize("more", ["", PIXELS])
def test_a_saved_model_samples(more):
    model, saved = short_run(transformer_ar, f"{TINY['transformer_ar']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)
    assert model.log_prob(torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.long)).shape == (0,)


FLAGS = "--steps 300 --batch-size 16 --width 32 --layers 1 --heads 1 --lr 1e-2 --save-every 300"


@functools.cache
def validation(*edits):
    return short_run(edited("transformer_ar", *edits), FLAGS)[1]["curve"][-1]["validation"]


@pytest.mark.slow
def test_break_a_position_that_sees_the_next():
    assert validation(("-math.inf).triu(1)", "-math.inf).triu(2)")) < 0.5 * validation()


@pytest.mark.slow
def test_break_a_cache_of_one_position():
    edit = "keys, values = torch.cat(earlier, dim=3)", "keys, values = earlier[-1]"
    broken = edited("transformer_ar", edit)
    rest = []
    for module in (transformer_ar, broken):
        drawn = []
        for label in (3, 8):
            torch.manual_seed(0)
            y = torch.full((50,), label)
            drawn.append(to_tokens(module.cached_sample(wild(module), y), 2))
        same = drawn[0][:, 0] == drawn[1][:, 0]  # whatever the class, the same first token
        assert same.any()
        rest.append(torch.equal(drawn[0][same], drawn[1][same]))
    assert rest == [False, True]  # all that follows is the same: the class is forgotten


@pytest.mark.slow
def test_break_positions_that_do_not_know_where_they_are():
    alone = "return h + places.flatten(0, 1)[: h.shape[1]]", "return h"
    assert validation(alone) > 1.1 * validation()
