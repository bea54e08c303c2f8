# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""EBM: an energy-based model with Langevin dynamics (Du & Mordatch 2019, arXiv:1903.08689).

Think of a landscape in which every possible image is a place. How must it be shaped, so that a ball
that rolls about ends at digits? A network gives the image x of class y (which digit it is) a
height, the energy E(x, y), which may be any number. Low means probable:

    p(x | y) = exp(−E(x, y)) / Z(y)             Z(y) = ∫ exp(−E(x', y)) dx'

Lower by one, and p is e = 2.718 times as large: this unit is called the nat. Z makes p integrate to
1. It is an integral over all images x', 784 numbers each; nobody can compute it. Other models
are built so that nobody has to. Here the network is free, and training must do without Z.

Training should make p(x | y) of the training images as large as possible (maximum likelihood), so
−log p(x | y) = E(x, y) + log Z(y) small. Write ∂ for the derivative by the network's weights:

    ∂ log Z(y) = ∂Z(y) / Z(y)                                derivative of a logarithm
               = ∫ ∂ exp(−E(x', y)) dx' / Z(y)               ∂ may go into the integral
               = −∫ ∂E(x', y) exp(−E(x', y)) / Z(y) dx'      chain rule
               = −∫ ∂E(x', y) p(x' | y) dx'                  the fraction is p
               = −E_p[∂E(x', y)]                             a mean over images drawn from p

    −∂ log p(x | y) = ∂E(x, y) − E_p[∂E(x', y)]

Over all training images this is a difference of two means. A step against it lowers the energy of
digits x and raises that of the model's own samples x', until these are like digits. Z is gone, and
draws from p are needed instead. Langevin dynamics makes them: downhill in E, and a bit at random.

    x ← x − λ ∂E/∂x + σ ε,      ε ~ N(0, I)                  ∂E/∂x: derivatives by the pixels

With small steps and σ² = 2 λ this chain of places comes to each as often as p says: see `langevin`.
It runs at every step of training, for the samples x', and afterwards, to draw digits.

How to read the loss: E(digits) − E(samples) in it does not say how good the model is. It is 0 where
p is right, and also where E is flat. Look at samples instead.

Run `python ebm.py`; pictures appear in out/ebm/. On MNIST and one core of an AMD EPYC (bfloat16),
the other one busy, training takes 648 seconds. A separate classifier finds the class asked for in
99.4 % of 5,000 samples; in its features their Fréchet distance to test digits (benchmarks/judge.py)
is 1.5, that of unseen real digits 0.7. The energies classify 98.0 % of the test images.

Good at: drawing, classifying and filling gaps with one network. Bad at: fast sampling; and p(x) is
known up to Z only. Read before: gan.py. Read next: ddpm.py.
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


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=7000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="digits, chains a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="feature maps, 14 x 14")
    parser.add_argument(
        "--langevin-steps", type=positive_int, default=10, help="in a training step"
    )
    parser.add_argument("--sample-steps", type=positive_int, default=100, help="from noise")
    parser.add_argument("--buffer", type=positive_int, default=4096, help="chains that are kept")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/ebm", save_every=500)  # --device, --resume ...: at the end
    return parse(parser, argv)


# %% Data
# Pixels around a digit are exactly 0. For p to be high there and low beside it, E would need a
# valley without width, and balls that take steps would miss it. So p is the density of digits with
# noise, x = digit + s ε with ε ~ N(0, I) and s = 0.2. `remove_noise` takes it off in the end.
def add_noise(digits, noise):
    """x = digit + s ε, for digits (B, 1, 28, 28) in [0, 1]."""
    return digits + noise * torch.randn_like(digits)


# %% Model
# E(x, y) = ‖x‖² / 2s² − f(x, y), with ‖x‖² the sum of squared pixels. The first term is a bowl:
# from everywhere the way leads back. Alone it is the energy of N(0, s² I), noise on empty paper.
# The network f, an output for each class, digs valleys into it. A digit with ‖x‖² = 100 lies 1,250
# nats up the bowl, so f must be large: a factor 30 / s² = 750 spares it large weights.
class EBM(nn.Module):
    """E(x, y) of images x (B, 1, 28, 28), with noise, of classes y (B,)."""

    def __init__(self, channels=32, sample_steps=100, classes=10, noise=0.2):
        super().__init__()
        C = channels
        self.sample_steps = sample_steps
        self.classes = classes
        self.noise = noise  # s
        self.net = nn.Sequential(
            nn.Conv2d(1, C, 4, stride=2, padding=1),  # (B, C, 14, 14)
            nn.SiLU(),
            nn.Conv2d(C, 2 * C, 4, stride=2, padding=1),  # (B, 2C, 7, 7)
            nn.SiLU(),
            nn.Conv2d(2 * C, 2 * C, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * C * 7 * 7, 128),
            nn.SiLU(),
            nn.Linear(128, classes),
        )

    def energies(self, x):
        """E(x, y) for every class y, nats (B, classes)."""
        f = 30 / self.noise**2 * self.net(x).float()  # back to float32 after bfloat16
        bowl = x.square().sum((1, 2, 3)) / (2 * self.noise**2)
        return bowl[:, None] - f

    def energy(self, x, y):
        """E(x, y), nats (B,)."""
        return self.energies(x).gather(1, y[:, None])[:, 0]

    def slope(self, x, y):
        """∂E/∂x, (B, 1, 28, 28): of the sum, since image b is in the b-th energy only."""
        with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
            x = x.clone().requires_grad_()
            total = self.energy(x, y.clone()).sum()
            (slope,) = torch.autograd.grad(total, x)
        return slope

    @torch.no_grad()
    def sample(self, y):
        """An image for each class in y (B,), (B, 1, 28, 28) in [0, 1]: a chain from noise."""
        x = langevin(self, start(y), y, self.sample_steps)
        return remove_noise(self, x, y).clamp(0, 1)


def start(y):
    """Where chains begin, one for each class in y: noise, (B, 1, 28, 28)."""
    return torch.randn(len(y), 1, 28, 28, device=y.device)


# Why does it draw from p? Watch balls on a line, of density q. To the right, past x, go in a step
#     −λ q ∂E/∂x       by the slope: near x each ball moves by −λ ∂E/∂x
#     −σ²/2 ∂q/∂x      by noise, half of them +σ, half −σ: σ/2 · (q(x − σ/2) − q(x + σ/2))
#
# Where the sum is 0, q stays: ∂ log q/∂x = −(2λ/σ²) ∂E/∂x, so q ∝ exp(−E / T) with T = σ² / 2λ, the
# temperature. Hot balls leave their valleys, cold ones come to rest at the bottom. Only at T = 1
# is q = p, so λ = σ² / 2 here. (In the paper's code λ = 10, σ = 0.005: T = 1.25e-6, mere descent.)
#
# Steps must be small. In a valley E = k x² / 2 one is x ← (1 − λk) x + σ ε, and the variance v of x
# settles where v = (1 − λk)² v + σ²: at 1 / k times 1 / (1 − λk / 2); 1 / k is right. Noise s has
# k = 1 / s²: σ = s / 2 gives λk = 1/8 and 1.07 s²; σ = 2 s gives 1 − λk = −1, to and fro for ever.
def langevin(model, x, y, steps):
    """Chains x (B, 1, 28, 28) of classes y (B,), so many steps at T = 1 later."""
    sigma = model.noise / 2
    step_size = sigma**2 / 2  # λ
    for _ in range(steps):
        x = x - step_size * model.slope(x, y) + sigma * torch.randn_like(x)
    return x


# Which digit c is in x = c + s ε? The slope tells the mean. Let N be p(x | c), a Gaussian, with the
# derivative N (c − x) / s² by x. Then p(x) = Σ_c p(c) N and
#     ∂ log p/∂x = Σ_c p(c) N (c − x) / s² / p(x)      ∂ log p = ∂p / p
#                = Σ_c p(c | x) (c − x) / s²           Bayes: p(c) N / p(x) = p(c | x)
# The left side is −∂E/∂x, once p is learnt, the right one (mean of c, given x, less x) / s².
def remove_noise(model, x, y):
    """The mean of the digits that may be in x: x − s² ∂E/∂x."""
    return x - model.noise**2 * model.slope(x, y)


# From noise to a digit a chain needs a hundred steps. But E changes little in a step of training,
# so chains need not begin again: 4,096 are kept, and 64 at a time go ten steps on. One in twenty
# begins again, so that the way from noise stays known. Of the chains, as of the digits, 11.3 % are
# ones, and so on: the two means must be over the same classes.
class ReplayBuffer(nn.Module):
    """Chains x (size, 1, 28, 28) of classes y (size,), between steps of training."""

    def __init__(self, y):
        super().__init__()
        self.register_buffer("x", start(y))
        self.register_buffer("y", y)

    def draw(self, count):
        """The places of some chains, the chains, their classes."""
        places = torch.randperm(len(self.y), device=self.y.device)[:count]
        y = self.y[places]
        again = torch.rand(len(y), 1, 1, 1, device=y.device) < 0.05
        return places, torch.where(again, start(y), self.x[places]), y


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


# In small: three images have E = (0, 1, 2), so p = (0.67, 0.24, 0.09). Half the data are the first,
# half the second: the gradient by E is (0.5, 0.5, 0) − p, and the first, too frequent in p, rises.
#
# −log p(x | y) compares no classes: what is added to all E(x, 7), Z(7) takes off. So let p(x, y) be
# proportional to exp(−E(x, y)). Then p(y | x) = exp(−E(x, y)) / Σ_k exp(−E(x, k)), free of Z, and
# −log p(y | x), the cross-entropy, joins the loss (JEM; Grathwohl et al. 2020, arXiv:1912.03263).
def loss_of(model, x, y, chains, chains_y):
    """A number with the gradient of −log p(x | y) − log p(y | x), for digits x, nats."""
    energies = model.energies(x)
    of_digits = energies.gather(1, y[:, None]).mean()
    of_chains = model.energy(chains, chains_y).mean()
    return of_digits - of_chains + F.cross_entropy(-energies, y)


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation

    torch.manual_seed(args.seed)
    model = EBM(args.channels, args.sample_steps, args.classes)
    model.to(args.device, memory_format=torch.channels_last)  # convolutions are faster so
    share = torch.arange(args.buffer, device=args.device) * n // args.buffer
    buffer = ReplayBuffer(y[:n].sort().values[share])
    # Adam without momentum, β1 = 0: old gradients are about chains that have moved since.
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.0, 0.99), fused=True)
    parts = {"model": model, "buffer": buffer, "optimizer": optimizer}
    run = Run(args, source, n, "E(digits) - E(chains) + cross-entropy, nats", **parts)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        digits = add_noise(x[batch] / 255, model.noise)
        places, chains, chains_y = buffer.draw(args.batch_size)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            chains = langevin(model, chains, chains_y, args.langevin_steps)
            loss = loss_of(model, digits, y[batch], chains, chains_y)
        buffer.x[places] = chains
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():  # the same loss, of unseen digits and of all chains
                unseen = add_noise(x[n:] / 255, model.noise)
                validation = loss_of(model, unseen, y[n:], buffer.x, buffer.y)
            run.save(validation.item())
            samples = model.sample(ten_classes(y).repeat(2))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x_test / 255, y_test)


# %% That is the whole idea. Below: what the trained model can do, and the frame.
# %% Evaluation
def load_checkpoint(path):
    """What a run wrote into model.pt, a dictionary."""
    try:
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return saved | {"flags": saved["flags"]}  # KeyError if this is somebody else's file
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of this script") from error


def load(path="out/ebm/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = EBM(flags["channels"], flags["sample_steps"], flags["classes"])
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


# If some pixels are known, the density of the rest is p(x | y) divided by that of the known, where
# the rest does not appear. So its slope is the same ∂E/∂x: move it, and hold what is known.
@torch.no_grad()
def inpaint(model, x, y, known):
    """Draw the pixels of x (B, 1, 28, 28), with noise, anew where the mask `known` is False."""
    chains = torch.where(known, x, start(y))
    for _ in range(model.sample_steps):
        chains = torch.where(known, x, langevin(model, chains, y, 1))
    return remove_noise(model, chains, y).clamp(0, 1)


# Without the class, p(x) = Σ_y p(x, y), so E(x) = −log Σ_y exp(−E(x, y)) up to a constant. AUROC is
# the chance that a test digit has a lower E(x) than an image of another kind: 0.5 is a toss-up.
@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for test images x (N, 1, 28, 28) in [0, 1] of classes y (N,)."""
    torch.manual_seed(1)
    print("drawing samples ...", flush=True)
    shown = ten_classes(y)
    labels = shown.repeat(50)
    samples = model.sample(labels)
    energies = model.energies(add_noise(x, model.noise))
    of_samples = model.energy(add_noise(samples, model.noise), labels)
    results = {
        "mean E(x, y) of test images": energies.gather(1, y[:, None]).mean().item(),
        "mean E(x, y) of samples": of_samples.mean().item(),
    }
    if model.classes > 1:
        right = energies.argmin(1) == y
        results["most frequent class, share of test images"] = y.bincount().max().item() / len(y)
        results["classified by p(y | x), share of test images"] = right.float().mean().item()
    marginal = -energies.neg().logsumexp(1)
    others = {"samples": samples, "upside down": x[::20].flip(2, 3), "half as dark": x[::20] / 2}
    for name, images in others.items():
        theirs = -model.energies(add_noise(images, model.noise))
        lower = marginal[:, None] < -theirs.logsumexp(1)
        results[f"AUROC of E(x), test images against {name}"] = lower.float().mean().item()
    run.report(results)
    run.picture("samples.png", grid(samples[:100], "samples, one class a column"))

    pages = []
    chains = start(shown)
    for step in range(0, model.sample_steps + 1, 5):
        rows = torch.cat([chains, remove_noise(model, chains, shown)])
        pages.append(grid(rows, f"top: chains after {step} steps; below: the noise removed"))
        chains = langevin(model, chains, shown, 5)
    run.picture("chains.gif", *pages)

    upper_half = torch.arange(28, device=x.device).view(28, 1) < 14
    noisy = add_noise(x[:10].repeat(4, 1, 1, 1), model.noise)
    drawn = inpaint(model, noisy, y[:10].repeat(4), upper_half)
    title = "top: test digits; below: their lower half drawn anew, four times"
    run.picture("inpainting.png", grid(torch.cat([x[:10], drawn]), title))


# %% Notes
# Differs from the paper: T = 1, and for that the noise, the bowl and `remove_noise` (Saremi &
# Hyvärinen 2019, arXiv:1903.02334); cross-entropy; ten steps, not 60; no penalties, no clipping.
# None of these was measured alone. How long should chains run? Recall after 60, 100, 150, 300
# steps: 0.82, 0.77, 0.68, 0.58; precision 0.77, 0.83, 0.87, 0.90 (1,000 samples, against validation
# images). Chains end at lower energies than digits, with less variety.
# Things to break:
# 1. In `loss_of`, no `- of_chains`: nothing is raised. All energies fall; samples are no digits.
# 2. In `draw`, `< 2` for `< 0.05`: all chains begin again. Samples go on to what E was never told.
# 3. In `langevin`, sigma = 2 * model.noise: balls leap across valleys, further each time.


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
