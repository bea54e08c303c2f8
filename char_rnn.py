# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""Char-RNN: an LSTM that predicts the next character (Graves 2013, arXiv:1308.0850).

What comes after "To be, or not to b"? A model of text gives each character a probability to come
next. By the product rule (see made.py) that makes the probability of a whole text, x_1 to x_T:

    log p(x) = Σ_t log p(x_t | x_1, …, x_{t−1})

A text has any length. So a state of fixed size stands for all that was read so far, and each
character changes it, always by the same weights: a recurrent neural network, RNN. With a vector
x_t for each character, the plainest one is

    h_t = tanh(W x_t + U h_{t−1} + b)                    the state: some hundred numbers
    p(· | x_1, …, x_t) = softmax(V h_t)                  one number for each character to come

It hardly learns what lies far back. A change of h_{t−1} reaches h_t times U and the slope of tanh:
over n characters about the same factor n times. 0.5^100 = 8e-31, nothing is left; 2^100 = 1e30, it
explodes. So the LSTM (long short-term memory; Hochreiter & Schmidhuber 1997) has a cell c beside
each h. This unit decides what happens to its cell by gates, from 0 to 1 (σ is the sigmoid):

    f = σ(W_f x_t + U_f h_{t−1} + b_f)       forget gate: how much of the cell is kept
    i = σ(W_i x_t + U_i h_{t−1} + b_i)       input gate: how much is written to it
    g = tanh(W_g x_t + U_g h_{t−1} + b_g)    what is written, −1 to 1; often called a gate, too
    o = σ(W_o x_t + U_o h_{t−1} + b_o)       output gate: how much of the cell is shown
    c_t = f ⊙ c_{t−1} + i ⊙ g                ⊙ multiplies unit by unit
    h_t = o ⊙ tanh(c_t)

From c_{t−1} to c_t the factor is f, which the network sets itself: 0.99^100 = 0.37.

Training should make the probability of the text as large as possible. What is minimised is the
negative log-likelihood, NLL, for each character, the cross-entropy of the next one:

    −log p(x) / T = −(1/T) Σ_t log p(x_t | x_1, …, x_{t−1})        the product rule
                  = −(1/T) Σ_t log softmax(V h_{t−1})[x_t]         entry x_t; h_0: at the start

Logarithms are natural: the unit is the nat; nats / ln 2 are bits. The perplexity, e^NLL, says among
how many characters, all as likely, one would have to guess. Who knows nothing guesses among the 65
of tiny Shakespeare: perplexity 65, ln 65 = 4.17 nats, log₂ 65 = 6.02 bits. Lower is better.

Sampling: draw a character, read it, draw the next.

Run `python char_rnn.py`; pictures appear in out/char_rnn/. On tiny Shakespeare and one core of an
AMD EPYC (bfloat16), the other busy, it takes 642 seconds. Its last tenth, nats a character: by
frequency alone 3.348; this model 1.445 (2.084 bits, perplexity 4.24).

Good at: exact likelihoods; text without end. Bad at: what lies far back; speed of training, which
reads one character at a time. Read before: made.py. Read next: wavenet.py, transformer_ar.py.
"""

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from PIL import Image
from torch import nn

from data import text


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=5600, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="readers, see main")
    parser.add_argument("--length", type=positive_int, default=32, help="characters each reads")
    parser.add_argument("--lr", type=float, default=6e-3, help="peak learning rate of AdamW")
    parser.add_argument("--hidden", type=positive_int, default=384, help="units of a layer")
    parser.add_argument("--layers", type=positive_int, default=2, help="LSTM layers")
    parser.add_argument("--dropout", type=float, default=0.3, help="share of units that are muted")
    parser.add_argument("--text", default="", help="a UTF-8 file instead of tiny Shakespeare")
    parser.add_argument("--prompt", default="", help="text that the samples go on with")
    parser.add_argument("--temperature", type=float, default=1.0, help="1: p(x); less: less risk")
    add_common_flags(parser, out="out/char_rnn", save_every=700)  # --resume ...: at the end
    return parse(parser, argv)


# %% Model
# What are gates good for? Take a word of five letters. After "mer" comes r, after "merr" comes y:
# the letter r alone does not say which. So let a unit count the r's: it forgets at m and y, writes
# 1 at r and shows its count there, to V. (Here gates are 0 or 1 and see x_t only: U = 0.)
#
#     x_t    keep: f    write: i    what: g    c_t = f c_{t−1} + i g    show: o    h_t = o tanh(c_t)
#      m       0          0           ·        0                          0        0
#      e       1          0           ·        1 · 0 + 0     = 0          0        0
#      r       1          1           1        1 · 0 + 1 · 1 = 1          1        0.76, r comes
#      r       1          1           1        1 · 1 + 1 · 1 = 2          1        0.96, y comes
#      y       0          0           ·        0                          0        0
class LSTM(nn.Module):
    """A layer of LSTM units. Each reads all inputs x_t and the h_{t−1} of all units."""

    def __init__(self, inputs, hidden, dropout):
        super().__init__()
        self.W = nn.Linear(inputs, 4 * hidden)  # W_f, W_i, W_g, W_o in one, and b
        self.U = nn.Linear(hidden, 4 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, h, c):
        """Read x (B, T, inputs): h after each character, (B, T, hidden), and the last h and c."""
        heard = self.dropout(torch.ones_like(h))  # in training 0 for some units, see Notes
        outputs = []
        for Wx in self.W(x).unbind(dim=1):  # W x + b of all characters at once, U h in turn
            f, i, g, o = (Wx + self.U(h)).chunk(4, dim=1)  # (B, hidden) each, before σ and tanh
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh() * heard
            outputs.append(h)
        return torch.stack(outputs, dim=1), h, c


class CharRNN(nn.Module):
    """p(x) of a text x. A character is a number, 0 to K − 1: its place in the list `characters`."""

    def __init__(self, characters, hidden=384, layers=2, dropout=0.3):
        super().__init__()
        self.characters = characters
        codes = torch.tensor([ord(character) for character in characters])
        self.register_buffer("codes", codes)  # for checkpoints
        self.start = len(characters)  # one more: here a text begins
        self.embedding = nn.Embedding(len(characters) + 1, 64)  # a vector for each
        sizes = [64] + [hidden] * layers
        self.layers = nn.ModuleList(LSTM(a, b, dropout) for a, b in zip(sizes, sizes[1:]))
        self.V = nn.Linear(hidden, len(characters), bias=False)
        nn.init.zeros_(self.V.weight)  # untrained, each character is as probable

    def empty_state(self, B):
        """h and c of each layer before anything was read, (layers, 2, B, hidden)."""
        return torch.zeros(len(self.layers), 2, B, self.V.in_features, device=self.codes.device)

    # Each layer reads the h of the one below, V the sum of all: so a layer is of use before those
    # above it have learnt anything. (In the paper each has a V of its own.)
    def forward(self, x, state):
        """Read x (B, T): logits of what comes after each character, (B, T, K); the new state."""
        below = self.embedding(x)  # (B, T, 64)
        total = 0
        after = []
        for layer, (h, c) in zip(self.layers, state):
            below, h, c = layer(below, h, c)
            total = total + below
            after.append(torch.stack([h, c]))
        return self.V(total).float(), torch.stack(after).float()  # float32 after bfloat16

    @torch.no_grad()
    def surprise(self, x):
        """−log p(x_t | x_1, …, x_{t−1}) of each character of texts x (B, T), exact, nats (B, T)."""
        read = F.pad(x[:, :-1], (1, 0), value=self.start)  # who predicts x_t has read up to x_{t−1}
        logits, _ = self(read, self.empty_state(len(x)))
        return F.cross_entropy(logits.mT, x, reduction="none")

    def encode(self, string):
        """A string as numbers (1, T)."""
        unknown = sorted(set(string) - set(self.characters))
        if unknown:
            raise OSError(f"the text that was learnt from has no {unknown!a}")
        numbers = [self.characters.index(character) for character in string]
        return torch.tensor([numbers], dtype=torch.long, device=self.codes.device)

    @torch.no_grad()
    def sample(self, prompt="", length=500, temperature=1.0):
        """Read the prompt and write on: the new text alone, `length` characters."""
        read = F.pad(self.encode(prompt), (1, 0), value=self.start)
        state = self.empty_state(1)
        new = ""
        for _ in range(length):
            logits, state = self(read, state)
            p = (logits[:, -1] / max(temperature, 1e-4)).softmax(1)  # temperature: see below
            read = torch.multinomial(p, 1)  # (1, 1): drawn, and read next
            new += self.characters[read.item()]
        return new


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


# A book is too long for one step. So many readers (the batch) stand at places all over it, and in
# each step they read on a little. Three, in "shall I compare thee to a summer's day":
#
#                 step 1   step 2   step 3
#     reader 1    s h a l  l _ I _  c o m p      then "are ", where reader 2 began
#     reader 2    a r e _  t h e e  _ t o _
#     reader 3    _ s u m  m e r '  s _ d a      after the end of the text comes its beginning
#     state       ──────▸  ──────▸  ──────▸      is carried on from window to window
#     gradient    ◂──────  ◂──────  ◂──────      stops where its window begins
# To the gradient the state that comes in is a constant (`detach`): truncated backpropagation
# through time. What was read long ago may be of use, but what to remember is learnt from what is of
# use within a window. And as texts begin somewhere, one reader in 20, on average, reads the start
# symbol with an empty state, as if a text began where it stands.
def main(argv=None):
    args = parse_flags(argv)
    x, characters, source = text(args.text, args.stand_in, ids=True)
    if len(x) < 1000:
        raise OSError(f"{source!a} has {len(x):,} characters; at least 1,000 are needed")
    cuts = [len(x) * 89 // 100, len(x) * 9 // 10]  # a hundredth for validation, a tenth as the test
    x, x_valid, x_test = x.to(args.device).tensor_split(cuts)
    n = len(x)

    torch.manual_seed(args.seed)
    model = CharRNN(characters, args.hidden, args.layers, args.dropout).to(args.device)
    model.encode(args.prompt)  # a character that is not in the text is found now
    betas = (0.9, 0.99)  # step sizes by the last 100 gradients, not 1,000: training is short
    optimizer = torch.optim.AdamW(model.parameters(), 0, betas, weight_decay=0.1, fused=True)
    carried = nn.Module()  # holds the readers' state, for checkpoints
    carried.register_buffer("state", model.empty_state(args.batch_size))
    run = Run(args, source, n, "NLL, nats/char", model=model, optimizer=optimizer, carried=carried)
    first = torch.arange(args.batch_size, device=args.device) * n // args.batch_size
    window = torch.arange(args.length + 1, device=args.device)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        place = first + (step - 1) * args.length  # where each reader stands
        sequence = x[(place[:, None] + window) % n]  # (B, length + 1)
        read = sequence[:, :-1].clone()
        anew = torch.rand(args.batch_size, device=args.device) < 0.05
        read[anew, 0] = model.start
        carried.state[:, :, anew] = 0
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            logits, state = model(read, carried.state)
        carried.state = state.detach()
        loss = F.cross_entropy(logits.mT, sequence[:, 1:])  # each predicts the next one
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # U still multiplies h: it may explode
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            model.eval()  # without dropout
            run.save(model.surprise(x_valid[None]).mean().item())
            written = model.sample(args.prompt, 600, args.temperature)
            run.picture("samples.png", page(args.prompt + written, f"a sample, step {step:,}"))
            model.train()
    evaluate(run, model.eval(), x, x_test)


# %% That is the whole idea. Below: what the trained model can do, and the frame.
# %% Evaluation
def load_checkpoint(path):
    """What a run wrote into model.pt, a dictionary."""
    try:
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return saved | {"flags": saved["flags"]}  # KeyError if this is somebody else's file
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of this script") from error


def load(path="out/char_rnn/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    characters = [chr(code) for code in saved["model"]["codes"].tolist()]
    model = CharRNN(characters, flags["hidden"], flags["layers"], flags["dropout"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


def page(string, title, shade=None, label=""):
    """A figure of a text; `shade`, a number for each character, gives the colour behind it."""
    glyphs = get_font(findfont("monospace")).get_charmap()  # what the font has
    axes = Figure(layout="constrained").subplots()
    background = torch.full((len(string), 80), math.nan)
    place = 0  # on the page, 80 to a row
    for i, character in enumerate(string):
        row, column = divmod(place, 80)
        if character.isprintable():
            drawn = character if ord(character) in glyphs else "□"
            axes.text(column - 0.5, row + 0.3, drawn, size=9, family="monospace", parse_math=False)
        if shade is not None:
            background[row, column] = shade[i]
        place += 80 - column if character == "\n" else 1
    image = axes.imshow(background[: row + 1].numpy(), cmap="YlOrRd", alpha=0.7, aspect="auto")
    if shade is not None:
        axes.figure.colorbar(image, label=label)
    axes.figure.set_size_inches(8, 0.16 * row + 1.2)
    axes.set_axis_off()
    axes.set_title(title)
    return axes.figure


# Temperature τ divides logits: p becomes p^(1/τ), scaled to a sum of 1. With τ = 0.5, 0.8 and 0.2
# become 94 % and 6 %: fewer slips, less variety. τ = 2: 67 % and 33 %. Only τ = 1 draws from p(x).
@torch.no_grad()
def evaluate(run, model, x, x_test):
    """Results and pictures, from the text (N,) that was trained on and from its last tenth."""
    torch.manual_seed(1)
    K = len(model.characters)
    x_test = x_test[:120_000]  # of a long text, a part
    print("reading the last tenth, one character after the other ...", flush=True)
    surprise = model.surprise(x_test[None])[0]
    nll = surprise.mean().item()
    frequency = (x.bincount(minlength=K) + 1) / (len(x) + K)
    pieces = x_test[: len(x_test) // 64 * 64].view(-1, 64)  # what if it remembered no more than 64?
    results = {
        "untrained, nats/char": math.log(K),
        "character frequencies, nats/char": -frequency.log()[x_test].mean().item(),
        "test NLL, nats/char": nll,
        "test NLL, bits/char": nll / math.log(2),
        "test perplexity": math.exp(nll),
        "test NLL, begun anew after each 64, nats/char": model.surprise(pieces).mean().item(),
    }
    run.report(results)

    samples = ""
    for temperature in (run.args.temperature, 0.25, 0.5, 1.5):
        written = model.sample(run.args.prompt, 400, temperature)
        samples += f"TEMPERATURE {temperature:g}:\n{run.args.prompt}{written}\n\n"
    run.picture("samples.png", page(samples, "a low temperature is safe, a high one is daring"))

    real = "".join(model.characters[k] for k in x_test[:800].tolist())
    bits = surprise[:800].cpu() / math.log(2)
    title = "held-out text: words are hard to guess at their beginning, easy at their end"
    run.picture("surprise.png", page(real, title, bits, "−log₂ p of the character, bits"))

    read = F.pad(x_test[None, :59], (1, 0), value=model.start)
    logits, _ = model(read, model.empty_state(1))
    pages = []
    for t, p in enumerate(logits[0].softmax(1).cpu()):
        heights, likeliest = p.topk(min(12, K))
        axes = Figure(figsize=(7, 3), layout="constrained").subplots()
        axes.bar([ascii(model.characters[k])[1:-1] for k in likeliest.tolist()], heights.numpy())
        axes.set(ylim=(0, 1), xlabel="next character", ylabel="probability")
        axes.set_title(f"after: {real[:t]!a}", size=9, parse_math=False)
        pages.append(axes.figure)
    run.picture("next_character.gif", *pages)


# %% Notes
# Differs from the paper: its gates see the cell, too ("peepholes"); it has up to seven layers, each
# with its own V, and one-hot characters. Ours: dropout mutes units through a window, others for
# each reader, and amplifies the rest (Gal & Ghahramani 2016); readers that begin anew; AdamW.
# Drafts after 70 s, validation, nats, at half the --lr: windows of 64 characters 1.92, of 32 1.74,
# one layer of 512 1.81; else 1.66. A step takes 105 ms, with nn.LSTM 93; in float32 288 and 154.
#
# Things to break:
# 1. In `main`, let them predict sequence[:, :-1], what they have just read: the training loss falls
#    almost to 0, validation climbs above ln K.
# 2. In `main`, drop .detach(): step 2 asks for a gradient through step 1, which is gone.
# 3. In `main`, drop model.eval(): units are muted in validation, too, and the loss is higher.
#
# References: forget gates: Gers et al. 2000; Karpathy 2015, "Unreasonable Effectiveness of RNNs".


# %% The frame: flags, checkpoints, status lines, pictures; the same in every script
def add_common_flags(parser, out, save_every):
    devices = [d for d in ("cuda", "cpu", "mps") if torch.get_device_module(d).device_count()]
    parser.add_argument("--device", default=devices[0], choices=devices, help="where to compute")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, help="None: if faster")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the run")
    parser.add_argument("--save-every", type=positive_int, default=save_every, help="in steps")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    choices = ["auto", "always", "never"]
    parser.add_argument("--stand-in", default="auto", choices=choices, help="use made-up data")


def positive_int(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse(parser, argv):
    """The flags. With --resume, those not given now are as in the saved run."""
    if argv is None and Path(sys.argv[0]).name.endswith("kernel_launcher.py"):
        argv = []  # these flags are not ours but those of a notebook's kernel
    args = parser.parse_args(argv)
    if args.resume:
        parser.set_defaults(**load_checkpoint(args.out / "model.pt")["flags"])
        args = parser.parse_args(argv)
    args.out = args.out.expanduser()
    if args.bfloat16 is None:
        args.bfloat16 = fast_bfloat16(args.device)
    return args


def fast_bfloat16(device):
    """Whether the hardware computes in bfloat16, which is then faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device == "cpu" and bool(cpu.get("avx512_bf16") or cpu.get("amx_tile"))


def write(path, content):
    """Write a file whole or not at all: first beside the old one, which it then replaces."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        if part.exists():
            part.unlink()
        raise OSError(f"cannot write {path}, see --out: {error.strerror}") from error


class Run:
    """A training run in the folder --out: its steps, status lines, checkpoints and results."""

    def __init__(self, args, source, size, loss_name, **parts):
        self.args = args
        self.source = source  # the name of the training data, of which there are `size`
        self.loss_name = loss_name
        self.parts = parts  # models and optimisers: checkpoints hold them, --resume restores them
        self.step = 0
        self.seconds = 0.0
        self.losses = []  # of the steps since the last checkpoint
        self.curve = []  # a point for each checkpoint
        networks = nn.ModuleList(p for p in parts.values() if isinstance(p, nn.Module))
        weights = sum(p.numel() for p in networks.parameters() if p.requires_grad)
        self.where = f"{args.device}, {torch.get_num_threads()} threads, bfloat16: {args.bfloat16}"
        print(f"{size:,} examples of {source!a}, {weights:,} weights, {self.where}", flush=True)
        self.checkpoint = args.out / "model.pt"
        if args.resume:
            self.restore(load_checkpoint(self.checkpoint))
        else:
            self.move_aside()
            self.save_checkpoint()

    def restore(self, saved):
        if saved["source"] != self.source:
            raise OSError(f"{self.args.out} learnt from {saved['source']}, not {self.source}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise OSError(f"{self.checkpoint} is of another script or other sizes") from error
        for name in ("step", "seconds", "curve"):
            setattr(self, name, saved[name])
        self.args.steps = max(self.args.steps, self.step)
        self.written = self.checkpoint.stat().st_mtime_ns

    def move_aside(self):
        """Move an earlier run's checkpoint, results and pictures to a folder of their own."""
        if not self.checkpoint.exists():
            return
        aside = self.args.out / time.strftime("earlier-%Y%m%d-%H%M%S")
        aside.mkdir()
        for path in list(self.args.out.iterdir()):
            if path.name in ("model.pt", "metrics.json") or path.suffix in (".png", ".gif", ".wav"):
                path.rename(aside / path.name)
        print(f"the earlier run is now in {str(aside)!a}", flush=True)

    def steps(self):
        """Yield the number of each step to come, up to --steps."""
        self.started = time.time() - self.seconds
        self.printed = time.time() - 5  # the first status line comes after five seconds
        while self.step < self.args.steps:
            self.step += 1
            torch.manual_seed(self.args.seed * 10**9 + self.step)  # a resumed run draws the same
            yield self.step

    def log(self, loss):
        """Note the loss of a step; every ten seconds, print a status line."""
        self.losses.append(loss.detach())  # .item() would make a GPU wait at every step
        if time.time() > self.printed + 10:
            self.printed = time.time()
            recent = torch.stack(self.losses[-100:]).mean().item()
            self.require_finite(recent)
            left = (self.printed - self.started) * (self.args.steps / self.step - 1) / 60
            print(f"step {self.step:,}  loss {recent:.4g}  {left:.1f} min left", flush=True)

    def require_finite(self, loss):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step:,} is {loss}: try a lower --lr")

    def save(self, validation):
        """Add a point to the learning curve and write a checkpoint."""
        training = torch.stack(self.losses).mean().item()
        self.require_finite(training + validation)
        print(f"step {self.step:,}: loss {training:.4g}, validation {validation:.4g}", flush=True)
        if self.checkpoint.exists() and self.checkpoint.stat().st_mtime_ns != self.written:
            raise OSError(f"another run has changed {self.checkpoint}: give each its own --out")
        self.curve.append({"step": self.step, "training": training, "validation": validation})
        self.losses = []
        self.seconds = time.time() - self.started
        self.save_checkpoint()

    def save_checkpoint(self):
        states = {name: part.state_dict() for name, part in self.parts.items()}
        content = io.BytesIO()
        torch.save(self.record() | states, content)
        write(self.checkpoint, content.getvalue())
        self.written = self.checkpoint.stat().st_mtime_ns

    def record(self):
        """What model.pt and metrics.json both say about the run."""
        flags = vars(self.args).copy()
        for name in ("device", "out", "resume"):
            del flags[name]
        record = {"flags": flags, "torch": str(torch.__version__)}
        for name in ("source", "where", "step", "seconds", "curve"):
            record[name] = getattr(self, name)
        return record

    def report(self, results):
        """Print the results; write them to metrics.json, and the learning curve to curve.png."""
        for name, value in results.items():
            print(f"{name}: {value:.4g}", flush=True)
            results[name] = value if math.isfinite(value) else None  # JSON knows no NaN
        metrics = {"results": results} | self.record()
        write(self.args.out / "metrics.json", json.dumps(metrics, indent=1).encode())
        axes = Figure(layout="constrained").subplots()
        steps = [point["step"] for point in self.curve]
        for name in ("training", "validation"):
            axes.plot(steps, [point[name] for point in self.curve], "o-", label=name)
        axes.set(xlabel="step", ylabel=self.loss_name, title="learning curve")
        axes.legend()
        self.picture("curve.png", axes.figure)

    def picture(self, name, *figures):
        """Write one figure as a PNG, or several as the pages of a GIF."""
        pages = []
        for figure in figures:
            figure.supxlabel(f"data: {self.source}", size="x-small", parse_math=False)
            page = io.BytesIO()
            figure.savefig(page, dpi=100)
            pages.append(Image.open(page).convert("RGB"))
        file = io.BytesIO()
        pages[0].save(file, name[-3:], save_all=True, append_images=pages[1:], duration=150, loop=0)
        write(self.args.out / name, file.getvalue())


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
