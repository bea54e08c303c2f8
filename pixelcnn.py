# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""PixelCNN: convolutions with a mask, so that each pixel is drawn from its neighbours above and to the left.

A picture x of 784 pixels, read row by row, has a probability that is a product of 784 factors:

    log p(x | y) = Σᵢ log p(xᵢ | x₁, …, xᵢ₋₁, y)             y: the class of the digit, where it is told

made.py cuts wires so that output i depends on the pixels before i; here the wires are a convolution's, so what is
learned about a stroke in one corner holds in all of them. Multiply the kernel by a mask: 1 for places before the
middle, 0 after it. The first layer must not see the middle, the pixel to be foretold (mask A). Later layers may (mask
B): there the middle holds features of the pixels before it, and no more.

    mask A    1 1 1        mask B    1 1 1
              1 0 0                  1 1 0            (the rows below, all 0, are not even stored)

Trains: binary cross-entropy, summed over pixels; it is −log p(x | y) itself, in nats, all 784 factors in one pass.
Samples: pixel after pixel. A new pixel changes no features before its own place, so each layer computes one place and
keeps the rest: 784 pixels cost the multiplications of one pass, in proportion to the number of pixels N. The plain
way, a pass for each pixel, costs N². p(x): exact. Latent, a hidden code behind the picture: none. Good at:
likelihoods; strokes and edges. Bad at: speed of sampling; at what is farther away than its blocks reach; and masks
upon masks leave a blind spot, a wedge above and to the right that no path of wires enters. blind_spot.png measures it;
gated_pixelcnn.py mends it.

What you will see. `python pixelcnn.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16): 438 s of training, 26 s of
pictures.

    step 233/9,500  -log p in nats 98.7054  745 digits/s  6 min 38 s left
    step 4,849/9,500  -log p in nats 83.5034  665 digits/s  3 min 44 s left
    step 9,500/9,500  -log p in nats 81.5379  696 digits/s  0 min 00 s left

Test set, binarised once, exact, in nats (± one standard error): −log p(x) = 83.44 ± 0.20 from the network that is not
told the class, −log p(x | y) = 79.59. With the class summed out, on the first 1,000 digits: 80.89 (not told, on the
same: 82.39). Untrained: 784 ln 2 = 543.4; each pixel on its own: 206.0; made.py: 86.73. The class y of the largest p(x
| y) is right for 96.1 % of those 1,000 (Bayes' rule). AUROC of −log p(x), class not told, 1,000 test digits against
the same upside down: 0.628, inverted: 1.000, noise: 1.000. 64 samples take 1.1 s.
In out/pixelcnn: samples, completion, blind_spot, surprise, unusual, curve (.png), pixel_by_pixel, growth (.gif).
On one GPU: `python pixelcnn.py --steps 200000 --channels 128 --layers 15 --lr 1e-3` (not yet measured).

What differs from the paper. Digits are binarised afresh at every step, not once: about 2 nats lower, so compare with
that protocol alone. A learned bias for each place: convolutions do not know where they are. The class, a bias in each
block, hidden from half of the digits. Blocks look 5 pixels wide, not 3. Adam, one cosine of the learning rate.

References: van den Oord, Kalchbrenner & Kavukcuoglu 2016 (arXiv:1601.06759), figure 5 and table 1; the cached sampler:
Ramachandran et al. 2017 (1704.06001).
Read before: made.py. Next: gated_pixelcnn.py; diff the two.

Things to break, one line each:
  1. In `__init__`, give the stem see=4 for see=3: a pixel sees itself, the loss falls to 0; the sampler, who shows it
     a white one, draws blank pages.
  2. In `Block`, see=4 for see=3: it sees its right neighbour, whose features hold the pixel itself: the loss falls to
     0; the sampler, for whom they are still 0, draws pages mostly black.
  3. In `sample`, drop the line with `keep`: the loss stays what it is, but to the sampler all that was drawn looks
     white; in completion.png the lower half has nothing to do with the upper.
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

# %% Settings: name, the published run's value, what it is. `python pixelcnn.py --help` prints them.
NAME, LOSS, ITEM = "pixelcnn", "-log p in nats", "digits"
FLAGS = {
    "steps": (9500, "optimiser steps"),
    "batch_size": (32, "digits per step"),
    "lr": (3e-3, "peak learning rate of Adam"),
    "channels": (32, "C: feature maps inside a block; twice as many go from block to block"),
    "layers": (7, "blocks after the first convolution"),
}

# %% Model: convolutions that do not see what is still to be drawn
class MaskedConv(nn.Conv2d):
    """A convolution over `rows` x `cols` pixels, the last of the rows being the pixel's own: nothing below is in reach.

    Of its own row it sees the first `see` places: cols // 2 of them are left of the pixel (mask A), one more is the
    pixel itself (mask B).
    """

    def __init__(self, C_in, C_out, rows, cols, see):
        super().__init__(C_in, C_out, (rows, cols))
        self.rows, self.side = rows, cols // 2
        mask = torch.ones(rows, cols)
        mask[-1, see:] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x, at=None):
        """x (B, C, 28, 28), a whole map; or, (B, C, 1, W), the W places of a row that begin at `at` = (row, column)."""
        if at is None:
            x = F.pad(x, (self.side, self.side, self.rows - 1, 0))
        else:
            (r, c), W = at, x.shape[3]
            self.keep(x, at)
            x = self.kept[:, :, r:r + self.rows, c:c + W + 2 * self.side]
        return F.conv2d(x, self.weight * self.mask, self.bias)

    def keep(self, x, at):
        """Remember a piece of the input (B, C, 1, W), the only one that a new pixel changes."""
        (r, c), W = at, x.shape[3]
        if at == (0, 0):
            self.kept = x.new_zeros(*x.shape[:2], 27 + self.rows, 28 + 2 * self.side)
        self.kept[:, :, r + self.rows - 1, c + self.side:c + self.side + W] = x[:, :, 0]

class Block(nn.Module):
    """A residual block: narrow, look around, widen, add (paper, figure 5)."""

    def __init__(self, C):
        super().__init__()
        self.narrow, self.widen = nn.Conv2d(2 * C, C, 1), nn.Conv2d(C, 2 * C, 1)
        self.look = MaskedConv(C, C, 3, 5, see=3)  # mask B: the pixel's own features too
        self.label = nn.Embedding(11, C)  # 10 stands for "not told"
        nn.init.zeros_(self.label.weight)

    def forward(self, x, y, at):
        h = self.narrow(F.relu(x))  # (B, C, H, W)
        h = F.relu(h + self.label(y).to(h)[:, :, None, None])
        return x + self.widen(F.relu(self.look(h, at)))

class PixelCNN(nn.Module):
    """p(x | y) = Πᵢ p(xᵢ | x₍<ᵢ₎, y) over binary pixels, row by row; all 784 factors come from one pass."""

    def __init__(self, C=32, layers=8):
        super().__init__()
        self.stem = MaskedConv(1, 2 * C, 4, 7, see=3)  # mask A: everything before the pixel, not the pixel itself
        self.place = nn.Parameter(torch.zeros(1, 2 * C, 28, 28))  # convolutions do not know where they are: a hint
        self.blocks = nn.ModuleList(Block(C) for _ in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(2 * C, 2 * C, 1), nn.ReLU(), nn.Conv2d(2 * C, 1, 1))
        nn.init.zeros_(self.head[-1].weight)  # an untrained model gives each pixel a half: 784 ln 2 nats
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, x, y=None, at=None):
        """Logits (B, 1, H, W) of digits x (B, 1, H, W) in {0, 1}; a logit knows only the pixels before its own."""
        y = torch.full((len(x),), 10, device=x.device) if y is None else y
        (r, c), (H, W) = at or (0, 0), x.shape[2:]
        h = self.stem(2 * x - 1, at)
        h = h + self.place[:, :, r:r + H, c:c + W].to(h)
        for block in self.blocks:
            h = block(h, y, at)
        return self.head(h)

    def log_factors(self, x, y=None):
        """log p(xᵢ | x₍<ᵢ₎, y) of each pixel of binary digits x (B, 1, 28, 28), of the same shape: nats."""
        return -F.binary_cross_entropy_with_logits(self(x, y).to(x), x, reduction="none")

    def log_prob(self, x, y=None):
        """log p(x | y), or log p(x), of digits x (B, 1, 28, 28): nats (B,). Exact."""
        y = None if y is None else torch.as_tensor(y, device=x.device).expand(len(x))
        return self.log_factors(x, y).flatten(1).sum(1)

    def draw(self, logits):
        """A pixel (n,) in {0, 1} from the logit (n, 1) of its being black."""
        return (torch.rand(len(logits), device=logits.device) < logits[:, 0].sigmoid()).to(logits)

    @torch.no_grad()
    def sample(self, n, y=None, given=None, watch=None):
        """n digits (n, 1, 28, 28) in {0, 1}; y is None, a class or (n,) classes; given (n, g): their first g pixels.

        A new pixel changes the features of its own place and of places after it, never of those before. So each layer
        computes one place at a time and keeps what it needs of the others: 784 pixels cost the multiplications of one
        pass. The plain way, a whole pass for each pixel, costs 784 times as many. `watch`, a list, collects the rows.
        """
        x = self.head[-1].weight.new_zeros(n, 1, 28, 28)
        y = torch.as_tensor(10 if y is None else y, device=x.device).expand(n)
        for i in range(784):
            r, c = divmod(i, 28)
            drawn = self.draw(self(x[:, :, r:r + 1, c:c + 1], y, (r, c))[:, :, 0, 0])
            x[:, 0, r, c] = given[:, i] if given is not None and i < given.shape[1] else drawn
            self.stem.keep(2 * x[:, :, r:r + 1, c:c + 1] - 1, (r, c))
            if watch is not None and c == 27:
                watch.append(x.clone())
        return x

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
def draw_all(s, run, model, x, y):
    """All pictures, from a trained model, binary test digits x (N, 1, 28, 28) and their labels y (N,)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    rows = []
    samples = model.sample(100, digit.repeat(10), watch=rows)
    picture(s, "samples.png", sheet(samples, 10, "samples of each class", cols=names))
    picture(s, "pixel_by_pixel.gif", *[sheet(f[:40], 10, f"{28 * i + 28} of 784 pixels drawn", cols=names)
                                       for i, f in enumerate(rows)])
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"samples after {c[0]:,} steps of training", cols=names)
                               for f, c in zip(run["frames"], run["curve"])])
    half = x10.flatten(1)[:, :392]
    again = model.sample(40, given=half.repeat(4, 1))
    picture(s, "completion.png", sheet(torch.cat([x10, F.pad(half, (0, 392)).view_as(x10), again]), 10,
            "the lower half drawn anew, class not told", ["digit", "given", 1, 2, 3, 4], names))

    fig = Figure(figsize=(9, 3.5), layout="constrained")
    reach = 3 + 2 * len(model.blocks)  # places up, left and right that the layers can reach
    for ax, (r, c) in zip(fig.subplots(1, 3), ((8, 8), (14, 14), (20, 8))):
        seen = torch.zeros(28, 28, device=x.device)
        for _ in range(4):  # pictures of noise: what one of them happens to switch off, another does not
            see = torch.randn(8, 1, 28, 28, device=x.device, requires_grad=True)
            model(see)[:, 0, r, c].sum().backward()
            seen += see.grad.abs().sum((0, 1))
        above = seen[max(0, r - reach):r, max(0, c - reach):c + reach + 1] > 0
        ax.imshow(seen.masked_fill(seen == 0, 1).log10().masked_fill(seen == 0, math.nan).cpu(), cmap="viridis")
        ax.plot(c, r, "s", mfc="none", mec="red")
        ax.set(title=f"blind to {(~above).sum()} of {above.numel()} pixels above", xticks=[], yticks=[])
    fig.suptitle(f"what a logit (red) listens to: log |∂ logit / ∂ pixel|; above: within {reach} pixels")
    picture(s, "blind_spot.png", fig)

    each = -model.log_factors(x10, digit).detach() / math.log(2)
    fig = Figure(figsize=(10, 2.6), layout="constrained")
    axes = fig.subplots(2, 10)
    for d in range(10):
        axes[0, d].imshow(x10[d, 0].cpu(), cmap="gray_r")
        shown = axes[1, d].imshow(each[d, 0].cpu(), cmap="magma", vmin=0, vmax=6)
        axes[0, d].set_title(f"{each[d].sum() * math.log(2):.0f} nats", size=8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    fig.colorbar(shown, ax=axes, label="bits")
    fig.suptitle("where the surprise is: −log₂ p of each pixel of ten test digits, class told", size=10)
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

# %% The run
def build(s):
    return PixelCNN(s.channels, s.layers)

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
    x, y, b_valid, y_valid = x[:55000], y[:55000], b_valid[:500], y[55000:55500]
    torch.manual_seed(s.seed)
    model = build(s).to(s.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, fused=True)
    p = (x.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)  # a baseline: each pixel on its own
    alone = F.binary_cross_entropy(p.expand_as(b_test), b_test, reduction="none").flatten(1).sum(1).mean().item()
    levels = {"untrained": 784 * math.log(2), "each pixel on its own": alone}
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; {LOSS}: "
          + ", ".join(f"{name} {level:.1f}" for name, level in levels.items()))

    def update(step):
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.5, 10, y[i])  # half of them are not told
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        with mixed(s.device):
            loss = -model.log_prob(binarise(x[i]), label).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    @torch.no_grad()
    def nats(digits, labels=None):
        """−log p of each digit, (N,)."""
        parts = zip(digits.split(16), [None] * len(digits) if labels is None else labels.split(16))
        return -torch.cat([model.log_prob(*part) for part in parts])

    def validate():
        return (nats(b_valid).mean() + nats(b_valid, y_valid).mean()).item() / 2  # half told, as in training

    def draw():
        torch.manual_seed(0)
        samples = model.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (samples * 255).byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, validate, draw)

    done = time.perf_counter()
    untold, right, few = nats(b_test), nats(b_test, y_test), b_test[:1000]
    told = torch.stack([nats(few, y_test.new_full((len(few),), d)) for d in range(10)], 1)
    summed = math.log(10) - torch.logsumexp(-told, 1)  # (1000,): −log p(x) = −log Σ_y p(x | y) / 10
    area = unusual(s, nats, few)
    draw_all(s, run, model, b_test, y_test)
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
