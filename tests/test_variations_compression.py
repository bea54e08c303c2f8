"""Arithmetic coding: the table, exact fractions, a text there and back, its size the NLL's."""

import math
import random
import re
from fractions import Fraction

import pytest
import torch

import char_rnn
from variations import compression
from variations.compression import Decoder, Encoder, compress, decompress, edges_of

TEXTS = {
    "nothing": "",
    "a letter": "a",
    "all the same": "a" * 3000,
    "known": "".join(random.Random(0).choices("abcde", k=7000)),
    "unknown": "Съешь ещё этих 寿司 🎈\r\n\0\U0010ffff" * 50,
    "both": "".join(random.Random(1).choices("abcdeé", k=3000)),
}


def wild(seed=0):
    torch.manual_seed(seed)
    model = char_rnn.CharRNN(list("abcde"), 12, 2, dropout=0.0).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.7)
    return model


def test_the_interval_of_the_opening():
    edges = {"a": (Fraction(0), Fraction(1, 2)), "b": (Fraction(1, 2), Fraction(3, 4))}
    edges["c"] = (Fraction(3, 4), Fraction(1))
    low, high = Fraction(0), Fraction(1)
    for letter in "bca":
        low, high = [low + (high - low) * edge for edge in edges[letter]]
        assert f"[{low}, {high})" in compression.__doc__
    assert f"{low} is 0.{math.floor(low * 32):05b} in binary" in compression.__doc__
    assert high - low == Fraction(1, 32)


def test_the_coder_writes_a_number_in_that_interval():
    encoder = Encoder()
    for k in (1, 2, 0):  # b, c, a
        encoder.keep([0, 2**23, 2**23 + 2**22, 2**24], k)
    number = encoder.number()
    place = int.from_bytes(number, "big") / 256 ** len(number)
    assert 11 / 16 <= place < 23 / 32 and len(number) == 1


@pytest.mark.parametrize("kind", ["even", "sure", "surprised"])
def test_what_is_coded_is_found_and_costs_its_information(kind):
    p = {"even": 2**22, "sure": 2**24 - 2, "surprised": 1}[kind]
    symbols = random.Random(0).choices(range(3), k=400) if kind == "even" else [0] * 400
    edges = [0, p, p + 1, 2**24]
    encoder, bits = Encoder(), 0.0
    for k in symbols:
        encoder.keep(edges, k)
        bits -= math.log2((edges[k + 1] - edges[k]) / 2**24)
    number = encoder.number()
    assert bits - 8 <= 8 * len(number) <= bits + 0.0001 * 400 + 16
    decoder = Decoder(number)
    assert [decoder.find(edges) for _ in symbols] == symbols


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_comes_back(name):
    model = wild()
    assert decompress(model, compress(model, TEXTS[name])) == TEXTS[name]


@torch.no_grad()
def test_a_file_is_as_long_as_the_nll_says():
    model, string = wild(), TEXTS["known"]  # 7,000 characters: 4 readers
    nll = model.surprise(model.encode(string).view(4, 1750)).sum().item()
    size = len(compress(model, string)) - 8  # without length and checksum
    assert 0 <= 8 * size - nll / math.log(2) < 0.001 * len(string) + 16


def test_edges_leave_room_for_everything():
    logits = torch.tensor([[0.0, 0.0, 0.0], [-200.0, 200.0, 0.0], [1e4, 0.0, -1e4]])
    for row in edges_of(logits):
        widths = torch.tensor(row).diff()
        assert row[0] == 0 and row[-1] == 2**24 and (widths > 0).all()
        assert widths[-1] >= 2**12
    even = torch.tensor(edges_of(logits)[0]).diff()[:3] / 2**24
    torch.testing.assert_close(even, torch.full((3,), 1 / 3), rtol=0, atol=1e-3)


def test_another_model_or_a_damaged_file_is_refused():
    model, string = wild(), TEXTS["known"][:500]
    good = compress(model, string)
    with pytest.raises(OSError, match="does not come back"):
        decompress(wild(1), good)
    for place in range(4, len(good) - 1, 25):
        bad = bytearray(good)
        bad[place] ^= 16
        with pytest.raises(OSError, match="does not come back"):
            decompress(model, bytes(bad))


def test_a_run_prints_sizes_and_writes_file_and_picture(tmp_path, capsys):
    flags = {"hidden": 12, "layers": 2, "dropout": 0.0}
    torch.save({"flags": flags, "model": wild().state_dict()}, tmp_path / "model.pt")
    book = tmp_path / "book.txt"
    book.write_bytes("To be, or not to be: é\r\n".encode() * 30)
    flags = ["--text", str(book), "--model", str(tmp_path / "model.pt")]
    compression.main([*flags, "--out", str(tmp_path / "c")])
    printed = capsys.readouterr().out
    size = int(re.search(r"char_rnn.py: ([\d,]+) bytes", printed)[1].replace(",", ""))
    assert (tmp_path / "c" / "text.rnn").stat().st_size == size
    assert (tmp_path / "c" / "interval.png").stat().st_size > 1000
    back = decompress(wild(), (tmp_path / "c" / "text.rnn").read_bytes())
    assert back.encode() == book.read_bytes()
