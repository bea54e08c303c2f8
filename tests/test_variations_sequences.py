"""Variations of the chapters on sequences: images pixel by pixel, and arithmetic coding of text."""
import json
import math
import random
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from harness import ROOT, finished, refused, small

import char_rnn
from variations import compression, rnn_pixels, wavenet_pixels

MODELS = ["rnn", "wavenet"]


def model_of(name, conditional=True, scale=1.0):
    """A tiny model with random weights everywhere, in float64: an untrained one would hide mistakes."""
    torch.manual_seed(0)
    if name == "rnn":
        model = rnn_pixels.PixelRNN(6, 2, 0.5, conditional)
    else:
        model = wavenet_pixels.PixelWaveNet(4, 4, conditional)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    if name == "wavenet":  # logits of size 1: probabilities that are neither 0 nor 1
        with torch.no_grad():
            model.head[-1].weight /= model(torch.randint(2, (20, 9)), 3).std()
            model.head[-1].bias.zero_()
    return model.double().eval()


def all_images(D=9):
    return torch.tensor([[(n >> i) & 1 for i in range(D)] for n in range(2**D)]).view(-1, 1, 3, 3).double()


@pytest.mark.parametrize("y", [None, 3])
@pytest.mark.parametrize("name", MODELS)
def test_probabilities_of_all_images_sum_to_one(name, y):
    log_p = model_of(name).log_prob(all_images(), y).double()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log_p.std() > 0.1 and log_p.exp().max() < 0.9


@pytest.mark.parametrize("name", MODELS)
def test_the_null_label_is_the_default_and_classes_differ_where_they_are_known(name):
    x = all_images()[100:110]
    for conditional in (True, False):
        model = model_of(name, conditional)
        by_class = torch.stack([model.log_prob(x, y) for y in range(11)])
        assert torch.equal(model.log_prob(x), by_class[10])
        mixed = torch.tensor([0, 3, 10, 7, 7, 9, 1, 2, 10, 5])
        assert torch.allclose(model.log_prob(x, mixed), by_class[mixed, torch.arange(10)])
        differ = (by_class[:, None] - by_class).abs().amax(2) > 1e-3
        assert torch.equal(differ, ~torch.eye(11).bool() & torch.tensor(conditional))


@pytest.mark.parametrize("name", MODELS)
def test_sampling_draws_the_pixels_that_the_plain_way_draws(name):
    """Pixel t depends only on those before it, so one pass over the finished images gives every distribution
    from which the sampler should have drawn; drawn again from the same random numbers, they are the same."""
    model, y = model_of(name, scale=0.5), torch.tensor([0, 1, 9, 10])
    torch.manual_seed(1)
    x = model.sample(4, y)
    assert x.shape == (4, 1, 28, 28) and x.dtype == torch.float32 and 0.05 < x.mean() < 0.95
    symbols = x.flatten(1).long()
    with torch.no_grad():
        if name == "rnn":
            read = torch.cat([torch.full((4, 1), 2), symbols[:, :-1]], 1)
            logits = model(read + 3 * y[:, None] + 33 * (torch.arange(784) % 28))[0]
        else:
            logits = model(symbols, y)
    torch.manual_seed(1)
    p = logits.double().softmax(2)
    plain = torch.stack([torch.multinomial(p[:, t], 1)[:, 0] for t in range(784)], 1)
    assert torch.equal(symbols, plain)


@pytest.mark.parametrize("name", MODELS)
def test_an_untrained_model_gives_each_pixel_a_half(name):
    model = rnn_pixels.PixelRNN(8) if name == "rnn" else wavenet_pixels.PixelWaveNet(4, 2)
    assert model.log_prob(torch.ones(1, 1, 28, 28)).item() == pytest.approx(-784 * math.log(2), rel=1e-6)


class Known(torch.nn.Module):
    """log p(x | y) of a table: NLLs to check `evaluate` with."""
    def __init__(self, table):
        super().__init__()
        self.table = table

    def log_prob(self, x, y):
        return self.table[x.flatten(1)[:, 0].long(), y]

    def sample(self, n, y):
        return torch.zeros(n, 1, 28, 28)


def test_figures_are_those_of_the_mixture_of_the_classes():
    table = torch.randn(230, 10)
    x = torch.arange(230.0)[:, None, None, None].expand(230, 1, 28, 28)
    y, results = torch.randint(10, (230,)), {}
    run = type("Run", (), {"report": staticmethod(results.update), "picture": staticmethod(lambda *_: None)})
    rnn_pixels.evaluate(run, Known(table), x, y)
    marginal = -table.double().exp().mean(1).log().mean().item()
    assert results["test digits"] == 230
    assert results["test NLL, marginal over the classes, nats"] == pytest.approx(marginal, abs=1e-5)
    expected = -table[torch.arange(230), y].mean().item()
    assert results["test NLL, conditional, nats"] == pytest.approx(expected, abs=1e-5)
    assert results["test digits classified by Bayes' rule"] == pytest.approx(
        (table.argmax(1) == y).float().mean().item())


RUNS = {"rnn_pixels": "--hidden 8", "wavenet_pixels": "--channels 4 --layers 3"}


def start(name, *arguments):
    return subprocess.Popen([sys.executable, "-m", f"variations.{name}", *map(str, arguments)], cwd=ROOT,
                            env=small(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_whole_run_and_its_resumption(name, tmp_path):
    flags = [*RUNS[name].split(), "--device", "cpu", "--out", tmp_path / "run", "--batch-size", "8"]
    out, _ = finished(start(name, *flags, "--steps", "3"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert "step 3/3" in out and metrics["script"] == name and metrics["step"] == 3
    assert metrics["results"]["test digits"] == 6  # every 20th of 120
    for kind in ("conditional", "marginal over the classes"):
        assert 300 < metrics["results"][f"test NLL, {kind}, nats"] < 560
    assert metrics["baselines"]["untrained"] == pytest.approx(784 * math.log(2))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "model.pt", "samples.png", "curve.png", "metrics.json"}
    out, _ = finished(start(name, "--resume", "--out", tmp_path / "run", "--steps", "4"))
    assert "step 4/4" in out
    torch.save({"name": "char_rnn"}, tmp_path / "run" / "model.pt")
    assert "damaged" in refused(start(name, "--resume", "--out", tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RUNS))
def test_what_cannot_be_is_one_sentence_and_status_2(name, tmp_path):
    assert "out of range" in refused(start(name, "--label-dropout", "2", "--out", tmp_path))
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(start(name, "--out", tmp_path / "file"))


# Compression

ALPHABET = "\n abcdefgh.é"


def language(K=12, hidden=8, layers=2, scale=0.7, dtype=torch.float32):
    torch.manual_seed(0)
    model = char_rnn.CharRNN(torch.tensor([ord(c) for c in ALPHABET[:K]]), hidden, layers)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=scale)
    return model.to(dtype).eval()


def tables_of(kind, n, draw):
    """n pairs of a cumulative table over [0, 2^24] and a symbol, as hard for the coder as they can be."""
    top = 2**compression.BITS
    for i in range(n):
        if kind == "first of one part":
            yield [0, 1, top], 0
        elif kind == "last of one part":
            yield [0, top - 1, top], 1
        elif kind == "all but one part":
            yield [0, top - 1, top], 0
        elif kind == "carries":  # far up in the interval, then where the sum crosses a byte
            yield [0, top - 1, top], 1 if i % 5 else 0
        elif kind == "Unicode":
            yield compression.UNICODE, draw.choice([0, 65, 0x10FFFF, 2**21 - 1])
        else:
            cuts = sorted({0, top, *(draw.randrange(1, top) for _ in range(draw.randrange(1, 200)))})
            yield cuts, draw.choice([0, len(cuts) - 2, draw.randrange(len(cuts) - 1)])


KINDS = ["first of one part", "last of one part", "all but one part", "carries", "Unicode", "random"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 400])
def test_the_coder_gives_symbols_back_and_spends_their_information(kind, n):
    for seed in range(5):
        pairs = list(tables_of(kind, n, random.Random(seed)))
        blob = compression.encode([table[k:k + 2] for table, k in pairs])
        decoder = compression.Decoder(blob)
        assert [decoder.get(table) for table, _ in pairs] == [k for _, k in pairs]
        bits = sum(24 - math.log2(table[k + 1] - table[k]) for table, k in pairs)
        # a part may lose 2^−16 of its span to rounding; the end costs a byte or two
        assert bits - 0.001 <= 8 * len(blob) <= bits + n * 2**-15 + 16


@pytest.mark.parametrize("kind", ["carries", "random"])
def test_the_number_lies_in_the_interval_that_exact_fractions_give(kind):
    """With a width of 2^k for every part, nothing is rounded, so the interval is that of exact arithmetic."""
    low, width, intervals, draw = Fraction(0), Fraction(1), [], random.Random(1)
    for i in range(60):
        size = 2**draw.choice([8, 16, 23])
        a = 2**24 - size if kind == "carries" else draw.randrange(2**24 // size) * size
        intervals.append((a, a + size))
        low, width = low + width * Fraction(a, 2**24), width * Fraction(size, 2**24)
    blob = compression.encode(intervals)
    number = Fraction(int.from_bytes(blob, "big"), 256**len(blob))
    assert low <= number < low + width


TEXTS = {
    "empty": "", "one character": "a", "one unknown character": "🎲", "the last": "\U0010ffff", "0": "\0\0a",
    "line ends": "a\r\nb\n\rc\r", "byte order mark": "\ufeffabc", "unknown alone": "ж漢🎲" * 40,
    "a few unknown": "".join("abc fed. "[i % 9] if i % 41 else "Žж🎲"[i % 3] for i in range(900)),
    "16 streams": "".join(random.Random(0).choices(ALPHABET, k=30011)),
    "3 streams, the last one shorter": "".join(random.Random(1).choices(ALPHABET + "Z", k=4001)),
}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_texts_come_back_the_same(name):
    model, text = language(), TEXTS[name]
    assert compression.unpack(model, compression.pack(model, text)) == text


def test_a_file_is_as_long_as_the_nll_says():
    """Of a text in one stream: −log₂ p(x) in bits, and 18 bytes at most, 16 of them the header."""
    model = language(dtype=torch.float64)
    text = "".join(random.Random(2).choices(ALPHABET, k=1999))
    x = torch.tensor([[ALPHABET.index(c) for c in text]])
    with torch.no_grad():
        promised = -model.log_prob(x).item() / math.log(2) / 8
    assert promised > 500
    assert promised + 16 - 0.1 <= len(compression.pack(model, text)) <= promised + 18.1


def test_unknown_characters_cost_no_more_than_their_own_bits():
    """Half of the characters unknown: 21 bits each, and 1 bit for each question whether it is known."""
    model, text = language(K=1), "\n漢" * 950
    size = 8 * len(compression.pack(model, text))
    assert size <= 1.03 * (950 * 21 + 1900) + 500


def test_every_table_of_a_walk_is_a_distribution_also_of_a_model_that_is_sure():
    model, seen = language(scale=30), []
    compression.walk(model, 600, lambda place, table: seen.append((place, table)) or (place % (model.K + 1)))
    assert sorted(place for place, _ in seen) == list(range(600))
    for _, table in seen:
        assert len(table) == model.K + 2 and table[0] == 0 and table[-1] == 2**24
        assert all(a < b for a, b in zip(table, table[1:]))
    assert max(table[1] for _, table in seen) > 2**22  # sure of something


def test_streams_read_what_a_single_reader_would():
    """The tables of 3 streams are those of each stream alone, from an empty state, by `forward`."""
    model, N = language(dtype=torch.float64), 4001
    draw, rows = random.Random(3), {}
    x = [draw.randrange(model.K) for _ in range(N)]

    def code(place, table):
        rows[place] = table
        return x[place]
    compression.walk(model, N, code)
    length = -(-N // 3)
    for stream in range(3):
        symbols = torch.tensor([[model.K, *x[stream * length:(stream + 1) * length][:50]]])
        with torch.no_grad():
            p = model(symbols)[0][0].softmax(1)
        for t in range(50):
            table = torch.tensor(rows[stream * length + t], dtype=torch.float64)
            assert torch.allclose(table.diff()[:-1] / 2**24, p[t].double(), atol=1e-5)


def damaged(blob):
    yield "empty", b""
    yield "its first half", blob[:len(blob) // 2]
    yield "one byte less", blob[:-1]
    yield "one byte more", blob + b"\0"
    yield "foreign", b"PK\3\4" + bytes(100)
    for place in range(len(blob)):
        yield f"byte {place}", blob[:place] + bytes([blob[place] ^ 64]) + blob[place + 1:]


def test_a_damaged_file_is_refused_wherever_the_damage_is():
    model = language()
    for name, blob in damaged(compression.pack(model, "a bad cab.")):
        with pytest.raises(OSError, match="damaged"):
            print(name, compression.unpack(model, blob))


def test_another_model_is_refused_and_never_gives_another_text():
    text = "".join(random.Random(4).choices(ALPHABET + "Žж🎲", k=300))
    blob = compression.pack(language(), text)
    for other in (language(scale=0.8), language(K=5), language(hidden=9), language(scale=30)):
        with pytest.raises(OSError, match="another model"):
            compression.unpack(other, blob)


def save_model(path, model):
    settings = {"hidden": model.out.in_features, "layers": len(model.layers), "dropout": 0.0}
    torch.save({"name": "char_rnn", "source": "made up", "settings": settings,
                "state": {"model": model.state_dict()}}, path)
    return path


@pytest.mark.slow
def test_files_go_there_and_back(tmp_path):
    model = save_model(tmp_path / "model.pt", language())
    for name, blob in {"a.txt": ("a bad cab. " * 40 + "\r\nŽ🎲").encode(), "empty": b""}.items():
        path = tmp_path / name
        path.write_bytes(blob)
        out, _ = finished(start("compression", "compress", path, "--model", model))
        packed = tmp_path / f"{name}.rnn"
        assert f"{len(blob):,} bytes" in out and f"not counted: {packed.stat().st_size:,}" in out
        assert all(word in out for word in ("gzip", "bz2", "xz"))
        assert "exists" in refused(start("compression", "decompress", packed, "--model", model))
        assert path.read_bytes() == blob
        path.unlink()
        finished(start("compression", "decompress", packed, "--model", model))
        assert path.read_bytes() == blob
    packed = tmp_path / "a.txt.rnn"
    finished(start("compression", "decompress", packed, "--model", model, "--to", tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a.txt").read_bytes()


@pytest.mark.slow
def test_what_cannot_be_compressed_is_one_sentence_and_status_2(tmp_path):
    model, latin, text = save_model(tmp_path / "model.pt", language()), tmp_path / "latin", tmp_path / "text"
    latin.write_bytes("é".encode("latin-1"))
    text.write_bytes(b"abc")
    for arguments, words in {
            ("compress", latin, "--model", model): "utf-8", ("decompress", text, "--model", model): "damaged",
            ("compress", tmp_path / "none", "--model", model): "No such file",
            ("compress", text, "--model", tmp_path / "none.pt"): "none.pt",
            ("compress", text, "--model", text): "no checkpoint of char_rnn",
            ("shrink", text): "invalid"}.items():
        assert words in refused(start("compression", *arguments))
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "latin", "text"}
