# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""MADE: cut the wires of an autoencoder so that no pixel sees itself or what comes after it.

A picture x of D pixels, each black or white, has a probability that is a product of D factors, one a pixel, each given
all the pixels before it (and the class y of the digit, where it is told):

    log p(x | y) = Σᵢ log p(xᵢ | x₁, …, xᵢ₋₁, y)             the chain rule: exact, in any order of the pixels

A plain network with D inputs and D outputs would compute all D factors in one pass, if only output i depended on the
inputs before i alone. So give every unit a degree. Pixel i has degree i; a hidden unit of degree m may listen to units
of degree m or less; output i listens to degrees below i. Along any path of wires j ≤ m ≤ m′ < i, so none leads from
pixel j to output i unless j < i. Multiply the weights by masks of 0 and 1 that say so: W ⊙ M. That is all.

Trains: binary cross-entropy, summed over pixels; it is −log p(x | y) itself, in nats (divided by 784 ln 2: in bits per
dimension). Samples: pixel after pixel; a hidden unit is done once its pixels are, so all 784 cost the multiplications
of one pass. p(x): exact. Latent, a hidden code behind the picture: none. Good at: likelihoods, fast and honest. Bad at:
sharp shapes, since it knows nothing of rows, columns and strokes.

The class enters as a bias of each layer and is hidden from half of the digits, so one network gives p(x) and p(x | y).
The mixture p(x) = Σ_y p(y) p(x | y) is exact too, fits better, and reads digits by Bayes' rule. With --orderings K, the
masks of K orders of the pixels are trained in turn and log p(x) = log (1/K) Σ_k p_k(x): likelihoods are averaged, never
logits (samples are drawn in the first order).

What you will see. `python made.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16 in training): 205 s of training, 9 s of
pictures.

    step 369/8,000  -log p in nats 116.1593  9,435 digits/s  3 min 27 s left
    step 4,095/8,000  -log p in nats 84.8012  10,249 digits/s  1 min 38 s left
    step 8,000/8,000  -log p in nats 83.1132  10,035 digits/s  0 min 00 s left

Test set, binarised once, exact, in nats (± one standard error): −log p(x) = 84.73 ± 0.22 with the class summed out, and
85.55 from the network that is not told the class; −log p(x | y) = 82.65. Untrained: 784 ln 2 = 543.4; each pixel on
its own: 206.0. Bayes' rule reads 93.7 % of the test digits. 64 samples take 0.09 s. In out/made: samples,
completion, likely, masks, dependencies, curve (.png), pixel_by_pixel, growth (.gif).
On one GPU: `python made.py --steps 60000 --hidden 4000 --orderings 32` (not yet measured).

What differs from the paper. Digits are binarised afresh at every step, not once: about 2 nats lower, so compare with
that protocol alone. Degrees are spread evenly, not drawn, and are the same in all orderings. A second hidden layer
adds to the first (residual, as in Nash & Durkan 2019). Adam, one cosine of the learning rate, a class.

References: Germain, Gregor, Murray & Larochelle 2015 (arXiv:1502.03509), section 4 for the masks; NADE: Larochelle &
Murray 2011; residual masks: Nash & Durkan 2019 (1904.05626).
Read before: nothing. Next: char_rnn.py, the same rule for text, or pixelcnn.py, which knows what a row is.

Things to break, one line each:
  1. In `__init__`, make the direct mask >= for >: a pixel sees itself, the loss falls towards 0, samples are rubbish.
  2. In `update`, put (x[i] > 127).float() for binarise(x[i]): training falls far below validation.
  3. In `update`, hide every class (0.5 to 1.1): samples ignore the class, Bayes' rule reads one digit in ten.
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

# %% Settings: name, the published run's value, what it is. `python made.py --help` prints them.
NAME, LOSS, ITEM = "made", "-log p in nats", "digits"
FLAGS = {
    "steps": (8000, "optimiser steps"),
    "batch_size": (256, "digits per step"),
    "lr": (4e-3, "peak learning rate of Adam"),
    "hidden": (1024, "units in a hidden layer"),
    "layers": (2, "hidden layers"),
    "orderings": (1, "orders of the pixels: 1 is row by row; more are trained in turn and averaged as an ensemble"),
}

# %% Model: a plain network whose weights are multiplied by masks of zeros and ones
class MADE(nn.Module):
    """p(x | y) = Πᵢ p(xᵢ | x₍<ᵢ₎, y) over binary pixels; all 784 factors come from one pass through the network."""

    def __init__(self, D=784, hidden=1024, layers=2, orderings=1):
        super().__init__()
        self.D, self.orderings, sizes = D, orderings, [D] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.label = nn.ModuleList(nn.Embedding(11, n) for n in (*sizes[1:], D))  # 10 stands for "not told"
        self.out, self.direct = nn.Linear(sizes[-1], D), nn.Linear(D, D, bias=False)  # direct: from pixels to logits
        for k in range(orderings):
            order = torch.arange(D) if k == 0 else torch.randperm(D, generator=torch.Generator().manual_seed(k))
            degrees = [order.argsort() + 1]  # a pixel's and its output's degree is its place in the order, 1..D
            for n in sizes[1:]:  # a hidden unit of degree m sees the first m pixels; degrees are spread evenly
                degrees.append(1 + torch.arange(n) * (D - 1) // n)
            for i, (seen, m) in enumerate(zip(degrees, degrees[1:])):
                self.register_buffer(f"mask_{k}_{i}", (m[:, None] >= seen).float(), persistent=False)
            self.register_buffer(f"mask_{k}_out", (degrees[0][:, None] > degrees[-1]).float(), persistent=False)
            self.register_buffer(f"mask_{k}_direct", (degrees[0][:, None] > degrees[0]).float(), persistent=False)
            self.register_buffer(f"degrees_{k}", torch.cat(degrees), persistent=False)
        for layer in (self.out, self.direct, *self.label):
            nn.init.zeros_(layer.weight)  # an untrained model gives each pixel a half: 784 ln 2 nats
        nn.init.zeros_(self.out.bias)

    def forward(self, x, y=None, k=0):
        """Logits (B, D) of pixels x (B, D) in ordering k; logit i knows only the pixels before i."""
        y = torch.full((len(x),), 10, device=x.device) if y is None else y
        h = x
        for i, layer in enumerate(self.hidden):
            new = F.relu(F.linear(h, layer.weight * self.get_buffer(f"mask_{k}_{i}"), layer.bias) + self.label[i](y))
            h = new if i == 0 else h + new  # equal degrees, unit by unit: a residual layer keeps the order
        logits = F.linear(h, self.out.weight * self.get_buffer(f"mask_{k}_out"), self.out.bias) + self.label[-1](y)
        return logits + F.linear(x, self.direct.weight * self.get_buffer(f"mask_{k}_direct"))

    def log_prob(self, x, y=None, k=None):
        """log p(x | y), or log p(x), of binary digits x (B, 1, 28, 28): nats (B,). Exact.

        In one ordering k, or over all of them as an ensemble: the log of the mean of their likelihoods.
        """
        y = None if y is None else torch.as_tensor(y, device=x.device).expand(len(x))
        x, orderings = x.flatten(1).to(self.out.bias), range(self.orderings) if k is None else [k]
        logits = torch.stack([self(x, y, k).to(x) for k in orderings])  # (K, B, D)
        each = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(2)
        return torch.logsumexp(each, 0) - math.log(len(each))

    @torch.no_grad()
    def sample(self, n, y=None, given=None, k=0, watch=None):
        """n digits (n, 1, 28, 28) in {0, 1}; y is None, a class or (n,) classes.

        A hidden unit of degree m waits for the first m pixels and never changes again, so each unit is computed once:
        784 pixels cost the multiplications of one pass, not of 784. `given` (n, g): the first g pixels in ordering k,
        to be completed; `watch`, a list, collects the digits as they grow.
        """
        y = torch.as_tensor(10 if y is None else y, device=self.out.bias.device).expand(n)
        place, *degrees = self.get_buffer(f"degrees_{k}").split([self.D, *(len(layer.bias) for layer in self.hidden)])
        weights = [layer.weight * self.get_buffer(f"mask_{k}_{i}") for i, layer in enumerate(self.hidden)]
        bias = [layer.bias + label(y) for layer, label in zip((*self.hidden, self.out), self.label)]  # (n, units)
        out = self.out.weight * self.get_buffer(f"mask_{k}_out")
        direct = self.direct.weight * self.get_buffer(f"mask_{k}_direct")
        x, h = self.out.bias.new_zeros(n, self.D), [torch.zeros_like(b) for b in bias[:-1]]
        ready = [[(d == j + 1).nonzero()[:, 0] for j in range(self.D)] for d in degrees]  # units that wait for pixel j
        for j, pixel in enumerate(place.argsort().tolist()):
            logit = h[-1] @ out[pixel] + x @ direct[pixel] + bias[-1][:, pixel]
            u = torch.rand(n, device=x.device)
            x[:, pixel] = given[:, j] if given is not None and j < given.shape[1] else (u < logit.sigmoid()).to(x)
            for i, weight in enumerate(weights):
                new = ready[i][j]
                h[i][:, new] = F.relu(F.linear(h[i - 1] if i else x, weight[new]) + bias[i][:, new])
                if i:
                    h[i][:, new] += h[i - 1][:, new]
            if watch is not None and j % 28 == 27:
                watch.append(x.view(n, 1, 28, 28).clone())
        return x.view(n, 1, 28, 28)

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
def draw_all(s, run, model, x, y, nats):
    """All pictures, from a trained model, binary test digits x (N, 1, 28, 28), their labels and −log p(x | y) (N,)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    picture(s, "samples.png", sheet(model.sample(100, digit.repeat(10)), 10, "samples of each class", cols=names))
    picture(s, "growth.gif", *[sheet(f.float(), 10, f"samples after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    rows = []
    model.sample(40, digit.repeat(4), watch=rows)
    picture(s, "pixel_by_pixel.gif", *[sheet(f, 10, f"{28 * i + 28} of 784 pixels drawn", cols=names)
                                       for i, f in enumerate(rows)])
    half = x10.flatten(1)[:, :392]
    picture(s, "completion.png", sheet(torch.cat([x10, F.pad(half, (0, 392)).view_as(x10)] + [
        model.sample(10, None, given=half) for _ in range(4)]), 10, "the lower half drawn anew, class not told",
        ["digit", "given", 1, 2, 3, 4], names))
    order = nats.argsort()
    picture(s, "likely.png", sheet(x[torch.cat([order[:20], order[-20:]])], 10, f"test digits of −log p(x | y) from "
            f"{nats.min():.0f} to {nats.max():.0f} nats", ["likeliest", "", "unlikeliest", ""]))

    fig = Figure(figsize=(11, 3.6), layout="constrained")
    layers = [*(f"mask_0_{i}" for i in range(len(model.hidden))), "mask_0_out", "mask_0_direct"]
    for ax, name, title in zip(fig.subplots(1, len(layers)), layers, ["pixels to hidden", *["hidden to hidden"] * (
            len(layers) - 3), "hidden to logits", "pixels to logits"]):
        ax.imshow(model.get_buffer(name).cpu(), cmap="gray_r", aspect="auto", interpolation="nearest")
        ax.set(title=title, xlabel="from unit", ylabel="to unit")
    fig.suptitle("the masks: black wires are kept. No way leads from a pixel to its own logit or to one before it")
    picture(s, "masks.png", fig)

    fig = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, pixel in zip(fig.subplots(1, 3), (14 * 28 + 10, 14 * 28 + 14, 20 * 28 + 12)):
        see = x[:200].flatten(1).requires_grad_()
        model(see)[:, pixel].sum().backward()
        image = see.grad.abs().mean(0).view(28, 28).cpu()
        ax.imshow(image, cmap="magma")
        ax.plot(pixel % 28, pixel // 28, "s", mfc="none", mec="cyan")
        ax.set(title=f"row {pixel // 28}, column {pixel % 28}", xticks=[], yticks=[])
    fig.suptitle("what a pixel's logit (cyan) listens to: mean |∂ logit / ∂ pixel|, nothing from the pixel on")
    picture(s, "dependencies.png", fig)

# %% The run
def build(s):
    return MADE(784, s.hidden, s.layers, s.orderings)

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
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.5, 10, y[i])  # half of them are not told
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        with mixed(s.device):
            loss = -model.log_prob(binarise(x[i]), label, k=step % s.orderings).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    @torch.no_grad()
    def nats(digits, labels=None):
        """−log p of each digit, (N,)."""
        parts = zip(digits.split(1000), [None] * len(digits) if labels is None else labels.split(1000))
        return -torch.cat([model.log_prob(*part) for part in parts])

    def validate():
        return (nats(b_valid).mean() + nats(b_valid, y_valid).mean()).item() / 2  # half told, as in training

    def draw():
        torch.manual_seed(0)
        samples = model.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return samples.byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, validate, draw)

    done = time.perf_counter()
    told = torch.stack([nats(b_test, torch.full_like(y_test, d)) for d in range(10)], 1)
    mixture = math.log(10) - torch.logsumexp(-told, 1)  # (N,): log p(x) = log Σ_y p(y) p(x | y), a tenth for each class
    right, untold = told.gather(1, y_test[:, None])[:, 0], nats(b_test)
    draw_all(s, run, model, b_test, y_test, right)
    drawn = time.perf_counter()
    model.sample(64)
    finish(s, run, {
        "test -log p(x), nats, class summed out": mixture.mean().item(),
        "its standard error": (mixture.std() / len(mixture) ** 0.5).item(),
        "test -log p(x), nats, network not told the class": untold.mean().item(),
        "test -log p(x | y), nats": right.mean().item(),
        "test -log p(x), bits/dim, class summed out": mixture.mean().item() / 784 / math.log(2),
        "test digits read by Bayes' rule": (told.argmin(1) == y_test).float().mean().item(),
        "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
