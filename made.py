# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""MADE: masked autoencoder for distribution estimation (Germain et al. 2015, arXiv:1502.03509).

How probable is a given image of a handwritten digit? In MNIST an image x has D = 28 · 28 = 784
pixels; here each is ink (1) or paper (0). There are 2^784 such images, far too many for a table.
But the product rule, p(a, b) = p(a) · p(b | a), takes a probability of many things apart into
probabilities of one thing each: p(b | a) is that of b once a is known. For three pixels and the
class y (which digit it is),

    p(x_1, x_2, x_3 | y) = p(x_1 | y) · p(x_2 | x_1, y) · p(x_3 | x_1, x_2, y)

and for D pixels

    log p(x | y) = Σ_i log p(x_i | x_1, …, x_{i−1}, y)

This is exact, in any order of the pixels; x_i is the i-th in that order. The model has to give one
number for each factor: p_i, the probability that x_i is ink, given y and the pixels before it. The
factor is p_i if x_i = 1, and 1 − p_i if x_i = 0. A model that predicts one pixel after the other
like this is called autoregressive.

An autoencoder is a network trained to put out its own input. MADE is one: it reads the whole image
and puts out all 784 p_i in one pass. But if output i saw x_i, it would copy it, and every image
would get probability 1, though the probabilities of all images together must be 1. So output i may
depend only on y and the pixels before i. MADE cuts all other connections: it multiplies each
weight matrix by a mask of zeros and ones. Which to cut is this paper's idea; see `mask` below.

Training should make the probability of the training images as large as possible. The mean of
−log p(x | y) over the images is called the negative log-likelihood, NLL:

    −log p(x | y) = −Σ_i [x_i log p_i + (1 − x_i) log(1 − p_i)]

where only one of the two terms is not 0, since x_i is 1 or 0. That is binary cross-entropy, summed
over the pixels. One pass computes it exactly.

Logarithms are natural and their unit is the nat: one nat less, and p(x | y) is e = 2.718 times as
large. Lower is better.

Sampling goes in order. The image is all zeros at first: compute p_1, draw x_1 and write it into the
image; compute p_2, draw x_2; and so on, 784 passes.

Run `python made.py`; pictures appear in out/made/. On MNIST and one core of an AMD EPYC (bfloat16)
it takes 300 seconds, on two 206. Test images, nats: half ink, half paper 543.43 (each pixel by the
toss of a coin); mean pixels 205.94 (each by itself, as often ink as in training); NLL of this
model 81.94 given the class, 84.13 without (a mean over classes, below), and 85.17 with --classes
1. Bayes' rule classifies 97.5 % of the test images, and a separate classifier 88.0 % of 5,000
samples.

Good at: exact likelihoods, in one pass. Bad at: speed of sampling, and shapes; the network does
not know which pixels are neighbours. Read before: nothing. Read next: char_rnn.py, pixelcnn.py.
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
    parser.add_argument("--steps", type=int, default=12_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="images a step")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate of Adam")
    parser.add_argument("--hidden", type=positive_int, default=1024, help="units in a hidden layer")
    orders = ["rows", "columns", "random"]
    parser.add_argument("--order", default="rows", choices=orders, help="which pixel comes first")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/made", save_every=1000)  # --device, --resume ...: at the end
    return parse(parser, argv)


# %% Data
def binarise(images):
    """Draw each pixel: ink (1) with probability grey level / 255, else paper (0).

    The model knows ink and paper only. Training images are drawn anew at each step.
    """
    return torch.bernoulli(images / 255)


# %% Model
# Which connections may stay? Give every unit a degree m: it knows at most the first m pixels of the
# order. Input pixel i has degree i; the class, known before all pixels, has 0. Hidden units have
# degrees 0 to D − 1. Output i must not know pixel i itself: degree i − 1. Then one rule is enough:
#
#     a unit may look at whatever has its own degree or a lower one.
#
# Along any path, however long, the degree never falls. So output i sees pixels 1 to i − 1 only. For
# D = 4 and hidden layers of four units each (rows look at columns; 1 keeps a weight, . cuts it):
#
#     class and pixels            first hidden                second hidden
#     to first hidden             to second hidden            to output
#            y  x1 x2 x3 x4              m=0 1  2  3                 m=0 1  2  3
#     m = 0  1  .  .  .  .        m = 0  1  .  .  .           p_1    1  .  .  .
#     m = 1  1  1  .  .  .        m = 1  1  1  .  .           p_2    1  1  .  .
#     m = 2  1  1  1  .  .        m = 2  1  1  1  .           p_3    1  1  1  .
#     m = 3  1  1  1  1  .        m = 3  1  1  1  1           p_4    1  1  1  1
#
# No unit sees x_4: nothing comes after it.
def mask(degrees_from, degrees_to):
    """Ones where a unit may look: a row for each unit that looks, a column for each looked at."""
    return (degrees_to[:, None] >= degrees_from[None, :]).float()


class MaskedLinear(nn.Linear):
    """A linear layer whose weights count only where the mask is 1."""

    def __init__(self, degrees_from, degrees_to):
        super().__init__(len(degrees_from), len(degrees_to))
        self.register_buffer("mask", mask(degrees_from, degrees_to), persistent=False)

    def forward(self, v):
        return F.linear(v, self.weight * self.mask, self.bias)


def pixel_order(name):
    """The pixels' indices in the order in which they are predicted, (784,)."""
    pixels = torch.arange(28 * 28)
    if name == "columns":  # from top to bottom, column after column
        return pixels.view(28, 28).T.flatten()
    if name == "random":
        return pixels[torch.randperm(28 * 28, generator=torch.Generator().manual_seed(0))]
    return pixels  # "rows": as one reads a page


class MADE(nn.Module):
    """p(x | y) of binary images x (B, 1, 28, 28) of classes y (B,), pixel by pixel in one order."""

    def __init__(self, hidden=1024, order="rows", classes=10):
        super().__init__()
        self.classes = classes
        self.order = pixel_order(order)
        D = len(self.order)
        pixels = torch.empty(D, dtype=torch.long)  # their degrees
        pixels[self.order] = torch.arange(1, D + 1)  # the first pixel in the order has degree 1
        inputs = torch.cat([torch.zeros(classes, dtype=torch.long), pixels])
        units = torch.arange(hidden) * D // hidden  # degrees 0 to D − 1, evenly spread
        self.first = MaskedLinear(inputs, units)
        self.second = MaskedLinear(units, units)
        self.output = MaskedLinear(units, pixels - 1)
        self.direct = MaskedLinear(inputs, pixels - 1)  # from inputs straight to outputs

    def forward(self, x, y):
        """The logit of ink at each pixel, (B, 784), from the class and the pixels before it."""
        y_and_x = torch.cat([F.one_hot(y, self.classes), x.flatten(1)], dim=1)
        h = F.relu(self.first(y_and_x))
        h = h + F.relu(self.second(h))  # both have the same degrees: nothing leaks
        logits = self.output(h) + self.direct(y_and_x)  # the long way and the direct one
        return logits.float()  # back to float32 after bfloat16

    def log_prob(self, x, y):
        """log p(x | y), exact, nats (B,)."""
        x = x.flatten(1)
        log_p = -F.binary_cross_entropy_with_logits(self(x, y), x, reduction="none")
        return log_p.sum(1)  # over the pixels: the product rule

    @torch.no_grad()
    def sample(self, y):
        """Draw an image for each class in y (B,), pixel after pixel, (B, 1, 28, 28)."""
        x = torch.zeros(len(y), 28 * 28, device=y.device)
        return self.draw(x, y, self.order)

    def draw(self, x, y, pixels):
        """Draw these pixels of x (B, 784), in place and in turn; the others stay as they are."""
        for pixel in pixels:
            p = self(x, y)[:, pixel].sigmoid()  # it does not see what is not drawn yet
            x[:, pixel] = torch.bernoulli(p)
        return x.view(-1, 1, 28, 28)


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid, y_valid = binarise(x[n:]), y[n:]
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    model = MADE(args.hidden, args.order, args.classes).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # fused: faster, nothing else
    run = Run(args, source, n, "NLL, nats", model=model, optimizer=optimizer)  # log, checkpoints
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.log_prob(binarise(x[batch]), y[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = -model.log_prob(x_valid, y_valid).mean()
            run.save(validation.item())
            samples = model.sample(ten_classes(y).repeat(2))
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


def load(path="out/made/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = MADE(flags["hidden"], flags["order"], flags["classes"])
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


# Completion needs nothing new: the first half of an image in the order is put in, and only the
# pixels after it are drawn. It works for whatever comes first in the order, and for nothing else.
@torch.no_grad()
def complete(model, x, y, known):
    """Draw all pixels of x (B, 1, 28, 28) anew except the first `known` in the model's order."""
    return model.draw(x.flatten(1).clone(), y, model.order[known:])


# If the class is not known, p(x) = Σ_y p(y) p(x | y), with p(y) = 1 / classes, all as frequent. And
# Bayes' rule makes the model a classifier, p(y | x) = p(y) p(x | y) / p(x): take the y for which
# p(x | y) is largest.
@torch.no_grad()
def log_prob_by_class(model, x):
    """log p(x | y) for every class y, nats (classes, B)."""
    log_probs = []
    for label in range(model.classes):
        y = torch.full((len(x),), label, device=x.device)
        log_probs.append(model.log_prob(x, y))
    return torch.stack(log_probs)


# The product rule holds in any order, but a network does not learn all orders equally well, and
# models of several orders (`--order columns --out out/made-columns`, …) err in different places.
# The average of K models, p(x | y) = (1/K) Σ_k p_k(x | y), is a probability again. Averaged
# log-probabilities are not: they sum to less than 1 over all images, unless the models agree.
@torch.no_grad()
def average_log_prob(models, x, y):
    """log of the mean of p(x | y) over models, for instance of several orders, nats (B,)."""
    log_probs = [model.log_prob(x, y) for model in models]
    return torch.stack(log_probs).logsumexp(0) - math.log(len(models))


@torch.no_grad()
def evaluate(run, model, x_train, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    nll = -model.log_prob(x, y)
    by_class = log_prob_by_class(model, x)
    marginal = by_class.logsumexp(0) - math.log(model.classes)
    # And a model of independent pixels: each has ink as often as in training.
    ink = (x_train / 255).mean(0).clamp(0.001, 0.999).expand_as(x)  # log 0 would be −∞
    results = {
        "half ink, half paper, nats": 28 * 28 * math.log(2),
        "mean pixels, nats": 28 * 28 * F.binary_cross_entropy(ink, x).item(),
        "NLL, nats": nll.mean().item(),
        "NLL, standard error": nll.std().item() / len(x) ** 0.5,
    }
    if model.classes > 1:
        right = by_class.argmax(0) == y
        results["NLL, marginal over classes, nats"] = -marginal.mean().item()
        results["Bayes' classifier, share of test images"] = right.float().mean().item()
    run.report(results)

    print("drawing samples, one pixel after the other ...", flush=True)
    shown = ten_classes(y)
    samples = model.sample(shown.repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    pages = []
    for known in range(0, 28 * 28 + 1, 28):
        drawn = samples[:20].flatten(1).clone()
        drawn[:, model.order[known:]] = 0.2  # light grey: not drawn yet
        pages.append(grid(drawn.view(-1, 1, 28, 28), f"{known} of 784 pixels drawn"))
    run.picture("one_by_one.gif", *pages)

    half = x[:10].flatten(1).clone()
    half[:, model.order[392:]] = 0.2
    rows = [x[:10], half.view(-1, 1, 28, 28)]
    for _ in range(4):
        rows.append(complete(model, x[:10], y[:10], known=392))
    title = "test digits; their first half in the order; four completions"
    run.picture("completion.png", grid(torch.cat(rows), title))

    figure = Figure(figsize=(13, 4), layout="constrained")
    titles = ["class, pixels to units", "units to units", "units to outputs", "pixels to outputs"]
    layers = [model.first, model.second, model.output, model.direct]
    for axes, layer, title in zip(figure.subplots(1, 4), layers, titles):
        axes.imshow(layer.mask.cpu().numpy(), cmap="gray_r", aspect="auto", interpolation="nearest")
        axes.set(title=title, xlabel="from", ylabel="to")
    figure.suptitle("the masks: black weights stay, white ones are cut")
    run.picture("masks.png", figure)


# %% Notes
# Differs from the paper: degrees of hidden units are evenly spread, not drawn; the second hidden
# layer is added to the first; Adam with a rising and falling rate; images drawn anew at each step
# (the paper's are drawn once: about 2 nats apart, never compare); the class as an input. The
# direct weights are the paper's. On validation images after 6,000 steps of 128: without them and
# without adding the second layer 93.4 nats, with the layer added 87.8, with both 84.6.
#
# How much does the order matter? Hardly: NLL of test images by rows 81.94, by columns 82.43, in a
# random order 82.21. But the average of the three models is at 80.78: they err in different
# places.
#
# Things to break:
# 1. In `__init__`, put `pixels` instead of `pixels - 1` in `self.direct`: an output sees its own
#    pixel, the NLL falls below what any true probability can reach, and samples are noise.
# 2. In `main`, put (x[batch] > 127).float() instead of binarise(x[batch]): training falls far
#    below validation.
# 3. In `draw`, go through pixels.flip(0): the NLL is as before, samples are noise.
#
# References: before it, NADE (Larochelle & Murray 2011); layers that are added: Nash & Durkan
# 2019.


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
