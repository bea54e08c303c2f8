"""Sliding windows: what is in sight, pieces equal to the whole, writing equal to reading."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from variations import transformer_text
from variations.transformer_text import TextTransformer, band, surprise_of_book


def wild(window=4, layers=2, K=5):
    """A model of the letters a, b, … with weights so large that every character counts."""
    torch.manual_seed(0)
    model = TextTransformer([chr(97 + k) for k in range(K)], 16, layers, 2, window).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=1.0 if weights.dim() == 1 else 0.4)
    return model


def test_the_band_is_the_one_drawn():
    drawn = Path(transformer_text.__file__).read_text(encoding="utf-8")
    rows = re.findall(r"#     t = \d((?: +(?:b_\d|\.))+)\n", drawn)
    b = torch.tensor([7.0, 8.0, 9.0])
    values = {"b_0": 7.0, "b_1": 8.0, "b_2": 9.0, ".": -math.inf}
    expected = torch.tensor([[values[entry] for entry in row.split()] for row in rows])
    assert expected.shape == (4, 6)
    assert torch.equal(band(b.view(1, 1, 3), 4, 6)[0, 0], expected)


@torch.no_grad()
def test_without_b_and_with_a_wide_window_attention_is_the_chapters():
    model = wild(window=20)
    torch.nn.init.zeros_(model.b)
    x = torch.randint(5, (3, 11))
    h = model.token(x)
    for block in model.blocks:
        h = block(h)
    torch.testing.assert_close(model(x, model.empty_state(3))[0], model.head(h))


@pytest.mark.parametrize("layers, window", [(1, 1), (1, 4), (3, 4), (2, 9)])
@torch.no_grad()
def test_a_character_hears_of_the_last_ones_in_reach_and_no_other(layers, window):
    model = wild(window, layers)
    x = torch.randint(5, (8, 20))
    logits, _ = model(x, model.empty_state(8))
    for s in (0, 3, 12, 19):
        other = x.clone()
        other[:, s] = (other[:, s] + 1) % 5
        changed = (logits - model(other, model.empty_state(8))[0]).abs().amax((0, 2)) > 1e-6
        reach = torch.arange(20) - s
        assert torch.equal(changed, (reach >= 0) & (reach <= layers * (window - 1)))


@pytest.mark.parametrize("window", [1, 4, 30])
@torch.no_grad()
def test_read_in_pieces_a_text_is_the_same(window):
    model, x = wild(window), torch.randint(5, (2, 25))
    whole, last = model(x, model.empty_state(2))
    state, parts = model.empty_state(2), []
    for piece in x.split([1, 7, 1, 1, 13, 2], dim=1):
        logits, state = model(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    for ours, theirs in zip(state, last):
        assert ours.shape == (2, 2, 2, min(25, window - 1), 8)
        torch.testing.assert_close(ours, theirs)


def test_it_writes_what_the_plain_way_writes_far_beyond_the_window():
    model, prompt = wild(), "abcde"
    torch.manual_seed(3)
    written = model.sample(prompt, 60)
    torch.manual_seed(3)
    text = prompt
    for _ in range(60):  # all that was written is read again for each character
        read = F.pad(model.encode(text), (1, 0), value=model.start)
        logits, _ = model(read, model.empty_state(1))
        text += model.characters[torch.multinomial(logits[:, -1].softmax(1), 1).item()]
    assert prompt + written == text and len(set(written)) > 2
    assert [len(model.sample("", length)) for length in (0, 1, 30)] == [0, 1, 30]


def test_probabilities_of_all_texts_sum_to_one():
    texts = torch.cartesian_prod(*[torch.arange(3)] * 5)
    p = torch.exp(-wild(K=3).surprise(texts).sum(1))
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and p.max() > 10 * p.min()


def test_a_long_text_read_piece_by_piece_has_the_same_surprise():
    model, x = wild(window=40), torch.randint(5, (700,))
    torch.testing.assert_close(surprise_of_book(model, x), model.surprise(x[None])[0])


def test_weights_by_distance_start_as_the_opening_says():
    rows = re.findall(
        r"    m = \S+ +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)", transformer_text.__doc__
    )
    expected = torch.tensor([[float(entry) for entry in row] for row in rows])
    model = TextTransformer(list("ab"), width=8, layers=1, heads=4, window=64)
    weights = model.b[0].detach().exp()[[0, 3], :4]
    torch.testing.assert_close(weights, expected, rtol=0, atol=0.006)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(OSError, match="--width 8 is not a multiple of --heads 3"):
        TextTransformer(list("ab"), width=8, heads=3)
