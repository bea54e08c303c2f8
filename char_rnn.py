# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""An RNN that reads: a state is carried along the sequence, and from it the next symbol is foretold.

A text x of T symbols has a probability that is a product of T factors, one a symbol, each given all symbols before it:

    log p(x) = Σₜ log p(xₜ | x₁, …, xₜ₋₁)            the chain rule: exact
    p(xₜ | x₍<ₜ₎) = softmax(V hₜ₋₁)                    all that came before is in the state (h, c), of fixed size
    c ← σ(f) ⊙ c + σ(i) ⊙ tanh(g),   h = σ(o) ⊙ tanh(c)     i, f, g, o = W·input + U·h + b: the LSTM

The gates i (input), f (forget), o (output) are opened by σ from 0 to 1; tanh(g) is what might be written. The memory c
is changed by multiplying and adding, step after step; where the forget gate σ(f) is near 1, what was written (and its
gradient, on the way back) lasts for hundreds of steps. A plain RNN's would fade or explode.

Trains: cross-entropy of the next symbol, −log p(x) itself. A book is too long to back-propagate through. So 64 readers
(the batch) start at 64 places and each reads 64 more characters per optimiser step, round and round: the state is
carried from step to step, the gradient is not (truncated back-propagation). Rarely but surely a gradient explodes, so
its norm is clipped. Samples: symbol after symbol, one LSTM step each, cost in proportion to T; the plain way, which
reads all again for every symbol, costs T²/2 steps. p(x): exact. Latent, a hidden code behind the text: none. Good at:
streams without end, at the same cost a symbol for ever. Bad at: what is far back, since all of it must fit the state;
and at training, since its steps cannot be done side by side.

Who can foretell a text can shorten it: `compress` drives an arithmetic coder with the model's probabilities and
`decompress` gets every byte back, so the loss is no mere score but the size of a file. And is a sample new, or learned
by heart? memorised.png colours it by the longest stretch that stands in the training text; held_out.png does the same
with text by Shakespeare that the model has not seen, for comparison.

What you will see. `python char_rnn.py` on tiny Shakespeare and 2 CPU cores (AMD EPYC, bfloat16): 386 s of training, 29
s of pictures and compression.

    step 68/2,600  -log p in nats per symbol 3.3722  429 stretches/s  6 min 17 s left
    step 1,425/2,600  -log p in nats per symbol 1.3105  440 stretches/s  2 min 51 s left
    step 2,600/2,600  -log p in nats per symbol 1.2151  432 stretches/s  0 min 00 s left

The last tenth of the text, which nanoGPT's published 1.4697 refers to as well: 1.4465 nats/char (2.087 bits), exact,
in 16 parts read side by side from an empty state. Untrained: ln 65 = 4.174; letter frequencies alone: 3.348. Its
111,540 bytes become 29,096 (the loss promises 29,096; bz2: 36,743, xz: 41,028, gzip: 44,486), the model itself not
counted.
In out/char_rnn: samples, temperature, surprise, memorised, held_out, cell, compression, curve (.png), growth (.gif),
sample.txt; with --data mnist: samples, completion, curve (.png), growth (.gif).

With `--text FILE --prompt "Once"` it learns a book of your own. Digits, pixel after pixel, told the class or not:
`python char_rnn.py --data mnist --hidden 256 --layers 1 --steps 800` (not yet measured).
On one GPU: `python char_rnn.py --steps 12000 --hidden 1024 --layers 3 --dropout 0.6` (not yet measured).

What differs from the papers. Layers after the first add to what is there (residual). The dropout mask is the same at
all steps of a stretch (Gal & Ghahramani 2016). 5 % of the stretches begin with an empty state and a start symbol, so
that p(x) has a beginning. AdamW, one cosine of the learning rate. Of the first nine tenths, the last ninetieth is for
validation.

References: Hochreiter & Schmidhuber 1997; Graves 2013 (arXiv:1308.0850); Karpathy 2015, "The Unreasonable
Effectiveness of Recurrent Neural Networks"; dropout: Gal & Ghahramani 2016 (1512.05287); coding: Witten, Neal & Cleary
1987.
Read before: made.py. Next: wavenet.py, which looks back without a state.

Things to break, one line each:
  1. In `update`, put x[i[:, :-1]] for x[i[:, 1:]]: the symbol to foretell is the one just read, the training loss
     falls to 0, validation climbs far above 4.17, and with --prompt A --temperature 0 a sample is A for ever.
  2. In `step`, drop `f.sigmoid() * c +`: the loss stays what it is (it does not use `step`), samples turn to babble
     and the compressed file is larger than the loss promises.
  3. In `nats` of `run_text`, drop model.eval(): dropout stays on while the validation text is read, and the same model
     scores worse.
"""
import argparse
import bz2
import gzip
import io
import json
import lzma
import math
import os
import signal
import sys
import time
from bisect import bisect_right
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from data import mnist, text

# %% Settings: name, the published run's value, what it is. `python char_rnn.py --help` prints them.
NAME, LOSS, ITEM = "char_rnn", "-log p in nats per symbol", "stretches"
FLAGS = {
    "steps": (2600, "optimiser steps"),
    "batch_size": (64, "readers: each walks through the text from a place of its own (or: digits per step)"),
    "lr": (3e-3, "peak learning rate of Adam"),
    "length": (64, "symbols that a reader reads per step; gradients go back so far and no further"),
    "hidden": (512, "units in a layer, each with a memory cell"),
    "layers": (2, "LSTM layers"),
    "dropout": (0.4, "share of the units silenced in training, between layers and before the output"),
    "data": (("text", "mnist"), "text: one character after the other; mnist: one binary pixel after the other"),
    "text": ("", "a UTF-8 file of your own instead of tiny Shakespeare"),
    "prompt": ("\n", "the text that samples go on from"),
    "temperature": (1.0, "below 1 the likely becomes likelier, 0 takes the likeliest; 1 is what the model believes"),
    "top_k": (1000, "samples choose among so many of the likeliest characters"),
}

# %% Model: a state carried along the sequence
class CharRNN(nn.Module):
    """p(x | y) = Πₜ p(xₜ | x₍<ₜ₎, y) over symbols 0..K−1, by an LSTM that reads them one by one.

    codes (K,): what the symbols stand for, as Unicode numbers. shape: of one sample, (T,) or (1, 28, 28).
    """

    def __init__(self, codes, shape, hidden=512, layers=2, dropout=0.0):
        super().__init__()
        self.K, self.shape, self.T = len(codes), shape, math.prod(shape)
        self.register_buffer("codes", codes)
        self.embed = nn.Embedding(self.K + 1, 64)  # symbol K means "it begins here"
        self.label = nn.Embedding(11, 64)  # added to each symbol; 10 stands for "not told"
        self.layers = nn.ModuleList(nn.LSTM(64 if i == 0 else hidden, hidden, batch_first=True) for i in range(layers))
        self.dropout, self.out = dropout, nn.Linear(hidden, self.K)
        for p in (self.label.weight, self.out.weight, self.out.bias):
            nn.init.zeros_(p)  # an untrained model gives each symbol 1 in K

    def forward(self, x, y=None, state=None):
        """Logits (B, T, K) for what follows each of the symbols x (B, T), and the state after the last of them."""
        y = torch.full((len(x),), 10, device=x.device) if y is None else y
        h, after = self.embed(x) + self.label(y)[:, None], []
        hs, cs = self.blank(len(x)) if state is None else state  # (layers, B, hidden) each
        for k, (layer, h0, c0) in enumerate(zip(self.layers, hs, cs)):
            new, (last, c) = layer(h, (h0[None].contiguous(), c0[None].contiguous()))  # `step`'s equations, for all t
            after.append(torch.cat([last, c]))  # (2, B, hidden)
            keep = F.dropout(new.new_ones(len(x), 1, new.shape[2]), self.dropout, self.training)  # at all steps alike
            h = h + keep * new if k else keep * new  # layers after the first add to what is there
        return self.out(h), torch.stack(after, 1)

    def step(self, x, y, state):
        """What `forward` does, for one symbol x (B,): the LSTM written out. state: h and c, (2, layers, B, hidden)."""
        below, after = self.embed(x) + self.label(y), []
        for layer, h, c in zip(self.layers, *state):
            W, U, b, d = layer.parameters()  # PyTorch keeps two biases where their sum would do
            i, f, g, o = (F.linear(below, W, b) + F.linear(h, U, d)).chunk(4, 1)  # (B, hidden) each
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()  # the memory: some of the old kept, some new written
            h = o.sigmoid() * c.tanh()  # and some of it shown
            below = below + h if after else h  # layers after the first add to what is there
            after.append(torch.stack([h, c]))
        return self.out(below), torch.stack(after, 1)

    def log_prob(self, x, y=None):
        """log p(x | y), or log p(x), of sequences x (B, T) or images (B, 1, 28, 28): nats (B,). Exact."""
        y = None if y is None else torch.as_tensor(y, device=x.device).expand(len(x))
        x = x.flatten(1).long()
        logits, _ = self(F.pad(x[:, :-1], (1, 0), value=self.K), y)
        return -F.cross_entropy(logits.to(self.out.weight).transpose(1, 2), x, reduction="none").sum(1)

    def blank(self, n):
        """The state of n readers who have read nothing: zeros, h and c in one (2, layers, n, hidden)."""
        return self.out.weight.new_zeros(2, len(self.layers), n, self.out.in_features)

    @torch.no_grad()
    def sample(self, n, y=None, given=None, temperature=1.0, top_k=None):
        """n sequences of self.shape; y is None, a class or (n,) classes; given (n, g): their first g symbols.

        The state holds all that matters of the symbols so far, so each costs one step, however long the sequence;
        the plain way, reading all of them again for every symbol, costs T²/2 steps instead of T.
        """
        y = torch.as_tensor(10 if y is None else y, device=self.codes.device).expand(n)
        x, symbol, state = [], torch.full_like(y, self.K), self.blank(n)
        for t in range(self.T):
            logits, state = self.step(symbol, y, state)
            logits = logits / max(temperature, 1e-6)
            if top_k and top_k < self.K:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
            symbol = torch.multinomial(logits.softmax(1), 1)[:, 0]
            if given is not None and t < given.shape[1]:
                symbol = given[:, t]
            x.append(symbol)
        x = torch.stack(x, 1).view(n, *self.shape)
        return x if len(self.shape) == 1 else x.float()

    def spell(self, x):
        return "".join(map(chr, self.codes[x].tolist()))

def binarise(x, seed=None):
    """A Bernoulli draw for each pixel of uint8 digits, its grey value the probability; by a seed, the same for ever."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return (torch.rand(x.shape, device=x.device, generator=generator) * 255 < x).float()

# %% Compression: who can foretell a text can shorten it, to −log₂ p(x) bits and a byte
BITS = 24  # probabilities are rounded to multiples of 2^−24

def encode(intervals):
    """Arithmetic coding: symbols as (a, b), their place in [0, 2^24) of cumulated probability, to bytes.

    Each symbol narrows [low, low + span) to its own part, and any number in the last one tells all of them. When span
    falls below 2^40, eight more bits are opened, so that its 2^24 parts stay wide enough to be told apart. Python's
    integers are as long as need be and carry by themselves.
    """
    low, span, size = 0, 1 << 48, 1
    for a, b in intervals:
        low, span = low + (span >> BITS) * a, (span >> BITS) * (b - a)
        while span < 1 << 40:
            low, span, size = low << 8, span << 8, size + 1
    return (low + span - 1 >> 40).to_bytes(size, "big")

class Decoder:
    """The same walk again: of the number written, only the distance above `low` is kept."""

    def __init__(self, blob):
        self.blob, self.span, self.above = iter(blob), 1 << 48, 0
        for _ in range(6):
            self.above = self.above << 8 | next(self.blob, 0)

    def next(self, cumulative):
        """The symbol k with cumulative[k] ≤ target < cumulative[k + 1], from a sorted list of K + 1 integers."""
        k = bisect_right(cumulative, self.above // (self.span >> BITS)) - 1
        a, b = cumulative[k], cumulative[k + 1]
        self.above, self.span = self.above - (self.span >> BITS) * a, (self.span >> BITS) * (b - a)
        while self.span < 1 << 40:
            self.above, self.span = self.above << 8 | next(self.blob, 0), self.span << 8
        return k

@torch.no_grad()
def walk(model, N, choose, readers=16):
    """Read N symbols with `readers` at once, each in his own part; choose(place, cumulative) says each symbol.

    Encoding, `choose` knows the symbol; decoding, it finds it. Both must compute the same probabilities to the last
    bit: the same steps on the same machine.
    """
    part = -(-N // readers)
    symbol, y, state = torch.full((readers,), model.K), torch.full((readers,), 10), model.blank(readers)
    for t in range(part):
        logits, state = model.step(symbol, y, state)
        share = (logits.double().softmax(1) * (2**BITS - model.K)).long() + 1  # no symbol is impossible
        rows = F.pad(share.cumsum(1), (1, 0)).tolist()
        symbol = torch.tensor([choose(r * part + t, row) if r * part + t < N else 0 for r, row in enumerate(rows)])

def compress(model, x):
    """Symbols x (N,) to bytes."""
    intervals, x = [], x.tolist()
    def choose(place, row):
        intervals.append((row[x[place]], row[x[place] + 1]))
        return x[place]
    walk(model, len(x), choose)
    return encode(intervals)

def decompress(model, blob, N):
    """Bytes of `compress` back to symbols (N,)."""
    x, decoder = [0] * N, Decoder(blob)
    def choose(place, row):
        x[place] = decoder.next(row)
        return x[place]
    walk(model, N, choose)
    return torch.tensor(x, dtype=torch.long)

# %% New or memorised?
def longest_matches(string, corpus):
    """For each place in a string, the length of the longest stretch around it that stands in the corpus."""
    longest, end = [0] * len(string), 0
    for start in range(len(string)):
        while end < len(string) and string[start:end + 1] in corpus:
            end += 1
        for place in range(start, end):
            longest[place] = max(longest[place], end - start)
        end = max(end, start + 1)
    return longest

# %% The frame, the same to the letter in every chapter: settings, saving, training, pictures. Read it once.
SAVE_EVERY = 20  # seconds between saves at first; more as a run grows long
COMMON = {
    "seed": (0, "every step's randomness comes from (seed, step) alone"),
    "device": ("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1"),
    "out": (f"out/{NAME}", "folder for all that the run makes"),
    "stand_in": (("auto", "always", "never"), "drawn data where the real cannot be had (auto), always, never"),
}

def start(argv):
    """Settings from the command line, and the run to go on with: a new one, or after --resume the one in --out."""
    parser = argparse.ArgumentParser(prog=f"{NAME}.py", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0])
    for name, (value, what) in (FLAGS | COMMON).items():
        first, choices = (value[0], value) if isinstance(value, tuple) else (value, None)
        parser.add_argument("--" + name.replace("_", "-"), type=type(first), default=first, choices=choices,
                            metavar="|".join(map(str, choices or [name.upper()])), help=f"{what} ({first!r})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the flags it had")
    s = parser.parse_args(argv)
    path, run = Path(s.out, "model.pt"), {"step": 0, "seconds": 0.0, "curve": [], "frames": [], "state": {}}
    if s.resume and not path.exists():
        print(f"{path} is not there: starting at step 0")
    elif s.resume:
        run = read_run(path)
        parser.set_defaults(**run["settings"])  # for all that the command line does not say
        s = parser.parse_args(argv)
    for name, value in vars(s).items():
        least = 1 if type(value) is int and name != "seed" else 0
        if type(value) in (int, float) and not least <= value < (2**31 if type(value) is int else math.inf):
            parser.error(f"--{name.replace('_', '-')} {value} is out of range, which begins at {least}")
    try:
        torch.zeros(1, device=s.device)
    except (RuntimeError, AssertionError):
        parser.error(f"--device {s.device} is not to be had on this machine")
    s.out, run["name"] = Path(s.out), NAME
    run["settings"] = {name: vars(s)[name] for name in (*FLAGS, "seed", "stand_in")}
    kept = [] if s.resume else [f for f in (path, s.out / "metrics.json") if f.exists()]  # of a run before this one
    k = next(k for k in range(1, 10**6) if not any(s.out.glob(f"*-{k}.*")))
    for old in kept:
        print(f"{old} of the run before is now {old.rename(old.with_stem(f'{old.stem}-{k}'))}")
    write(s.out / "settings.json", json.dumps(run["settings"], indent=1).encode())  # fails now, not later
    return s, run

def write(path, blob):
    """Write bytes beside `path`, then rename: nobody meets half a file, and a full disk never costs the old one."""
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(blob)
        os.replace(beside, path)
    except OSError as error:
        if beside.exists():
            beside.unlink()
        raise OSError(f"cannot write {path}: {error.strerror}") from error

def read_run(path):
    """What `train` saved: name, settings, step, seconds, curve, frames, and the state of every part."""
    try:
        run = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file breaks the unpickler in many ways
        raise OSError(f"{path} is damaged, or no saved run") from error
    if not isinstance(run, dict) or run.get("name") != NAME:
        raise OSError(f"{path} is not a run of {NAME}.py")
    return run

def restore(parts, state):
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise OSError("the saved run does not fit these settings: leave the model's flags as they were") from error

def mixed(device):
    """bfloat16 autocast where the hardware computes in it, else nothing."""
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.cuda.is_bf16_supported(False) if "cuda" in device else cpu.get("avx512_bf16") or cpu.get("amx_tile")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bool(fast))

def train(s, run, parts, update, validate, draw):
    """Call `update(step)`, which gives a loss, until s.steps are done or Ctrl-C; validate, draw and save on the way.

    Each step is seeded with (seed, step) and every part is saved (a part is what has a state_dict), so a run that was
    killed and resumed ends in the same weights. `validate()` gives a float, `draw()` a frame to keep.
    """
    if run["state"]:
        restore(parts, run["state"])
    stop, losses, terminal = [], [], sys.stdout.isatty()
    # The first Ctrl-C only asks for a stop after the step, a second one is as usual.
    usual = signal.signal(signal.SIGINT, lambda *_: (stop.append(1), signal.signal(signal.SIGINT, usual)))
    begun = told = saved = time.perf_counter()
    first, before, pause, last = run["step"], run["seconds"], SAVE_EVERY, run["step"] >= s.steps
    while not last:
        torch.manual_seed((s.seed << 32) + run["step"])
        losses.append(update(run["step"]).detach())
        run["step"] += 1
        now, last = time.perf_counter(), run["step"] >= s.steps or bool(stop)
        if last or now - told > (0.5 if terminal else 10) or now - saved > pause:
            values, told, rate = torch.stack(losses).tolist(), now, (run["step"] - first) / (now - begun)
            if not math.isfinite(sum(values)):
                bad = run["step"] - len(values) + 1 + [math.isfinite(v) for v in values].index(False)
                raise FloatingPointError(f"the loss is not finite at step {bad}: try a lower --lr. "
                                         f"What was saved before is still in {s.out}")
            left, loss = (s.steps - run["step"]) / rate, sum(values[-100:]) / len(values[-100:])
            line = (f"step {run['step']:,}/{s.steps:,}  {LOSS} {loss:.4f}  {rate * s.batch_size:,.0f} {ITEM}/s  "
                    f"{left // 60:.0f} min {left % 60:02.0f} s left")
            print(f"\r{line} " if terminal else line, end="" if terminal and not last else "\n", flush=True)
        if last or now - saved > pause:
            run["curve"].append((run["step"], sum(values) / len(values), validate()))
            run["frames"].append(draw())
            run["state"] = {name: part.state_dict() for name, part in parts.items()}
            run["seconds"], blob = before + time.perf_counter() - begun, io.BytesIO()
            torch.save(run, blob)
            write(s.out / "model.pt", blob.getvalue())
            saved, losses = time.perf_counter(), []
            pause = max(SAVE_EVERY, run["seconds"] / 20, 15 * (saved - now))  # saving takes a 16th of the time at most
    signal.signal(signal.SIGINT, usual)
    if stop:
        print(f"stopped after step {run['step']:,} and saved: --resume goes on from there, Ctrl-C leaves now")

def sheet(images, columns, title, rows=None, cols=None):
    """A figure of images (N, 1, 28, 28) in [0, 1], `columns` to a row, with names of rows and columns."""
    tiles = images.float().cpu().view(-1, columns, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1)
    height = len(tiles) // 28
    fig = Figure(figsize=(columns / 2 + 1.2, height / 2 + 0.9), layout="constrained")
    ax = fig.subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    fig.suptitle(title, size=10)
    ax.set_xticks(range(14, 28 * columns, 28), cols or [""] * columns, size=8)
    ax.set_yticks(range(14, 28 * height, 28), rows or [""] * height, size=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig

def picture(s, name, *figs):
    """Write a figure as a .png, or several as the frames of a .gif, the source of the data in the corner."""
    pages, blob = [], io.BytesIO()
    for fig in figs:
        fig.supxlabel(s.source, x=0.005, ha="left", size=6, color="gray")
        fig.savefig(page := io.BytesIO(), dpi=120)
        pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
    pages[0].save(blob, name[-3:], **{"save_all": True, "append_images": pages[1:], "loop": 0, "duration": [
        200] * len(pages[1:]) + [2500]} if name.endswith("gif") else {})
    write(s.out / name, blob.getvalue())

def finish(s, run, results, levels):
    """Draw the curve beside `levels` to compare with; print the results and keep them in metrics.json."""
    fig = Figure(figsize=(6, 4), layout="constrained")
    ax = fig.subplots()
    step, loss, valid = zip(*run["curve"])
    ax.plot(step, loss, "o-", ms=3, label="training, mean since the point before")
    ax.plot(step, valid, "o-", ms=3, label="validation")
    for name, level in levels.items():
        ax.axhline(level, ls="--", lw=1, color="gray")
        ax.annotate(f"{name} {level:.4g}", (step[-1], level), ha="right", va="bottom", size=8)
    ax.set(title=f"{NAME}.py: loss over training", xlabel="step", ylabel=LOSS,
           yscale="log" if min(loss + valid) > 0 else "linear")
    fig.legend(loc="outside lower right", ncols=2, fontsize=8)
    picture(s, "curve.png", fig)
    for name, value in results.items():
        print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}")
    device = torch.cuda.get_device_name(s.device) if "cuda" in s.device else f"CPU, {torch.get_num_threads()} threads"
    write(s.out / "metrics.json", json.dumps({
        "script": NAME, "results": results, "levels": levels, "settings": run["settings"], "steps done": run["step"],
        "source": s.source, "device": device, "torch": torch.__version__, "curve": run["curve"]}, indent=1).encode())
    print(f"in {s.out}: {', '.join(sorted(f.name for f in s.out.iterdir() if f.suffix != '.part'))}")

# %% Pictures
def page(string, title, shade=None, what="", height=None):
    """A figure of text, of so many rows; `shade`, a number for each character, colours the ground behind it."""
    rows, places = [""], []
    for c in string:
        if c != "\n" and len(rows[-1]) == 80:
            rows.append("")
        places.append((len(rows) - 1, len(rows[-1])))
        if c == "\n":
            rows.append("")
        else:
            rows[-1] += c if c.isprintable() else " "
    wide = 80 if height else max(56, *map(len, rows))
    rows = (rows + [""] * height)[:height] if height else rows
    fig = Figure(figsize=(0.085 * wide + 1.2, 0.155 * len(rows) + 1), layout="constrained")
    ax = fig.subplots()
    ax.set(xlim=(-0.5, wide + 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_axis_off()
    if shade is not None:
        grid = torch.full((len(rows), wide + 1), math.nan)
        for (row, col), value in zip(places, shade):
            grid[row, col] = value
        ground = ax.imshow(grid, cmap="YlOrRd", aspect="auto", vmin=0, vmax=1.4 * max(shade))  # no darker than legible
        fig.colorbar(ground, label=what, shrink=0.8)
    for row, line in enumerate(rows):
        for col, c in enumerate(line):
            ax.text(col, row, c, family="monospace", size=7, ha="center", va="center", parse_math=False)
    fig.suptitle(title, size=9)
    return fig

def draw_text(s, run, model, train_text, test, sizes):
    """All pictures of a model of text: from it, the training text, the test symbols and {name: size of the file}."""
    torch.manual_seed(1)
    prompt = torch.tensor([[model.codes.tolist().index(ord(c)) for c in s.prompt]], device=s.device)
    def write_text(temperature, n=1):
        return [model.spell(x) for x in model.sample(n, given=prompt.expand(n, -1), temperature=temperature,
                                                     top_k=s.top_k)]
    mine, real = write_text(s.temperature)[0], model.spell(test[:model.T])
    picture(s, "samples.png", page(mine, f"a sample, temperature {s.temperature:g}"))
    write(s.out / "sample.txt", "\n\n".join(write_text(s.temperature, 8)).encode())
    picture(s, "growth.gif", *[page(model.spell(f)[:480], f"after {c[0]:,} steps of training, {c[2]:.2f} nats/char",
                                     height=24) for f, c in zip(run["frames"], run["curve"])])
    picture(s, "temperature.png", page("\n\n".join(
        f"[temperature {t}]\n{write_text(t)[0][:480]}" for t in (0.4, 0.7, 1.0, 1.3)), "from timid to wild"))
    for string, name in ((mine, "memorised"), (real, "held_out")):
        match = longest_matches(string, train_text)
        picture(s, f"{name}.png", page(
            string, f"{'a sample' if name == 'memorised' else 'held-out text'}: stretches that stand in the training "
            f"text,\nup to {max(match)} characters long, {sum(match) / len(match):.1f} on average", match, "length"))
    x = test[None, :model.T]
    with torch.no_grad():
        logits, _ = model(F.pad(x[:, :-1], (1, 0), value=model.K))
        h = model.layers[0](model.embed(x) + model.label.weight[10])[0]
    surprise = F.cross_entropy(logits[0], x[0], reduction="none") / math.log(2)
    picture(s, "surprise.png", page(real, "what the model did not expect: −log₂ p of each character",
                                    surprise.tolist(), "bits"))
    place = torch.tensor([len(real[:t + 1].rsplit("\n", 1)[-1]) for t in range(len(real))], device=s.device)
    match = torch.corrcoef(torch.cat([place[None].float(), h[0].T]))[0, 1:].nan_to_num()
    cell = match.abs().argmax()
    show = h[0, :, cell] * match[cell].sign()
    picture(s, "cell.png", page(real, f"unit {cell} of the first layer goes with the place in the line: correlation "
                                f"{match[cell].abs():.2f}", (show - show.min()).tolist(), "output of the unit"))
    fig = Figure(figsize=(7, 2.8), layout="constrained")
    ax = fig.subplots()
    ax.bar_label(ax.barh(list(sizes), list(sizes.values()), color="0.7"), [f"{v:,}" for v in sizes.values()], padding=3)
    ax.set(title="held-out text, compressed without loss (the model itself not counted)", xlabel="bytes",
           xlim=(0, 1.15 * max(sizes.values())))
    ax.invert_yaxis()
    picture(s, "compression.png", fig)

def draw_digits(s, run, model, x, y):
    """All pictures of a model of digits, with binary test digits x (N, 1, 28, 28) and their labels y (N,)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    picture(s, "samples.png", sheet(model.sample(100, digit.repeat(10)), 10, "samples of each class", cols=names))
    picture(s, "growth.gif", *[sheet(f.float(), 10, f"samples after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    half = x10.flatten(1)[:, :392].long()
    picture(s, "completion.png", sheet(torch.cat([x10, F.pad(half, (0, 392)).view_as(x10)] + [
        model.sample(10, None, given=half) for _ in range(4)]), 10, "the lower half drawn anew, class not told",
        ["digit", "given", 1, 2, 3, 4], names))

# %% The run
def build(s, codes):
    return CharRNN(codes, (1, 28, 28) if s.data == "mnist" else (600,), s.hidden, s.layers, s.dropout)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]), run["state"]["model"]["codes"])
    restore({"model": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    torch.manual_seed(s.seed)
    (run_text if s.data == "text" else run_digits)(s, run)

def prepare(s, codes, levels):
    """The model, its optimiser, and a function that takes one step of it down a loss."""
    model = build(s, codes).to(s.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; {LOSS}: "
          + ", ".join(f"{name} {level:.3f}" for name, level in levels.items()))

    def descend(step, loss):
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # backwards through 64 steps, gradients can explode
        optimizer.step()
        return loss

    return model, optimizer, descend

def run_text(s, run):
    x, vocabulary, s.source = text(s.text or None, s.stand_in, ids=True)
    if len(x) < (least := 2000 + 20 * s.length):
        raise OSError(f"{s.source} holds {len(x):,} characters, too few: {least:,} are needed")
    if strange := sorted(set(s.prompt) - set(vocabulary)):
        raise OSError(f"--prompt has characters that {s.source} has not: {strange}")
    x, K = x.to(s.device), len(vocabulary)
    x, valid, x_test = x.tensor_split([len(x) * 89 // 100, len(x) * 9 // 10])
    count = x.bincount(minlength=K) + 1.0
    levels = {"untrained": math.log(K), "frequencies alone": -(count / count.sum()).log()[x_test].mean().item()}
    model, optimizer, descend = prepare(s, torch.tensor([ord(c) for c in vocabulary]), levels)
    begin = torch.arange(s.batch_size, device=s.device)[:, None] * len(x) // s.batch_size  # where each reader begins
    carry = nn.Module()  # what the readers remember from step to step
    carry.register_buffer("state", model.blank(s.batch_size))

    def update(step):
        i = (begin + step * s.length + torch.arange(s.length + 1, device=s.device)) % len(x)  # and round again
        see, target = x[i[:, :-1]], x[i[:, 1:]]  # (B, T) each
        fresh = torch.rand(s.batch_size, device=s.device) < 0.05  # now and then one starts anew, knowing nothing
        see[fresh, 0], carry.state[:, :, fresh] = K, 0
        with mixed(s.device):
            logits, state = model.train()(see, None, carry.state)
        carry.state = state.float().detach()  # kept, but no gradient goes through it: truncated
        return descend(step, F.cross_entropy(logits.float().transpose(1, 2), target))

    @torch.no_grad()
    def nats(symbols, readers=16):
        """−log p per symbol of a text (N,), cut into as many parts as there are readers, who know nothing at first."""
        model.eval()
        parts = symbols[:len(symbols) // readers * readers].view(readers, -1)
        return -(model.log_prob(parts).sum() / parts.numel()).item()

    def draw():
        torch.manual_seed(0)
        sample = model.eval().sample(1)[0].cpu()
        picture(s, "samples.png", page(model.spell(sample), f"after {run['step']:,} steps of training"))
        return sample

    train(s, run, {"model": model, "optimizer": optimizer, "carry": carry}, update, lambda: nats(valid), draw)

    done, loss = time.perf_counter(), nats(x_test)
    model.cpu().eval()
    x_test = x_test.cpu()
    plain, blob = model.spell(x_test).encode(), compress(model, x_test)
    if model.spell(decompress(model, blob, len(x_test))).encode() != plain:
        raise OSError("the compressed text did not come back the same")
    sizes = {"as it is": len(plain), "gzip": len(gzip.compress(plain, 9)), "xz": len(lzma.compress(plain, preset=9)),
             "bz2": len(bz2.compress(plain)), "this model": len(blob)}
    coded = time.perf_counter()
    model.to(s.device)
    draw_text(s, run, model, model.spell(x), x_test.to(s.device), sizes)
    drawn = time.perf_counter()
    model.sample(64)
    finish(s, run, {
        "test nats/char": loss, "test bits/char": loss / math.log(2), "test characters": len(x_test),
        **{f"test text in bytes, {name}": size for name, size in sizes.items()},
        "bytes that the loss promises": round(loss / math.log(2) / 8 * len(x_test)),
        "seconds to compress and decompress": coded - done, "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

def run_digits(s, run):
    x, y, x_test, y_test, s.source = mnist(s.stand_in)
    b_valid, b_test = binarise(x[55000:], seed=0)[:1000], binarise(x_test, seed=1)  # once and for all
    x, y, b_valid, b_test, y_test = (v.to(s.device) for v in (x, y, b_valid, b_test, y_test))
    levels = {"untrained": math.log(2)}
    model, optimizer, descend = prepare(s, torch.tensor([ord("0"), ord("1")]), levels)

    def update(step):
        i = torch.randint(55000, (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.5, 10, y[i])  # half of them are not told
        with mixed(s.device):
            loss = -model.train().log_prob(binarise(x[i]), label).mean() / 784
        return descend(step, loss)

    @torch.no_grad()
    def nats(digits, labels=None):
        model.eval()
        parts = zip(digits.split(500), [None] * len(digits) if labels is None else labels.split(500))
        return -torch.cat([model.log_prob(*part) for part in parts])

    def draw():
        torch.manual_seed(0)
        samples = model.eval().sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return samples.byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, lambda: nats(b_valid).mean().item() / 784, draw)

    done = time.perf_counter()
    untold, told = nats(b_test), nats(b_test, y_test)
    draw_digits(s, run, model, b_test, y_test)
    drawn = time.perf_counter()
    model.sample(64)
    finish(s, run, {
        "test -log p(x), nats, network not told the class": untold.mean().item(),
        "its standard error": (untold.std() / len(untold) ** 0.5).item(),
        "test -log p(x | y), nats": told.mean().item(),
        "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
