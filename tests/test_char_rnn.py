"""CharRNN: gates against their table and PyTorch's LSTM, probabilities that sum to 1, readers."""

import functools
import io
import itertools
import math
import random
import re
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from chapters import TINY, edited, short_run
from torch import nn

import char_rnn
import data


def wild(K=5, layers=2):
    """A model of the letters a, b, … with weights so large that every character counts."""
    torch.manual_seed(0)
    model = char_rnn.CharRNN([chr(97 + k) for k in range(K)], 12, layers, dropout=0.5).eval()
    for weights in model.parameters():
        nn.init.normal_(weights, std=0.5)
    return model


@torch.no_grad()
def test_a_unit_counts_letters_as_in_the_table():
    text = Path(char_rnn.__file__).read_text(encoding="utf-8")
    row = r"^#      ([mery]) +([01]) +([01]) +[1·] +.*?([012]) {8,}([01]) +([\d.]+)"
    rows = re.findall(row, text, re.M)
    assert "".join(row[0] for row in rows) == "merry"
    layer = char_rnn.LSTM(4, 1, dropout=0.0)
    layer.U.weight.zero_()
    layer.W.bias.zero_()
    for letter, f, i, _, o, _ in rows:
        gates = [100 * (int(gate) - 0.5) for gate in (f, i, 1, o)]  # σ(50) = 1, σ(−50) = 0
        layer.W.weight[:, "mery".index(letter)] = torch.tensor(gates)
    h, c = torch.zeros(2, 1, 1)
    for letter, _, _, cell, _, shown in rows:
        x = F.one_hot(torch.tensor([["mery".index(letter)]]), 4).float()
        _, h, c = layer(x, h, c)
        assert c.item() == pytest.approx(float(cell), abs=1e-6)
        assert h.item() == pytest.approx(float(shown), abs=0.005)


@torch.no_grad()
def test_a_layer_computes_what_pytorchs_does():
    layer = char_rnn.LSTM(3, 8, dropout=0.0)
    theirs = nn.LSTM(3, 8, batch_first=True)  # whose order of the gates is i, f, g, o
    theirs.bias_hh_l0.zero_()
    ours = (layer.W.weight, layer.W.bias, layer.U.weight)
    for weights, name in zip(ours, ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0")):
        f, i, g, o = weights.chunk(4)
        getattr(theirs, name).copy_(torch.cat([i, f, g, o]))
    x, h, c = torch.randn(4, 20, 3), torch.randn(4, 8), torch.randn(4, 8)
    outputs, (h_last, c_last) = theirs(x, (h[None], c[None]))
    torch.testing.assert_close(layer(x, h, c), (outputs, h_last[0], c_last[0]))


def test_a_muted_unit_is_muted_through_a_window_and_differs_from_reader_to_reader():
    outputs, _, _ = char_rnn.LSTM(3, 200, dropout=0.5)(
        torch.randn(2, 6, 3), *torch.zeros(2, 2, 200)
    )
    muted = outputs == 0
    assert (muted == muted[:, :1]).all() and (muted[0] != muted[1]).any()
    assert muted.float().mean().item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_probabilities_of_all_texts_sum_to_one(layers):
    texts = torch.cartesian_prod(*[torch.arange(3)] * 5)
    p = torch.exp(-wild(3, layers).surprise(texts).sum(1))
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and p.max() > 10 * p.min()


@torch.no_grad()
def test_surprise_is_the_product_rule_with_a_state_that_is_carried():
    model, x = wild(), torch.randint(5, (2, 30))
    surprise, state = model.surprise(x), model.empty_state(2)
    read = F.pad(x[:, :-1], (1, 0), value=model.start)
    for t in range(30):
        logits, state = model(read[:, t : t + 1], state)  # one by one
        whole, _ = model(read[:, : t + 1], model.empty_state(2))  # all that came before, again
        torch.testing.assert_close(logits, whole[:, -1:])
        log_p = logits[:, 0].log_softmax(1).gather(1, x[:, t : t + 1])
        torch.testing.assert_close(surprise[:, t], -log_p[:, 0])


def test_untrained_each_character_is_as_probable():
    model = char_rnn.CharRNN(list("abcdefg"), hidden=8)
    expected = torch.full((2, 9), math.log(7))
    torch.testing.assert_close(model.surprise(torch.randint(7, (2, 9))), expected)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_come_as_often_as_they_are_probable(temperature):
    model, n = wild(3), 2000
    p = {}
    for pair in itertools.product("abc", repeat=2):
        read = F.pad(model.encode("b" + pair[0]), (1, 0), value=model.start)  # the prompt is b
        logits, _ = model(read, model.empty_state(1))
        steps = (logits[0, 1:] / temperature).softmax(1)
        p["".join(pair)] = steps.gather(1, model.encode("".join(pair)).T).prod().item()
    drawn = [model.sample("b", 2, temperature) for _ in range(n)]
    assert sum(p.values()) == pytest.approx(1, abs=1e-5)
    for pair in p:
        assert abs(drawn.count(pair) - n * p[pair]) < 5 * (n * p[pair] * (1 - p[pair])) ** 0.5 + 1


def test_prompts_lengths_and_no_risk_at_all():
    model = wild()
    with torch.inference_mode():
        assert [len(model.sample("abcde", length)) for length in (0, 1, 3, 30)] == [0, 1, 3, 30]
        cold = model.sample("ab", 20, temperature=0)
        read = F.pad(model.encode("ab" + cold), (1, 0), value=model.start)
        logits, _ = model(read, model.empty_state(1))
    assert torch.equal(logits[0, 2:-1].argmax(1), model.encode(cold)[0])
    with pytest.raises(OSError, match=r"no \['z', '\\xe9'\]"):
        model.sample("abéz")


def test_readers_read_on_and_carry_their_state_unless_they_begin(tmp_path, monkeypatch):
    book = "".join(random.Random(0).choices("abcdefgh", k=3000))
    (tmp_path / "book.txt").write_text(book)
    seen, forward = [], char_rnn.CharRNN.forward

    def spy(model, x, state):
        logits, after = forward(model, x, state)
        if model.training:
            assert not state.requires_grad  # truncated
            seen.append((x, state.clone(), after.detach()))
        return logits, after

    monkeypatch.setattr(char_rnn.CharRNN, "forward", spy)
    flags = f"--steps 120 --batch-size 5 --length 10 --text {(tmp_path / 'book.txt').as_posix()}"
    model, _ = short_run(char_rnn, f"{TINY['char_rnn']} {flags} --save-every 200")
    train = model.encode(book)[0, :2670]
    begin = torch.stack([x[:, 0] == model.start for x, _, _ in seen])
    assert 0 < begin.float().mean() < 0.12 and len(seen) == 120
    for k, (x, state, _) in enumerate(seen):
        place = torch.arange(5) * 2670 // 5 + 10 * k
        expected = train[(place[:, None] + torch.arange(10)) % 2670]
        assert torch.equal(x[:, 1:], expected[:, 1:])
        assert torch.equal(x[~begin[k], 0], expected[~begin[k], 0])
        assert not state[:, :, begin[k]].any()
        assert k == 0 or torch.equal(state[:, :, ~begin[k]], seen[k - 1][2][:, :, ~begin[k]])


def test_a_saved_model_knows_its_characters_and_a_page_draws_them(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("Съешь же ещё этих мягких\n寿司 🎈 $x$ \\ \t" * 100, encoding="utf-8")
    model, saved = short_run(char_rnn, f"{TINY['char_rnn']} --text {book.as_posix()}")
    assert len(saved["curve"]) == 2
    assert model.characters == sorted(set(book.read_text(encoding="utf-8")))
    written = model.sample("寿司", 300, temperature=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        char_rnn.page(written, "a title", torch.rand(300), "bits").savefig(io.BytesIO())


def test_a_page_puts_each_character_on_its_shade():
    rows = ["ab\n", "x" * 80, "xxxxx\n", "y" * 80, "\n", "end"]
    shade = torch.arange(1.0, 1 + len("".join(rows)))
    axes = char_rnn.page("".join(rows), "a title", shade).axes[0]
    shades = torch.tensor(axes.images[0].get_array().filled(0))
    shown = {}
    for character in axes.texts:
        column, row = character.get_position()
        shown[round(row - 0.3), round(column + 0.5)] = character.get_text()
    places = [(r, c) for r, row in enumerate(rows) for c in range(len(row))]
    assert [shades[place].item() for place in places] == shade.tolist()
    assert shown == {(r, c): rows[r][c] for r, c in places if rows[r][c] != "\n"}


@functools.cache
def losses(*edits):
    """Training and validation loss after a short run on 40,000 characters of the stand-in text."""
    with tempfile.TemporaryDirectory() as folder:
        book = Path(folder, "book.txt")
        book.write_text(data.text(stand_in="always")[0][:40_000], encoding="utf-8")
        flags = "--steps 300 --batch-size 32 --length 32 --hidden 64 --lr 1e-2 --dropout 0.5"
        flags = f"{flags} --save-every 150 --text {book.as_posix()}"
        model, saved = short_run(edited("char_rnn", *edits), flags)
    last = saved["curve"][-1]
    return last["training"], last["validation"], math.log(len(model.characters))


@pytest.mark.slow
def test_break_predicting_what_was_just_read():
    training, validation, ignorance = losses(("sequence[:, 1:])", "sequence[:, :-1])"))
    assert training < 0.3 and validation > ignorance + 1
    assert losses()[0] > 1.2 and losses()[1] < ignorance - 1


@pytest.mark.slow
def test_break_a_state_that_is_no_constant():
    with pytest.raises(RuntimeError, match="a second time"):
        losses(("state.detach()", "state"))


@pytest.mark.slow
def test_break_validation_with_muted_units():
    assert losses(("            model.eval()", "            pass"))[1] > losses()[1] + 0.05
