# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""A transformer that draws: every patch of a picture is a token, and every token asks all those before it.

A digit x is a sequence of T tokens, each one of K symbols, and has a probability that is a product of T factors:

    log p(x | y) = Σₜ log p(xₜ | x₁, …, xₜ₋₁, y)              y: the class of the digit, told by the first token
    attention(q, k, v)ₜ = Σ_{s ≤ t} softmaxₛ(qₜ·kₛ / √d) vₛ    token t asks (q), tokens s answer (k: to what, v: what)

A PixelCNN's block sees three rows and five columns, and what is farther away must be handed on; here each layer
reaches everything that is there already, and learns whom to ask; attention.png shows it. Place t is fed symbols of
tokens before t, never xₜ, so it may ask itself too (s ≤ t). Attention itself is a few lines, `attention`; the fused
call, used on a GPU and for long sequences, computes the same and never stores the T x T weights.

Which tokens? With --patch 1, the original exercise, every pixel is one: T = 784, K = 2. With --patch 2, the default,
each 2 x 2 patch of binary pixels is one of K = 16 symbols: T = 196, four times fewer tokens and sixteen times fewer
pairs of them, and just as exact, since a patch's 16 probabilities are those of its four pixels together. On a laptop
that buys seven times as many digits seen in the same time: 81.15 nats against 91.82 for --patch 1 --steps 620, after
430 and 480 s of training (class not told, the first 1,000 test digits).

Trains: cross-entropy of the next token, summed: −log p(x | y) in nats, all T of them side by side. Samples: token
after token, keys and values kept (KV cache): token t costs a pass of itself, ∝ D², and t·D to ask, in all T·D² + T²·D;
the plain way passes all tokens again for each, T²·D² + T³·D. p(x): exact. Latent, a hidden code behind x: none. Good
at: everything with enough data and time. Bad at: little of either; at long sequences.

What you will see. `python transformer_ar.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16): 430 s of training, 85 s of
pictures.

    step 116/4,500  -log p in nats 191.2844  371 sequences/s  6 min 19 s left
    step 2,452/4,500  -log p in nats 83.3168  342 sequences/s  3 min 12 s left
    step 4,500/4,500  -log p in nats 81.2844  337 sequences/s  0 min 00 s left

Test set, binarised once, exact, in nats (± one standard error): −log p(x) = 82.23 ± 0.20 from the network that is not
told the class, −log p(x | y) = 79.46. With the class summed out, on the first 1,000 digits: 80.64 (not told, on the
same: 81.15). Untrained: 784 ln 2 = 543.4; each pixel on its own: 206.0; gated_pixelcnn.py: 82.67. The class y of the
largest p(x | y) is right for 93.5 % of those 1,000 (Bayes' rule). AUROC of −log p(x), class not told, 1,000 test
digits against the same upside down: 0.662, inverted: 1.000, noise: 1.000. 64 samples take 0.4 s.
In out/transformer_ar: samples, completion, attention, surprise, unusual, curve (.png), pixel_by_pixel, growth (.gif).
Text: `python transformer_ar.py --data text --steps 3000 --dropout 0.1` (not yet measured).
On one GPU:
`python transformer_ar.py --patch 1 --steps 100000 --batch-size 64 --width 256 --layers 8 --heads 8 --lr 1e-3`
and `python transformer_ar.py --data text --steps 5000 --batch-size 64 --width 384 --layers 6 --dropout 0.2 --lr 1e-3`
(not yet measured).

What differs from the papers. A token is fed the symbols of six neighbours (left, above, ...), summed, where GPT feeds
that of the one before: --near 1 is GPT's way. Layer norm before each part (pre-norm). The class is hidden from half of
the digits. Digits are binarised afresh at every step. AdamW, one cosine of the learning rate.

References: Vaswani et al. 2017 (arXiv:1706.03762), equation 1; pixels as tokens: Chen et al. 2020 (ImageGPT), Parmar
et al. 2018 (1802.05751).
Read before: gated_pixelcnn.py, char_rnn.py. Next: vae.py, where there is a latent z behind x.

Things to break, one line each:
  1. In `attention`, put triu(2) for triu(1), and set --device cpu: a token finds itself in what the next one is fed,
     the loss falls to almost 0; the sampler has no next one and repeats itself: blank pages.
  2. In `Block`, write to kept[0, :, :, 0] and kept[1, :, :, 0]: the loss stays what it is, samples forget the class
     and all but their neighbours.
  3. In `embed`, drop `+ self.place(t)`, and set --near 1: no token is told where it is; the loss is higher.
"""
import argparse
import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from data import mnist, text

# %% Settings: name, the published run's value, what it is. `python transformer_ar.py --help` prints them.
NAME, LOSS, ITEM = "transformer_ar", "-log p in nats", "sequences"
FLAGS = {
    "steps": (4500, "optimiser steps"),
    "batch_size": (32, "digits (or stretches of text) per step"),
    "lr": (3e-3, "peak learning rate of AdamW"),
    "width": (128, "D: features of a token"),
    "layers": (4, "layers of attention and MLP"),
    "heads": (2, "attention heads in a layer"),
    "dropout": (0.0, "share of what a layer adds that is silenced in training"),
    "near": (6, "neighbours, at most 6, whose symbols enter a token: 1 is the one before it alone, as in GPT"),
    "patch": ((2, 1), "pixels along a token: 2 makes each 2 x 2 patch one of 16 symbols, 1 each pixel one of 2"),
    "data": (("mnist", "text"), "mnist: binary digits, token by token; text: one character after the other"),
    "length": (256, "characters of a stretch of text"),
    "text": ("", "a UTF-8 file of your own instead of tiny Shakespeare"),
}

# %% Model: every token asks all tokens before it
def attention(q, k, v):
    """softmax(q kᵀ / √d) v, token t asks tokens 0..t: of q, k, v (B, heads, T, d), the same shape; and the weights."""
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5  # (B, heads, T, T): how well query t suits key s
    later = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(3)
    return weights @ v, weights

class Block(nn.Module):
    """What others say (attention), then what to make of it (an MLP), each added to what is there."""

    def __init__(self, D, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm1, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.norm2, self.mlp = nn.LayerNorm(D), nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x, kept=None, t=None, watch=None):
        """x (B, T, D); or token t alone, (B, 1, D), and `kept`, keys and values (2, B, heads, T, d) of the others."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, T, d) each
        if kept is not None:
            kept[0, :, :, t], kept[1, :, :, t] = k[:, :, 0], v[:, :, 0]
            h = F.scaled_dot_product_attention(q, *kept[:, :, :, :t + 1])
        elif x.is_cuda or T > 256:
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # `attention`, never storing T x T weights
        else:  # on a CPU and for short sequences, the plain formula is the faster
            h, _ = attention(q, k, v)
        if watch is not None:
            watch.append(attention(q, k, v)[1])
        x = x + self.dropout(self.out(h.transpose(1, 2).reshape(B, T, D)))
        return x + self.dropout(self.mlp(self.norm2(x)))

class Transformer(nn.Module):
    """p(x | y) = Πₜ p(xₜ | x₍<ₜ₎, y) over the T tokens of a sequence, each one of K symbols.

    patch: 1 or 2, pixels along a token of a 28 x 28 image; 0, for text. codes (K,): the characters, as Unicode numbers.
    """

    def __init__(self, patch=2, T=196, K=16, D=96, layers=4, heads=4, dropout=0.0, near=6, codes=None):
        super().__init__()
        self.patch, self.T, self.K = patch, T, K
        self.register_buffer("codes", codes)
        row = 28 // patch if patch else 0  # so many tokens ago (rows wrap around): left, above, ...
        self.near = [1, row, row + 1, row - 1, 2, 2 * row][:near] if patch else [*range(1, near + 1)]
        self.symbol = nn.Embedding(len(self.near) * (K + 1), D)  # a table for each neighbour; K: before the start
        self.label, self.place = nn.Embedding(11, D), nn.Embedding(T, D)  # 10 stands for "not told"
        self.blocks = nn.ModuleList(Block(D, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, K)
        for table in (self.symbol, self.label, self.place):
            nn.init.normal_(table.weight, std=0.1)
        for block in self.blocks:  # a layer starts by adding little
            nn.init.normal_(block.out.weight, std=0.2 / (D * layers) ** 0.5)
            nn.init.normal_(block.mlp[2].weight, std=0.1 / (D * layers) ** 0.5)
        nn.init.zeros_(self.head.weight)  # an untrained model gives each symbol 1 in K
        nn.init.zeros_(self.head.bias)

    def embed(self, x, y, t):
        """Tokens t (T,) as the network sees them, (B, T, D): their neighbours in x (B, T), their places, the class."""
        before = torch.stack([F.pad(x, (n, 0), value=self.K)[:, t] for n in self.near], 2)  # (B, T, neighbours)
        table = torch.arange(len(self.near), device=x.device) * (self.K + 1)
        first = (t == 0)[:, None] * self.label(y)[:, None]  # token 0 has no neighbours: it tells the class instead
        return self.symbol(before + table).sum(2) + self.place(t) + first

    def forward(self, x, y=None, watch=None):
        """Logits (B, T, K) of tokens x (B, T); logits t know only the tokens before t."""
        y = torch.full((len(x),), 10, device=x.device) if y is None else y
        h = self.embed(x, y, torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h, watch=watch)
        return self.head(self.norm(h))

    def tokens(self, x):
        """Images (B, 1, 28, 28) to symbols (B, T), row by row: the bits of a patch, read as a number."""
        if x.dim() == 2:
            return x
        bits = F.pixel_unshuffle(x, self.patch).long()  # (B, patch², H, W)
        return (bits << torch.arange(self.patch**2, device=x.device)[:, None, None]).sum(1).flatten(1)

    def images(self, x):
        """The way back: symbols (B, T) to images (B, 1, 28, 28); symbols of text stay what they are."""
        if not self.patch:
            return x
        power = torch.arange(self.patch**2, device=x.device)[:, None, None]
        bits = x.view(len(x), 1, 28 // self.patch, -1) >> power & 1  # (B, patch², H, W)
        return F.pixel_shuffle(bits.float(), self.patch)

    def log_factors(self, x, y=None):
        """log p(xₜ | x₍<ₜ₎, y) of each token of x, binary images (B, 1, 28, 28) or symbols (B, T): nats (B, T)."""
        x, y = self.tokens(x), None if y is None else torch.as_tensor(y, device=x.device).expand(len(x))
        return -F.cross_entropy(self(x, y).to(self.head.weight).transpose(1, 2), x, reduction="none")

    def log_prob(self, x, y=None):
        """log p(x | y), or log p(x), of x as above: nats (B,). Exact, for pixels as for patches."""
        return self.log_factors(x, y).sum(1)

    @torch.no_grad()
    def sample(self, n, y=None, given=None, watch=None):
        """n images (n, 1, 28, 28) in {0, 1}, or sequences (n, T) of text; given (n, g): their first g tokens.

        The keys and values of a token never change once it is there, so they are kept: a new token passes the layers
        alone and costs its own D² multiplications and t D to ask the t before it. The plain way passes all of them
        again for each new one. `watch`, a list, collects the growing images, row by row.
        """
        x = torch.full((n, self.T), self.K, device=self.head.weight.device)
        y = torch.as_tensor(10 if y is None else y, device=x.device).expand(n)
        d = self.head.in_features // self.blocks[0].heads
        kept = self.head.weight.new_zeros(len(self.blocks), 2, n, self.blocks[0].heads, self.T, d)
        for t in range(self.T):
            h = self.embed(x, y, torch.tensor([t], device=x.device))
            for block, past in zip(self.blocks, kept):
                h = block(h, past, t)
            drawn = torch.multinomial(self.head(self.norm(h))[:, 0].softmax(1), 1)[:, 0]
            x[:, t] = given[:, t] if given is not None and t < given.shape[1] else drawn
            if watch is not None and (t + 1) * self.patch % 28 == 0:
                watch.append(self.images(x.where(x < self.K, 0)))
        return self.images(x)

    def spell(self, x):
        return "".join(map(chr, self.codes[x].tolist()))

def binarise(x, seed=None):
    """A Bernoulli draw for each pixel of uint8 digits, its grey value the probability; by a seed, the same for ever."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return (torch.rand(x.shape, device=x.device, generator=generator) * 255 < x).float()

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
def draw_digits(s, run, model, x, y):
    """All pictures, from a trained model, binary test digits x (N, 1, 28, 28) and their labels y (N,)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    rows = []
    samples = model.sample(100, digit.repeat(10), watch=rows)
    picture(s, "samples.png", sheet(samples, 10, "samples of each class", cols=names))
    picture(s, "pixel_by_pixel.gif", *[sheet(f[:40], 10, f"{i + 1} of {len(rows)} rows drawn", cols=names)
                                       for i, f in enumerate(rows)])
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"samples after {c[0]:,} steps of training", cols=names)
                               for f, c in zip(run["frames"], run["curve"])])
    half, tokens = x10.clone(), model.T // 2
    half[:, :, 14:] = 0
    again = model.sample(40, given=model.tokens(half)[:, :tokens].repeat(4, 1))
    picture(s, "completion.png", sheet(torch.cat([x10, half, again]), 10,
            "the lower half drawn anew, class not told", ["digit", "given", 1, 2, 3, 4], names))

    side, watch = 28 // model.patch, []
    token = side * (side // 2) + side // 2  # the one in the middle of the picture
    with torch.no_grad():
        model(model.tokens(x10[3:4]), digit[3:4], watch)
    fig = Figure(figsize=(2.2 * len(watch), 2.3 * len(watch[0][0]) + 0.5), layout="constrained")
    for head, row in enumerate(fig.subplots(len(watch[0][0]), len(watch), squeeze=False)):
        for layer, ax in enumerate(row):
            # key t brings symbol t − 1 (and its neighbours before it): drawn at place t − 1. Key 0 brings the class.
            weights = F.pad(watch[layer][0, head, token, 1:token + 1], (0, model.T - token))
            ax.imshow(x10[3, 0].cpu(), cmap="gray_r", alpha=0.25)
            ax.imshow(weights.view(side, side).cpu() ** 0.5, cmap="Oranges", alpha=0.75, vmin=0,
                      extent=(-0.5, 27.5, 27.5, -0.5))
            ax.plot(*[(place + 0.5) * model.patch - 0.5 for place in (token % side, token // side)], "s",
                    mfc="none", mec="blue")
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"layer {layer + 1}, head {head + 1}; class {watch[layer][0, head, token, 0]:.0%}", size=7)
    fig.suptitle("whom the token to be drawn next (blue) asks: roots of its weights, each panel scaled alone", size=10)
    picture(s, "attention.png", fig)

    each = -model.log_factors(x10, digit).detach().view(10, 1, side, side) / math.log(2)
    fig = Figure(figsize=(10, 2.6), layout="constrained")
    axes = fig.subplots(2, 10)
    for d in range(10):
        axes[0, d].imshow(x10[d, 0].cpu(), cmap="gray_r")
        shown = axes[1, d].imshow(each[d, 0].cpu(), cmap="magma", vmin=0, vmax=6 * model.patch)
        axes[0, d].set_title(f"{each[d].sum() * math.log(2):.0f} nats", size=8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    fig.colorbar(shown, ax=axes, label="bits")
    fig.suptitle("where the surprise is: −log₂ p of each token of ten test digits, class told", size=10)
    picture(s, "surprise.png", fig)

@torch.no_grad()
def unusual(s, nats, x):
    """Draw −log p(x) of test digits beside what is none; {kind: AUROC}, the chance that the stranger scores higher."""
    kinds = {"test digits": x, "upside down": x.rot90(2, (2, 3)), "inverted": 1 - x,
             "noise": torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device).round()}
    scores = {kind: nats(images) for kind, images in kinds.items()}
    real, area = scores["test digits"], {}
    fig = Figure(figsize=(8, 3.4), layout="constrained")
    ax = fig.subplots()
    for kind, score in scores.items():
        area[kind] = (score[:, None] > real).float().mean().item() + (score[:, None] == real).float().mean().item() / 2
        label = kind if kind == "test digits" else f"{kind}, AUROC {area[kind]:.4f}"
        ax.hist(score.clamp(10, 4000).log10().cpu(), [1 + i / 50 for i in range(132)], alpha=0.6, label=label)
    ax.set(xlabel="−log p(x), nats", ylabel=f"images of {len(x):,}", title="likelihood as a judge of what is unusual",
           xticks=[1.5, 2, 2.5, 3, 3.5], xticklabels=[32, 100, 316, "1,000", "3,162"])
    ax.legend(fontsize=8)
    picture(s, "unusual.png", fig)
    del area["test digits"]
    return area

def page(string, title, height=None):
    """A figure of text, of so many rows."""
    rows = [line[i:i + 80] for line in string.split("\n") for i in range(0, max(1, len(line)), 80)]
    rows = (rows + [""] * height)[:height] if height else rows
    fig = Figure(figsize=(7.2, 0.15 * len(rows) + 1), layout="constrained")
    ax = fig.subplots()
    ax.set(xlim=(0, 80), ylim=(len(rows), 0))
    ax.set_axis_off()
    for row, line in enumerate(rows):
        ax.text(0, row, "".join(c if c.isprintable() else " " for c in line), family="monospace", size=7, va="top",
                parse_math=False)
    fig.suptitle(title, size=10)
    return fig

def draw_text(s, run, model):
    """All pictures of a model of text."""
    torch.manual_seed(1)
    samples = "\n\n".join(model.spell(x) for x in model.sample(4))
    picture(s, "samples.png", page(samples, "four samples"))
    write(s.out / "sample.txt", samples.encode())
    picture(s, "growth.gif", *[page(model.spell(f), f"after {c[0]:,} steps, {c[2] / model.T:.2f} nats/char", 16)
                           for f, c in zip(run["frames"], run["curve"])])

# %% The run
def build(s, codes=None):
    if s.data == "text":
        return Transformer(0, s.length, len(codes), s.width, s.layers, s.heads, s.dropout, s.near, codes)
    return Transformer(s.patch, (28 // s.patch) ** 2, 2 ** s.patch**2, s.width, s.layers, s.heads, s.dropout, s.near)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]), run["state"]["model"].get("codes"))
    restore({"model": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    if s.width % s.heads:
        raise OSError(f"--width {s.width} is not a multiple of --heads {s.heads}")
    torch.manual_seed(s.seed)
    (run_text if s.data == "text" else run_digits)(s, run)

def prepare(s, codes, levels):
    """The model, its optimiser, and a function that takes one step of it down a loss."""
    model = build(s, codes).to(s.device)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": [p for p in model.parameters() if p.dim() < 2],
                                                      "weight_decay": 0.0}],
                                  lr=s.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; {LOSS}: "
          + ", ".join(f"{name} {level:.3f}" for name, level in levels.items()))

    def descend(step, loss):
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        for group in optimizer.param_groups:
            group["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0 if s.data == "text" else 100.0)
        optimizer.step()
        return loss

    return model, optimizer, descend

def run_text(s, run):
    x, vocabulary, s.source = text(s.text or None, s.stand_in, ids=True)
    if len(x) < (least := 100 * s.length + 100):
        raise OSError(f"{s.source} holds {len(x):,} characters, too few: {least:,} are needed, or a smaller --length")
    x, K, T = x.to(s.device), len(vocabulary), s.length
    x, valid, x_test = x.tensor_split([len(x) * 89 // 100, len(x) * 9 // 10])
    count = x.bincount(minlength=K) + 1.0
    levels = {"untrained": T * math.log(K), "frequencies alone": -T * (count / count.sum()).log()[x_test].mean().item()}
    model, optimizer, descend = prepare(s, torch.tensor([ord(c) for c in vocabulary]), levels)

    def update(step):
        i = torch.randint(len(x) - T, (s.batch_size, 1), device=s.device) + torch.arange(T, device=s.device)
        with mixed(s.device):
            loss = -model.train().log_prob(x[i]).mean()
        return descend(step, loss)

    @torch.no_grad()
    def nats(symbols):
        """Mean −log p of the characters of a text (N,); after the first stretch, each knows T // 2 or more."""
        model.eval()
        cut = symbols.unfold(0, T, T // 2)  # (stretches, T), overlapping by half; what is left over at the end is lost
        each = -torch.cat([model.log_factors(part) for part in cut.split(64)])
        return torch.cat([each[0], each[1:, -(T // 2):].flatten()]).mean().item()

    def draw():
        torch.manual_seed(0)
        sample = model.eval().sample(1)[0].cpu()
        picture(s, "samples.png", page(model.spell(sample), f"after {run['step']:,} steps of training"))
        return sample

    train(s, run, {"model": model, "optimizer": optimizer}, update, lambda: nats(valid) * T, draw)

    done, loss = time.perf_counter(), nats(x_test)
    draw_text(s, run, model)
    drawn = time.perf_counter()
    model.sample(64)
    finish(s, run, {
        "test nats/char": loss, "test bits/char": loss / math.log(2),
        "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

def run_digits(s, run):
    x, y, x_test, y_test, s.source = mnist(s.stand_in)
    b_valid, b_test = binarise(x[55000:], seed=0), binarise(x_test, seed=1)  # once and for all
    x, y, b_valid, b_test, y_test = (v.to(s.device) for v in (x, y, b_valid, b_test, y_test))
    x, y, b_valid, y_valid = x[:55000], y[:55000], b_valid[:500], y[55000:55500]
    p = (x.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)  # a baseline: each pixel on its own
    alone = F.binary_cross_entropy(p.expand_as(b_test), b_test, reduction="none").flatten(1).sum(1).mean().item()
    levels = {"untrained": 784 * math.log(2), "each pixel on its own": alone}
    model, optimizer, descend = prepare(s, None, levels)

    def update(step):
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.5, 10, y[i])  # half of them are not told
        with mixed(s.device):
            loss = -model.train().log_prob(binarise(x[i]), label).mean()
        return descend(step, loss)

    @torch.no_grad()
    def nats(digits, labels=None):
        """−log p of each digit, (N,)."""
        model.eval()
        parts = zip(digits.split(16), [None] * len(digits) if labels is None else labels.split(16))
        return -torch.cat([model.log_prob(*part) for part in parts])

    def validate():
        return (nats(b_valid).mean() + nats(b_valid, y_valid).mean()).item() / 2  # half told, as in training

    def draw():
        torch.manual_seed(0)
        samples = model.eval().sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (samples * 255).byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, validate, draw)

    done = time.perf_counter()
    untold, right, few = nats(b_test), nats(b_test, y_test), b_test[:1000]
    told = torch.stack([nats(few, y_test.new_full((len(few),), d)) for d in range(10)], 1)
    summed = math.log(10) - torch.logsumexp(-told, 1)  # (1000,): −log p(x) = −log Σ_y p(x | y) / 10
    area = unusual(s, nats, few)
    draw_digits(s, run, model, b_test, y_test)
    drawn = time.perf_counter()
    model.sample(64)
    finish(s, run, {
        "test -log p(x), nats, network not told the class": untold.mean().item(),
        "its standard error": (untold.std() / len(untold) ** 0.5).item(),
        "test -log p(x | y), nats": right.mean().item(),
        "test -log p(x), bits/dim": untold.mean().item() / 784 / math.log(2),
        "first 1,000: -log p(x), nats, class summed out": summed.mean().item(),
        "first 1,000: -log p(x), nats, network not told the class": untold[:1000].mean().item(),
        "first 1,000: digits read by Bayes' rule": (told.argmin(1) == y_test[:1000]).float().mean().item(),
        **{f"AUROC of -log p(x), test digits against {kind}": value for kind, value in area.items()},
        "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
