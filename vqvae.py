# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""VQ-VAE: a code of whole numbers for every digit, and a language model that learns to write such codes.

A VAE's code is a cloud in a continuous space and its prior a Gaussian. Here the code is 49 symbols out of K, one for
each place of 7 x 7, and the prior p(z | y) is learned, by a small transformer that writes the symbols row by row. The
encoder says a vector z_e at each place; the codebook has K vectors e_1, …, e_K; the nearest one stands:

    zₜ = argmin_k |z_eₜ − e_k|²,        −log p(x | y) ≤ −log p(x | z) − log p(z | y)           z: the encoder's codes

The bound is one term of the sum p(x | y) = Σ_z p(z | y) p(x | z); q(z | x) is certain, so its entropy is 0.

An argmin has no gradient. So the decoder's gradient at e_z is handed to z_e as it is (straight-through), and the
commitment c |z_e − sg(e_z)|², sg for "no gradient here", keeps the two close. The codebook needs no gradient: each e_k
follows the running mean of the vectors that came to it. An entry to which hardly anything comes (under 3 % of its fair
share) would stay dead, so it restarts at a vector of the batch, likelier the worse that one is served. Use counts as
perplexity, e^entropy of the codes: K if all are used alike, 1 if the codebook has collapsed.

Trains: −log p(x | z) − log p(z | y) + c · commitment in one run (--two-phase yes: the prior after the codes, as in the
paper). Samples: 49 symbols by the prior, with keys and values kept, then one pass of the decoder. p(x): a bound.
Latent: 49 symbols. Good at: turning images or sound into tokens for a strong prior. Bad at: likelihood: the bits of z
describe z only; the nats of the pixels given z come on top, and only the sum compares with a pixel model's figure.

What you will see. `python vqvae.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16 in training): 327 s of training, 21 s
of pictures.

    step 242/9,000  -ELBO in nats 183.8847  773 digits/s  6 min 02 s left
    step 4,506/9,000  -ELBO in nats 114.0071  816 digits/s  2 min 56 s left
    step 9,000/9,000  -ELBO in nats 113.4637  883 digits/s  0 min 00 s left

Test set, binarised once, in nats: −log p(x) ≤ 103.04 ± 0.25, class not told: 47.74 for the codes (68.9 bits, of the
147 that 49 codes take without a prior) and 55.30 for the pixels given them; class summed out, first 1,000: 100.04.
transformer_ar.py needs 82.23 nats = 118.6 bits, class not told, for the whole picture: the codes cost fewer bits, and
leave the rest open. Perplexity of the codes: 6.3 of 8. A separate classifier reads 93.0 % of 1,000 samples as the
class asked for (`python benchmarks/judge.py vqvae`); 64 samples take 0.07 s. In out/vqvae: samples, reconstructions,
codes, codebook, usage, interpolation, curve (.png), growth (.gif).
On one GPU: `python vqvae.py --steps 60000 --channels 128 --width 256` (not yet measured).

What differs from the paper. 7 x 7 codes of K = 8 for 32 x 32 of K = 512; a code sees 12 x 12 pixels; in training the
encoder sees another binarisation than the one scored, so codes hold no noise; the codebook by running means (its
appendix A.1) from the start; dead codes revived; a transformer for the PixelCNN; likelihood of binary pixels for
squared error.

References: van den Oord, Vinyals & Kavukcuoglu 2017 (arXiv:1711.00937); straight-through: Bengio, Léonard & Courville
2013 (1308.3432); restarts: Dhariwal et al. 2020 (2005.00341).
Read before: vae.py, transformer_ar.py. Next: gan.py.

Things to break, one line each:
  1. In `Codebook.forward`, return index, self.code[index].movedim(3, 1): only the commitment still teaches the
     encoder, to be easy to round and not to tell digits apart; −log p(x | z) stays high.
  2. In `learn`, put self.count == 0 for self.count < 0.03 * share, and set --codes 64: an entry that loses its vectors
     stays lost; `usage` shows how few are left.
  3. In `VQVAE.sample`, draw torch.randint(self.codebook.K, (n, 49)): strokes everywhere, no digit.
"""
import argparse
import io
import itertools
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

from data import mnist

# %% Settings: name, the published run's value, what it is. `python vqvae.py --help` prints them.
NAME, LOSS, ITEM = "vqvae", "-ELBO in nats", "digits"
FLAGS = {
    "steps": (9000, "optimiser steps"),
    "batch_size": (32, "digits per step"),
    "lr": (3e-3, "peak learning rate of Adam"),
    "channels": (32, "feature maps at 7 x 7"),
    "codes": (8, "K, entries in the codebook"),
    "code_dim": (8, "numbers in an entry"),
    "commit": (0.25, "weight of the commitment term"),
    "width": (96, "numbers a token of the prior carries"),
    "layers": (3, "attention layers of the prior"),
    "two_phase": (("no", "yes"), "yes: first the codes, then the prior, half of the steps each; no: both at once"),
}

# %% Model: an encoder that guesses the code of a digit, a decoder that draws the digit of a code
class ResBlock(nn.Module):
    """h plus what two 3 x 3 convolutions make of it: (B, C, H, W) to the same."""

    def __init__(self, C):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # at first a block adds no more than a constant to each channel

    def forward(self, h):
        return h + self.conv2(F.silu(self.conv1(F.silu(h))))

class Codebook(nn.Module):
    """K codes of D numbers. Each follows the running mean of what the encoder sent to it (paper, appendix A.1)."""

    def __init__(self, K, D, decay=0.99):
        super().__init__()
        self.K, self.decay = K, decay
        self.register_buffer("code", torch.randn(K, D))
        self.register_buffer("count", torch.zeros(K))  # running mean of the vectors that came, a step
        self.register_buffer("total", torch.zeros(K, D))  # and of their sum

    def nearest(self, z):
        """Of vectors z (B, D, H, W), the index of the nearest code: (B, H, W)."""
        return torch.cdist(z.movedim(1, 3), self.code).argmin(3)

    def forward(self, z):
        """Indices (B, H, W), and their codes (B, D, H, W) with a gradient that goes straight through to z."""
        index = self.nearest(z.detach())
        return index, z + (self.code[index].movedim(3, 1) - z).detach()

    @torch.no_grad()
    def learn(self, z, index):
        """Move every code to the running mean of its vectors; restart a dead one from a vector of this batch."""
        far = (z - self.code[index].movedim(3, 1)).square().sum(1).flatten()  # (N,)
        z, one_hot = z.movedim(1, 3).flatten(0, 2), F.one_hot(index.flatten(), self.K).to(z)  # (N, D), (N, K)
        self.count.lerp_(one_hot.sum(0), 1 - self.decay)
        self.total.lerp_(one_hot.T @ z, 1 - self.decay)
        share, random = len(z) / self.K, z[torch.multinomial(far.nan_to_num() + 1e-6, self.K, True)]
        dead = self.count < 0.03 * share  # in the first step nearly all: so the codebook starts at vectors of data
        self.count[dead], self.total[dead] = share, share * random[dead]
        self.code.copy_(self.total / self.count[:, None])

class Block(nn.Module):
    """What others say (attention), then what to make of it (an MLP), each added to what is there."""

    def __init__(self, D, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.norm2, self.mlp = nn.LayerNorm(D), nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x, kept=None, t=None):
        """x (B, T, D); or token t alone, (B, 1, D), and `kept`, keys and values (2, B, heads, T, d) of the others."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, T, d) each
        if kept is None:  # the plain formula: for so short a sequence it is the faster on a CPU
            later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            h = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(later, -math.inf).softmax(3) @ v
        else:
            kept[0, :, :, t], kept[1, :, :, t] = k[:, :, 0], v[:, :, 0]
            h = F.scaled_dot_product_attention(q, *kept[:, :, :, :t + 1])
        x = x + self.out(h.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp(self.norm2(x))

class Prior(nn.Module):
    """p(z | y) = Πₜ p(zₜ | z₍<ₜ₎, y) over the codes of a digit, row by row: transformer_ar.py in small."""

    def __init__(self, K, T, D, layers):
        super().__init__()
        self.K, self.T = K, T
        self.near = [1, 7, 8, 6, 2, 14]  # so many codes ago (rows wrap around): left, above, ...
        self.symbol = nn.Embedding(len(self.near) * (K + 1), D)  # a table for each neighbour; K: before the start
        self.label, self.place = nn.Embedding(11, D), nn.Embedding(T, D)  # 10 stands for "not told"
        self.blocks = nn.ModuleList(Block(D) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, K)
        for table in (self.symbol, self.label, self.place):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.head.weight)  # untrained: each code 1 in K
        nn.init.zeros_(self.head.bias)

    def embed(self, z, y, t):
        """Tokens t (T,) as the network sees them, (B, T, D): their neighbours in z (B, T), places, the class."""
        before = torch.stack([F.pad(z, (n, 0), value=self.K)[:, t] for n in self.near], 2)  # (B, T, neighbours)
        table = torch.arange(len(self.near), device=z.device) * (self.K + 1)
        return self.symbol(before + table).sum(2) + self.place(t) + self.label(y)[:, None]

    def log_prob(self, z, y):
        """log p(z | y) of codes z (B, T): nats (B,)."""
        h = self.embed(z, y, torch.arange(self.T, device=z.device))
        for block in self.blocks:
            h = block(h)
        return -F.cross_entropy(self.head(self.norm(h)).float().transpose(1, 2), z, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, y):
        """Codes (n, T) for classes y (n,). Keys and values are kept, so a new token passes the layers alone."""
        z, D = torch.full((len(y), self.T), self.K, device=y.device), self.head.in_features
        kept = self.head.weight.new_zeros(len(self.blocks), 2, len(y), 4, self.T, D // 4)
        for t in range(self.T):
            h = self.embed(z, y, torch.tensor([t], device=y.device))
            for block, past in zip(self.blocks, kept):
                h = block(h, past, t)
            z[:, t] = torch.multinomial(self.head(self.norm(h))[:, 0].softmax(1), 1)[:, 0]
        return z

def bernoulli_log_prob(x, logits):
    """log p of binary images x (B, 1, 28, 28), or one for all, under logits of that shape: nats (B,), pixels summed."""
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").flatten(1).sum(1)

class VQVAE(nn.Module):
    """p(x, z | y) = p(z | y) Πᵢ Bernoulli(xᵢ; decode(z)ᵢ), z 7 x 7 codes; q(z | x) is certain: the nearest codes."""

    def __init__(self, channels=32, K=8, code_dim=8, width=96, layers=3):
        super().__init__()
        C = channels
        self.encoder = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, C, 3, padding=1), nn.SiLU(),  # sees 12 x 12
                                     nn.Conv2d(C, C, 1), nn.SiLU(), nn.Conv2d(C, code_dim, 1))
        self.codebook, self.prior = Codebook(K, code_dim), Prior(K, 49, width, layers)
        self.decoder = nn.Sequential(nn.Conv2d(code_dim, C, 1), ResBlock(C), ResBlock(C), ResBlock(C), nn.SiLU(),
                                     nn.Conv2d(C, 16, 3, padding=1), nn.PixelShuffle(4))  # (B, 1, 28, 28)
        self.place = nn.Parameter(torch.zeros(1, 28, 28))  # how dark each pixel is anyway
        nn.init.zeros_(self.decoder[-2].weight)  # an untrained model gives each pixel about a half: 784 ln 2 nats

    def classes(self, y, n):
        """y, which is None, a class or (n,) classes, as (n,) rows of the label table."""
        return torch.as_tensor(10 if y is None else y, device=self.place.device).expand(n)

    def encode(self, x):
        """What the encoder says of digits x: (B, D, 7, 7), not yet codes."""
        return self.encoder(x.contiguous(memory_format=torch.channels_last)).to(x)

    def decode(self, codes):
        """Logits of the pixels, (B, 1, 28, 28), of codes (B, D, 7, 7)."""
        return self.decoder(codes.contiguous(memory_format=torch.channels_last)).to(codes) + self.place

    def terms(self, x, y=None, seen=None):
        """log p(x | z), log p(z | y), the commitment |z_e − z|², (B,) each; what the encoder said and the indices.

        In training the encoder looks at `seen`, another binarisation of the same digits: still a bound, since any z is
        a term of the sum, and the codes learn nothing of the noise.
        """
        z_e = self.encode(x if seen is None else seen)
        index, z = self.codebook(z_e)
        commitment = (z_e - z.detach()).square().flatten(1).sum(1)
        log_prior = self.prior.log_prob(index.flatten(1), self.classes(y, len(x)))
        return bernoulli_log_prob(x, self.decode(z)), log_prior, commitment, z_e, index

    def elbo(self, x, y=None):
        """A lower bound of log p(x | y) or log p(x), x (B, 1, 28, 28) in {0, 1}: nats (B,). One term of the sum
        p(x | y) = Σ_z p(z | y) p(x | z), that of the codes which the encoder picks."""
        log_likelihood, log_prior, *_ = self.terms(x, y)
        return log_likelihood + log_prior

    def draw(self, index):
        """The digits of codes, given by their indices (B, 49): the pixels' probabilities."""
        return self.decode(self.codebook.code[index.view(-1, 7, 7)].movedim(3, 1)).sigmoid()

    @torch.no_grad()
    def sample(self, n, y=None):
        """n digits (n, 1, 28, 28), the pixels' probabilities, so in [0, 1]; y is None, a class or (n,) classes."""
        return self.draw(self.prior.sample(self.classes(y, n)))

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
def draw_all(s, run, model, x, y, used):
    """All pictures, from a trained model, binary test digits x (N, 1, 28, 28), labels y, uses of each code (K,)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class

    def page(name, title, images, columns, rows=None, cols=None):
        picture(s, f"{name}.png", sheet(torch.cat(images), columns, title, rows, cols))

    page("samples", "samples of each class: the probability of ink", [model.sample(100, digit.repeat(10))], 10,
         cols=names)
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"samples after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    z_e, other = model.encode(x10), model.encode(x10.roll(-1, 0))
    index, mix = model.codebook.nearest(z_e).flatten(1), [i / 8 for i in range(9)]
    between = [model.codebook.nearest((1 - u) * z_e + u * other).flatten(1) for u in mix]
    page("interpolation", "from digit to digit: a straight line before the codebook, rounded to codes at every stop",
         [torch.stack([x10, *map(model.draw, between), x10.roll(-1, 0)], 1).flatten(0, 1)], 11,
         cols=["digit", *mix, "digit"])
    page("reconstructions", "test digits; their 49 codes drawn; ten samples of the same classes from the prior",
         [x10, model.draw(index), model.sample(10, digit)], 10, ["digit", "from codes", "prior"], names)

    fig = Figure(figsize=(10, 2.5), layout="constrained")
    axes = fig.subplots(2, 10)
    for d in range(10):
        axes[0, d].imshow(x10[d, 0].cpu(), cmap="gray_r")
        axes[1, d].imshow(index[d].view(7, 7).cpu(), cmap="nipy_spectral", vmin=0, vmax=model.codebook.K - 1)
        for row, column in itertools.product(range(7), range(7)):
            axes[1, d].text(column, row, index[d, 7 * row + column].item(), size=4, ha="center", va="center",
                            color="w")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    fig.suptitle("ten test digits and the 7 x 7 codes that stand for them: number and colour of each code", size=10)
    picture(s, "codes.png", fig)

    order = used.argsort(descending=True)
    seen = F.unfold(x[:1000], 12, padding=4, stride=4).transpose(1, 2).flatten(0, 1)  # (49,000, 144), what a code sees
    which = F.one_hot(model.codebook.nearest(model.encode(x[:1000])).flatten(), len(order)).float()  # (49,000, K)
    mean = (which.T @ seen / which.sum(0).clamp(min=1)[:, None]).view(-1, 1, 12, 12)[order]
    page("codebook", "mean of the 12 x 12 pixels that each code sees",
         [F.interpolate(mean, 28)], len(order), cols=[f"{100 * v:.0f} %" for v in (used / used.sum())[order]])

    fig = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    steps, uses = [c[0] for c in run["curve"]], torch.tensor(run["usage"])
    share = uses / uses.sum(1, keepdim=True)
    left.plot(steps, torch.special.entr(share).sum(1).exp(), "o-", ms=3, label="perplexity")
    left.plot(steps, (uses > 0).sum(1), "o-", ms=3, label="codes in use")
    left.axhline(model.codebook.K, ls="--", lw=1, color="gray")
    left.set(title="codebook use, validation digits", xlabel="step", ylabel="codes", ylim=(0, 1.05 * model.codebook.K))
    left.legend()
    right.bar(range(1, len(order) + 1), 100 * (used / used.sum())[order].cpu())
    right.set(title="share of each code, test digits", xlabel="code, the most used first", ylabel="%")
    picture(s, "usage.png", fig)

# %% The run
def build(s):
    return VQVAE(s.channels, s.codes, s.code_dim, s.width, s.layers).to(memory_format=torch.channels_last)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]))
    restore({"model": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    x, y, x_test, y_test, s.source = mnist(s.stand_in)
    b_valid, b_test = binarise(x[55000:], seed=0), binarise(x_test, seed=1)  # once and for all
    x, y, b_valid, b_test, y_test = (v.to(s.device) for v in (x, y, b_valid, b_test, y_test))
    x, y, y_valid = x[:55000], y[:55000], y[55000:]
    torch.manual_seed(s.seed)
    model = build(s).to(s.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, fused=True)
    p = (x.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)  # a baseline: each pixel on its own
    alone = F.binary_cross_entropy(p.expand_as(b_test), b_test, reduction="none").flatten(1).sum(1).mean().item()
    levels = {"untrained": 784 * math.log(2), "each pixel on its own": alone}
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; {LOSS}: "
          + ", ".join(f"{name} {level:.1f}" for name, level in levels.items()))

    def update(step):
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.1, 10, y[i])  # a tenth is not told
        both = s.two_phase == "no"
        done = step / s.steps if both else 2 * step / s.steps % 1
        # the learning rate goes up over a twentieth of the run (or phase), then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        with mixed(s.device):
            log_likelihood, log_prior, commitment, z_e, index = model.terms(binarise(x[i]), label, binarise(x[i]))
        codes_learn, prior_learns = both or 2 * step < s.steps, both or 2 * step >= s.steps
        loss = 0
        if codes_learn:
            model.codebook.learn(z_e.detach(), index)
            loss = loss + (s.commit * commitment - log_likelihood).mean()
        if prior_learns:
            loss = loss - log_prior.mean()  # no gradient of it reaches the codes, which are whole numbers
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 60)
        optimizer.step()
        return -(log_likelihood + log_prior).mean()

    @torch.no_grad()
    def terms(digits, labels=None):
        """−log p(x | z) and −log p(z | y) of each digit, (N,) nats, and the indices of its codes, (N, 7, 7)."""
        parts = zip(digits.split(500), [None] * len(digits) if labels is None else labels.split(500))
        log_likelihood, log_prior, _, _, index = [torch.cat(v) for v in zip(*(model.terms(*part) for part in parts))]
        return -log_likelihood, -log_prior, index

    def uses(index):
        return index.flatten().bincount(minlength=s.codes)

    def validate():
        left, code, index = terms(b_valid[:1000])
        run.setdefault("usage", []).append(uses(index).tolist())
        told = terms(b_valid[:1000], y_valid[:1000])[1]
        return (left + 0.1 * code + 0.9 * told).mean().item()  # a tenth not told, as in training

    def draw():
        torch.manual_seed(0)
        samples = model.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (255 * samples).byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, validate, draw)

    done = time.perf_counter()
    left, code, index = terms(b_test)
    code_told, used = terms(b_test, y_test)[1], uses(index)
    share = used / used.sum()
    few = index[:1000].flatten(1)
    with torch.no_grad():
        told = torch.stack([-model.prior.log_prob(few, y_test.new_full((len(few),), d)) for d in range(10)], 1)
        draw_all(s, run, model, b_test, y_test, used)
    drawn = time.perf_counter()
    model.sample(64)
    summed = left[:1000] + math.log(10) - torch.logsumexp(-told, 1)  # −log p(x | z) − log Σ_y p(z | y) / 10
    finish(s, run, {
        "test -ELBO, nats, class not told": (left + code).mean().item(),
        "its standard error": ((left + code).std() / len(left) ** 0.5).item(),
        "of it -log p(z), nats": code.mean().item(),
        "of it -log p(x | z), nats": left.mean().item(),
        "test -ELBO of p(x | y), nats": (left + code_told).mean().item(),
        "bits of the 49 codes by the prior": code.mean().item() / math.log(2),
        "bits of the 49 codes, class told": code_told.mean().item() / math.log(2),
        "bits of 49 codes without a prior": 49 * math.log2(s.codes),
        "perplexity of the codes": torch.special.entr(share).sum().exp().item(),
        "codes in use": (used > 0).sum().item(),
        "first 1,000: -ELBO, nats, class summed out": summed.mean().item(),
        "first 1,000: -ELBO, nats, class not told": (left + code)[:1000].mean().item(),
        "first 1,000: digits read by Bayes' rule": (told.argmin(1) == y_test[:1000]).float().mean().item(),
        "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
