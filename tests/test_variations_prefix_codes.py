"""prefix_codes: Kraft both ways, Huffman against all codes, entropies, round trips, a whole run."""

import itertools
import json
import math
import random
from collections import Counter
from fractions import Fraction

import pytest

from variations import prefix_codes as pc


def kraft(lengths):
    return sum(Fraction(1, 2**length) for length in lengths)


def prefix_free(words):
    return not any(b.startswith(a) for a, b in itertools.permutations(words, 2))


def test_lengths_have_a_code_where_kraft_holds_and_only_there():
    """All codes of four different words of up to three bits, and all lengths."""
    words = ["".join(bits) for n in (1, 2, 3) for bits in itertools.product("01", repeat=n)]
    possible = set()
    for chosen in itertools.combinations(words, 4):
        if prefix_free(chosen):
            possible.add(tuple(map(len, chosen)))
    for lengths in itertools.combinations_with_replacement((1, 2, 3), 4):
        assert (lengths in possible) == (kraft(lengths) <= 1)
        if kraft(lengths) <= 1:
            found = pc.codewords(dict(enumerate(lengths[::-1])))
            assert [len(found[i]) for i in range(4)] == list(lengths[::-1])
            assert prefix_free(found.values()) and set("".join(found.values())) <= {"0", "1"}


def test_huffman_is_the_best_of_all_codes():
    rng = random.Random(0)
    every = [some for some in itertools.product(range(1, 5), repeat=5) if kraft(some) <= 1]
    for _ in range(20):
        counts = {symbol: rng.choice((1, 2, 3, 5, 30)) for symbol in "abcde"}
        best = min(sum(map(math.prod, zip(counts.values(), lengths))) for lengths in every)
        lengths = pc.huffman(counts)
        assert sum(counts[symbol] * lengths[symbol] for symbol in counts) == best


def test_the_mean_length_is_between_the_entropy_and_one_bit_more():
    rng = random.Random(0)
    for size in (2, 3, 10, 300):
        for _ in range(20):
            counts = {symbol: math.ceil(math.exp(rng.gauss(3, 3))) for symbol in range(size)}
            lengths = pc.huffman(counts)
            assert kraft(lengths.values()) == 1
            total = sum(counts.values())
            mean = sum(counts[symbol] * lengths[symbol] for symbol in counts) / total
            assert pc.entropy(counts) - 1e-9 <= mean < pc.entropy(counts) + 1
    assert pc.entropy({"a": 1, "b": 1, "c": 2}) == 1.5
    halves = {"a": 512, "b": 256, "c": 128, "d": 128}  # powers of 1/2: nothing is rounded
    assert pc.huffman(halves) == {"a": 1, "b": 2, "c": 3, "d": 3} and pc.entropy(halves) == 1.75


def test_the_example_of_the_comment_and_the_chain_rule():
    counts = Counter("abracadabra")
    assert pc.huffman(counts) == {"a": 1, "b": 3, "r": 3, "c": 3, "d": 3}
    assert len(pc.encode(pc.codewords(pc.huffman(counts)), "abracadabra", 1)) == 23
    pairs = Counter({("s", "h"): 3, ("s", "o"): 1, ("t", "h"): 4, ("t", "o"): 8})
    first = Counter({"s": 4, "t": 12})
    given = 4 / 16 * pc.entropy({"h": 3, "o": 1}) + 12 / 16 * pc.entropy({"h": 4, "o": 8})
    assert pc.entropy(pairs) == pytest.approx(pc.entropy(first) + given)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_is_written_is_read_again_though_never_seen(n):
    rng = random.Random(n)
    words = pc.codewords(pc.huffman(pc.count("to be or not to be" * 9, n, " benortéZ")))
    text = "".join(rng.choices(" benortéZ", k=60))
    assert pc.decode(words, pc.encode(words, text, n)) == text
    unseen = words["Z" * n]
    assert len(unseen) >= len(words["to "[:n]]) and kraft(map(len, words.values())) == 1


def test_tosses_of_a_coin_give_each_block_its_share():
    words = pc.codewords({"a": 1, "b": 2, "c": 3, "d": 3})
    drawn = Counter(pc.decode(words, random.Random(0).choices("01", k=100_000)))
    for symbol, share in {"a": 1 / 2, "b": 1 / 4, "c": 1 / 8, "d": 1 / 8}.items():
        assert drawn[symbol] / drawn.total() == pytest.approx(share, abs=0.01)


@pytest.mark.pictures
def test_a_run_writes_its_results_and_pictures(tmp_path, capsys):
    path = tmp_path / "own.txt"
    path.write_text("she sells sea shells by the sea shore\n" * 60)
    pc.main(["--text", str(path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert all(f"{name}: {value:.4g}" in printed for name, value in results.items())
    assert results["fixed length"] == 4 > results["Huffman, blocks of 1"]
    pictures = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert pictures == {"tree.png", "characters.png", "bits.png", "samples.png"}
    path.write_text("too short")
    with pytest.raises(OSError, match="own.txt.* has 9 characters"):
        pc.main(["--text", str(path), "--out", str(tmp_path / "out")])
