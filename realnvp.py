# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""RealNVP: a normalizing flow of couplings (Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803).

How does one get the density of images of digits, which nobody knows, out of a simple one? Start
with one number. Draw z ~ N(0, 1), whose density is called p_Z, and stretch: x = 2 z + 1. Points
that were dz apart are dx = 2 dz apart now: as much probability on twice the length, so the density
is half as high. At x = 3, which comes from z = 1, p(3) = p_Z(1) / 2 = 0.242 / 2 = 0.121. In
general p(x) |dx| = p_Z(z) |dz|, the same probability on both sides. Training starts at x: let f be
the way back, z = f(x) = (x − 1) / 2. Divide by |dx|:

    log p(x) = log p_Z(f(x)) + log |dz/dx|              here dz/dx = 1/2

With D numbers p_Z is N(0, I), and a small box takes the place of dx. f changes the box's volume by
the factor |det ∂z/∂x|: the determinant of the Jacobian, the D x D matrix of all ∂z_i / ∂x_j:

    log p(x) = log p_Z(f(x)) + log |det ∂z/∂x|          the change of variables: exact

f may be any smooth map that can be inverted: let it be learnt. But an image has D = 784 pixels, and
a determinant costs about D³ operations. That of a triangular matrix is only the product of its
diagonal. A coupling is built to have one. For two numbers, with two functions s and t:

    z_1 = x_1                              the first passes
    z_2 = x_2 · exp(s(x_1)) + t(x_1)       the second is scaled and shifted, as the first says

    ∂z/∂x = | 1   0           |            the row of z_1: its derivatives by x_1 and x_2
            | …   exp(s(x_1)) |            of z_2; det = 1 · exp(s(x_1)) − 0 · …

So log |det| = s(x_1). What stands at "…" does not matter: s and t may be networks of any kind. Nor
are they inverted on the way back, where x_1 = z_1 is known: x_2 = (z_2 − t(z_1)) · exp(−s(z_1)). If
s(x_1) = x_1 and t(x_1) = 5, for instance, x = (1, 2) goes to z = (1, 2 · 2.718 + 5) = (1, 10.44),
log |det| is 1, and back, (10.44 − 5) / 2.718 = 2.

The next coupling lets the other half pass, and so on: f is a chain of them, and their log |det|
add up. The networks also see the class y. Training lowers the mean −log p(x | y), in nats (log is
natural); divided by 784 ln 2 it is in bits/dim, bits a pixel. Sampling draws z ~ p_Z and goes back.

Run `python realnvp.py`; pictures appear in out/realnvp/. One core of an AMD EPYC (bfloat16) needs
678 seconds. MNIST's test images, bits/dim: grey levels by their shares alone 1.967, the bound of
this model 1.098. A separate classifier finds the class asked for in 86.5 % of 5,000 samples, and in
98.4 % at temperature 0.7.

Good at: exact densities (of whole levels: a bound), a way back from z to x, fast sampling. Bad
at: size; z has as many numbers as x. Read before: made.py, vae.py. Read next: ddpm.py.
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
from PIL import Image
from torch import nn

from data import mnist

BIT = 28 * 28 * math.log(2)  # nats in one bit for each pixel


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=17_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="images a step")
    parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="feature maps of a layer")
    parser.add_argument("--couplings", type=positive_int, default=8, help="in the chain")
    parser.add_argument("--blocks", type=positive_int, default=2, help="residual, in a coupling")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/realnvp", save_every=1000)  # --device, --resume: at the end
    return parse(parser, argv)


# %% Data
# Grey levels are whole numbers, 0 to 255. A density of them can be as high as one likes: a needle
# at each level, and 0 between. So each level gets an interval of the line, and a pixel becomes a
# random point r in its level's interval (dequantisation), drawn from a density q(r | x). So r takes
# the place of the x above. Let P(x | y), for an image x of whole levels, be the probability of its
# box: 784 intervals. With E_q, the mean over r ~ q(r | x),
#     0 ≥ log P(x | y) = log ∫_box p(r | y) dr                a probability is at most 1
#                      = log E_q[p(r | y) / q(r | x)]         multiply and divide by q
#                      ≥ E_q[log p(r | y) − log q(r | x)]     Jensen: log 2.5 ≥ (log 1 + log 4) / 2
def log_normal(z):
    """log of the density of N(0, 1), number by number."""
    return -0.5 * z**2 - 0.5 * math.log(2 * math.pi)


# Which intervals, which q? Couplings shift and scale: a Gaussian bell stays one, and a shift by ±2,
# once the neighbours tell white from ink, makes N(0, 1) of either. So r is drawn from two bells:
#     level 0, white     r < 0    what of N(−2, 1) lies below 0
#     levels 1 to 255    r > 0    what of N(2, 1) lies above 0, in slices: one a level, in order,
#                                 with a share as large as this level is frequent in ink
# Φ(z) is the share of N(0, 1) that lies left of z. If a level has the shares from 0.50 to 0.53 of
# its bell, its interval is 2 + Φ⁻¹(0.50) = 2.00 to 2 + Φ⁻¹(0.53) = 2.08. To draw from it, take a u
# between 0.50 and 0.53, all alike: r = 2 + Φ⁻¹(u). Then q(r) = (1 / 0.03) du/dr = bell(r) / 0.03.
BELL = 2.0  # how far the middle of a bell lies from 0


def level_edges(images):
    """Where on the line the interval of each grey level begins, and where the last ends: (257,)."""
    counts = images.flatten().cpu().bincount(minlength=256).double()
    ink = counts[1:] + 0.01 * counts.mean()  # some room, too, for levels never seen
    shares = ink.cumsum(0)[:-1] / ink.sum()  # of the ink in levels 1, 1 to 2, … 1 to 254
    below = torch.special.ndtr(torch.tensor(-BELL))  # ndtr is Φ, ndtri Φ⁻¹
    ends = BELL + torch.special.ndtri(below + (1 - below) * shares)
    return torch.cat([torch.tensor([-math.inf, 0]), ends, torch.tensor([math.inf])]).float()


def dequantise(x, edges):
    """A random point r in the interval of each grey level of x, and Σ log q(r | x), nats (B,)."""
    level = x.long()
    middle = torch.where(level == 0, -BELL, BELL)
    low = torch.special.ndtr(edges[level] - middle)
    high = torch.special.ndtr(edges[level + 1] - middle)
    u = low.lerp(high, torch.rand_like(low)).clamp(1e-6, 1 - 1e-6)  # Φ⁻¹(0) = −∞
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)  # Φ⁻¹(u), in terms that Apple's GPUs know, too
    log_q = log_normal(z) - (high - low).log()
    return middle + z, log_q.flatten(1).sum(1)


# %% Model
# Which half passes? A pixel is best guessed from its neighbours, so halves interlock, as on a
# chessboard. The squeeze makes that simple: 2 x 2 pixels become one place with four channels.
#      1  2  3  4
#      5  6  7  8      channel 0:    1  3     1:    2  4     2:    5  7     3:    6  8
#      9 10 11 12                    9 11          10 12          13 15          14 16
#     13 14 15 16
# Channels 0 and 3 are now the white fields of a chessboard, 0 and 1 every other row, 0 and 2 every
# other column. A mask is 1 for channels that pass; its opposite comes next.
MASKS = [[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


# A coupling of many numbers, with the mask b (paper: equation 9), products number by number:
#     z = b x + (1 − b) (x exp(s(b x)) + t(b x))
# Put the numbers that pass first: the Jacobian is triangular, with 1 and exp(s) on its diagonal.
# So log |det| is the sum of s over all that do not pass. (In `s_and_t`, s = t = 0 where x passes.)
def block(C):
    """Two convolutions, to be added to their input, (B, C, H, W). s and t may well be deep."""
    first = nn.Conv2d(C, C, 3, padding=1)
    second = nn.Conv2d(C, C, 3, padding=1)
    return nn.Sequential(nn.SiLU(), first, nn.SiLU(), second)


class Coupling(nn.Module):
    """Channels whose mask is 1 pass; the others are scaled and shifted, as these and y say."""

    def __init__(self, mask, size, C, blocks, classes):
        super().__init__()
        self.register_buffer("mask", torch.tensor(mask).view(-1, 1, 1), persistent=False)
        self.first = nn.Conv2d(len(mask), C, 3, padding=1)
        self.blocks = nn.ModuleList(block(C) for _ in range(blocks))
        self.last = nn.Conv2d(C, 2 * len(mask), 3, padding=1)
        for name, weights in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(weights)  # numbers keep their size from layer to layer
        nn.init.zeros_(self.last.weight)  # at first s = t = 0: the coupling changes nothing
        nn.init.zeros_(self.last.bias)
        self.place = nn.Parameter(torch.zeros(classes, C, size, size))  # of each class and place

    def s_and_t(self, x, y):
        """s and t, (B, 4, 14, 14) like x: 0 where x passes."""
        seen = (self.mask * x).clamp(-6, 6)  # a number far out must not throw off all others
        seen = seen.contiguous(memory_format=torch.channels_last)  # faster
        h = self.first(seen) + self.place[y]
        for block in self.blocks:
            h = h + block(h)
        s, t = self.last(F.silu(h)).float().chunk(2, dim=1)  # back to float32 after bfloat16
        s = torch.tanh(s)  # between −1 and 1: no factor explodes
        t = 8 * torch.tanh(t / 8)  # nor does a shift
        changed = 1 - self.mask
        return changed * s, changed * t

    def forward(self, x, y):
        """z, shaped like x, and log |det ∂z/∂x|, (B,)."""
        s, t = self.s_and_t(x, y)
        return x * s.exp() + t, s.flatten(1).sum(1)

    def inverse(self, z, y):
        s, t = self.s_and_t(z, y)  # they see only what passed, and there z is x
        return (z - t) * (-s).exp()


class RealNVP(nn.Module):
    """P(x | y) of 8-bit images x (B, 1, 28, 28), grey levels 0 to 255, of classes y (B,)."""

    def __init__(self, channels=32, couplings=8, blocks=2, classes=10):
        super().__init__()
        self.classes = classes
        self.register_buffer("edges", level_edges(torch.arange(256)))  # main sets others
        chain = []
        for i in range(couplings):
            chain.append(Coupling(MASKS[i % 6], 14, channels, blocks, classes))
        self.couplings = nn.ModuleList(chain)

    def forward(self, r, y):
        """z (B, 784) of points r (B, 1, 28, 28) on the line, and log |det ∂z/∂r|, (B,)."""
        h = F.pixel_unshuffle(r, 2)  # the squeeze: no number changes, so log |det| = 0
        log_det = torch.zeros(len(r), device=r.device)
        for coupling in self.couplings:
            h, change = coupling(h, y)
            log_det = log_det + change
        return h.flatten(1), log_det

    def inverse(self, z, y):
        """The image of z, grey levels k / 255, (B, 1, 28, 28): each step undone, the last first."""
        h = z.view(len(z), 4, 14, 14)
        for coupling in reversed(self.couplings):
            h = coupling.inverse(h, y)
        r = F.pixel_shuffle(h, 2)
        return torch.bucketize(r, self.edges[1:-1], right=True) / 255  # whose interval is hit

    def log_prob(self, x, y):
        """The bound on log P(x | y), with one r for E_q, nats (B,). Training raises it."""
        r, log_q = dequantise(x, self.edges)
        z, log_det = self(r, y)
        return log_normal(z).sum(1) + log_det - log_q

    @torch.no_grad()
    def sample(self, y, temperature=1.0):
        """Draw images of classes y (B,), (B, 1, 28, 28) in [0, 1]; z is times `temperature`."""
        z = torch.randn(len(y), 28 * 28, device=y.device)
        return self.inverse(temperature * z, y)


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation

    torch.manual_seed(args.seed)
    model = RealNVP(args.channels, args.couplings, args.blocks, args.classes)
    model.edges = level_edges(x[:n])
    model = model.to(args.device, memory_format=torch.channels_last)  # faster convolutions
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # fused: faster, nothing else
    run = Run(args, source, n, "bound, bits/dim", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.log_prob(x[batch], y[batch]).mean() / BIT
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # no single batch moves the weights far
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = -model.log_prob(x[n::5], y[n::5]).mean() / BIT
            run.save(validation.item())
            samples = model.sample(ten_classes(y).repeat(4))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x[:n], x_test, y_test)


# %% That is the whole idea. Below: what the trained model can do, and the frame.
# %% Evaluation
def load_checkpoint(path):
    """What a run wrote into model.pt, a dictionary."""
    try:
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return saved | {"flags": saved["flags"]}  # KeyError if this is somebody else's file
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of this script") from error


def load(path="out/realnvp/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = RealNVP(flags["channels"], flags["couplings"], flags["blocks"], flags["classes"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


def ten_classes(y):
    """Ten of the classes in y, for a row of samples: the first ten, or fewer in turn."""
    present = y.unique()
    return present[torch.arange(10, device=y.device) % len(present)]


def grid(images, title):
    """A figure of images (N, 1, H, W), ten to a row: 0 is white, 1 is black."""
    missing = -len(images) % 10  # to fill the last row with white
    images = torch.cat([images, torch.zeros_like(images[:missing])]).cpu()
    rows = [torch.cat(list(row), dim=2) for row in images.split(10)]
    page = torch.cat(rows, dim=1)[0]
    figure = Figure(figsize=(6.2, len(page) / 45 + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(page.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(title)
    return figure


@torch.no_grad()
def evaluate(run, model, x_train, x, y):
    """Results and pictures for test images x (N, 1, 28, 28), grey levels, of classes y (N,)."""
    torch.manual_seed(1)
    log_probs = [model.log_prob(*part) for part in zip(x.split(500), y.split(500))]
    bits = -torch.cat(log_probs) / BIT
    shown = ten_classes(y)
    white = torch.zeros(10, 1, 28, 28, device=x.device)
    empty = -model.log_prob(white, shown).mean().item() / BIT
    counts = x_train.flatten().bincount(minlength=256) + 1
    shares = counts / counts.sum()  # of all pixels, how many have each level
    results = {
        "grey levels by their shares, bits/dim": -shares.log2()[x.long()].mean().item(),
        "bound, bits/dim": bits.mean().item(),
        "bound, standard error": bits.std().item() / len(x) ** 0.5,
        "an empty image, bits/dim": empty,
    }
    run.report(results)

    images = model.sample(shown.repeat(10))
    run.picture("samples.png", grid(images, "samples, one class a column"))

    # Two test digits of each class, and their z: times 1 they are back. A temperature below 1 takes
    # z to where p_Z is densest; so would a straight line from z to z; an arc keeps its length.
    ends = torch.stack([x[y == label][[0, -1]] for label in shown], dim=1)  # (2, 10, 1, 28, 28)
    r, _ = dequantise(ends.flatten(0, 1), model.edges)
    z, _ = model(r, shown.repeat(2))
    rows = [model.inverse(z[:10] * u, shown) for u in (0, 0.25, 0.5, 0.75, 1, 1.25)]
    run.picture("temperature.png", grid(torch.cat(rows), "z of test digits times 0, 0.25 … 1.25"))
    pages = []
    for angle in torch.linspace(0, math.pi / 2, 17, device=x.device):
        between = model.inverse(angle.cos() * z[:10] + angle.sin() * z[10:], shown)
        pages.append(grid(between, "from one test digit to another of its class, through z"))
    run.picture("interpolation.gif", *pages)

    # Empty images are never drawn: there is one, and many digits (see Nalisnick et al. 2019).
    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    axes.hist(bits.clamp(max=3).tolist(), bins=200, range=(0, 3), label="test images; 3: or more")
    axes.axvline(empty, color="black", linestyle="--", label="an empty image")
    axes.set(xlabel="bound on −log P(x | y), bits/dim", ylabel="images")
    axes.set_title("an empty image is more probable than any digit")
    axes.legend()
    run.picture("likelihood.png", axes.figure)


# %% Notes
# Differs from the paper: bells, not logits of levels with noise; one scale; no batch normalisation;
# masks of rows and columns; bounds on s, t and what they see (without, losses of 10^10); the class.
# After 3 minutes (bits/dim of validation images, class found; earlier forms): 18 couplings of three
# convolutions, logits of intervals as wide as levels are frequent 1.202, 72.5 %; then bells
# 1.173, 71.6; larger first weights 1.163, 70.7; 8 couplings, two residual blocks each 1.152, 77.5.
# Things to break:
# 1. In `dequantise`, torch.rand_like(low) / 10: the loss falls below 0 and bounds nothing.
# 2. In `Coupling.forward`, return 0 * s.flatten(1).sum(1): the loss is wrong, samples are noise.
# 3. MASKS = [[1, 0, 0, 1]] * 6: half of the pixels pass everywhere, and the loss stays high.


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
