"""Prefix codes beside char_rnn.py: a model of text is a short code (Huffman 1952).

How many bits does a letter need? Numbered, 65 different characters take 7 bits each: 6 bits tell
only 64 apart. But e comes often, z hardly ever. So let e have a short codeword and z a long one.
And let no codeword be the beginning of another: then no commas are needed. With a = 0, b = 10 and
c = 11, a prefix code, 01011 can only be a b c. How short can the codewords be, all together? Draw
them as a tree, 0 to the left, 1 to the right. A codeword ends in a leaf: nothing goes on below it.

          •           Pour a litre of water in at the top. Each fork passes half of it on to the
        0╱ ╲1         left and half to the right. A leaf at depth l, a codeword of l bits, gets
        a   •         2^−l: a has 1/2, b and c have 1/4. No more can come out than went in:
          0╱ ╲1
          b   c           Σ 2^−l ≤ 1                      Kraft's inequality (1949)

Conversely, all lengths that obey it are those of a code: `codewords` finds one. Now let a symbol x
have the probability p(x), and let E be the mean over x. How short can codewords be on average?

    E[l] = E[−log₂ p] + E[log₂ p + l]            subtract and add
         = H          − E[log₂(2^−l / p)]        H = E[−log₂ p], the entropy; l = −log₂ 2^−l
         ≥ H          − log₂ E[2^−l / p]         Jensen: mean log ≤ log mean
         = H          − log₂ Σ 2^−l              E[f] = Σ p f
         ≥ H                                     Kraft: the log of at most 1

So no prefix code beats the entropy. Lengths l = −log₂ p, rounded up, come close: 2^−l ≤ p, so that
their sum is at most Σ p = 1, and l < −log₂ p + 1. For the best code, then, H ≤ E[l] < H + 1.

Which is the best? Every fork has two branches, else it could be left out. The two rarest symbols
lie deepest: a rarer one above a more frequent one would change places with it. Places at the same
depth cost the same, so let the two share a fork. Put that fork in their place, a symbol with the
sum of their probabilities: they lie one bit below it, which costs that sum in every such tree. What
remains is the same question with one symbol less. This is Huffman's algorithm.

The price of whole bits, up to 1 a codeword, is shared if blocks of n characters have codewords. And
blocks know more. By the product rule, p(a, b) = p(a) p(b | a); take the mean of −log₂:

    H(pair) = H(first) + H(second | first)       the last is called conditional entropy
    2 · 4.155 = 4.774  + 3.536                   measured, bits

So a pair pays the full price for its first character and less for the next. char_rnn.py pays less
for all: it predicts each one from everything before it. Its −log₂ p(x_t | x_1, …, x_{t−1}) bits are
no whole number; the arithmetic coder of variations/compression.py rounds once for a whole text. And
a code is a model, q = 2^−l. Its mean length in another text is that model's NLL: nats / ln 2, bits.

`python -m variations.prefix_codes` takes 9 seconds on one core of an AMD EPYC. Bits a character of
the last tenth, by codes from the first nine tenths: fixed length 7; Huffman 4.868, of pairs 4.220,
of triples 3.816; gzip 3.096, xz 2.516 (the file of all, less that of the rest); char_rnn.py 2.084,
that is 1.445 nats. 65⁴ blocks of 4 are too many to count. Use Huffman for its speed, as JPEG does.
"""

import argparse
import gzip
import heapq
import json
import lzma
import math
import random
import sys
from collections import Counter
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from char_rnn import page
from data import text


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--text", default="", help="a UTF-8 file instead of tiny Shakespeare")
    parser.add_argument("--out", type=Path, default=Path("out/prefix_codes"), help="folder")
    choices = ["auto", "always", "never"]
    parser.add_argument("--stand-in", default="auto", choices=choices, help="use made-up data")
    return parser.parse_args(argv)


# %% Model
def entropy(counts):
    """H of symbols that came as often as `counts`, a dictionary, says: bits a symbol."""
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


# In abracadabra, a comes 5 times, b and r 2, c and d 1. Join the two rarest, again and again:
#     c + d: 2        b + r: 4        cd + br: 6        a + cdbr: 11
# Who is joined goes down by one bit: a is joined once, the others three times. 5 · 1 + 6 · 3 = 23
# bits for 11 letters, 2.09 a letter; the entropy is 2.04.
def huffman(counts):
    """The lengths of the best codewords, {symbol: bits}."""
    lengths = dict.fromkeys(counts, 0)
    heap = [(count, i, [symbol]) for i, (symbol, count) in enumerate(counts.items())]
    heapq.heapify(heap)  # i, all different, decides between equal counts
    while len(heap) > 1:
        rarest, _, left = heapq.heappop(heap)
        second, i, right = heapq.heappop(heap)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(heap, (rarest + second, i, left + right))
    return lengths


# Kraft's other half. Lay pieces of the widths 2^−l side by side from 0 on, the widest first. They
# end at 1 or before. Those before a piece are as wide, or twice, or four times: so it begins at a
# multiple of its width, and l binary digits after the point say where: 0, 100, 101, 110 for the
# lengths 1, 3, 3, 3. They are its codeword. All numbers in a piece begin with it, and no others do.
def codewords(lengths):
    """A codeword for each symbol, {symbol: a string of 0 and 1}, for lengths that obey Kraft."""
    longest = max(lengths.values())
    words = {}
    place = 0  # in units of 2^−longest
    for symbol in sorted(lengths, key=lengths.get):
        spare = longest - lengths[symbol]
        words[symbol] = format(place >> spare, f"0{lengths[symbol]}b")
        place += 1 << spare
    return words


def blocks(string, n):
    """A string cut into blocks of n characters; what is left over at the end is dropped."""
    return [string[i : i + n] for i in range(0, len(string) - n + 1, n)]


# A block that was never seen needs a codeword, too: it may come. So each of 65 characters, 4,225
# pairs or 274,625 triples gets 1, and 100 each time that it comes. (With 1 for 100, nearly half the
# probability of triples would go to those never seen. 100 was best in text kept for choosing.)
def count(string, n, characters):
    """How often each block of n characters comes in a string, times 100, and 1: {block: count}."""
    counts = {"".join(block): 1 for block in product(characters, repeat=n)}
    for block in blocks(string, n):
        counts[block] += 100
    return counts


def encode(words, string, n):
    """The codewords of a string's blocks, as a string of 0 and 1."""
    return "".join(words[block] for block in blocks(string, n))


def decode(words, bits):
    """Back again: as soon as the bits read are a codeword, they are its block."""
    block_of = {word: block for block, word in words.items()}
    string = ""
    read = ""
    for bit in bits:
        read += bit
        if read in block_of:
            string += block_of[read]
            read = ""
    return string


# %% Evaluation
def main(argv=None):
    args = parse_flags(argv)
    corpus, source = text(args.text, args.stand_in)
    if len(corpus) < 1000:
        raise OSError(f"{source!a} has {len(corpus):,} characters; at least 1,000 are needed")
    train = corpus[: len(corpus) * 9 // 10]
    test = corpus[len(train) :]
    characters = sorted(set(corpus))
    print(f"{len(train):,} characters of {source!a}, {len(test):,} more to test", flush=True)
    bits = {"fixed length": math.ceil(math.log2(len(characters)))}  # a character of the last tenth
    limits = {}  # entropies in the first nine tenths
    samples = ""
    for n in (1, 2, 3):
        if len(characters) ** n > 1_000_000:  # too many for a table
            break
        words = codewords(huffman(count(train, n, characters)))
        written = encode(words, test, n)
        whole = len(test) // n * n
        assert decode(words, written) == test[:whole]
        bits[f"Huffman, blocks of {n}"] = len(written) / whole
        limits[f"entropy, blocks of {n}"] = entropy(Counter(blocks(train, n))) / n
        # Any bits make sense. In tosses of a coin a codeword of l bits has the probability 2^−l,
        # so the text that they lead to is a sample of the model q = 2^−l.
        tosses = random.Random(n).choices("01", k=1500)
        samples += f"BLOCKS OF {n}:\n{decode(words, tosses)}\n\n"
    for name, compress in (("gzip", gzip.compress), ("xz", lzma.compress)):
        added = len(compress(corpus.encode())) - len(compress(train.encode()))  # bytes
        bits[name] = 8 * added / len(test)

    results = bits | limits
    for name, value in results.items():
        print(f"{name}: {value:.4g}", flush=True)
    pictures = {
        "tree.png": tree(codewords(huffman(Counter("abracadabra")))),
        "characters.png": tree(codewords(huffman(count(train, 1, characters)))),
        "bits.png": bars(bits, limits),
        "samples.png": page(samples, "1,500 tosses of a coin, decoded: a code is a model"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps({"results": results, "source": source}, indent=1)
    (args.out / "metrics.json").write_text(metrics)
    for name, figure in pictures.items():
        figure.supxlabel(f"data: {source}", size="x-small", parse_math=False)
        figure.savefig(args.out / name, dpi=100)


def tree(words):
    """A figure of a code, {symbol: codeword}: 0 leads to the left, 1 to the right."""
    axes = Figure(figsize=(9, 4.5), layout="constrained").subplots()
    deepest = max(map(len, words.values()))
    for symbol, word in words.items():
        nodes = [(int("0" + word[:d], 2) + 0.5) / 2**d for d in range(len(word) + 1)]
        axes.plot(nodes, range(len(word) + 1), "o-", color="gray", markersize=3, linewidth=1)
        below = deepest + 1 - len(word)
        axes.bar(nodes[-1], below, 2.0 ** -len(word), len(word), alpha=0.5, edgecolor="white")
        if len(word) < 6:
            label = f"{symbol!a}\n{word}"
            top = len(word) + deepest / 30
            axes.text(nodes[-1], top, label, size=11 - len(word), ha="center", va="top")
    axes.set(xlim=(0, 1), ylim=(deepest + 1, -0.3), ylabel="bits")
    axes.set_title("a codeword of l bits takes 2^−l of the width; together they fill it")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return axes.figure


def bars(bits, limits):
    """A figure of bits a character in the last tenth, and of entropies in the rest."""
    axes = Figure(figsize=(8, 3.2), layout="constrained").subplots()
    shown = axes.barh(list(bits), list(bits.values()), color="tab:blue", alpha=0.6)
    axes.bar_label(shown, fmt="%.2f", padding=4)
    rows = range(1, len(limits) + 1)
    axes.plot(list(limits.values()), rows, "k|", markersize=22)
    axes.invert_yaxis()
    axes.set(xlabel="bits a character, last tenth of the text", xlim=(0, 1.1 * max(bits.values())))
    axes.set_title("longer blocks need fewer bits (marks: their entropy in the first nine tenths)")
    return axes.figure


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
