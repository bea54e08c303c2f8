"""Compression on char_rnn.py: arithmetic coding (Witten, Neal & Cleary 1987).

char_rnn.py reaches a mean −log₂ p of 2.08 bits a character. Bits of what? Of a file: a model that
predicts a text can write it down in so many binary digits, and read it back from them.

A text becomes an interval. Start with [0, 1), all numbers from 0 to below 1. Cut it into parts, one
for each character that may come, as wide as that is probable. Keep the part of the one that comes,
cut it for the next one, and so on. If a, b, c always have 1/2, 1/4, 1/4, the text "bca" is

                      its parts for a, b and c                         kept    width
    [0, 1)            [0, 1/2)  [1/2, 3/4)  [3/4, 1)                    b       1/4
    [1/2, 3/4)        [1/2, 5/8)  [5/8, 11/16)  [11/16, 3/4)            c       1/16
    [11/16, 3/4)      [11/16, 23/32)  [23/32, 47/64)  [47/64, 3/4)      a       1/32

Parts do not overlap. So any number in the last interval tells the text, if its length is known:
make the same cuts and see in which part the number lies. How many binary digits must it have?

    width = Π_t p(x_t | x_1, …, x_{t−1}) = p(x)    each step multiplies it by a probability
    2^−n ≤ p(x)                                    numbers of n digits are 2^−n apart: one fits in
    n = −log₂ p(x), rounded up                     5 for 1/32: 11/16 is 0.10110 in binary

Is there a better code? Let one write n(x) digits for x. To tell where they end, they must not be
the beginning of another text's digits. The numbers that begin with them are an interval 2^−n(x)
wide, and these do not overlap. So all r(x) = 2^−n(x) add up to 1 at most. For texts drawn from q,

    E[n] = E[−log₂ r] = E[−log₂ q] + E[−log₂(r/q)]      E: the mean over these texts
    E[−log₂(r/q)] ≥ −log₂ E[r/q] = −log₂ Σ_x r(x) ≥ 0   Jensen: mean log ≤ log mean; E[f] = Σ q f

No code beats E[−log₂ q], the entropy of q. A model p = q reaches it but for the rounding; any other
costs E[log₂(q/p)] = KL(q ‖ p) more, which is what training lowers. To learn a distribution and to
compress are one task (Delétang et al. 2023, arXiv:2309.10668).

Run `python -m variations.compression` after char_rnn.py. In 20 s of one AMD EPYC core the last
tenth of tiny Shakespeare, 111,540 bytes, becomes 29,097 (gzip 44,486, bz2 36,743, xz 41,028) and
comes back the same. The model, 7.6 million bytes, is not counted: both sides have it. And it must
know such texts: the source of char_rnn.py, 27,737 bytes, grows to 28,279 bytes (gzip 10,367).
"""

import argparse
import bz2
import gzip
import lzma
import math
import sys
from bisect import bisect_right
from pathlib import Path
from zlib import crc32

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from char_rnn import load, write
from data import text


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--text", default="", help="a UTF-8 file instead of tiny Shakespeare's end")
    parser.add_argument("--model", default="out/char_rnn/model.pt", help="a run of char_rnn.py")
    parser.add_argument("--out", type=Path, default=Path("out/compression"), help="folder to write")
    return parser.parse_args(argv)


# %% Coder
# The interval is [low, low + width) / 2^n, in whole numbers, at first with n = 48. When the width
# falls below 2^40, all three are multiplied by 2^8: low grows by a byte, however long it becomes.
# Part k lies from edges[k] to edges[k + 1]; the unit is width / 2^24, rounded down, and the rest of
# the width is given away. With edges 0, 2^23, 2^23 + 2^22, 2^24 for a, b, c, after "bca" low is
# 176 · 2^40 (176/256 = 11/16), the width 8 · 2^40 (8/256 = 1/32), and `number` gives a byte, 183.
class Encoder:
    def __init__(self):
        self.low = 0
        self.width = 2**48
        self.size = 0  # bytes by which low has become longer: n = 48 + 8 · size

    def keep(self, edges, k):
        unit = self.width // 2**24
        self.low += unit * edges[k]
        self.width = unit * (edges[k + 1] - edges[k])
        while self.width < 2**40:
            self.low *= 2**8
            self.width *= 2**8
            self.size += 1

    def number(self):
        """A number in the interval as bytes: its top end with the last five bytes cut off."""
        top = self.low + self.width - 1  # at least 2^40 − 1 above low: it stays in the interval
        return (top // 2**40).to_bytes(self.size + 1, "big")


class Decoder:
    """Makes the same cuts and sees in which part the number lies: `above` is number − low."""

    def __init__(self, number):
        self.rest = iter(number[6:])  # the bytes after the first 48 bits
        self.above = int.from_bytes(number[:6].ljust(6, b"\0"), "big")
        self.width = 2**48

    def find(self, edges):
        unit = self.width // 2**24
        k = bisect_right(edges, self.above // unit, hi=len(edges) - 1) - 1  # last edge not above
        self.above -= unit * edges[k]
        self.width = unit * (edges[k + 1] - edges[k])
        while self.width < 2**40:
            self.above = self.above * 2**8 + next(self.rest, 0)  # after the last byte all are 0
            self.width *= 2**8
        return k


# %% Model
# Probabilities become multiples of 2^−24, none of them 0: what a model thinks impossible may come.
# A last part, 2^−12 wide: 12 bits, is for all that it does not know; a second cut says which it is.
UNICODE = range(0, 15 * 0x110000 + 1, 15)  # edges of 1,114,112 parts, all 15 / 2^24 wide: 20 bits


def edges_of(logits):
    """The edges of K + 1 parts for each reader, from logits (B, K)."""
    K = logits.shape[1]
    p = logits.double().softmax(1)
    widths = (p * (2**24 - 2**12 - K)).long() + 1
    edges = F.pad(widths.cumsum(1), (1, 1))  # a 0 before and a 0 after, which becomes 2^24
    edges[:, -1] = 2**24
    return edges.tolist()


# Encoder and decoder both come through here, so both compute the same probabilities from the same
# characters. For speed up to 32 readers read a piece each: all first characters, all second ones …
# What the model does not know it reads as the start symbol, number K. (Probabilities are the same
# to the last bit only on one kind of machine, with one PyTorch and one number of threads.)
@torch.no_grad()
def read_through(model, N, code):
    """Predict N characters; code(place, edges) writes or finds one and returns its number."""
    readers = min(32, 1 + N // 2000)
    share = math.ceil(N / readers)  # characters for each
    read = torch.full((readers, 1), model.start)
    state = model.empty_state(readers)
    for t in range(share):
        logits, state = model(read, state)
        for reader, edges in enumerate(edges_of(logits[:, 0])):
            place = reader * share + t
            if place < N:
                read[reader] = code(place, edges)


def compress(model, string):
    """A string as bytes: its length, a checksum and the number."""
    known = {character: k for k, character in enumerate(model.characters)}
    encoder = Encoder()

    def code(place, edges):
        k = known.get(string[place], len(known))
        encoder.keep(edges, k)
        if k == len(known):
            encoder.keep(UNICODE, ord(string[place]))
        return k

    read_through(model, len(string), code)
    header = len(string).to_bytes(4, "big") + crc32(string.encode()).to_bytes(4, "big")
    return header + encoder.number()


def decompress(model, blob):
    """The string that `compress` made these bytes of."""
    length = int.from_bytes(blob[:4], "big")
    decoder = Decoder(blob[8:])
    found = [""] * length

    def code(place, edges):
        k = decoder.find(edges)
        if k == len(model.characters):
            found[place] = chr(decoder.find(UNICODE))
        else:
            found[place] = model.characters[k]
        return k

    read_through(model, length, code)
    string = "".join(found)
    if crc32(string.encode("utf-8", "surrogatepass")) != int.from_bytes(blob[4:8], "big"):
        raise OSError("the text does not come back: a damaged file, another model or machine")
    return string


# %% Evaluation
def interval_picture(model, string):
    """A figure of the interval, cut for each character; each row is what the one above keeps."""
    numbers = model.encode(string)[0].tolist()
    cuts = []

    def code(place, edges):
        cuts.append(torch.tensor(edges) / 2**24)
        return numbers[place]

    read_through(model, len(string), code)
    axes = Figure(figsize=(10, 0.8 * len(string) + 0.8), layout="constrained").subplots()
    for row, (edges, kept) in enumerate(zip(cuts, numbers)):
        widths = edges.diff()
        colours = ["orange" if k == kept else "whitesmoke" for k in range(len(widths))]
        axes.barh(row, widths, 0.5, edges[:-1], color=colours, edgecolor="gray", linewidth=0.5)
        for k in torch.nonzero(widths[:-1] > 0.012)[:, 0].tolist():
            name = ascii(model.characters[k])[1:-1]
            axes.text(edges[k] + widths[k] / 2, row, name, ha="center", va="center")
        for edge, end in ((edges[kept], 0), (edges[kept + 1], 1)):
            axes.plot([edge, end], [row + 0.25, row + 0.75], color="orange")
        axes.text(1.01, row, f"{-math.log2(widths[kept]):.2f} bits", va="center")
    axes.set(xlim=(0, 1), ylim=(len(string) - 0.25, -0.4), xticks=[], yticks=[])
    axes.set_title(f"{string!a}: the part of the character that comes is kept, and cut again")
    return axes.figure


def main(argv=None):
    args = parse_flags(argv)
    model = load(args.model)
    string, _ = text(args.text)
    if not args.text:
        string = string[len(string) * 9 // 10 :]  # the model has not been trained on it
    print(f"{len(string):,} characters become a file, and the file a text ...", flush=True)
    compressed = compress(model, string)
    write(args.out / "text.rnn", compressed)
    if decompress(model, compressed) != string:
        raise OSError("another text has come back")
    print("the same text has come back")

    blob = string.encode()
    sizes = {
        "the text": len(blob),
        "gzip": len(gzip.compress(blob)),
        "bz2": len(bz2.compress(blob)),
        "xz": len(lzma.compress(blob)),
        "char_rnn.py": len(compressed),
    }
    for name, size in sizes.items():
        print(f"{name}: {size:,} bytes, {8 * size / len(string):.3f} bits a character")
    shown = [character for character in string[:100] if character in model.characters]
    interval_picture(model, "".join(shown[:8])).savefig(args.out / "interval.png", dpi=100)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
