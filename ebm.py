# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""EBM: learn a landscape with valleys where the digits lie, and draw by rolling downhill with a tremble.

Any function E(x, y) of a picture and a class makes a density, p(x, y) = exp(−E(x, y)) / Z, where Z, the sum over all
pictures and classes, is unknown and stays so. Training needs only the gradient by the weights θ; there Z turns into a
mean:

    −∂_θ log p(x | y) = ∂_θ E(x, y) − E_{x' ~ p(· | y)}[∂_θ E(x', y)]     push digits down, pull the model's samples up

Samples come from Langevin dynamics, which needs no Z either: x ← x − rate · ∂E/∂x + noise · ε. With small steps and
noise² = 2 rate it ends at p. Digits need thousands of such steps; so the chains wait in a replay buffer between
optimiser steps and go on where they stopped, one in twenty from noise, and rate is far larger than the noise allows:
downhill with a little tremble. That samples the landscape at temperature noise² / (2 rate) = 1.25e-5 instead of 1, but
for the clipping, and the landscape is trained for this sampler.

One energy for each class: E(x) = −log Σ_y exp(−E(x, y)) is the picture's own, and p(y | x) = exp(−E(x, y) + E(x)) is a
classifier that comes free, trained by its cross-entropy on top. Chains are spread evenly over the classes, so p(y) is
left to that cross-entropy.

How to read the loss. E(data) − E(samples) is no distance: where the model is right it is 0, and where training dies it
is 0 too. Look at `balance`: the two energies should stay close and near 0, the samples get better. What runs away and
how it is held: energies grow (E² in the loss), gradients burst (clipped, in weights and in pixels), the landscape
outruns the chains (if the contrast passes 10 either way, the last sound weights come back and the buffer restarts).

Samples: 300 network passes and their gradients, slow. p(x): up to Z. Latent: none. Good at: composing, inpainting and
denoising with no training for them. Bad at: training, sampling, likelihoods.

What you will see. `python ebm.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16 in training): 123 s of training, 14 s
of pictures.

    step 84/900  contrast + class + size 1.0453  536 digits/s  1 min 37 s left
    step 510/900  contrast + class + size 0.8394  477 digits/s  0 min 52 s left
    step 900/900  contrast + class + size 0.6977  476 digits/s  0 min 00 s left

A separate classifier reads 99.0 % of 1,000 samples as the class asked for (`python benchmarks/judge.py ebm`); over
seeds 0, 1, 2: 99.0 %, 99.0 % and 97.0 % (1,000, 200 and 200 samples), with no restarts. p(y | x) reads 94.6 % of the
test digits. AUROC of E(x), the chance that a stranger scores higher than a test digit, with realnvp.py's −log p(x) in
brackets: upside down 0.668 (0.529), inverted 1.000 (1.000), noise 1.000 (1.000), dimmed to a half 0.259 (0.855): what
is smoother than a digit passes for one. 64 samples take 1.3 s. In out/ebm: samples, denoise, inpainting, energies,
balance, curve (.png), chains, growth (.gif).
On one GPU: `python ebm.py --steps 20000 --batch-size 128 --channels 64 --chain-steps 60` (not yet measured).

What differs from the paper. The class by one energy each; JEM trains log p(x) + log p(y | x), here the contrast is on
E(x, y) and the cross-entropy comes on top; no spectral normalisation; Gaussian noise of 0.03 on the data; samples by a
running average of the weights.

References: Du & Mordatch 2019 (arXiv:1903.08689); JEM: Grathwohl et al. 2020 (1912.03263); persistent chains: Tieleman
2008; contrastive divergence: Hinton 2002; Langevin: Welling & Teh 2011.
Read before: ddpm.py. Next: the comparison in README.md.

Things to break, one line each:
  1. In `update`, put replay.keep(j, torch.rand_like(chain)): chains never grow older than 20 steps, E tells them
     from digits at sight, and the loss falls below 0.
  2. Set --size 0: the energies of `balance` drift away from 0.
  3. In `langevin`, set noise=0.1: samples drown in grain, and energies of data and samples part.
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

# %% Settings: name, the published run's value, what it is. `python ebm.py --help` prints them.
NAME, LOSS, ITEM = "ebm", "contrast + class + size", "digits"
FLAGS = {
    "steps": (900, "optimiser steps"),
    "batch_size": (64, "digits per step, and as many chains"),
    "lr": (5e-4, "peak learning rate of Adam"),
    "channels": (32, "feature maps at 14 x 14, twice as many at 7 x 7"),
    "chain_steps": (20, "Langevin steps of each chain in an optimiser step"),
    "sample_steps": (300, "Langevin steps from noise to a sample"),
    "replay": (4096, "chains in the replay buffer"),
    "size": (0.1, "weight of E², which keeps energies near 0"),
}

# %% Model: a landscape over all pictures, low where digits are
class EBM(nn.Module):
    """p(x, y) = exp(−E(x, y)) / Z, Z unknown. From it p(x) ∝ Σ_y exp(−E(x, y)), and p(y | x), a classifier, exact."""

    def __init__(self, channels=32, sample_steps=300):
        super().__init__()
        C, self.sample_steps = channels, sample_steps
        self.net = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4, C, 3, padding=1), nn.SiLU(),  # (B, C, 14, 14)
            nn.Conv2d(C, 2 * C, 3, stride=2, padding=1), nn.SiLU(),  # (B, 2C, 7, 7)
            nn.Conv2d(2 * C, 2 * C, 3, padding=1), nn.SiLU(), nn.Flatten(),
            nn.Linear(98 * C, 128), nn.SiLU(), nn.Linear(128, 10))

    def energies(self, x):
        """E(x, y) for x (B, 1, 28, 28) in [0, 1] and each class y: (B, 10)."""
        return -self.net((2 * x - 1).contiguous(memory_format=torch.channels_last)).to(x)

    def energy(self, x, y=None):
        """E(x, y) for y, a class or (B,) classes; or E(x) = −log Σ_y exp(−E(x, y)): (B,)."""
        e = self.energies(x)
        if y is None:
            return -torch.logsumexp(-e, 1)
        return e.gather(1, torch.as_tensor(y, device=x.device).expand(len(x))[:, None])[:, 0]

    def sample(self, n, y=None, **how):
        """n digits (n, 1, 28, 28) in [0, 1], chains from uniform noise; y is None, a class or (n,) classes."""
        x = torch.rand(n, 1, 28, 28, device=self.net[-1].bias.device)
        y = [None] * n if y is None else torch.as_tensor(y, device=x.device).expand(n).split(100)
        return torch.cat([self.walk(*part, **how) for part in zip(x.split(100), y)])

    def walk(self, x, y=None, steps=None, **how):
        """x (B, 1, 28, 28) after so many Langevin steps under E(x, y), or E(x)."""
        with mixed(str(x.device)):
            return langevin(lambda v: self.energy(v, y), x, steps or self.sample_steps, **how)

def langevin(energy, x, steps, rate=1.0, noise=0.005, limit=0.1, keep=None, watch=None):
    """x ← x − rate ∂E/∂x + noise ε, again and again: downhill, with a tremble; x (B, 1, 28, 28) stays in [0, 1].

    In the limit of small steps, with noise² = 2 rate, x becomes a draw of exp(−E) / Z; the defaults are far colder, as
    in the paper. `limit` bounds ∂E/∂x; `keep` = (mask, x) are pixels that stay; `watch`, a list, collects every x.
    """
    for _ in range(steps):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            gradient, = torch.autograd.grad(energy(x).sum(), x)
        x = (x.detach() - rate * gradient.clamp(-limit, limit) + noise * torch.randn_like(x)).clamp(0, 1)
        x = x if keep is None else torch.where(keep[0], keep[1], x)
        if watch is not None:
            watch.append(x)
    return x

class Replay(nn.Module):
    """Where the chains wait between optimiser steps, so that a chain grows longer than one step could pay for."""

    def __init__(self, n):
        super().__init__()
        self.register_buffer("chains", (torch.rand(n, 1, 28, 28) * 255).byte())
        self.register_buffer("asked", torch.arange(n) % 10)  # each chain has a class for ever
        self.register_buffer("restarts", torch.zeros((), dtype=torch.long))

    def draw(self, n):
        """Indices, pictures and classes of n chains; one in twenty begins anew from noise."""
        i = torch.randperm(len(self.chains), device=self.chains.device)[:n]
        fresh = torch.rand(len(i), 1, 1, 1, device=i.device) < 0.05
        old = self.chains[i] / 255
        return i, torch.where(fresh, torch.rand_like(old), old), self.asked[i]

    def keep(self, i, x):
        self.chains[i] = (255 * x).round().byte()

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
    """All pictures, from a trained model, test digits x (N, 1, 28, 28) in [0, 1] and their labels y (N,)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class

    def page(name, title, images, columns, rows=None, cols=None):
        picture(s, f"{name}.png", sheet(torch.cat(images), columns, title, rows, cols))

    page("samples", f"samples of each class: {model.sample_steps} Langevin steps from noise",
         [model.sample(100, digit.repeat(10))], 10, cols=names)
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"chains from the same noise after {c[0]:,} steps of training",
                                     cols=names) for f, c in zip(run["frames"], run["curve"])])
    watch = [torch.rand(20, 1, 28, 28, device=x.device)]
    model.walk(watch[0], digit.repeat(2), watch=watch)
    stops = sorted({int(len(watch) ** (k / 40)) - 1 for k in range(41)})
    picture(s, "chains.gif", *[sheet(watch[i], 10, f"downhill from noise: {i} Langevin steps", cols=names)
                               for i in stops])
    noisy = (x10 + 0.4 * torch.randn_like(x10)).clamp(0, 1)
    page("denoise", "noise taken away by descent under E(x, y), none added on the way", [
        x10, noisy, *(model.walk(noisy, digit, n, noise=0) for n in (5, 20, 60))], 10,
        ["digit", "noisy", "5 steps", 20, 60], names)
    known = torch.arange(28, device=x.device).view(28, 1) < 14  # the upper half
    page("inpainting", "the lower half of a test digit, erased and found again by descent, class told", [
        x10, torch.where(known, x10, 0), *(model.walk(torch.where(known, x10, torch.rand_like(x10)), digit,
                                                      keep=(known, x10)) for _ in range(3))], 10,
        ["digit", "known", 1, 2, 3], names)

    fig = Figure(figsize=(7, 3.6), layout="constrained")
    ax = fig.subplots()
    step = [c[0] for c in run["curve"]]
    for name, values in zip(("E(validation digits)", "E(chains in the buffer)"), zip(*run["balance"])):
        ax.plot(step, values, "o-", ms=3, label=name)
    ax.axhline(0, ls="--", lw=1, color="gray")
    ax.set(title="a balance, not a loss: the two energies should stay close and near 0", xlabel="step",
           ylabel="mean E(x, y), nats")
    ax.title.set_size(10)
    ax.legend(fontsize=8)
    picture(s, "balance.png", fig)

@torch.no_grad()
def strangers(s, energy, x, samples):
    """Draw E(x) of test digits beside samples and what is no digit; {kind: AUROC}, the chance that it has more."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device).mul(255).round() / 255
    kinds = {"test digits": x, "samples": samples, "upside down": x.rot90(2, (2, 3)), "inverted": 1 - x,
             "noise": noise, "dimmed to a half": x / 2}
    scores, area = {kind: energy(images) for kind, images in kinds.items()}, {}
    fig = Figure(figsize=(8, 3.6), layout="constrained")
    ax = fig.subplots()
    for kind, values in scores.items():
        area[kind] = (scores["test digits"][:, None] < values).float().mean().item()
        ax.hist(values.cpu().clamp(-10, 20), torch.linspace(-10, 20, 121), density=True, alpha=0.6,
                label=kind if kind == "test digits" else f"{kind}: AUROC {area[kind]:.3f}")
    ax.set(title="E(x): low where it has learned digits to be", xlabel="E(x), nats, up to a constant", ylabel="density",
           yscale="log")
    ax.legend(fontsize=8)
    picture(s, "energies.png", fig)
    return {kind: value for kind, value in area.items() if kind != "test digits"}

# %% The run
def build(s):
    return EBM(s.channels, s.sample_steps).to(memory_format=torch.channels_last)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, with averaged weights, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]))
    restore({"average": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    *data, s.source = mnist(s.stand_in)
    x, y, x_test, y_test = (v.to(s.device) for v in data)
    x_valid, y_valid, x, y, x_test = x[55000:56000] / 255, y[55000:56000], x[:55000], y[:55000], x_test / 255
    torch.manual_seed(s.seed)
    model, replay = build(s).to(s.device), Replay(s.replay).to(s.device)
    average, good = (build(s).to(s.device).requires_grad_(False) for _ in range(2))  # `good`: the last sound weights
    average.load_state_dict(model.state_dict())
    good.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, betas=(0.0, 0.99), fused=True)
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; untrained, {LOSS} is {math.log(10):.4f}")

    def update(step):
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        real = (x[i] / 255 + 0.03 * torch.randn(s.batch_size, 1, 28, 28, device=s.device)).clamp(0, 1)
        j, chain, asked = replay.draw(s.batch_size)
        chain = model.walk(chain, asked, s.chain_steps)
        replay.keep(j, chain)
        with mixed(s.device):
            e = model.energies(torch.cat([real, chain]))
        own = e.gather(1, torch.cat([y[i], asked])[:, None])[:, 0]
        e_real, e_chain = own.split([len(real), len(chain)])
        contrast = e_real.mean() - e_chain.mean()
        loss = contrast + F.cross_entropy(-e[:len(real)], y[i]) + 2 * s.size * own.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        if contrast.abs() > 10:  # the landscape has run away from the chains: back to the last sound weights
            model.load_state_dict(good.state_dict())
            replay.chains.random_(256)
            replay.restarts += 1
        elif step % 100 == 0 and contrast.abs() < 2:
            good.load_state_dict(model.state_dict())
        for a, p in zip(average.parameters(), model.parameters()):
            a.lerp_(p.detach(), 1 - min(0.999, (1 + step) / (10 + step)))
        return loss

    @torch.no_grad()
    def energy(images, labels=None):
        """E(x) or E(x, y) of each image, (N,)."""
        parts = zip(images.split(500), [None] * len(images) if labels is None else labels.split(500))
        return torch.cat([average.energy(*part) for part in parts])

    @torch.no_grad()
    def validate():
        real, chains = energy(x_valid, y_valid), energy(replay.chains[:1000] / 255, replay.asked[:1000])
        run.setdefault("balance", []).append((real.mean().item(), chains.mean().item()))
        size = s.size * (real.square().mean() + chains.square().mean())
        return (real.mean() - chains.mean() + F.cross_entropy(-average.energies(x_valid), y_valid) + size).item()

    def draw():
        torch.manual_seed(0)
        samples = average.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (255 * samples).byte().cpu()

    train(s, run, {"model": model, "average": average, "good": good, "replay": replay, "optimizer": optimizer},
          update, validate, draw)

    done = time.perf_counter()
    with torch.no_grad():
        e = torch.cat([average.energies(part) for part in x_test.split(500)])
    torch.manual_seed(0)
    begun, asked = time.perf_counter(), torch.arange(200, device=s.device) % 10
    samples = average.sample(200, asked)
    took = 64 / 200 * (time.perf_counter() - begun)
    area = strangers(s, energy, x_test[:1000], samples)
    draw_all(s, run, average, x_test, y_test)
    finish(s, run, {
        "test digits read right by p(y | x)": (e.argmin(1) == y_test).float().mean().item(),
        "its cross-entropy, nats": F.cross_entropy(-e, y_test).item(),
        "mean E(x, y), test digits": e.gather(1, y_test[:, None]).mean().item(),
        "mean E(x, y), samples": energy(samples, asked).mean().item(),
        "samples read as asked by p(y | x)": (average.energies(samples).argmin(1) == asked).float().mean().item(),
        **{f"AUROC of E(x), test digits against {kind}": value for kind, value in area.items()},
        "restarts": int(replay.restarts),
        "seconds for 64 samples": took,
        "seconds of training": run["seconds"], "seconds after": time.perf_counter() - done},
        {"untrained": math.log(10)})

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
