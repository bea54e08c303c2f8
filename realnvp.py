# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""RealNVP: stretch and shift noise into digits by steps that can be undone, and read the exact density off the
stretching.

Let f be an invertible map from digits to noise. If z = f(x) is N(0, I), the density of x is that of z, times how much
f stretches the space around x:

    log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|                            the change of variables: exact

A determinant of 784 x 784 costs too much, unless the matrix is triangular. So a coupling splits the numbers in two,
lets one half pass and scales and shifts the other by what a network makes of the first:

    z_a = x_a,   z_b = (x_b + t(x_a)) · exp(s(x_a)),   log |det| = Σ s(x_a)   back: x_b = z_b · exp(−s(z_a)) − t(z_a)

The network is never inverted. Couplings with other halves follow: both colours of a chessboard, rows, columns. A
squeeze turns 2 x 2 pixels into 4 channels, and then a chessboard is just two of the channels. Then two of the four
channels go straight to z (multi-scale), the others on at 7 x 7. Between, each number is scaled and shifted (ActNorm).

Grey levels are whole numbers, and a density may grow without bound on whole numbers. So noise u in [0, 1) fills the
gap between levels, and E_u[log p(x + u) − log q(u | x)] is a lower bound on the log-probability of the level. Ink gets
uniform noise, u's q is 1. Paper, level 0, gets noise that is bell-shaped, Beta(4, 4): a scale and a shift turn a bell
into a Gaussian, but never a box, and most of a digit is paper. Then a logit stretches (0, 1) to (−7.6, 7.6).

Samples: z ~ N(0, I) through the inverse, one pass. p(x): exact for densities, a lower bound for grey levels. Latent:
z, as large as x. Good at: exact likelihoods with fast samples. Bad at: size; every layer must be invertible.
Likelihood is not typicality. Blank paper is likelier than any digit, though none of 60,000 digits is blank: density is
high where little varies. Most of the mass lies elsewhere, in the huge number of less likely pictures. So look at
`likelihood` before you call anything with low p(x) a stranger, or with high p(x) a friend.

What you will see. `python realnvp.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16 in training): 503 s of training, 24
s of pictures.

    step 158/6,800  -log p in bits/dim 1.8693  505 examples/s  7 min 01 s left
    step 3,511/6,800  -log p in bits/dim 1.2194  444 examples/s  3 min 57 s left
    step 6,800/6,800  -log p in bits/dim 1.1593  434 examples/s  0 min 00 s left

Test set, 8-bit grey, one draw of u: −log p(x) ≤ 1.166 ± 0.003 bits/dim, class not told, 1.158 told. Uniform grey is 8;
each pixel on its own 1.69 (ddpm.py). There and back, 1,000 digits differ by 9e-05 at most, in logit space. A separate
classifier reads 67.5 % of 1,000 samples at temperature 1 as the class asked for (`python benchmarks/judge.py
realnvp`); 64 samples take 0.04 s. In out/realnvp: samples, temperature, layers, interpolation, likelihood, curve
(.png), growth, flow (.gif).
Two moons in the plane: `python realnvp.py --data moons --steps 1500 --channels 64 --out out/moons` (14 s).
On one GPU: `python realnvp.py --steps 60000 --batch-size 128 --channels 96 --couplings 12` (not yet measured).

What differs from the paper. Chessboards at 14 x 14 after a squeeze; ActNorm, one for each number, for batch
normalisation; a shift before the scale; noise in the shape of a bell on paper, and an edge of 0.0005 in the logit for
0.05, so that paper is not squeezed to a needle. Drafts of 600 steps, one each: 1.80 bits/dim with uniform noise and
edge 0.05, 1.57 with the bell and 0.02, 1.45 uniform with 0.0005, 1.33 with both. Half of the digits hide their class.

References: Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803); ActNorm: Kingma & Dhariwal 2018 (1807.03039);
dequantisation: Theis, van den Oord & Bethge 2016 (1511.01844), Ho et al. 2019 (1902.00275); likely strangers: Nalisnick
et al. 2019 (1810.09136), and typicality: 2019 (1906.02994).
Read before: vae.py. Next: ddpm.py.

Things to break, one line each:
  1. In `dequantise`, return (level + u / 10) / 256, x.new_zeros(len(x)): a tenth of the noise, none of it charged, and
     the loss falls below 0, which no −log of a probability can.
  2. In `Coupling.forward`, return 0 * log_scale.flatten(1).sum(1): bits/dim are a lie. Undo it and --resume, which
     only evaluates: the true ones got worse.
  3. Put FINE = [(0, 3)] * 6: half of the pixels pass the first scale untouched, a quarter the whole flow; bits/dim
     stay high.
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

from data import mnist

# %% Settings: name, the published run's value, what it is. `python realnvp.py --help` prints them.
NAME, LOSS, ITEM = "realnvp", "-log p in bits/dim", "examples"
FLAGS = {
    "data": (("mnist", "moons"), "8-bit digits, or points in the plane: two moons, seconds to learn"),
    "steps": (6800, "optimiser steps"),
    "batch_size": (32, "examples per step"),
    "lr": (3e-3, "peak learning rate of Adam"),
    "channels": (32, "feature maps of a coupling's network at 14 x 14, twice as many at 7 x 7"),
    "couplings": (8, "coupling layers at 14 x 14, half as many at 7 x 7"),
    "peak": (4.0, "b of the noise Beta(b, b) that dequantises white paper; 1 is uniform, as for ink"),
}

# %% Model: layers that can be run backwards, and whose change of volume is a sum
class ResBlock(nn.Module):
    """h plus what two 3 x 3 convolutions make of it: (B, C, H, W) to the same."""

    def __init__(self, C):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # at first a block adds no more than a constant to each channel

    def forward(self, h):
        return h + self.conv2(F.silu(self.conv1(F.silu(h))))

class Net(nn.Module):
    """What a coupling asks: from channels (B, C_in, H, H) and class y (B,) to a scale and a shift, (B, C_out, H, H)."""

    def __init__(self, C_in, C_out, C, H):
        super().__init__()
        self.stem, self.label = nn.Conv2d(C_in, C, 3, padding=1), nn.Embedding(11, C)  # 10 stands for "not told"
        self.place = nn.Parameter(torch.zeros(C, H, H))  # what is so of a place in every digit
        self.body = nn.Sequential(ResBlock(C), nn.SiLU(), nn.Conv2d(C, C_out, 3, padding=1))

    def forward(self, x, y):
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        return self.body(h + self.place.to(h) + self.label(y).to(h)[:, :, None, None])

class PlaneNet(nn.Module):
    """The same for points: one number (B, 1) to a scale and a shift, (B, 2)."""

    def __init__(self, C):
        super().__init__()
        self.label = nn.Embedding(11, C)
        self.stem, self.body = nn.Linear(1, C), nn.Sequential(nn.SiLU(), nn.Linear(C, C), nn.SiLU(), nn.Linear(C, 2))

    def forward(self, x, y):
        return self.body(self.stem(x) + self.label(y))

class Coupling(nn.Module):
    """Channels `keep` pass; the others are shifted and scaled by what the network makes of them (as in eqs. 7, 8)."""

    def __init__(self, keep, C, net):
        super().__init__()
        self.k, self.order, self.net = len(keep), [*keep, *(c for c in range(C) if c not in keep)], net
        self.back = [self.order.index(c) for c in range(C)]
        nn.init.zeros_(net.label.weight)
        nn.init.zeros_(net.body[-1].weight)  # an untrained coupling changes nothing
        nn.init.zeros_(net.body[-1].bias)

    def parts(self, x, y):
        """Both halves of x, and for the second log-scale and shift."""
        kept, rest = x[:, self.order].split([self.k, len(self.order) - self.k], 1)
        log_scale, shift = self.net(kept, y).to(x).chunk(2, 1)
        return kept, rest, 2 * torch.tanh(log_scale / 2), shift  # one layer scales by e² at most

    def forward(self, x, y):
        """z like x, and log |det ∂z/∂x| (B,): the Jacobian is triangular, its diagonal is 1 or the scale."""
        kept, rest, log_scale, shift = self.parts(x, y)
        return torch.cat([kept, (rest + shift) * log_scale.exp()], 1)[:, self.back], log_scale.flatten(1).sum(1)

    def inverse(self, z, y):
        kept, rest, log_scale, shift = self.parts(z, y)  # of z, which has the kept channels unchanged
        return torch.cat([kept, rest * (-log_scale).exp() - shift], 1)[:, self.back]

class ActNorm(nn.Module):
    """A scale and a shift for each number; `start` sets them to mean 0 and variance 1 (Kingma & Dhariwal 2018)."""

    def __init__(self, *shape):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def start(self, x):
        self.shift.copy_(-x.mean(0))
        self.log_scale.copy_(-x.std(0).clamp(min=1e-3).log())

    def forward(self, x, y):
        return (x + self.shift) * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z, y):
        return z * (-self.log_scale).exp() - self.shift

class Squeeze(nn.Module):
    """Blocks of 2 x 2 pixels become 4 channels. Nothing is scaled: log |det| is 0."""

    def forward(self, x, y):
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z, y):
        return F.pixel_shuffle(z, 2)

# Which channels pass. After a squeeze a chessboard of pixels is the channels 0 and 3 (upper left and lower right), the
# other one 1 and 2; rows are 0, 1 and 2, 3; columns 0, 2 and 1, 3. The coarse scale begins with two channels, not one.
FINE = [(0, 3), (1, 2), (0, 1), (2, 3), (0, 2), (1, 3)]
COARSE = [(0, 3, 4, 7), (1, 2, 5, 6), (0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 4, 5), (2, 3, 6, 7)]

class RealNVP(nn.Module):
    """z = f(x) ~ N(0, I), so log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|. Two scales for digits, one for points."""

    EDGE = 5e-4  # keeps the logit transform off 0 and 1

    def __init__(self, data="mnist", channels=32, couplings=8, peak=4.0):
        super().__init__()
        self.data, self.peak, self.D = data, peak, 784 if data == "mnist" else 2
        if data == "moons":
            fine, coarse = [ActNorm(2)], []
            for i in range(couplings):
                fine += [Coupling((i % 2,), 2, PlaneNet(channels)), ActNorm(2)]
        else:
            fine, coarse = [Squeeze()], [Squeeze()]
            for i in range(couplings):
                fine += [ActNorm(4, 14, 14), Coupling(FINE[i % 6], 4, Net(2, 4, channels, 14))]
            for i in range(max(1, couplings // 2)):
                coarse += [ActNorm(8, 7, 7), Coupling(COARSE[i % 6], 8, Net(4, 8, 2 * channels, 7))]
            fine, coarse = [*fine, ActNorm(4, 14, 14)], [*coarse, ActNorm(8, 7, 7)]
        self.fine, self.coarse = nn.ModuleList(fine), nn.ModuleList(coarse)

    def classes(self, y, n):
        """y, which is None, a class or (n,) classes, as (n,) rows of the label tables."""
        return torch.as_tensor(10 if y is None else y, device=self.fine[-1].shift.device).expand(n)

    def forward(self, x, y=None, watch=None, start=False):
        """z (B, D) and log |det ∂z/∂x| (B,) for x (B, 1, 28, 28) in logit space, or points (B, 2).

        `watch` collects what stands between the layers; `start` lets each ActNorm look at x first.
        """
        y, total, done = self.classes(y, len(x)), 0, x.new_zeros(len(x), 0)
        for layer in (*self.fine, *self.coarse):
            if self.coarse and layer is self.coarse[0]:  # half of the numbers go out here: multi-scale
                x, done = x.split(2, 1)
            if start and isinstance(layer, ActNorm):
                layer.start(x)
            x, log_det = layer(x, y)
            total = total + log_det
            if watch is not None and isinstance(layer, ActNorm):
                watch.append((x, done))
        return torch.cat([x.flatten(1), done.flatten(1)], 1), total

    def inverse(self, z, y=None, watch=None):
        """x of z (B, D): every layer undone, the last one first."""
        y, done = self.classes(y, len(z)), z.new_zeros(len(z), 0)
        if self.coarse:
            z, done = z[:, :392].view(-1, 8, 7, 7), z[:, 392:].view(-1, 2, 14, 14)
        for layer in reversed((*self.fine, *self.coarse)):
            if watch is not None and isinstance(layer, ActNorm):
                watch.append((z, done))
            z = layer.inverse(z, y)
            if self.coarse and layer is self.coarse[0]:
                z, done = torch.cat([z, done], 1), done[:, :0]
        return z

    def dequantise(self, x):
        """8-bit digits x in [0, 1] to (grey level + u) / 256 in (0, 1), and log q(u | x) (B,): u is uniform on ink."""
        level, bell = (255 * x).round(), torch.distributions.Beta(*x.new_full((2,), self.peak))
        u = torch.where(level > 0, torch.rand_like(x), bell.sample(x.shape).clamp(1e-4, 1 - 1e-4))
        return (level + u) / 256, torch.where(level > 0, 0, bell.log_prob(u)).flatten(1).sum(1)

    def logit(self, v):
        """logit of v in (0, 1), pulled off the edges, and log |det| (B,) (paper, section 4.1)."""
        a = self.EDGE + (1 - 2 * self.EDGE) * v
        slope = (1 - 2 * self.EDGE) / (a * (1 - a))
        return a.log() - (-a).log1p(), slope.log().flatten(1).sum(1)

    def log_prob(self, x, y=None, start=False):
        """log p(x | y), or log p(x), nats (B,): of points (B, 2) exact, a density; of 8-bit digits (B, 1, 28, 28) in
        [0, 1] one draw of a lower bound, E_u[log density(x + u) − log q(u | x)] ≤ log p(x) (Theis et al. 2016)."""
        log_det = 0
        if self.data == "mnist":
            x, log_q = self.dequantise(x)
            x, log_det = self.logit(x)
            log_det = log_det - log_q - self.D * math.log(256)  # a grey level is 1/256 wide
        z, log_det_flow = self(x, y, start=start)
        return -(z.square().sum(1) + self.D * math.log(2 * math.pi)) / 2 + log_det + log_det_flow

    def digits(self, x):
        """From logit space back to 8-bit digits in [0, 1]."""
        v = (x.sigmoid() - self.EDGE) / (1 - 2 * self.EDGE)
        return (256 * v).floor().clamp(0, 255) / 255

    @torch.no_grad()
    def sample(self, n, y=None, temperature=1.0):
        """n digits (n, 1, 28, 28) in [0, 1], or points (n, 2); y is None, a class or (n,) classes."""
        z = temperature * torch.randn(n, self.D, device=self.fine[-1].shift.device)
        x = self.inverse(z, y)
        return self.digits(x) if self.data == "mnist" else x

def moons(n):
    """n points (n, 2) around two half circles, and which of them (n,): 0 the upper, 1 the lower."""
    y, t = torch.arange(n) % 2, math.pi * torch.rand(n)
    upper, lower = torch.stack([t.cos() - 0.5, t.sin() - 0.25], 1), torch.stack([0.5 - t.cos(), 0.25 - t.sin()], 1)
    return torch.where(y[:, None] == 0, upper, lower) + 0.08 * torch.randn(n, 2), y

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
def draw_all(s, run, model, x, y):
    """All pictures of digits, from a trained model, test digits x (N, 1, 28, 28) in [0, 1] and their labels y (N,)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    logits = model.logit(model.dequantise(x10)[0])[0]

    def page(name, title, images, columns, rows=None, cols=None):
        picture(s, f"{name}.png", sheet(torch.cat(images), columns, title, rows, cols))

    def seen(v, done):  # numbers between the layers, put back into their places: the coarse ones have 8 channels
        whole = torch.cat([F.pixel_shuffle(v, 2), done], 1) if v.shape[1] == 8 else v
        return F.pixel_shuffle(whole, 2) / 6 + 0.5

    page("samples", "samples of each class at temperature 0.7", [model.sample(100, digit.repeat(10), 0.7)], 10,
         cols=names)
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"the same noise after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    noise, heat = torch.randn(10, 784, device=x.device), [0, 0.3, 0.5, 0.7, 0.85, 1]
    page("temperature", "the same noise, scaled before it goes through: 1 is the model, less is tidier",
         [model.digits(model.inverse(t * noise, digit)) for t in heat], 10, [f"{t:g}" for t in heat], names)
    watch = []
    z, _ = model(logits, digit, watch)
    shown = sorted({0, *range(1, len(watch), 3), len(watch) - 1})
    page("layers", "digits on their way to noise, and what comes back",
         [x10, *(seen(*watch[i]) for i in shown), model.digits(model.inverse(z, digit))], 10,
         ["digit", *(f"stage {i}" for i in shown), "back"], names)
    watch = []
    drawn = model.digits(model.inverse(0.7 * noise, digit, watch))
    picture(s, "flow.gif", *[sheet(seen(*v), 10, f"noise on its way to digits: {i} of {len(watch)} stages undone",
                                   cols=names) for i, v in enumerate(watch)], sheet(drawn, 10, "digits", cols=names))
    mix, a, b = [i / 8 for i in range(9)], z, z.roll(-1, 0)
    angle = F.cosine_similarity(a, b).acos()[:, None]
    arc = [(((1 - u) * angle).sin() * a + (u * angle).sin() * b) / angle.sin() for u in mix]
    between = [x10, *(model.digits(model.inverse(v, digit if u < 0.5 else digit.roll(-1))) for u, v in zip(mix, arc)),
               x10.roll(-1, 0)]
    page("interpolation", "from one test digit to the next through z, along a great circle; the class changes midway",
         [torch.stack(between, 1).flatten(0, 1)], 11, cols=["digit", *mix, "digit"])

@torch.no_grad()
def strangers(s, nats, x):
    """Draw −log p(x) of test digits beside what is none; {kind: AUROC}, the chance that the stranger scores higher."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device).mul(255).round() / 255
    kinds = {"test digits": x, "upside down": x.rot90(2, (2, 3)), "inverted": 1 - x, "noise": noise,
             "dimmed to a half": (127 * x).round() / 255}
    bits = {kind: nats(images) / 784 / math.log(2) for kind, images in kinds.items()}
    real, area = bits["test digits"], {}
    fig = Figure(figsize=(8, 3.6), layout="constrained")
    ax = fig.subplots()
    for kind, values in bits.items():
        area[kind] = (real[:, None] < values).float().mean().item()
        ax.hist(values.cpu().clamp(0, 12), torch.linspace(0, 12, 121), density=True, alpha=0.6,
                label=kind if kind == "test digits" else f"{kind}: AUROC {area[kind]:.3f}")
    blank = nats(torch.zeros_like(x[:1])).item() / 784 / math.log(2)
    ax.axvline(blank, color="black", lw=1, ls="--", label=f"blank paper: {blank:.2f}")
    ax.set(title="which pictures does it find likely? likelihood is not typicality", xlabel="−log p(x), bits/dim "
           "(12 and more in the last bin)", ylabel="density")
    ax.legend(fontsize=8)
    picture(s, "likelihood.png", fig)
    return {kind: value for kind, value in area.items() if kind != "test digits"}

def density(model, side=120):
    """p(x) over the square from -2 to 2, (side, side), the lowest row first."""
    line = torch.linspace(-2, 2, side, device=model.fine[0].shift.device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).view(-1, 2)
    return model.log_prob(grid).exp().view(side, side).cpu()

def plane(ax, p, title):
    ax.imshow(p, origin="lower", extent=(-2, 2, -2, 2), cmap="magma", vmin=0)
    ax.set(xlabel="x₁", ylabel="x₂")
    ax.set_title(title, size=9)

def draw_moons(s, run, model, x):
    """The density, samples, and the points between the layers until the moons are one Gaussian cloud."""
    fig = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = fig.subplots(1, 2)
    plane(left, density(model), "density p(x), class not told")
    left.plot(*x[:500].T.cpu(), ".", ms=2, color="white", alpha=0.5)
    left.set(xlim=(-2, 2), ylim=(-2, 2))
    right.plot(*model.sample(2000).T.cpu(), ".", ms=2)
    right.set(title="2,000 samples", xlabel="x₁", ylabel="x₂", xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    picture(s, "samples.png", fig)
    frames = [Figure(figsize=(4, 4), layout="constrained") for _ in run["frames"]]
    for fig, p, c in zip(frames, run["frames"], run["curve"]):
        plane(fig.subplots(), p, f"density after {c[0]:,} steps of training")
    picture(s, "growth.gif", *frames)
    watch = []
    model(x[:2000], watch=watch)
    shown = watch[::2]
    fig = Figure(figsize=(2.2 * len(shown), 2.6), layout="constrained")
    for i, (ax, (points, _)) in enumerate(zip(fig.subplots(1, len(shown), squeeze=False)[0], shown)):
        ax.scatter(*points.T.cpu(), s=1, c=x[:2000, 0].cpu())
        ax.set(title=f"{2 * i} couplings", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[], aspect="equal")
    fig.suptitle("2,000 test points on their way to one Gaussian cloud, coloured by where they began", size=10)
    picture(s, "layers.png", fig)

# %% The run
def build(s):
    return RealNVP(s.data, s.channels, s.couplings, s.peak).to(memory_format=torch.channels_last)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]))
    restore({"model": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    torch.manual_seed(s.seed)
    if s.data == "mnist":
        x, y, x_test, y_test, s.source = mnist(s.stand_in)
        unit, x, x_test = 784 * math.log(2), x.float() / 255, x_test.float() / 255
    else:
        (x, y), (x_test, y_test), s.source, unit = moons(60000), moons(10000), "two moons", 2 * math.log(2)
        global SAVE_EVERY
        SAVE_EVERY = min(SAVE_EVERY, 1)  # the density bends fast
    x, y, x_test, y_test = (v.to(s.device) for v in (x, y, x_test, y_test))
    x_valid, y_valid, x, y = x[55000:56000], y[55000:56000], x[:55000], y[:55000]
    model = build(s).to(s.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, fused=True)
    with torch.no_grad():
        model.log_prob(x[:2000], start=True)
        levels = {"ActNorm alone": -model.log_prob(x_valid).mean().item() / unit}
    if s.data == "mnist":
        levels["uniform grey"] = 8.0
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; {LOSS}: "
          + ", ".join(f"{name} {level:.3f}" for name, level in levels.items()))

    def update(step):
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.5, 10, y[i])  # half of them are not told
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        with mixed(s.device):
            loss = -model.log_prob(x[i], label).mean() / unit
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100 / unit)  # 100 for a loss in nats
        optimizer.step()
        return loss

    @torch.no_grad()
    def nats(examples, labels=None):
        """−log p of each example, (N,); the noise that dequantises is the same every time."""
        torch.manual_seed(0)
        parts = zip(examples.split(100), [None] * len(examples) if labels is None else labels.split(100))
        return -torch.cat([model.log_prob(*part) for part in parts])

    def validate():
        return (nats(x_valid).mean() + nats(x_valid, y_valid).mean()).item() / 2 / unit  # half told, as in training

    @torch.no_grad()
    def draw():
        if s.data == "moons":
            return density(model)
        torch.manual_seed(0)
        samples = model.sample(40, torch.arange(40, device=s.device) % 10, 0.7)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (255 * samples).byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, validate, draw)

    done = time.perf_counter()
    untold, told, area = nats(x_test), nats(x_test, y_test), {}
    with torch.no_grad():
        v = x_test[:1000] if s.data == "moons" else model.logit(model.dequantise(x_test[:1000])[0])[0]
        error = (v - model.inverse(model(v)[0])).abs().max().item()
        if s.data == "mnist":
            area = strangers(s, nats, x_test[:1000])
            draw_all(s, run, model, x_test, y_test)
        else:
            draw_moons(s, run, model, x_test)
    drawn = time.perf_counter()
    model.sample(64)
    finish(s, run, {
        "test -log p(x), nats, class not told": untold.mean().item(),
        "test -log p(x), bits/dim, class not told": untold.mean().item() / unit,
        "its standard error, bits/dim": (untold.std() / len(untold) ** 0.5).item() / unit,
        "test -log p(x | y), bits/dim": told.mean().item() / unit,
        "largest error of a way there and back, 1,000 test examples": error,
        **{f"AUROC of -log p(x), test digits against {kind}": value for kind, value in area.items()},
        "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
