"""char_rnn.py as a compressor: arithmetic coding by the probabilities of a trained model.

    python -m variations.compression compress FILE        writes FILE.rnn; prints sizes beside gzip, bz2, xz
    python -m variations.compression decompress FILE.rnn  writes FILE; --to PATH if there is one already

What changes: symbols are encoded or decoded, not sampled. The encoder begins with the interval [0, 1). Each
step cuts it into one part per symbol, as wide as the symbol is probable, and keeps the part of the character
that comes. The last interval is p(x) wide; −log₂ p(x) bits, and at most two bytes, write down a number in it.
The decoder runs the same model, makes the same cuts and sees in which part the number lies. Why: the NLL in
bits is the size of a file, the model not counted. A character that the model does not know becomes an escape
symbol, as probable as it was frequent so far, and 21 bits of Unicode. Both ways need the same probabilities
to the last bit: one machine. Papers: Witten, Neal & Cleary 1987; Delétang et al. 2023 (arXiv:2309.10668).

Measured, with the chapter's default run: the last tenth of tiny Shakespeare, 111,540 bytes, becomes 29,257
(gzip 44,486, bz2 36,743, xz 41,028) in 18 s and comes back the same. A text of another kind is no gain:
46,591 bytes of Python's language reference become 40,970 (gzip 12,311).
"""
import argparse
import bz2
import gzip
import lzma
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import torch

import char_rnn
from variations import start

BITS = 24  # a probability is a multiple of 2^−24
UNICODE = range(0, 2**BITS + 1, 8)  # a cumulative table: 2^21 numbers, all equally likely

def encode(intervals):
    """The number as bytes, given each symbol's part (a, b) of [0, 2^24). The interval is [low, low + span) in
    integers; when the span falls below 2^40, both get eight more binary digits."""
    low, span, size = 0, 1 << 48, 1
    for a, b in intervals:
        low, span = low + (span >> BITS) * a, (span >> BITS) * (b - a)
        while span < 1 << 40:
            low, span, size = low << 8, span << 8, size + 1
    return ((low + span - 1) >> 40).to_bytes(size, "big")  # zeros in its last 40 bits leave it ≥ low

class Decoder:
    """Finds the same intervals again, from `above`: the file's number minus `low`."""
    def __init__(self, blob):
        self.blob, self.span = iter(blob[6:]), 1 << 48
        self.above = int.from_bytes(blob[:6].ljust(6, b"\0"), "big")

    def get(self, cumulative):
        k = bisect_right(cumulative, self.above // (self.span >> BITS)) - 1  # the number lies in this part
        a, b = cumulative[k:k + 2]
        self.above, self.span = self.above - (self.span >> BITS) * a, (self.span >> BITS) * (b - a)
        while self.span < 1 << 40:
            self.above, self.span = self.above << 8 | next(self.blob, 0), self.span << 8
        return k

@torch.no_grad()
def walk(model, N, code):
    """Read a text of N characters in up to 16 streams. code(place, cumulative) codes and returns the symbol
    at a place; `cumulative` has the edges of K + 1 parts. Symbol K, the escape, is read as a beginning."""
    streams, escapes = min(16, 1 + N // 2000), 0
    length, symbol, state = -(-N // streams), torch.full((streams,), model.K), model.empty_state(streams)
    for t in range(length):
        logits, state = model.step(symbol, state)
        escape = 1 + min(2**(BITS - 1), 2**BITS * escapes // (t * streams + 256))  # the width of its part
        counts = (logits.double().softmax(1) * (2**BITS - escape - model.K)).long() + 1  # none is impossible
        tables = [[0, *row, 2**BITS] for row in counts.cumsum(1).tolist()]  # what is left is the escape's
        coded = [code(*pair) for pair in zip(range(t, N, length), tables)]  # the last stream may be shorter
        escapes += coded.count(model.K)
        symbol = torch.tensor(coded + [0] * (streams - len(coded)))

def pack(model, text):
    """A text as a .rnn file: "crnn", checksums of what follows and of the text, its length, the number."""
    known, intervals = {chr(c): k for k, c in enumerate(model.characters.tolist())}, []
    def code(place, cumulative):
        k, number = known.get(text[place], model.K), ord(text[place])
        parts = cumulative[k:k + 2], UNICODE[number:number + 2]
        intervals.extend(parts if k == model.K else parts[:1])  # the Unicode number only after an escape
        return k
    walk(model, len(text), code)
    rest = crc32(text.encode()).to_bytes(4, "big") + len(text).to_bytes(4, "big") + encode(intervals)
    return b"crnn" + crc32(rest).to_bytes(4, "big") + rest

def unpack(model, blob):  # the text of such a file
    if len(blob) < 17 or blob[:8] != b"crnn" + crc32(blob[8:]).to_bytes(4, "big"):
        raise OSError("the file is damaged, or `compress` did not make it")
    checksum, N = (int.from_bytes(blob[i:i + 4], "big") for i in (8, 12))
    decoder, found = Decoder(blob[16:]), {}
    def code(place, cumulative):
        k = decoder.get(cumulative)
        found[place] = chr(decoder.get(UNICODE) if k == model.K else model.characters[k])
        return k
    with suppress(ValueError):  # a number outside of the table, or of Unicode
        walk(model, N, code)
        if crc32((text := "".join(found[place] for place in range(N))).encode()) == checksum:
            return text
    raise OSError("the text does not come back: another model or machine compressed it")

def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m variations.compression")
    parser.error = lambda message: parser.exit(2, f"compression: {message}; see --help\n")
    parser.add_argument("action", choices=["compress", "decompress"])
    parser.add_argument("file")
    parser.add_argument("--to", help="the file to write")
    parser.add_argument("--model", default="out/char_rnn/model.pt", help="a run of char_rnn.py (%(default)s)")
    args = parser.parse_args(argv)
    blob, model = Path(args.file).read_bytes(), char_rnn.load(args.model)
    if args.action == "decompress":
        result, path = unpack(model, blob).encode(), args.file.removesuffix(".rnn")
    else:
        result, path = pack(model, blob.decode()), f"{args.file}.rnn"
        print(f"{len(blob):,} bytes; gzip: {len(gzip.compress(blob)):,}, bz2: {len(bz2.compress(blob)):,}, "
              f"xz: {len(lzma.compress(blob)):,}, char_rnn, the model not counted: {len(result):,}")
    with open(args.to or path, "xb") as file:  # never over a file that is there
        file.write(result)

if __name__ == "__main__":
    start(main)
