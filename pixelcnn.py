# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""PixelCNN: masked convolutions (van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759).

Is the next pixel of a handwritten digit ink, if we know all rows above it and what is to its left?
We would look at the strokes close by. So does a convolution, with the same weights at every place.

As in made.py, an image x has 784 pixels, each ink (1) or paper (0), and is read like a page: row by
row, from left to right. The product rule takes the probability of an image of class y (which digit
it is) apart into one factor for each pixel:

    log p(x | y) = Σ_i log p(x_i | x_1, …, x_{i−1}, y)

The network reads the whole image and puts out all 784 p_i in one pass; p_i is the probability that
pixel i is ink, given the class and the pixels before i. The factor is p_i if x_i = 1, else 1 − p_i.

So output i must not see pixel i, nor any pixel after it. A plain convolution of 3 x 3 pixels sees
all nine. PixelCNN multiplies its weights by a mask, 1 where a pixel may be seen and 0 elsewhere:

    mask A    1 1 1        mask B    1 1 1
              1 0 0                  1 1 0
              0 0 0                  0 0 0

Mask A is for the first layer, which reads the pixels. It hides the pixel in the middle, which is to
be predicted, and all that come after it. What the first layer puts out at a place is made of
earlier pixels alone, so the layers after it may look at their own place as well: mask B. Still not
to the right: what stands there has seen the pixel in the middle.

The first layer sees four pixels. Each further layer sees more, for what it looks at has looked at
its own neighbours. Does the pixel @ see all pixels before it in the end? No. After one, two, three
layers (A, then B, B) it sees those marked 1 and misses those marked ?:

                              1 1 1 1 1 1 1
               1 1 1 1 1      1 1 1 1 1 1 ?
    1 1 1      1 1 1 1 ?      1 1 1 1 1 ? ?
    1 @ .      1 1 @ . .      1 1 1 @ . . .

A step to the right needs a step up. So the view has a slanted edge, however many layers there are,
and the wedge to the right of it stays unseen, though it comes before @: the blind spot. `seen_by`
shows it in this network; gated_pixelcnn.py mends it.

Training minimises the mean of −log p(x | y) over the images, the negative log-likelihood (NLL): by
the factors above, binary cross-entropy summed over the pixels. Logarithms are natural and their
unit is the nat: one nat less, and p(x | y) is e = 2.718 times as large. Lower is better.

Sampling draws pixel after pixel: compute p_1, draw x_1, put it in; compute p_2, and so on.

Run `python pixelcnn.py`; pictures appear in out/pixelcnn/. On MNIST and one core of an AMD EPYC
(bfloat16), the other one busy, it takes 754 seconds. Test images, nats: mean pixels (each by
itself) 206.00; NLL of this model 78.97 given the class, 81.15 a mean over classes (every 10th
image), 82.57 with --classes 1. A classifier finds the class asked for in 94.2 % of 5,000 samples.

Good at: likelihoods. Bad at: speed of sampling. Read before: made.py. Read next: gated_pixelcnn.py.
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
    parser.add_argument("--steps", type=int, default=14_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="images a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="of a masked layer: C")
    parser.add_argument("--layers", type=positive_int, default=7, help="residual blocks")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/pixelcnn", save_every=2000)  # --device, --resume ...: below
    return parse(parser, argv)


# %% Data
def binarise(images):
    """Draw ink (1) with probability grey level / 255, else paper (0)."""
    return torch.bernoulli(images / 255)


# %% Model
# A mask is multiplied with the weights. All masks have zeros below the middle row, so those rows
# are not stored: a kernel has its last row at the pixel's own row. Zeros around the image let the
# kernel stand at every pixel: `side` columns left and right, `above` rows on top, none below. The
# first kernel is 4 x 7 (of 7 x 7) and the others are 3 x 5 (of 5 x 5), for example with mask B:
#
#     1 1 1 1 1      two rows above
#     1 1 1 1 1      the row above
#     1 1 1 0 0      the pixel's own row: two to the left, itself, none to the right
#
# With each row up it reaches two columns further to the right, so the wedge is narrower.
class MaskedConv(nn.Conv2d):
    """A convolution whose output at a pixel depends on no pixel after it (section 3.4)."""

    def __init__(self, inputs, outputs, rows, columns, kind):
        super().__init__(inputs, outputs, (rows, columns))
        self.side = columns // 2
        self.above = rows - 1
        mask = torch.ones(rows, columns)
        mask[-1, self.side + 1 :] = 0  # to the right of the pixel
        if kind == "A":
            mask[-1, self.side] = 0  # the pixel itself
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        return self.on_padded(F.pad(x, (self.side, self.side, self.above, 0)))  # none below

    def on_padded(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias)


# Deep networks train well if each layer only adds something to what is there. A block reduces the
# 2C channels of h to C, where the masked convolution is cheap, and expands what it finds to 2C
# again (figure 5). The class comes in as a number added to each channel. Convolutions of 1 x 1 see
# their own place only, so they need no mask.
class Block(nn.Module):
    """A residual block: features h (B, 2C, 28, 28), given the class as one-hot, to new h."""

    def __init__(self, C, classes):
        super().__init__()
        self.reduce = nn.Conv2d(2 * C, C, 1)
        self.label = nn.Linear(classes, C)
        self.conv = MaskedConv(C, C, 3, 5, kind="B")
        self.expand = nn.Conv2d(C, 2 * C, 1)

    def looked_at(self, h, one_hot):
        """What the masked convolution looks at, (B, C, ...)."""
        label = self.label(one_hot)[:, :, None, None]  # the same at every place
        return F.relu(self.reduce(h) + label)

    def add(self, h, found):
        """h plus what the masked convolution has found."""
        return h + self.expand(F.relu(found))

    def forward(self, h, one_hot):
        found = self.conv(self.looked_at(h, one_hot))
        return self.add(h, found)


class PixelCNN(nn.Module):
    """p(x | y) of binary images x (B, 1, 28, 28) of classes y (B,), pixel by pixel."""

    def __init__(self, channels=32, layers=7, classes=10):
        super().__init__()
        self.classes = classes
        self.stem = MaskedConv(1, 2 * channels, 4, 7, kind="A")
        # A convolution does not know where in the image it is: a learned number for each place.
        self.place = nn.Parameter(torch.zeros(2 * channels, 28, 28))
        self.blocks = nn.ModuleList(Block(channels, classes) for _ in range(layers))
        self.head = nn.Conv2d(2 * channels, 1, 1)

    def forward(self, x, y):
        """The logit of ink at each pixel, (B, 1, 28, 28), from the class and the pixels before."""
        one_hot = F.one_hot(y, self.classes).float()
        h = self.stem(2 * x - 1)  # ink 1, paper −1: the zeros around the image are neither
        h = h + self.place.to(h.dtype)
        for block in self.blocks:
            h = block(h, one_hot)
        return self.head(F.relu(h)).float()  # back to float32 after bfloat16

    def log_prob(self, x, y):
        """log p(x | y), exact, nats (B,)."""
        log_factors = -F.binary_cross_entropy_with_logits(self(x, y), x, reduction="none")
        return log_factors.flatten(1).sum(1)  # over the pixels: the product rule

    @torch.no_grad()
    def sample(self, y):
        """Draw an image for each class in y (B,), pixel after pixel, (B, 1, 28, 28)."""
        x = torch.zeros(len(y), 1, 28, 28, device=y.device)
        for row in range(28):
            for column in range(28):
                p = self(x, y)[:, 0, row, column].sigmoid()  # of the pixels drawn so far
                x[:, 0, row, column] = torch.bernoulli(p)
        return x


# Which pixels does an output depend on? Those to which its gradient is not zero, in any of several
# images: in one alone, a ReLU may hide a pixel that counts in others.
@torch.enable_grad()
def seen_by(model, x, y, row, column):
    """True where a pixel of images x changes the output at (row, column): its view, (28, 28)."""
    x = x.clone().requires_grad_()
    outputs = model(x, y)[:, 0, row, column]
    (gradient,) = torch.autograd.grad(outputs.sum(), x)  # each depends on its own image only
    return (gradient[:, 0] != 0).any(0)


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


@torch.no_grad()
def log_prob_of_many(model, x, y):
    """log p(x | y), nats (N,), of more images than fit into memory at once."""
    parts = [model.log_prob(*part) for part in zip(x.split(100), y.split(100))]
    return torch.cat(parts)


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid, y_valid = binarise(x[n::5]), y[n::5]  # every fifth of them: all would take long
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    model = PixelCNN(args.channels, args.layers, args.classes)
    model.to(args.device, memory_format=torch.channels_last)  # how convolutions are fastest
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
            validation = -log_prob_of_many(model, x_valid, y_valid).mean()
            run.save(validation.item())
            samples = cached_sample(model, ten_classes(y).repeat(2))  # as model.sample, but faster
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


def load(path="out/pixelcnn/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = PixelCNN(flags["channels"], flags["layers"], flags["classes"])
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


# `sample` makes 784 passes and uses one number of each. But what a layer puts out at a place
# depends on earlier pixels only, so it never changes once it is computed. Keep, in a map, what each
# masked convolution looks at, and for the next pixel compute one place in every layer: all 784
# pixels together cost hardly more than one pass (Ramachandran et al. 2017, arXiv:1704.06001).
@torch.no_grad()
def cached_sample(model, y, x=None, known=0):
    """Draw images of classes y (B,), like `model.sample`; the first `known` rows are those of x."""
    x = torch.zeros(len(y), 1, 28, 28, device=y.device) if x is None else x.clone()
    one_hot = F.one_hot(y, model.classes).float()
    pixels = F.pad(2 * x - 1, (3, 3, 3, 0))
    maps = []  # what each block's convolution looks at, with the zeros around it
    for block in model.blocks:
        maps.append(torch.zeros(len(y), block.conv.in_channels, 28 + 2, 28 + 4, device=y.device))
    for row in range(28):
        for column in range(28):
            h = model.stem.on_padded(pixels[:, :, row : row + 4, column : column + 7])
            h = h + model.place[:, row, column, None, None]
            for block, seen in zip(model.blocks, maps):
                seen[:, :, row + 2, column + 2] = block.looked_at(h, one_hot)[:, :, 0, 0]
                found = block.conv.on_padded(seen[:, :, row : row + 3, column : column + 5])
                h = block.add(h, found)
            if row >= known:
                p = model.head(F.relu(h))[:, 0, 0, 0].sigmoid()
                x[:, 0, row, column] = torch.bernoulli(p)
            pixels[:, 0, row + 3, column + 3] = 2 * x[:, 0, row, column] - 1
    return x


@torch.no_grad()
def evaluate(run, model, x_train, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    print("test images, and every 10th of them with every class ...", flush=True)
    nll = -log_prob_of_many(model, x, y)
    by_class = []  # for the marginal, p(x) = Σ_y p(y) p(x | y) with p(y) = 1 / classes
    for label in range(model.classes):
        by_class.append(log_prob_of_many(model, x[::10], torch.full_like(y[::10], label)))
    marginal = torch.stack(by_class).logsumexp(0) - math.log(model.classes)
    ink = (x_train / 255).mean(0).clamp(0.001, 0.999).expand_as(x)  # as often as in training
    results = {
        "half ink, half paper, nats": 28 * 28 * math.log(2),
        "mean pixels, nats": 28 * 28 * F.binary_cross_entropy(ink, x).item(),
        "NLL, nats": nll.mean().item(),
        "NLL, standard error": nll.std().item() / len(x) ** 0.5,
    }
    if model.classes > 1:
        results["NLL, every 10th image, nats"] = nll[::10].mean().item()
        results["NLL, marginal over classes, every 10th image, nats"] = -marginal.mean().item()
    run.report(results)

    print("drawing samples, one pixel after the other ...", flush=True)
    samples = cached_sample(model, ten_classes(y).repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    pages = []
    for known in range(0, 29, 2):
        drawn = cached_sample(model, y[:10].repeat(2), x[:10].repeat(2, 1, 1, 1), known)
        title = f"digits; below, all but their first {known} rows drawn anew, twice"
        pages.append(grid(torch.cat([x[:10], drawn]), title))
    run.picture("completion.gif", *pages)

    view = seen_by(model, x[:10], y[:10], 14, 14)
    axes = Figure(figsize=(5, 5), layout="constrained").subplots()
    axes.imshow(view.cpu().numpy(), cmap="Blues", vmin=0, vmax=2)
    axes.plot(14, 14, "s", color="black")
    axes.text(21, 13.4, "blind spot")
    axes.set(title="blue: what the black pixel depends on", xlabel="column", ylabel="row")
    run.picture("blind_spot.png", axes.figure)


# %% Notes
# Differs from the paper: kernels of 5 x 5, not 3 x 3 (drafts of 130 seconds, validation: 81.7 nats,
# twelve layers of 3 x 3 82.5); no ReLU before `reduce` (81.5; with it 81.7); one convolution fewer
# at the end; a bias for each place; the class; digits drawn anew at each step; Adam.
#
# Things to break:
# 1. In `PixelCNN.__init__`, give the stem kind="B": a pixel sees itself, the loss falls to 0; in
#    sampling it sees paper in its place, and every image stays empty.
# 2. In `MaskedConv`, put `self.side + 2 :` instead of `self.side + 1 :`: features of the right
#    neighbour hold the pixel itself; the loss falls to 0, samples have nothing of a digit.
# 3. In `cached_sample`, exchange `row` and `column` in the two lines that begin with `for`: it
#    draws column after column, from features that are not there yet; the NLL is as before.


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
