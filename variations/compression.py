"""Compression on char_rnn.py: arithmetic coding (Witten, Neal & Cleary 1987; arXiv:2309.10668).

char_rnn.py needs −log₂ p = 2.08 bits a character. Bits of what? Of a file: a model that predicts a
text can write it down in so many binary digits and read it back from them.

A text becomes an interval. Start with [0, 1). Cut it into parts, one for each character that may
come, as wide as the character is probable. Keep the part of the one that comes; cut that by the
probabilities of the next one; and so on. Let a, b, c always have 1/2, 1/4, 1/4. Then "bca" is

                      its parts for a, b and c                         kept    width
    [0, 1)            [0, 1/2)  [1/2, 3/4)  [3/4, 1)                    b       1/4
    [1/2, 3/4)        [1/2, 5/8)  [5/8, 11/16)  [11/16, 3/4)            c       1/16
    [11/16, 3/4)      [11/16, 23/32)  [23/32, 47/64)  [47/64, 3/4)      a       1/32

Parts do not overlap: any number in the last interval tells the text, if its length is known. How
many binary digits has such a number? Each step multiplies the width by a probability:

    width = Π_t p(x_t | x_1, …, x_{t−1}) = p(x)      the product rule
    2^−n ≤ p(x)                                      n digits: numbers 2^−n apart, so one is inside
    n = −log₂ p(x), rounded up                       5 for 1/32; 11/16 is 0.10110 in binary

Is there a better code? Let one write n(x) digits for x. To tell where they end, none may begin
another's: so the numbers that begin with them are an interval 2^−n(x) wide, and these do not
overlap. r(x) = 2^−n(x) adds up to 1 at most. For texts drawn from q

    E_q[n] = E_q[−log₂ r] = E_q[−log₂ q] + KL(q ‖ r) ≥ E_q[−log₂ q]      a KL is not negative

The least is the entropy of q, reached by r = q; a model p costs KL(q ‖ p) more, which is what
training lowers. To learn a distribution and to compress are one task.

Run `python -m variations.compression --text FILE` after char_rnn.py; file and picture appear in
out/compression/. The last tenth of tiny Shakespeare, 111,540 bytes, becomes 29,097 bytes (gzip
44,486, bz2 36,743, xz 41,028) and comes back the same, in 20 seconds of one core of an AMD EPYC.
The model, 7.6 million bytes, is not in it: both sides have it. And it must have learnt from such
texts: the source of char_rnn.py, 27,737 bytes, becomes 28,279, more than it was (gzip 10,367).
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
# The ends of the interval soon have thousands of binary digits; only the last 48 need arithmetic.
# Whole numbers low and width stand for [low, low + width) / 2^digits. When the width falls below
# 2^40, both are multiplied by 2^8: a byte more. (Should a one be carried far to the left, Python's
# whole numbers have all their digits at hand.) Part k lies from edges[k] to edges[k + 1], multiples
# of 2^−24; what dividing the width by 2^24 leaves over is given away.
class Encoder:
    def __init__(self):
        self.low = 0
        self.width = 2**48
        self.size = 0  # bytes that the number has become longer

    def keep(self, edges, k):
        unit = self.width // 2**24
        self.low += unit * edges[k]
        self.width = unit * (edges[k + 1] - edges[k])
        while self.width < 2**40:
            self.low *= 2**8
            self.width *= 2**8
            self.size += 1

    def number(self):
        """A number in the interval as bytes: its top end with the last five bytes set to 0."""
        top = self.low + self.width - 1
        return (top // 2**40).to_bytes(self.size + 1, "big")


class Decoder:
    """Makes the same cuts and sees in which part the number lies: `above` is number − low."""

    def __init__(self, number):
        self.rest = iter(number[6:])
        self.above = int.from_bytes(number[:6].ljust(6, b"\0"), "big")
        self.width = 2**48

    def find(self, edges):
        unit = self.width // 2**24
        k = bisect_right(edges, self.above // unit, hi=len(edges) - 1) - 1
        self.above -= unit * edges[k]
        self.width = unit * (edges[k + 1] - edges[k])
        while self.width < 2**40:
            self.above = self.above * 2**8 + next(self.rest, 0)  # after the last byte all are 0
            self.width *= 2**8
        return k


# %% Model
# Probabilities become multiples of 2^−24, none of them 0: what a model thinks impossible may come.
# The last part is that of all characters it does not know; a second cut says which of Unicode's.
UNICODE = range(0, 15 * 0x110000 + 1, 15)  # 1,114,112 parts: 20 bits


def edges_of(logits):
    """The edges of K + 1 parts for each reader, from logits (B, K)."""
    K = logits.shape[1]
    p = logits.double().softmax(1)
    widths = (p * (2**24 - 2**12 - K)).long() + 1
    edges = F.pad(widths.cumsum(1), (1, 1))  # a 0 on the left, and on the right
    edges[:, -1] = 2**24
    return edges.tolist()


# Encoder and decoder both come through here and so know the same probabilities: those of a
# character, once all before it are known. Up to 32 readers share a text, for speed: all their first
# characters are coded, then all their second ones. A character that the model does not know is read
# as a beginning, number K, too. (The probabilities are the same to the last bit only on one kind of
# machine, with one PyTorch and one number of threads: a format to keep would need whole numbers.)
@torch.no_grad()
def read_through(model, N, code):
    """Predict N characters. code(place, edges) codes the one at a place; returns its number."""
    readers = min(32, 1 + N // 2000)
    share = math.ceil(N / readers)
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
    header = [len(string), crc32(string.encode())]
    return b"".join(number.to_bytes(4, "big") for number in header) + encoder.number()


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
